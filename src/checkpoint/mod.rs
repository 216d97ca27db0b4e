//! Checkpoints on disk: names, layouts and dtypes. Hands out tensors, strictly.
//!
//! The diffusers folder layout is read: `model_index.json` (with `boundary_ratio`),
//! `transformer/` (the high-noise expert), `transformer_2/` (the low-noise one), `vae/`,
//! `text_encoder/` and `tokenizer/`.

mod component;
mod files;
mod safetensors;
mod settings;

pub use self::safetensors::TensorStore;
pub use component::Component;
pub use files::EmbeddedFile;
pub use settings::Settings;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::files::Files;
use crate::backend::{Backend, DeviceKind, Precision};
use crate::model::Recorder;
use crate::model::dit::{Dit, DitConfig};
use crate::model::umt5::{Umt5, Umt5Config};
use crate::model::vae::{VaeConfig, VaeDecoder, VaeEncoder};
use crate::text::Tokenizer;

/// One of the two diffusion transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expert {
    /// For timesteps at or above the boundary.
    HighNoise,
    /// For timesteps below it.
    LowNoise,
}

impl Expert {
    /// The expert's folder in the diffusers layout.
    fn folder(self) -> &'static str {
        match self {
            Expert::HighNoise => "transformer",
            Expert::LowNoise => "transformer_2",
        }
    }
}

impl std::fmt::Display for Expert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Expert::HighNoise => "high-noise",
            Expert::LowNoise => "low-noise",
        })
    }
}

/// The most latent rows per token; a clip's sides are multiples of eight times this.
const MAX_PATCH: i32 = 64;

/// The file that names the pipeline and its parts.
const MODEL_INDEX: &str = "model_index.json";

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    boundary_ratio: Option<f64>,
    #[serde(default)]
    expand_timesteps: bool,
}

/// A checkpoint whose configuration and tensor headers have been checked. Holds no weights.
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    /// Dimensions of the high-noise expert.
    pub high: DitConfig,
    /// Dimensions of the low-noise expert.
    pub low: DitConfig,
    /// Dimensions of the VAE.
    pub vae: VaeConfig,
    /// Dimensions of the text encoder.
    pub text_encoder: Umt5Config,
    /// Timesteps at or above this one belong to the high-noise expert.
    pub boundary_timestep: f64,
    /// What the model recommends to be run with.
    pub settings: Settings,
}

impl Checkpoint {
    /// Reads every configuration and tensor header below `root` and checks that every tensor of
    /// the architecture is there, once, with the right shape, and no other.
    ///
    /// # Errors
    /// Names the file, tensor or field, what was found and what was expected.
    pub fn open(root: &Path) -> Result<Self> {
        ensure!(
            root.is_dir(),
            "--model {}: {}; expected the folder of a checkpoint in the diffusers layout",
            root.display(),
            if root.exists() {
                "not a folder"
            } else {
                "no such folder"
            }
        );
        let files = Files::from(root);
        ensure!(
            files.has(MODEL_INDEX),
            "--model {}: there is no {MODEL_INDEX}; expected a checkpoint in the diffusers \
             layout, with {MODEL_INDEX}, transformer/, transformer_2/, vae/, text_encoder/ and \
             tokenizer/{}",
            root.display(),
            layout_hint(root)
        );
        Self::new(files)
    }

