//! Checkpoints on disk: names, layouts and dtypes. Hands out tensors, strictly.
//!
//! A file's [`container::header`] says what it holds, whatever its container ([`container::safetensors`], [`container::pth`],
//! [`container::gguf`]) and its elements' [`container::encoding`]. [`layout`] finds the parts of a model in a folder,
//! [`naming`] knows whose names a part's tensors have, and a [`part::Part`] finds every tensor of a
//! network under its canonical name.

pub mod adapter;
pub mod config;
pub mod container;
pub mod convert;
mod family;
mod files;
mod fingerprint;
pub mod inspect;
pub mod layout;
pub mod naming;
pub mod part;
pub mod published;
pub mod quantize;
mod repack;
mod settings;
pub mod store;
mod timing;

pub use container::mapped::mapped_at;
pub use family::{Conditioning, Family, MASK_CHANNELS};
pub use files::{Bytes, EmbeddedFile, Files};
pub use layout::PartName;
pub use quantize::{Bits, Scheme};
pub use settings::{FILE as SETTINGS, Recommended};
pub use timing::Format;

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use self::adapter::{Adapters, Wanted};
use self::config::PartConfig;
use self::container::gguf;
use self::layout::{Layout, MODEL_INDEX, Named, TokenizerAt};
use self::naming::Kind;
use self::part::{Held, Loader, Part};
use self::store::Location;
use crate::model::clip_vision::{ClipVision, ClipVisionConfig};
use crate::model::dit::{Dit, DitConfig};
use crate::model::umt5::{Umt5, Umt5Config};
use crate::model::vae::{self, VaeConfig, VaeDecoder, VaeEncoder};
use crate::model::{Recorder, TensorSpec};
use crate::runtime::Device;
pub use crate::sampling::Expert;
use crate::sampling::Schedule;
use crate::text::{Arrays, Tokenizer};
use crate::util::show::Show;

impl From<Expert> for PartName {
    fn from(expert: Expert) -> Self {
        match expert {
            Expert::HighNoise => PartName::HighNoise,
            Expert::LowNoise => PartName::LowNoise,
            Expert::Single => PartName::Transformer,
        }
    }
}

/// The most latent rows per token; a clip's sides are multiples of eight times this.
const MAX_PATCH: i32 = 64;

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    boundary_ratio: Option<f64>,
}

/// Where the parts of a model are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The folder of a model; what the other fields name is taken from there instead.
    pub model: Option<PathBuf>,
    /// A file or folder for each part, in the order of [`PartName::ALL`].
    pub parts: [Option<PathBuf>; 6],
    /// A tokenizer file, or a folder with one.
    pub tokenizer: Option<PathBuf>,
}

impl Sources {
    /// Everything from one folder.
    pub fn folder(root: impl Into<PathBuf>) -> Self {
        Self {
            model: Some(root.into()),
            ..Self::default()
        }
    }
}

/// How a model is loaded, beside what its files hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loading {
    /// How the linear layers of the high-noise expert, or the only transformer, are quantized while it is loaded;
    /// `None` keeps what the files hold.
    pub high: Option<Scheme>,
    /// Of the low-noise expert.
    pub low: Option<Scheme>,
    /// Of the text encoder.
    pub text: Option<Scheme>,
    /// Adapters of the experts, in the order in which they are applied.
    pub adapters: Vec<Wanted>,
    /// Whether quantized weights take the adapters' changes in.
    pub merges: bool,
}

impl Loading {
    /// The same for every part.
    pub fn all(scheme: impl Into<Scheme>) -> Self {
        let scheme = Some(scheme.into());
        Self {
            high: scheme,
            low: scheme,
            text: scheme,
            ..Self::default()
        }
    }

    /// How a part is quantized.
    pub fn of(&self, name: PartName) -> Option<Scheme> {
        match name {
            PartName::HighNoise | PartName::Transformer => self.high,
            PartName::LowNoise => self.low,
            PartName::TextEncoder => self.text,
            PartName::Vae | PartName::ImageEncoder => None,
        }
    }
}

