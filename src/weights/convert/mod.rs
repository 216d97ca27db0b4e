//! Conversion to this program's own layout, in little memory: safetensors with mlx-video's names
//! (Blaizzy/mlx-video, `mlx_video/models/wan_2/convert.py`), linear layers in MLX's quantization.
//!
//! The source comes file by file and passes through memory piece by piece. The result grows in a
//! folder `NAME.partial`, remembers what is done, and gets its name when every byte of it has been
//! read back.

mod assign;
mod finished;
mod item;
mod manifest;
mod source;
mod state;
mod writer;

pub use assign::{Assignment, LayerKind};
pub use finished::{Finished, written_hashes};
pub use manifest::REPORT;
pub use source::{ConvertSource, LocalSource};
pub(crate) use state::write_whole;
pub use state::{Reserved, TensorReport, source_folder, unfinished_bytes};

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::item::Item;
use self::state::{FileState, Unfinished};
use self::writer::{OutTensor, Writer};
use super::adapter::Adapter;
use super::config::PartConfig;
use super::files::Files;
use super::part::{Part, Trouble, may_quantize, usizes};
use super::quantize::{GROUP_SIZE, Scheme};
use super::store::{Location, TensorStore};
use super::{PartName, quantize};
use crate::model::TensorSpec;
use crate::util::show::Show;

/// What the report names as its author.
const PROGRAM: &str = concat!("wan-i2v ", env!("CARGO_PKG_VERSION"));
/// Bytes after which what is done is made safe against a loss of power.
const SAVE_EVERY: u64 = 256 << 20;
/// Bytes that are hashed at a time.
const HASH_CHUNK: usize = 8 << 20;

/// Bits per weight of the linear layers inside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bits {
    /// MLX's affine quantization to 8 levels.
    Three,
    /// To 16 levels.
    Four,
    /// To 32 levels.
    Five,
    /// To 64 levels.
    Six,
    /// To 256 levels.
    Eight,
    /// bfloat16, or float16 where the source has it.
    Sixteen,
}

impl Bits {
    /// How many.
    pub fn number(self) -> u32 {
        match self {
            Bits::Three => 3,
            Bits::Four => 4,
            Bits::Five => 5,
            Bits::Six => 6,
            Bits::Eight => 8,
            Bits::Sixteen => 16,
        }
    }

    /// The quantization, when it is one.
    pub fn quantized(self) -> Option<quantize::Bits> {
        match self {
            Bits::Three => Some(quantize::Bits::Three),
            Bits::Four => Some(quantize::Bits::Four),
            Bits::Five => Some(quantize::Bits::Five),
            Bits::Six => Some(quantize::Bits::Six),
            Bits::Eight => Some(quantize::Bits::Eight),
            Bits::Sixteen => None,
        }
    }
}

/// What is made of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// For the high-noise expert; `None` keeps a quantized one and makes 16 bits of others.
    pub high: Option<Bits>,
    /// For the low-noise expert.
    pub low: Option<Bits>,
    /// For the text encoder.
    pub text: Option<Bits>,
    /// Bytes of the whole folder: within them each layer whose bits are not said gets those that its error is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Inputs that share a scale and a bias.
    #[serde(default = "usual_group", skip_serializing_if = "is_usual_group")]
    pub group_size: usize,
    /// The most bytes of one file, unless a single tensor needs more.
    pub file_bytes: u64,
}

fn usual_group() -> usize {
    GROUP_SIZE
}

fn is_usual_group(group_size: &usize) -> bool {
    *group_size == GROUP_SIZE
}

impl Default for Options {
    fn default() -> Self {
        Self {
            high: None,
            low: None,
            text: None,
            size: None,
            group_size: GROUP_SIZE,
            file_bytes: u64::MAX,
        }
    }
}

impl Options {
    /// Whether some layer gets so few bits that its scales are searched for.
    fn searches(&self) -> bool {
        let few = |bits: &Bits| bits.number() < 8;
        self.size.is_some() || [self.high, self.low, self.text].iter().flatten().any(few)
    }

    fn bits(&self, name: PartName) -> Option<Bits> {
        match name {
            PartName::HighNoise | PartName::Transformer => self.high,
            PartName::LowNoise => self.low,
            PartName::TextEncoder => self.text,
            PartName::Vae | PartName::ImageEncoder => None,
        }
    }
}

impl Options {
    /// About how many bytes a part of this configuration becomes, which has `source_bytes` now.
    ///
    /// # Errors
    /// When the configuration is not supported.
    pub fn result_bytes(
        &self,
        name: PartName,
        config: &PartConfig,
        source_bytes: u64,
    ) -> Result<u64> {
        let specs = config.specs()?;
        let elements = |spec: &TensorSpec| spec.shape.iter().map(|&d| d as u64).product::<u64>();
        let all: u64 = specs.iter().map(elements).sum();
        let (mut packed, mut wide) = (0, 0);
        for spec in &specs {
            match may_quantize(name.kind(), &spec.name, &usizes(&spec.shape)) {
                true => packed += elements(spec),
                false => wide += elements(spec),
            }
        }
        let group_size = self.group_size;
        let packed_bytes = match self.bits(name).and_then(Bits::quantized) {
            Some(bits) => Scheme { bits, group_size }.bytes(packed as usize) as u64,
            None => 2 * packed,
        };
        // What is not quantized keeps its type.
        let wide_bytes = if source_bytes > 3 * all { 4 } else { 2 };
        Ok(packed_bytes + wide * wide_bytes)
    }
}