    /// As [`Self::open`], for a checkpoint that is part of the program.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn embedded(files: &'static [EmbeddedFile]) -> Result<Self> {
        Self::new(Files::Embedded {
            prefix: String::new(),
            files,
        })
    }

    fn new(files: Files) -> Result<Self> {
        let index_path = files.name(MODEL_INDEX);
        let index: ModelIndex = files.json(MODEL_INDEX)?;
        ensure!(
            index.class_name.as_deref() == Some("WanImageToVideoPipeline"),
            "{index_path}: _class_name is {:?}; expected \"WanImageToVideoPipeline\"",
            index.class_name.unwrap_or_default()
        );
        let ratio = index.boundary_ratio.with_context(|| {
            format!(
                "{index_path}: boundary_ratio is missing; only models with two experts are \
                 supported (Wan2.2 I2V-A14B)"
            )
        })?;
        ensure!(
            (0.0..=1.0).contains(&ratio) && !index.expand_timesteps,
            "{index_path}: expected a boundary_ratio between 0 and 1 and no expand_timesteps; \
             found {ratio} and {}",
            index.expand_timesteps
        );
        let checkpoint = Self {
            high: read_config(&files, Expert::HighNoise.folder(), DitConfig::validate)?,
            low: read_config(&files, Expert::LowNoise.folder(), DitConfig::validate)?,
            vae: read_config(&files, "vae", VaeConfig::validate)?,
            text_encoder: read_config(&files, "text_encoder", Umt5Config::validate)?,
            // The reference compares integer timesteps with boundary * 1000.
            boundary_timestep: ratio * 1000.0,
            settings: Settings::read(&files)?,
            files,
        };
        checkpoint.check_parts_fit()?;
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    fn check_parts_fit(&self) -> Result<()> {
        for (expert, config) in [
            (Expert::HighNoise, &self.high),
            (Expert::LowNoise, &self.low),
        ] {
            let file = self.files.sub(expert.folder()).name("config.json");
            let z = self.vae.z_dim;
            ensure!(
                config.in_channels == 2 * z + 4 && config.out_channels == z,
                "{}: in_channels and out_channels are {} and {}; an image-to-video expert for a \
                 VAE with {z} latent channels has {} (noise, 4 mask channels, image) and {z}",
                file,
                config.in_channels,
                config.out_channels,
                2 * z + 4
            );
            ensure!(
                config.text_dim == self.text_encoder.d_model,
                "{}: text_dim is {}, but the text encoder's d_model is {}",
                file,
                config.text_dim,
                self.text_encoder.d_model
            );
        }
        let [frames, rows, columns] = self.high.patch_size;
        ensure!(
            self.high.patch_size == self.low.patch_size
                && frames == 1
                && rows == columns
                && rows <= MAX_PATCH,
            "{}: the experts' patch_size are {:?} and {:?}; expected the same, with one latent \
             frame per token and as many rows as columns, at most {MAX_PATCH}",
            self.files,
            self.high.patch_size,
            self.low.patch_size
        );
        Ok(())
    }

    /// Checks each part's headers against what its constructor asks for.
    fn check_tensors(&self) -> Result<()> {
        // The list of tensors does not depend on the backend.
        let backend = Backend::new(DeviceKind::Cpu, Some(Precision::F32));
        let mut text = Recorder::default();
        Umt5::load(&self.text_encoder, &mut text)?;
        self.text_encoder_component(backend)?.check(
            &text.specs,
            // transformers saves the tied embedding under a second name in some versions.
            &["encoder.embed_tokens.weight"],
        )?;
        for (expert, config) in [
            (Expert::HighNoise, &self.high),
            (Expert::LowNoise, &self.low),
        ] {
            let mut dit = Recorder::default();
            Dit::load(config, &mut dit)?;
            self.expert_component(expert, backend)?
                .check(&dit.specs, &[])?;
        }
        let mut vae = Recorder::default();
        VaeEncoder::load(&self.vae, &mut vae, backend)?;
        VaeDecoder::load(&self.vae, &mut vae, backend)?;
        self.vae_component(backend)?.check(&vae.specs, &[])
    }

    fn text_encoder_component(&self, backend: Backend) -> Result<Component> {
        Component::new(self.files.sub("text_encoder"), backend)
    }

    fn expert_component(&self, expert: Expert, backend: Backend) -> Result<Component> {
        Component::new(self.files.sub(expert.folder()), backend)
    }

    fn vae_component(&self, backend: Backend) -> Result<Component> {
        Component::new(self.files.sub("vae"), backend)
    }

    /// Loads the text encoder.
    ///
    /// # Errors
    /// When a file changed since [`Self::open`] or a weight is not finite; names the tensor.
    pub fn load_text_encoder(&self, backend: Backend) -> Result<Umt5> {
        Umt5::load(
            &self.text_encoder,
            &mut self.text_encoder_component(backend)?,
        )
    }

    /// Loads one expert.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`].
    pub fn load_expert(&self, expert: Expert, backend: Backend) -> Result<Dit> {
        let config = match expert {
            Expert::HighNoise => &self.high,
            Expert::LowNoise => &self.low,
        };
        Dit::load(config, &mut self.expert_component(expert, backend)?)
    }

    /// Loads the encoder half of the VAE.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`].
    pub fn load_vae_encoder(&self, backend: Backend) -> Result<VaeEncoder> {
        VaeEncoder::load(&self.vae, &mut self.vae_component(backend)?, backend)
    }

    /// Loads the decoder half of the VAE.
    ///
    /// # Errors
    /// As [`Self::load_text_encoder`].
    pub fn load_vae_decoder(&self, backend: Backend) -> Result<VaeDecoder> {
        VaeDecoder::load(&self.vae, &mut self.vae_component(backend)?, backend)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When it is missing, broken, or has more ids than the text encoder's vocabulary.
    pub fn load_tokenizer(&self) -> Result<Tokenizer> {
        const FILE: &str = "tokenizer.json";
        let files = self.files.sub("tokenizer");
        let name = files.name(FILE);
        let tokenizer = Tokenizer::from_json(&files.read(FILE)?, &name)?;
        let rows = self.text_encoder.vocab_size as usize;
        ensure!(
            tokenizer.vocab_size() <= rows,
            "{name}: {} ids, but the text encoder's vocabulary has {rows}: they do not belong \
             together",
            tokenizer.vocab_size()
        );
        Ok(tokenizer)
    }

    /// The expert that a timestep belongs to.
    pub fn expert_for(&self, timestep: i64) -> Expert {
        if timestep as f64 >= self.boundary_timestep {
            Expert::HighNoise
        } else {
            Expert::LowNoise
        }
    }
}

/// What a folder without `model_index.json` seems to be, as the end of an error.
fn layout_hint(root: &Path) -> String {
    let has = |name: &str| root.join(name).exists();
    if has("high_noise_model") || has("low_noise_model") {
        "; this folder is in the original layout of Wan-AI/Wan2.2-I2V-A14B, which is not read: \
         get Wan-AI/Wan2.2-I2V-A14B-Diffusers"
            .into()
    } else if has("config.json") && has("../model_index.json") {
        "; this folder is one part of a checkpoint: give the folder above it".into()
    } else {
        String::new()
    }
}

fn read_config<T: DeserializeOwned>(
    root: &Files,
    part: &str,
    validate: impl Fn(&T) -> Result<()>,
) -> Result<T> {
    const FILE: &str = "config.json";
    let files = root.sub(part);
    let name = files.name(FILE);
    if !files.has(FILE) {
        bail!(
            "{name}: not found; a checkpoint in the diffusers layout has one for each of \
             transformer, transformer_2, vae and text_encoder"
        );
    }
    let config = files.json(FILE)?;
    validate(&config).with_context(|| format!("{name} is not supported"))?;
    Ok(config)
}
