//! Tensors of one part of a model by their stored names, mapped from one or several files.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::Deserialize;

use super::container::encoding::Encoding;
use super::container::header::{Header, Record};
use super::container::{gguf, pth, safetensors, stand_in};
use super::files::{Bytes, Files};
use crate::util::show::Show;
use crate::util::suggest::did_you_mean_path;

/// How a file holds its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Hugging Face's safetensors.
    Safetensors,
    /// PyTorch's zip archive with a pickle.
    Pth,
    /// llama.cpp's GGUF.
    Gguf,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::Safetensors => "safetensors",
            Container::Pth => "PyTorch",
            Container::Gguf => "GGUF",
        })
    }
}

/// Ends of the names of files that may hold tensors.
const EXTENSIONS: [&str; 7] = [
    ".safetensors",
    ".sft",
    ".gguf",
    ".pth",
    ".pt",
    ".bin",
    ".ckpt",
];

/// Whether a file may hold tensors, by the end of its name.
pub fn may_hold_tensors(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    EXTENSIONS.iter().any(|end| name.ends_with(end))
}

/// What a shard's name `STEM-0000N-of-0000M.END` says: stem, number, how many there are, end.
fn shard(name: &str) -> Option<(&str, usize, usize, &str)> {
    let (rest, end) = name.rsplit_once('.')?;
    let (rest, total) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (number, total) = match is_number(number) && is_number(total) {
        true => (number.parse().ok()?, total.parse().ok()?),
        false => return None,
    };
    (total > 1).then_some((stem, number, total, end))
}
/// Samples of a large file that its fingerprint is made from.
const SAMPLES: usize = 256;
/// Bytes of each.
const SAMPLE_BYTES: usize = 16 << 10;
/// Bytes in the middle of each tensor that it is made from.
const TENSOR_SAMPLE_BYTES: usize = 64;
const INDEX: &str = ".safetensors.index.json";

/// Where the tensors of one part of a model lie: files of one folder.
#[derive(Clone, Debug)]
pub struct Location {
    /// The folder.
    pub files: Files,
    /// Its files that hold the tensors.
    pub names: Vec<String>,
    /// The index that lists them, when there is one.
    pub index: Option<String>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.as_slice() {
            [one] => f.write_str(&self.files.name(one)),
            _ => self.files.fmt(f),
        }
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Location {
    /// A file, or a folder with one part of a model: the shards that its index lists, or the one
    /// file there is.
    ///
    /// # Errors
    /// When there is no such thing, or more than one candidate.
    pub fn at(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::in_folder(Files::from(path));
        }
        ensure!(
            path.is_file(),
            "{}: no such file or folder{}",
            path.shown(),
            did_you_mean_path(path)
        );
        let (files, name) = Files::holding(path);
        if name.ends_with(INDEX) {
            return Self::of_index(files, &name);
        }
        // A shard stands for all that belong to it.
        let whole = shard(&name).and_then(|_| {
            let mut found = Self::all_in(&files).ok()?.into_iter();
            found.find(|location| location.names.contains(&name))
        });
        let one = Self {
            files,
            names: vec![name],
            index: None,
        };
        let location = whole.unwrap_or(one);
        location.check_whole()?;
        Ok(location)
    }