/// A checkpoint whose configuration and tensor headers have been checked. Holds no weights.
#[derive(Debug)]
pub struct Checkpoint {
    layout: Layout,
    loading: Loading,
    adapters: Adapters,
    /// Which model it is.
    pub family: &'static Family,
    /// The transformers and their dimensions: two experts, or one.
    pub experts: Vec<(Expert, DitConfig)>,
    /// Dimensions of the VAE.
    pub vae: VaeConfig,
    /// Dimensions of the text encoder.
    pub text_encoder: Umt5Config,
    /// Dimensions of the image encoder, of a model whose transformer attends to features of pictures.
    pub image_encoder: Option<ClipVisionConfig>,
    /// Timesteps at or above this one belong to the high-noise expert, where there are two.
    pub boundary_timestep: f64,
    /// What the model recommends to be run with.
    pub settings: Recommended,
    /// See [`Self::part_fingerprint`].
    fingerprints: OnceLock<Vec<String>>,
    /// Ids of the tokenizer, once it has been read.
    tokenizer_ids: OnceLock<usize>,
    /// What was computed of weights' sizes: a search for settings that fit asks a thousand times.
    held: Remembered<(PartName, Device), Held>,
    vae_held: Remembered<Device, (u64, u64)>,
    formats: Remembered<PartName, Format>,
    absent: Remembered<PartName, u64>,
}

/// Values by what they were computed for, which are few.
#[derive(Debug)]
struct Remembered<K, V>(Mutex<Vec<(K, V)>>);

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, V: Copy> Remembered<K, V> {
    fn get(&self, key: K, compute: impl FnOnce() -> Result<V>) -> Result<V> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known()
            .iter()
            .find(|(other, _)| *other == key)
            .map(|(_, value)| *value);
        match found {
            Some(value) => Ok(value),
            None => {
                let value = compute()?;
                known().push((key, value));
                Ok(value)
            }
        }
    }
}

impl Checkpoint {
    /// Finds the parts of a model, reads every configuration and tensor header and checks that
    /// every tensor of the architecture is there, once, with the right shape, and no other.
    ///
    /// # Errors
    /// Names the file, tensor or field, what was found and what was expected.
    pub fn open(sources: &Sources, loading: Loading) -> Result<Self> {
        Self::new(layout_of(sources)?, loading)
    }