/// What a conversion tells while it runs.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// It goes on where a former run stopped.
    Resumed,
    /// So many bytes of the source will be sampled, before anything is converted.
    Measuring(u64),
    /// So many bytes of the source will be read.
    Total(u64),
    /// A file of the source with so many bytes is being fetched.
    Fetching(&'a str, u64),
    /// So many further bytes of it are there.
    Fetched(u64),
    /// A file of a part is being converted.
    File(PartName, &'a str),
    /// So many further bytes have been read, or read back.
    Read(u64),
    /// A file of the source with so many bytes was done with by a former run.
    Skipped(u64),
    /// So many further bytes of a file were read by a former run.
    Known(u64),
    /// So many bytes of the result will be read back.
    Verifying(u64),
}

/// What was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Bytes of the tensors written.
    pub bytes: u64,
    /// Each part with the largest relative error of one of its tensors.
    pub parts: Vec<(PartName, f64)>,
    /// What kinds of layers were given, where a size was asked for.
    pub layers: Vec<LayerKind>,
}

/// Converts what `feed` brings into the folder `target`.
///
/// # Errors
/// When a tensor is missing, unexpected, misshapen or not finite, the disk refuses, or the target
/// is there already. What is done stays in the unfinished folder and is not done again.
pub fn convert(
    feed: &mut dyn ConvertSource,
    target: &Path,
    options: &Options,
    on_event: &mut dyn FnMut(Event),
) -> Result<Converted> {
    convert_into(Reserved::new(target)?, feed, options, on_event)
}

/// As [`convert`], into what has been reserved.
///
/// # Errors
/// As there.
pub fn convert_into(
    target: Reserved,
    feed: &mut dyn ConvertSource,
    options: &Options,
    on_event: &mut dyn FnMut(Event),
) -> Result<Converted> {
    let mut identity = json!({
        "source": feed.identity(),
        "options": options,
        "version": env!("CARGO_PKG_VERSION"),
    });
    if options.searches() {
        // Once the scales spanned each group; half a folder of those is not gone on with.
        identity["scales"] = json!("least squares");
    }
    let mut work = Unfinished::open(target, &identity)?;
    if work.resumed {
        on_event(Event::Resumed);
    }
    if let Some(size) = options.size
        && work.state.assignment.is_empty()
    {
        work.state.assignment = assign::assign(feed, options, size, on_event)?;
        work.save()?;
    }
    on_event(Event::Total(feed.total_bytes()));
    for name in feed.parts() {
        convert_part(feed, name, options, &mut work, on_event)?;
    }
    verify(&work, on_event)?;
    let converted = manifest::write(feed, options, &work)?;
    feed.close()?;
    work.finish()?;
    Ok(converted)
}

fn convert_part(
    feed: &mut dyn ConvertSource,
    name: PartName,
    options: &Options,
    work: &mut Unfinished,
    on_event: &mut dyn FnMut(Event),
) -> Result<()> {
    for shard in 0..feed.shards(name) {
        if work.state.shards_done.contains(&(name, shard)) {
            on_event(Event::Skipped(feed.shard_bytes(name, shard)));
            feed.release(name, shard)?;
            continue;
        }
        let part = feed.open(name, shard, on_event)?;
        on_event(Event::File(name, &part.store().location().to_string()));
        if let Entry::Vacant(place) = work.state.configs.entry(name) {
            place.insert(feed.config(name, &part)?);
        }
        convert_shard(
            &part,
            (name, shard),
            feed.adapters(name),
            options,
            work,
            on_event,
        )?;
        drop(part);
        work.state.shards_done.push((name, shard));
        work.save()?;
        feed.release(name, shard)?;
    }
    // A share may lack what another has; all together must have everything.
    let done: BTreeSet<&str> = work
        .state
        .files
        .iter()
        .filter(|file| file.part == name)
        .flat_map(|file| file.tensors.iter().map(|tensor| tensor.name.as_str()))
        .collect();
    let missing: Vec<String> = work
        .config(name)?
        .specs()?
        .into_iter()
        .filter(|spec| !done.contains(spec.name.as_str()))
        .map(|spec| spec.name)
        .collect();
    ensure!(
        missing.is_empty(),
        "the {name} lacks {} tensors, the first of them {}",
        missing.len(),
        missing[0]
    );
    Ok(())
}