    /// Refuses shards without an index of which not all are there.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check_whole(&self) -> Result<()> {
        let first = self.names.first().filter(|_| self.index.is_none());
        let Some((stem, _, total, end)) = first.and_then(|name| shard(name)) else {
            return Ok(());
        };
        let names = (1..=total).map(|number| format!("{stem}-{number:05}-of-{total:05}.{end}"));
        match names.into_iter().find(|name| !self.names.contains(name)) {
            None => Ok(()),
            Some(missing) => bail!(
                "{}: not found; expected all {total} shards, and there are {}\nhint: download it",
                self.files.name(&missing),
                self.names.len()
            ),
        }
    }

    /// As [`Self::at`], for a folder wherever it is.
    pub fn in_folder(files: Files) -> Result<Self> {
        let mut found = Self::all_in(&files)?;
        // diffusers' and transformers' names come first: variants such as fp16 may lie beside them.
        for usual in ["diffusion_pytorch_model", "model"] {
            let is_usual = |l: &&Self| {
                l.index.as_deref() == Some(&format!("{usual}{INDEX}"))
                    || (l.index.is_none() && l.names == [format!("{usual}.safetensors")])
                    || (l.index.is_none()
                        && shard(&l.names[0]).is_some_and(|(stem, ..)| stem == usual))
            };
            if let Some(location) = found.iter().find(is_usual) {
                location.check_whole()?;
                return Ok(location.clone());
            }
        }
        match found.len() {
            1 => {
                let location = found.remove(0);
                location.check_whole()?;
                Ok(location)
            }
            0 => bail!(
                "{files}: no file with tensors; expected one of {}, or safetensors shards with \
                 an index",
                EXTENSIONS.join(", ")
            ),
            several => bail!(
                "{files}: found {several} candidates ({}); expected one file, or shards with one \
                 {INDEX}\nhint: name the one you mean",
                found
                    .iter()
                    .map(|l| l.index.clone().unwrap_or_else(|| l.names.join(", ")))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }
    }

    /// Every candidate in a folder: each index with its shards, shards that belong together without
    /// one, and each other file that no index lists.
    pub fn all_in(files: &Files) -> Result<Vec<Self>> {
        let names = files.names()?;
        let mut found = names
            .iter()
            .filter(|name| name.ends_with(INDEX))
            .map(|index| Self::of_index(files.clone(), index))
            .collect::<Result<Vec<_>>>()?;
        let listed: Vec<String> = found.iter().flat_map(|l| l.names.clone()).collect();
        let mut sets: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for name in names {
            if may_hold_tensors(&name) && !listed.contains(&name) && files.has(&name) {
                let set = shard(&name).map(|(stem, _, total, end)| format!("{stem}.{total}.{end}"));
                // What belongs to no set is alone.
                let key = set.unwrap_or_else(|| name.clone());
                sets.entry(key).or_default().push(name);
            }
        }
        let mut sets: Vec<Vec<String>> = sets.into_values().collect();
        sets.sort();
        found.extend(sets.into_iter().map(|names| Self {
            files: files.clone(),
            names,
            index: None,
        }));
        Ok(found)
    }

    fn of_index(files: Files, index: &str) -> Result<Self> {
        let path = files.name(index);
        let weight_map = files.json::<ShardIndex>(index)?.weight_map;
        let mut names: Vec<String> = weight_map.into_values().collect();
        names.sort();
        names.dedup();
        ensure!(!names.is_empty(), "{path}: lists no tensor");
        for shard in &names {
            ensure!(
                !shard.contains(['/', '\\']) && files.has(shard),
                "{path}: lists the shard {shard:?}, which is not in the folder\nhint: download it"
            );
        }
        Ok(Self {
            files,
            names,
            index: Some(index.to_owned()),
        })
    }
}

/// What a file's title stands under in its header: ModelSpec's (Stability-AI/ModelSpec), kohya's and GGUF's
/// names. Descriptions are none: they may speak of other models.
const TITLES: [&str; 6] = [
    "modelspec.title",
    "ss_output_name",
    "general.name",
    "general.basename",
    "title",
    "name",
];