    /// As [`Self::open`], for a checkpoint that is part of the program.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn embedded(files: &'static [EmbeddedFile], loading: Loading) -> Result<Self> {
        Self::new(Layout::of_folder(&Files::embedded_root(files))?, loading)
    }

    fn new(layout: Layout, loading: Loading) -> Result<Self> {
        let root = layout.root.clone();
        let index = root.as_ref().map(ModelIndex::read).transpose()?.flatten();
        let names = layout.part_names();
        let open = |&name: &PartName| {
            let part = Part::open(location(&layout, name)?, name.kind())?;
            let config = PartConfig::of(&part, name)?;
            Ok((name, part, config))
        };
        let parts = names.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (mut experts, mut vae, mut text_encoder) = (Vec::new(), None, None);
        let mut image_encoder = None;
        for (name, _, config) in &parts {
            match config.clone() {
                PartConfig::Expert(config) => {
                    experts.push((name.expert().context("no expert")?, config))
                }
                PartConfig::Vae(config) => vae = Some(config),
                PartConfig::TextEncoder(config) => text_encoder = Some(config),
                PartConfig::ImageEncoder(config) => image_encoder = Some(config),
            }
        }
        let (vae, text_encoder) = (
            vae.context("there is no VAE")?,
            text_encoder.context("there is no text encoder")?,
        );
        let (first, config) = experts.first().context("there is no transformer")?;
        let place = location(&layout, (*first).into())?.to_string();
        let family = Family::of(config, &vae, *first != Expert::Single, &place)
            .with_context(|| place.clone())?;
        let boundary = match (&root, family.boundary) {
            (Some(root), Some(published)) => boundary(root, index.as_ref())?.unwrap_or(published),
            (None, Some(published)) => published,
            (_, None) => 0.0,
        };
        let mut checkpoint = Self {
            family,
            experts,
            vae,
            text_encoder,
            image_encoder,
            // The reference compares integer timesteps with boundary * 1000.
            boundary_timestep: boundary * 1000.0,
            settings: Recommended::read(root.as_ref(), family)?,
            layout,
            loading,
            adapters: Adapters::default(),
            fingerprints: OnceLock::new(),
            tokenizer_ids: OnceLock::new(),
            held: Remembered::default(),
            vae_held: Remembered::default(),
            formats: Remembered::default(),
            absent: Remembered::default(),
        };
        checkpoint.check_parts_fit()?;
        for (name, part, config) in &parts {
            let specs = config.specs()?;
            part.check(&specs)?;
            if let Some(bits) = checkpoint.loading.of(*name) {
                part.check_bits(&specs, bits)?;
            }
        }
        checkpoint.check_loading()?;
        if !checkpoint.loading.adapters.is_empty() {
            let experts = checkpoint.experts.iter().map(|(expert, config)| {
                let specs = PartConfig::Expert(config.clone()).specs()?;
                Ok((*expert, specs))
            });
            let experts = experts.collect::<Result<Vec<_>>>()?;
            checkpoint.adapters = Adapters::open(&checkpoint.loading.adapters, &experts)?;
        }
        Ok(checkpoint)
    }

    /// Pixels of a token's rows and columns, as many of both.
    pub fn token_side(&self) -> u32 {
        (self.vae.spatial_stride() * self.dit().patch_size[1]).unsigned_abs()
    }

    fn check_parts_fit(&self) -> Result<()> {
        let first = Conditioning::of(self.dit())?;
        for (expert, config) in &self.experts[1..] {
            ensure!(
                Conditioning::of(config)? == first,
                "{}: another model's expert: it has {} input channels, and the other expert {}",
                self.location((*expert).into())?,
                config.in_channels,
                self.dit().in_channels
            );
        }
        for (expert, config) in &self.experts {
            let place = self.location((*expert).into())?;
            let z = self.vae.z_dim;
            let vae = self.location(PartName::Vae)?;
            ensure!(
                config.out_channels == z || !self.vae.tiny,
                "{vae}: this is {}, and the transformer {place} has {} latent channels: they do not \
                 belong together\nhint: A14B and Wan2.1 take taew2_1 (16), TI2V-5B takes taew2_2 (48), or the VAE",
                vae::small(z),
                config.out_channels
            );
            ensure!(
                config.out_channels == z,
                "{place}: the transformer has {} latent channels, and the VAE {vae} {z}: they do not belong \
                 together\nhint: A14B and Wan2.1 take the VAE of Wan2.1 (16), TI2V-5B that of Wan2.2 (48)",
                config.out_channels
            );
            let inputs = match self.family.conditioning {
                Conditioning::Channels | Conditioning::Features { .. } => 2 * z + MASK_CHANNELS,
                Conditioning::Text | Conditioning::FirstFrame => z,
            };
            ensure!(
                config.in_channels == inputs,
                "{place}: in_channels is {}; {} has {inputs}",
                config.in_channels,
                self.family.name
            );
            ensure!(
                config.text_dim == self.text_encoder.d_model,
                "{place}: text_dim is {}, but the text encoder's d_model is {}",
                config.text_dim,
                self.text_encoder.d_model
            );
            let [frames, rows, columns] = config.patch_size;
            ensure!(
                config.patch_size == self.dit().patch_size
                    && frames == 1
                    && rows == columns
                    && rows <= MAX_PATCH,
                "{place}: patch_size is {:?}, and that of the first expert {:?}; expected the same, with \
                 one latent frame per token and as many rows as columns, at most {MAX_PATCH}",
                config.patch_size,
                self.dit().patch_size
            );
        }
        self.check_features()
    }

    /// Refuses an image encoder whose features are not those that the transformer attends to.
    fn check_features(&self) -> Result<()> {
        let Some(width) = self.dit().image_dim else {
            return Ok(());
        };
        let place = self.location(PartName::ImageEncoder)?;
        let encoder = self
            .image_encoder
            .as_ref()
            .with_context(|| format!("{place}: no image encoder"))?;
        ensure!(
            encoder.hidden_size == width,
            "{place}: hidden_size is {}, but the transformer's image_dim is {width}",
            encoder.hidden_size
        );
        let positions = self.dit().pos_embed_seq_len.map(i64::from);
        let rows = self.feature_rows() as i64;
        ensure!(
            positions.is_none_or(|positions| positions == rows),
            "{place}: two pictures have {rows} rows of features, but the transformer's \
             pos_embed_seq_len is {}",
            positions.unwrap_or(0)
        );
        Ok(())
    }

    /// Refuses what is asked for an expert of a model that has none.
    fn check_loading(&self) -> Result<()> {
        let single = self.family.boundary.is_none();
        ensure!(
            !single || self.loading.high == self.loading.low,
            "--high-bits and --low-bits are for experts, and {} has one transformer\nhint: take --bits",
            self.family.name
        );
        let of_expert = self
            .loading
            .adapters
            .iter()
            .find_map(|wanted| wanted.expert);
        match of_expert {
            Some(expert) if single => bail!(
                "--lora-high and --lora-low are for experts, and {} has one transformer: there is no \
                 {expert} one\nhint: take --lora",
                self.family.name
            ),
            _ => Ok(()),
        }
    }

    /// The dimensions of the transformer that takes the first steps: those that the others have in common
    /// with it.
    pub fn dit(&self) -> &DitConfig {
        // No checkpoint is without.
        &self.experts[0].1
    }

    /// The dimensions of a transformer.
    ///
    /// # Errors
    /// When the model has no such one.
    pub fn dit_of(&self, expert: Expert) -> Result<&DitConfig> {
        let found = self.experts.iter().find(|(which, _)| *which == expert);
        let (_, config) = found.with_context(|| format!("there is no {}", expert.in_words()))?;
        Ok(config)
    }

    /// Rows of the picture features that the transformer attends to.
    pub fn feature_rows(&self) -> u64 {
        let tokens = self
            .image_encoder
            .as_ref()
            .map_or(0, ClipVisionConfig::tokens);
        self.family.conditioning.features() as u64 * u64::from(tokens.unsigned_abs())
    }

    /// The parts that the model is made of.
    pub fn part_names(&self) -> &'static [PartName] {
        match self.family.boundary {
            Some(_) => &PartName::WITH_EXPERTS,
            None if self.image_encoder.is_some() => &PartName::WITH_FEATURES,
            None => &PartName::WITH_TRANSFORMER,
        }
    }

    fn location(&self, name: PartName) -> Result<&Location> {
        location(&self.layout, name)
    }

    fn part(&self, name: PartName) -> Result<Part> {
        Part::open(self.location(name)?, name.kind())
    }

    fn config(&self, name: PartName) -> Result<PartConfig> {
        Ok(match name {
            PartName::Vae => PartConfig::Vae(self.vae.clone()),
            PartName::TextEncoder => PartConfig::TextEncoder(self.text_encoder.clone()),
            PartName::ImageEncoder => {
                let config = self.image_encoder.clone();
                PartConfig::ImageEncoder(config.context("there is no image encoder")?)
            }
            expert => {
                let expert = expert.expert().context("no expert")?;
                PartConfig::Expert(self.dit_of(expert)?.clone())
            }
        })
    }

    /// Refuses weights that have not come, of any part, before anything is computed with others.
    ///
    /// # Errors
    /// As [`Part::check_filled`].
    pub fn check_filled(&self) -> Result<()> {
        self.part_names().iter().try_for_each(|&name| {
            let specs = self.config(name)?.specs()?;
            self.part(name)?.check_filled(&specs)
        })
    }

    /// What is known of it by header.
    pub fn inspect(&self) -> inspect::Report {
        inspect::Report::of(&self.layout)
    }

    /// How it is loaded.
    pub fn loading(&self) -> &Loading {
        &self.loading
    }

    /// The experts' adapters.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Bytes that a part's weights take in memory.
    ///
    /// # Errors
    /// When its files cannot be read any more.
    pub fn weight_bytes(&self, name: PartName, device: Device) -> Result<u64> {
        Ok(self.weights_held(name, device)?.bytes)
    }

    /// What a part's weights take in memory.
    ///
    /// # Errors
    /// As [`Self::weight_bytes`].
    pub fn weights_held(&self, name: PartName, device: Device) -> Result<Held> {
        self.held.get((name, device), || {
            let mut specs = self.config(name)?.specs()?;
            if let (PartName::ImageEncoder, Some(config)) = (name, &self.image_encoder) {
                let mut recorder = Recorder::default();
                ClipVision::load(config, &mut recorder, Recorder::DEVICE)?;
                specs = recorder.specs;
            }
            let [held] = self.held_of(name, &[&specs], device)?;
            Ok(held)
        })
    }

    /// What sets of a part's tensors take.
    fn held_of<const N: usize>(
        &self,
        name: PartName,
        sets: &[&[TensorSpec]; N],
        device: Device,
    ) -> Result<[Held; N]> {
        let mut all = [Held::default(); N];
        // The published model has no files.
        let part = self
            .layout
            .part(name)
            .map(|_| self.part(name))
            .transpose()?;
        for (held, specs) in all.iter_mut().zip(sets) {
            *held = match &part {
                Some(part) => self.loader(part, name, device).held(specs)?,
                None => Held::published(name.kind(), specs, device, self.loading.of(name)),
            };
        }
        Ok(all)
    }

    /// As [`Self::weight_bytes`], for the VAE's encoder and decoder apart.
    ///
    /// # Errors
    /// As there.
    pub fn vae_bytes(&self, device: Device) -> Result<(u64, u64)> {
        self.vae_held.get(device, || {
            let (mut encoder, mut decoder) = (Recorder::default(), Recorder::default());
            VaeEncoder::load(&self.vae, &mut encoder, Recorder::DEVICE)?;
            VaeDecoder::load(&self.vae, &mut decoder, Recorder::DEVICE)?;
            let sets = [encoder.specs.as_slice(), &decoder.specs];
            let [encoder, decoder] = self.held_of(PartName::Vae, &sets, device)?;
            Ok((encoder.bytes, decoder.bytes))
        })
    }

    /// Loads the text encoder.
    ///
    /// # Errors
    /// When a file changed since [`Self::open`] or a weight is not finite; names the tensor.
    pub fn load_text_encoder(&self, device: Device) -> Result<Umt5> {
        let device = device.for_text();
        let part = self.part(PartName::TextEncoder)?;
        let mut loader = self.loader(&part, PartName::TextEncoder, device);
        Umt5::load(&self.text_encoder, &mut loader, device)
    }

    /// Loads the image encoder.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`], and when the model has none.
    pub fn load_image_encoder(&self, device: Device) -> Result<ClipVision> {
        let config = self
            .image_encoder
            .as_ref()
            .context("there is no image encoder")?;
        let part = self.part(PartName::ImageEncoder)?;
        let mut loader = self.loader(&part, PartName::ImageEncoder, device);
        ClipVision::load(config, &mut loader, device)
    }

    /// Loads one expert.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`].
    pub fn load_expert(&self, expert: Expert, device: Device) -> Result<Dit> {
        let config = self.dit_of(expert)?;
        let part = self.part(expert.into())?;
        Dit::load(
            config,
            &mut self.loader(&part, expert.into(), device),
            device,
        )
    }

    /// Loads the encoder half of the VAE.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`].
    pub fn load_vae_encoder(&self, device: Device) -> Result<VaeEncoder> {
        let part = self.part(PartName::Vae)?;
        let mut loader = self.loader(&part, PartName::Vae, device);
        VaeEncoder::load(&self.vae, &mut loader, device)
    }

    /// Loads the decoder half of the VAE.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`].
    pub fn load_vae_decoder(&self, device: Device) -> Result<VaeDecoder> {
        let part = self.part(PartName::Vae)?;
        let mut loader = self.loader(&part, PartName::Vae, device);
        VaeDecoder::load(&self.vae, &mut loader, device)
    }

    fn loader<'a>(&'a self, part: &'a Part, name: PartName, device: Device) -> Loader<'a> {
        Loader {
            part,
            device,
            bits: self.loading.of(name),
            adapters: self.adapters.of_part(name),
            merges: self.loading.merges,
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When it is missing, broken, or has more ids than the text encoder's vocabulary.
    pub fn load_tokenizer(&self) -> Result<Tokenizer> {
        let (tokenizer, name) = match &self.layout.tokenizer {
            Some(TokenizerAt::File(files, file)) => {
                let (name, content) = (files.name(file), files.read(file)?);
                let tokenizer = if file.ends_with(".json") {
                    Tokenizer::from_json(&content, &name)?
                } else {
                    Tokenizer::from_sentencepiece(&content, &name)?
                };
                (tokenizer, name)
            }
            Some(TokenizerAt::InTextEncoder) => {
                let part = self.part(PartName::TextEncoder)?;
                let name = part.store().location().to_string();
                (tokenizer_of(&part, &name)?, name)
            }
            None => bail!(
                "{}the model has no tokenizer\nhint: give --tokenizer PATH: a tokenizer.json or \
                 spiece.model of google/umt5-xxl",
                match &self.layout.root {
                    Some(root) => format!("--model {root}: "),
                    None => String::new(),
                }
            ),
        };
        let rows = self.text_encoder.vocab_size as usize;
        ensure!(
            tokenizer.vocab_size() <= rows,
            "{name}: {} ids, but the text encoder's vocabulary has {rows}: they do not belong \
             together",
            tokenizer.vocab_size()
        );
        let _ = self.tokenizer_ids.set(tokenizer.vocab_size());
        Ok(tokenizer)
    }

    /// What seems to be mixed up: experts whose names say the other one, and a tokenizer, once read,
    /// with too few ids for the text encoder.
    pub fn warnings(&self) -> Vec<String> {
        let experts = [PartName::HighNoise, PartName::LowNoise];
        let swapped = experts.into_iter().filter_map(|name| {
            let path = self.location(name).ok()?.to_string();
            // Further up, words are about other things.
            let mut parts = path.rsplit('/');
            let (file, folder) = (parts.next()?, parts.next().unwrap_or_default());
            let said = layout::expert_of(&format!("{folder}/{file}"))?;
            (said != name).then(|| format!("{path} is taken as the {name}; its name says {said}"))
        });
        let rows = self.text_encoder.vocab_size as usize;
        let few = self.tokenizer_ids.get().filter(|ids| **ids < rows / 10 * 9);
        let few = few.map(|ids| {
            format!(
                "the tokenizer has {ids} ids and the text encoder {rows}: it may be another model's"
            )
        });
        swapped
            .chain(few)
            .chain(self.adapters.warnings.iter().cloned())
            .collect()
    }

    /// The expert of a schedule's step.
    pub fn expert_at(&self, schedule: &Schedule, index: usize) -> Option<Expert> {
        let timestep = *schedule.timesteps.get(index)?;
        Some(match schedule.high_steps {
            Some(high) if self.family.boundary.is_some() => match index < high {
                true => Expert::HighNoise,
                false => Expert::LowNoise,
            },
            _ => self.expert_for(timestep),
        })
    }

    /// The expert that a timestep belongs to.
    pub fn expert_for(&self, timestep: f64) -> Expert {
        if self.family.boundary.is_none() {
            Expert::Single
        } else if timestep >= self.boundary_timestep {
            Expert::HighNoise
        } else {
            Expert::LowNoise
        }
    }
}

/// Where the parts of `sources` are.
///
/// # Errors
/// When a named file or folder is not there, or a folder holds no model.
pub fn layout_of(sources: &Sources) -> Result<Layout> {
    let mut layout = match &sources.model {
        Some(root) => {
            ensure!(
                root.is_dir(),
                "--model {}: {}; expected the folder of a model",
                root.shown(),
                if root.exists() {
                    "not a folder (name single files with --high, --low, --transformer, --vae, \
                     --text-encoder, --image-encoder and --tokenizer)"
                } else {
                    "no such folder"
                }
            );
            let parts = PartName::ALL.into_iter().zip(&sources.parts);
            let named = Named {
                parts: parts
                    .filter(|(_, path)| path.is_some())
                    .map(|p| p.0)
                    .collect(),
                tokenizer: sources.tokenizer.is_some(),
            };
            Layout::of_folder_without(&Files::from(root.as_path()), &named)
                .with_context(|| format!("--model {}", root.shown()))?
        }
        None => Layout::default(),
    };
    check_named(sources, &layout)?;
    for (name, path) in PartName::ALL.into_iter().zip(&sources.parts) {
        if let Some(path) = path {
            layout.set(name, Location::at(path).with_context(|| name.flag())?);
        }
    }
    ensure!(
        sources.parts[PartName::ImageEncoder as usize].is_none() || !layout.needs_no_images(),
        "{}: the model's transformer attends to no features of pictures\nhint: leave it away",
        PartName::ImageEncoder.flag()
    );
    if let Some(path) = &sources.tokenizer {
        layout.tokenizer = Some(Layout::tokenizer_at(path).context("--tokenizer")?);
    } else if (layout.tokenizer.is_none()
        || sources.parts[PartName::TextEncoder as usize].is_some())
        && let Some(location) = layout.part(PartName::TextEncoder)
        && layout::holds_tokenizer(&store::TensorStore::open(location)?)
    {
        // The one that a named text encoder brings goes before the model's.
        layout.tokenizer = Some(TokenizerAt::InTextEncoder);
    }
    Ok(layout)
}

/// Refuses experts beside the only transformer of a model.
fn check_named(sources: &Sources, layout: &Layout) -> Result<()> {
    let given = |name: PartName| sources.parts[name as usize].is_some();
    let experts = [PartName::HighNoise, PartName::LowNoise];
    let Some(expert) = experts.into_iter().find(|&name| given(name)) else {
        return Ok(());
    };
    ensure!(
        !given(PartName::Transformer),
        "{} and --transformer: a model has two experts or one transformer\nhint: leave one away",
        expert.flag()
    );
    ensure!(
        layout.part(PartName::Transformer).is_none(),
        "{}: the model has one transformer and no experts\nhint: give it with --transformer",
        expert.flag()
    );
    Ok(())
}

/// The tokenizer inside a text encoder's file.
fn tokenizer_of(part: &Part, name: &str) -> Result<Tokenizer> {
    let store = part.store();
    if let Some(entry) = layout::spiece_entry(store) {
        return Tokenizer::from_sentencepiece(store.bytes(entry), name);
    }
    let missing = || format!("{name} holds no whole tokenizer\nhint: give --tokenizer PATH");
    let file = store.only_file().with_context(missing)?;
    let model = store.metadata().get("tokenizer.ggml.model");
    ensure!(model.is_some_and(|model| model == "t5"), "{}", missing());
    // Names: ggml-org/llama.cpp, gguf-py/gguf/constants.py.
    let key = |end: &str| format!("tokenizer.ggml.{end}");
    let integers = |end: &str| gguf::integers(file, &key(end));
    let arrays = Arrays {
        tokens: gguf::strings(file, &key("tokens"))?.with_context(missing)?,
        scores: gguf::floats(file, &key("scores"))?.with_context(missing)?,
        kinds: integers("token_type")?
            .with_context(missing)?
            .into_iter()
            .map(|kind| i32::try_from(kind).unwrap_or(-1))
            .collect(),
        charsmap: integers("precompiled_charsmap")?
            .unwrap_or_default()
            .into_iter()
            .map(|byte| byte as u8)
            .collect(),
    };
    Tokenizer::from_arrays(arrays, name)
}

/// The tokenizer inside a text encoder's file, as a file of its own: name and content.
fn inner_tokenizer(location: &Location) -> Result<(String, Vec<u8>)> {
    let part = Part::open(location, Kind::TextEncoder)?;
    let store = part.store();
    if let Some(entry) = layout::spiece_entry(store) {
        return Ok(("spiece.model".into(), store.bytes(entry).into()));
    }
    // GGUF's tables are no file that another program reads.
    let json = tokenizer_of(&part, &location.to_string())?.to_json()?;
    Ok(("tokenizer.json".into(), json.into()))
}

/// What a model has besides the weights of its parts.
#[derive(Clone, Debug)]
pub struct Extras {
    /// The share of the noise schedule where the high-noise expert ends, where the model's folder says.
    pub boundary: Option<f64>,
    /// The content of its settings' file, when it has one.
    pub settings: Option<Vec<u8>>,
    /// A tokenizer's file name and content.
    pub tokenizer: Option<(String, Vec<u8>)>,
}

impl Extras {
    /// The boundary between the experts alone, where the model's folder names it.
    ///
    /// # Errors
    /// When the file that names it is not supported.
    pub fn boundary_of(layout: &Layout) -> Result<Option<f64>> {
        let Some(root) = &layout.root else {
            return Ok(None);
        };
        boundary(root, ModelIndex::read(root)?.as_ref())
    }

    /// Reads it.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(layout: &Layout) -> Result<Self> {
        let root = layout.root.as_ref();
        let settings = root.filter(|root| root.has(settings::FILE));
        Ok(Self {
            boundary: Self::boundary_of(layout)?,
            settings: settings
                .map(|root| root.read(settings::FILE).map(Into::into))
                .transpose()?,
            tokenizer: match &layout.tokenizer {
                Some(TokenizerAt::File(files, file)) => {
                    Some((file.clone(), files.read(file)?.into()))
                }
                Some(TokenizerAt::InTextEncoder) => layout
                    .part(PartName::TextEncoder)
                    // Without a whole one the weights are worth having all the same.
                    .and_then(|location| inner_tokenizer(location).ok()),
                None => None,
            },
        })
    }
}