fn convert_shard(
    part: &Part,
    (name, shard): (PartName, usize),
    adapters: &[Adapter],
    options: &Options,
    work: &mut Unfinished,
    on_event: &mut dyn FnMut(Event),
) -> Result<()> {
    let specs = work.config(name)?.specs()?;
    let assigned = work.state.assignment.get(&name);
    let bits_of = |tensor: &str| {
        let own = assigned.and_then(|layers| layers.get(tensor).copied());
        own.or(options.bits(name))
    };
    let mut items = Vec::new();
    for spec in &specs {
        match part.find(&spec.name, &usizes(&spec.shape)) {
            Ok(found) => {
                items.push(Item::plan(
                    spec,
                    &found,
                    part,
                    bits_of(&spec.name),
                    options.group_size,
                    adapters,
                )?);
            }
            Err(Trouble::Missing(_)) => {}
            Err(Trouble::Wrong(text)) => bail!("{}: {text}", part.store().location()),
        }
    }
    let extra = part.problems(&specs).extra;
    ensure!(
        extra.is_empty(),
        "{}: unexpected: {}",
        part.store().location(),
        extra.join(", ")
    );
    for (number, items) in files_of(items, options.file_bytes).into_iter().enumerate() {
        let file = format!("{}-{shard:05}-{number:05}.safetensors", name.key());
        fill(
            (part, adapters),
            &items,
            (name, shard, file),
            work,
            on_event,
        )?;
    }
    Ok(())
}

/// Cuts the list where a file would become too large.
fn files_of(items: Vec<Item>, most: u64) -> Vec<Vec<Item>> {
    let mut files: Vec<Vec<Item>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = item.byte_len();
        match files.last_mut() {
            Some(file) if bytes + size <= most => {
                file.push(item);
                bytes += size;
            }
            _ => {
                files.push(vec![item]);
                bytes = size;
            }
        }
    }
    files
}

/// Writes one file, or what is left of it.
fn fill(
    (part, adapters): (&Part, &[Adapter]),
    items: &[Item],
    (name, shard, file): (PartName, usize, String),
    work: &mut Unfinished,
    on_event: &mut dyn FnMut(Event),
) -> Result<()> {
    let at = work.state.files.iter().position(|f| f.name == file);
    let index = at.unwrap_or_else(|| {
        work.state.files.push(FileState {
            part: name,
            shard,
            name: file.clone(),
            tensors: Vec::new(),
            complete: false,
        });
        work.state.files.len() - 1
    });
    let done = work.state.files[index].tensors.len();
    ensure!(
        done <= items.len(),
        "{file}: more tensors are done than it has\nhint: remove {}",
        work.folder.shown()
    );
    for item in &items[..done] {
        on_event(Event::Known(item.source_bytes));
    }
    if work.state.files[index].complete {
        return Ok(());
    }
    let tensors: Vec<OutTensor> = items.iter().flat_map(|i| i.tensors.clone()).collect();
    let path = work.folder.join(&file);
    let mut writer = Writer::open(&path, &tensors, done > 0)?;
    let mut first = items[..done].iter().map(|i| i.tensors.len()).sum();
    let mut unsaved = 0;
    for item in &items[done..] {
        let errors = item.write(part, adapters, &mut writer, first, &mut |bytes| {
            on_event(Event::Read(bytes));
        })?;
        work.state.files[index].tensors.push(TensorReport {
            name: item.name.clone(),
            from: item.from.clone(),
            to: item.label(),
            shape: item.shape().to_vec(),
            max_error: errors.max,
            relative_error: errors.relative(),
            blake3: item
                .tensors
                .iter()
                .enumerate()
                .map(|(i, tensor)| (tensor.name.clone(), writer.digest(first + i)))
                .collect(),
        });
        first += item.tensors.len();
        unsaved += item.byte_len();
        if unsaved >= SAVE_EVERY {
            writer.sync()?;
            work.save()?;
            unsaved = 0;
        }
    }
    writer.sync()?;
    work.state.files[index].complete = true;
    work.save()
}

/// Reads every written byte back and compares it with what was meant.
fn verify(work: &Unfinished, on_event: &mut dyn FnMut(Event)) -> Result<()> {
    let mut stores = Vec::new();
    for file in &work.state.files {
        let location = Location {
            files: Files::from(work.folder.as_path()),
            names: vec![manifest::current_name(work, file)],
            index: None,
        };
        stores.push((file, TensorStore::open(&location)?));
    }
    on_event(Event::Verifying(
        stores.iter().map(|(_, store)| store.file_bytes()).sum(),
    ));
    for (file, store) in &stores {
        let wanted = file.tensors.iter().flat_map(|tensor| &tensor.blake3);
        for (name, digest) in wanted {
            let entry = store
                .entries()
                .get(name)
                .with_context(|| format!("{}: the tensor {name} is missing", file.name))?;
            let mut hasher = blake3::Hasher::new();
            let mut at = 0;
            for chunk in store.bytes(entry).chunks(HASH_CHUNK) {
                hasher.update(chunk);
                store.release(entry, at..at + chunk.len());
                at += chunk.len();
                on_event(Event::Read(chunk.len() as u64));
            }
            ensure!(
                hasher.finalize().to_hex().as_str() == digest,
                "{}: the tensor {name} is not what was written; the disk or the memory is at \
                 fault\nhint: remove {} and start again",
                file.name,
                work.folder.shown()
            );
        }
    }
    Ok(())
}