/// What a file with tensors, or those of a folder, call themselves in their headers; what cannot be
/// read calls itself nothing.
pub fn titles(path: &Path) -> Vec<String> {
    let found = match path.is_dir() {
        false => Location::at(path).into_iter().collect(),
        true => {
            let root = Files::from(path);
            let folders = root.folders().unwrap_or_default();
            let below = folders.iter().map(|folder| root.sub(folder));
            let all = std::iter::once(root.clone()).chain(below);
            all.flat_map(|files| Location::all_in(&files).unwrap_or_default())
                .collect::<Vec<_>>()
        }
    };
    let stores = found.iter().filter_map(|at| TensorStore::open(at).ok());
    let titles = stores.flat_map(|store| TITLES.map(|key| store.metadata().get(key).cloned()));
    titles.flatten().collect()
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub struct Entry {
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    map: usize,
    start: usize,
    end: usize,
    /// The record with a checksum that it is a part of.
    record: Option<usize>,
}

impl Entry {
    /// Bytes in the file.
    pub fn byte_len(&self) -> usize {
        self.end - self.start
    }
}

/// The tensors of one part of a model.
#[derive(Debug)]
pub struct TensorStore {
    location: Location,
    maps: Vec<Bytes>,
    container: Container,
    entries: BTreeMap<String, Entry>,
    records: Vec<Checked>,
    metadata: BTreeMap<String, String>,
}

/// Bytes of a file with a checksum, which is compared when they are first wanted.
#[derive(Debug)]
struct Checked {
    map: usize,
    record: Record,
    is_right: OnceLock<bool>,
}

impl TensorStore {
    /// Maps the files and reads their headers.
    ///
    /// # Errors
    /// Names the file that is missing, malformed or at odds with the index.
    pub fn open(location: &Location) -> Result<Self> {
        let mut store = Self {
            location: location.clone(),
            maps: Vec::new(),
            container: Container::Safetensors,
            entries: BTreeMap::new(),
            records: Vec::new(),
            metadata: BTreeMap::new(),
        };
        for name in &location.names {
            store.map(name)?;
        }
        if let Some(index) = &location.index {
            let path = location.files.name(index);
            let weight_map = location.files.json::<ShardIndex>(index)?.weight_map;
            for (tensor, shard) in &weight_map {
                let entry = store.entries.get(tensor);
                ensure!(
                    entry.is_some_and(|entry| location.names.get(entry.map) == Some(shard)),
                    "{path}: lists the tensor {tensor} in {shard}, which does not hold it"
                );
            }
        }
        Ok(store)
    }

    fn map(&mut self, name: &str) -> Result<()> {
        let path = self.location.files.name(name);
        let map = self.location.files.map(name)?;
        let (container, header) = read_header(&map).with_context(|| path.clone())?;
        for tensor in header.tensors {
            let record = tensor.record.map(|record| {
                self.records.push(Checked {
                    map: self.maps.len(),
                    record,
                    is_right: OnceLock::new(),
                });
                self.records.len() - 1
            });
            let entry = Entry {
                encoding: tensor.encoding,
                shape: tensor.shape,
                map: self.maps.len(),
                start: tensor.start,
                end: tensor.end,
                record,
            };
            let name = match container {
                Container::Gguf => of_gguf(tensor.name),
                _ => of_quanto(tensor.name),
            };
            let len = entry.encoding.byte_len(&entry.shape);
            ensure!(
                entry.end <= map.len() && entry.start <= entry.end && len == Some(entry.byte_len()),
                "{path}: the tensor {} is cut off\nhint: download the file again",
                name.shown()
            );
            ensure!(
                self.entries.insert(name.clone(), entry).is_none(),
                "{path}: the tensor {} stands in another shard too; expected it once",
                name.shown()
            );
        }
        self.container = container;
        self.metadata.extend(header.metadata);
        self.maps.push(map);
        Ok(())
    }

    /// Makes three tensors of each whose name contains `whole`, which is replaced: its rows lie one third
    /// below the other.
    pub(super) fn take_apart(&mut self, whole: &str, thirds: [&str; 3]) {
        let is_one = |name: &&String, entry: &Entry| {
            let rows = entry.shape.first().copied().unwrap_or(0);
            name.contains(whole) && rows.is_multiple_of(3) && entry.byte_len().is_multiple_of(3)
        };
        let found = self
            .entries
            .iter()
            .filter(|(name, entry)| is_one(name, entry));
        let names: Vec<String> = found.map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(entry) = self.entries.remove(&name) else {
                continue;
            };
            let bytes = entry.byte_len() / 3;
            for (index, third) in thirds.into_iter().enumerate() {
                let mut part = entry.clone();
                part.shape[0] /= 3;
                part.start += index * bytes;
                part.end = part.start + bytes;
                self.entries.insert(name.replacen(whole, third, 1), part);
            }
        }
    }

    /// Where the tensors are.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// How the files hold them.
    pub fn container(&self) -> Container {
        self.container
    }

    /// Every tensor by its stored name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// What the headers say besides.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The name of the file that holds a tensor.
    pub fn file_of(&self, entry: &Entry) -> &str {
        &self.location.names[entry.map]
    }

    /// The bytes of a tensor, little-endian, row-major.
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.maps[entry.map][entry.start..entry.end]
    }

    /// Whether the container has a checksum of a tensor's bytes.
    pub fn has_checksum(&self, entry: &Entry) -> bool {
        entry.record.is_some()
    }

    /// Compares a tensor's bytes with their checksum, where the container has one.
    ///
    /// # Errors
    /// When they are not what was written.
    pub fn verify(&self, name: &str, entry: &Entry) -> Result<()> {
        let Some(checked) = entry.record.map(|index| &self.records[index]) else {
            return Ok(());
        };
        let is_right = checked.is_right.get_or_init(|| {
            let Record { start, end, crc32 } = checked.record;
            rawzip::crc32(&self.maps[checked.map][start..end]) == crc32
        });
        ensure!(
            is_right,
            "{}: the tensor {} is damaged: its bytes do not have the checksum that the archive \
             names\nhint: download the file again",
            self.location,
            name.shown()
        );
        Ok(())
    }

    /// Whether every value of a tensor is a finite number.
    pub fn is_finite(&self, entry: &Entry) -> bool {
        /// Elements that a core looks at; a multiple of every block.
        const CHUNK: usize = 1 << 22;
        let encoding = entry.encoding;
        let chunk = encoding.block_bytes() * CHUNK / encoding.block_elements();
        self.bytes(entry)
            .par_chunks(chunk)
            .all(|chunk| encoding.first_non_finite(chunk).is_none())
    }

    /// Lets the machine forget `range` of a tensor's bytes, which count as this program's memory
    /// once they have been read.
    pub fn release(&self, entry: &Entry, range: Range<usize>) {
        let start = (entry.start + range.start).min(entry.end);
        let end = (entry.start + range.end).min(entry.end);
        self.maps[entry.map].release(start..end);
    }

    /// A hash that tells these files from others without reading them whole: of every tensor's
    /// name, encoding, shape, place and middle bytes, of the files' sizes, and of samples of their
    /// bytes. Neither the files' names nor their times have a part in it.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in &self.entries {
            hasher.update(format!("{name} {entry:?}\n").as_bytes());
            let bytes = self.bytes(entry);
            let middle = bytes.len() / 2;
            let sample = middle..bytes.len().min(middle + TENSOR_SAMPLE_BYTES);
            hasher.update(&bytes[sample]);
        }
        for map in &self.maps {
            hasher.update(&map.len().to_le_bytes());
            if map.len() <= SAMPLES * SAMPLE_BYTES {
                hasher.update(map);
                continue;
            }
            let stride = (map.len() - SAMPLE_BYTES) / (SAMPLES - 1);
            for index in 0..SAMPLES {
                let start = index * stride;
                hasher.update(&map[start..start + SAMPLE_BYTES]);
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Bytes of all files that are to be read from a disk first, as far as the machine says.
    pub fn absent_bytes(&self) -> u64 {
        let absent = self.maps.iter().flat_map(Bytes::absent);
        absent.map(|range| range.len() as u64).sum()
    }

    /// Reads some of these bytes, a few at a time on each core as loading does; says how many, and the
    /// seconds. Nothing where there are too few.
    pub fn time_reading(&self) -> Option<(u64, f64)> {
        const ENOUGH: usize = 64 << 20;
        const LEAST: usize = 8 << 20;
        const CHUNK: usize = 4 << 20;
        const PAGE: usize = 4 << 10;
        let in_map = |map: &Bytes| map.absent().into_iter().max_by_key(Range::len);
        let longest = self.maps.iter().filter_map(|map| Some((map, in_map(map)?)));
        let (map, range) = longest.max_by_key(|(_, range)| range.len())?;
        let bytes = &map[range.start..range.end.min(range.start + ENOUGH)];
        if bytes.len() < LEAST {
            return None;
        }
        let start = Instant::now();
        let sum = bytes.par_chunks(CHUNK).map(|chunk| {
            let pages = chunk.iter().step_by(PAGE);
            pages.map(|byte| u64::from(*byte)).sum::<u64>()
        });
        std::hint::black_box(sum.sum::<u64>());
        Some((bytes.len() as u64, start.elapsed().as_secs_f64()))
    }

    /// The content of the file, when it is one.
    pub fn only_file(&self) -> Option<&[u8]> {
        match self.maps.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.maps.iter().map(|map| map.len() as u64).sum()
    }
}

/// quanto's name of a tensor (huggingface/optimum-quanto, `optimum/quanto/tensor`) as others have it: an
/// int8 or float8 weight with its scale beside it.
fn of_quanto(name: String) -> String {
    let renamed = [("._data", ""), ("._scale", "_scale")]
        .iter()
        .find_map(|(old, new)| {
            let weight = name.strip_suffix(old)?;
            weight
                .ends_with(".weight")
                .then(|| format!("{weight}{new}"))
        });
    renamed.unwrap_or(name)
}

/// llama.cpp's name of what multiplies a weight's products (`conversion/base.py`) as others have it.
fn of_gguf(name: String) -> String {
    match name.strip_suffix(".scale") {
        Some(module) => format!("{module}.weight_scale"),
        None => name,
    }
}

/// Reads the header of a file of any kind, told by its first bytes.
fn read_header(file: &[u8]) -> Result<(Container, Header)> {
    const ZIP: &[u8] = b"PK\x03\x04";
    const PICKLE: u8 = 0x80;
    if file.starts_with(b"GGUF") {
        return Ok((Container::Gguf, gguf::header(file)?));
    }
    // The reader of archives also knows what to say of PyTorch's older formats. A safetensors file
    // begins with the length of its header, which can look like a pickle's start, and then has JSON.
    let is_pickle = file.first() == Some(&PICKLE) && file.get(1) < Some(&8);
    if file.starts_with(ZIP) || (is_pickle && file.get(8) != Some(&b'{')) {
        return Ok((Container::Pth, pth::header(file)?));
    }
    // No second download would make a model of these.
    stand_in::refuse(file)?;
    Ok((Container::Safetensors, safetensors::header(file)?))
}