fn location(layout: &Layout, name: PartName) -> Result<&Location> {
    layout.part(name).with_context(|| {
        let place = match &layout.root {
            // The user may have named one of its folders.
            Some(root) if root.sub("..").has(MODEL_INDEX) => {
                return format!(
                    "--model {root}: there is no {MODEL_INDEX}, and no {name}; this folder is one \
                     part of a model\nhint: give the folder above it"
                );
            }
            Some(root) => format!("--model {root}: the model has no {name} there"),
            None => format!("there is no {name}"),
        };
        let (passed_over, download) = match layout.passed_over.as_slice() {
            [] => (String::new(), "download it too, or "),
            some => (format!(" (passed over: {})", some.join("; ")), ""),
        };
        format!(
            "{place}{passed_over}\nhint: {download}say where it is with {} PATH",
            name.flag()
        )
    })
}

impl ModelIndex {
    /// That of a diffusers folder, where it is of a pipeline that this program runs.
    fn read(root: &Files) -> Result<Option<Self>> {
        if !root.has(MODEL_INDEX) {
            return Ok(None);
        }
        let index: Self = root.json(MODEL_INDEX)?;
        let class = index.class_name.as_deref().unwrap_or_default();
        let other = match class {
            "WanImageToVideoPipeline" | "WanPipeline" | "WanDMDPipeline" => return Ok(Some(index)),
            "WanVACEPipeline" => "a VACE model",
            "WanAnimatePipeline" => "Wan2.2 Animate",
            "WanVideoToVideoPipeline" => "a video-to-video model",
            _ => "another model",
        };
        bail!(
            "{}: this is {other}: _class_name is {class:?}; expected \"WanImageToVideoPipeline\" or \
             \"WanPipeline\"\nhint: {}",
            root.name(MODEL_INDEX),
            part::OTHER_MODEL
        )
    }
}

/// The boundary between the experts that a model's folder names.
fn boundary(root: &Files, index: Option<&ModelIndex>) -> Result<Option<f64>> {
    let (file, ratio) = if let Some(index) = index {
        (root.name(MODEL_INDEX), index.boundary_ratio)
    } else if root.has(config::CONFIG) {
        let json: serde_json::Value = root.json(config::CONFIG)?;
        let ratio = json.get("boundary").and_then(serde_json::Value::as_f64);
        (root.name(config::CONFIG), ratio)
    } else {
        return Ok(None);
    };
    if let Some(ratio) = ratio {
        ensure!(
            (0.0..=1.0).contains(&ratio),
            "{file}: the boundary between the experts is {ratio}; expected 0 to 1"
        );
    }
    Ok(ratio)
}
