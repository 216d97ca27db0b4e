//! Checkpoints on disk: names, layouts and dtypes. Hands out tensors, strictly.
//!
//! The diffusers folder layout is read: `model_index.json` (with `boundary_ratio`),
//! `transformer/` (the high-noise expert), `transformer_2/` (the low-noise one), `vae/`,
//! `text_encoder/` and `tokenizer/`.

mod component;
mod safetensors;
mod settings;

pub use self::safetensors::TensorStore;
pub use component::Component;
pub use settings::Settings;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::backend::{Backend, DeviceKind, Precision};
use crate::model::Recorder;
use crate::model::dit::{Dit, DitConfig};
use crate::model::umt5::{Umt5, Umt5Config};
use crate::model::vae::{VaeConfig, VaeDecoder, VaeEncoder};

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
    root: PathBuf,
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
        let index_path = root.join("model_index.json");
        ensure!(
            index_path.is_file(),
            "--model {}: there is no model_index.json; expected a checkpoint in the diffusers \
             layout, with model_index.json, transformer/, transformer_2/, vae/, text_encoder/ and \
             tokenizer/{}",
            root.display(),
            layout_hint(root)
        );
        let index: ModelIndex = read_json(&index_path)?;
        ensure!(
            index.class_name.as_deref() == Some("WanImageToVideoPipeline"),
            "{}: _class_name is {:?}; expected \"WanImageToVideoPipeline\"",
            index_path.display(),
            index.class_name.unwrap_or_default()
        );
        let ratio = index.boundary_ratio.with_context(|| {
            format!(
                "{}: boundary_ratio is missing; only models with two experts are supported \
                 (Wan2.2 I2V-A14B)",
                index_path.display()
            )
        })?;
        ensure!(
            (0.0..=1.0).contains(&ratio) && !index.expand_timesteps,
            "{}: expected a boundary_ratio between 0 and 1 and no expand_timesteps; found \
             {ratio} and {}",
            index_path.display(),
            index.expand_timesteps
        );
        let checkpoint = Self {
            high: read_config(root, Expert::HighNoise.folder(), DitConfig::validate)?,
            low: read_config(root, Expert::LowNoise.folder(), DitConfig::validate)?,
            vae: read_config(root, "vae", VaeConfig::validate)?,
            text_encoder: read_config(root, "text_encoder", Umt5Config::validate)?,
            // The reference compares integer timesteps with boundary * 1000.
            boundary_timestep: ratio * 1000.0,
            settings: Settings::read(root)?,
            root: root.to_owned(),
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
            let file = self.root.join(expert.folder()).join("config.json");
            let z = self.vae.z_dim;
            ensure!(
                config.in_channels == 2 * z + 4 && config.out_channels == z,
                "{}: in_channels and out_channels are {} and {}; an image-to-video expert for a \
                 VAE with {z} latent channels has {} (noise, 4 mask channels, image) and {z}",
                file.display(),
                config.in_channels,
                config.out_channels,
                2 * z + 4
            );
            ensure!(
                config.text_dim == self.text_encoder.d_model,
                "{}: text_dim is {}, but the text encoder's d_model is {}",
                file.display(),
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
            self.root.display(),
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
        Component::open(&self.root.join("text_encoder"), backend)
    }

    fn expert_component(&self, expert: Expert, backend: Backend) -> Result<Component> {
        Component::open(&self.root.join(expert.folder()), backend)
    }

    fn vae_component(&self, backend: Backend) -> Result<Component> {
        Component::open(&self.root.join("vae"), backend)
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

    /// The tokenizer's file.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.root.join("tokenizer").join("tokenizer.json")
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

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} does not hold what is expected there", path.display()))
}

fn read_config<T: DeserializeOwned>(
    root: &Path,
    part: &str,
    validate: impl Fn(&T) -> Result<()>,
) -> Result<T> {
    let path = root.join(part).join("config.json");
    if !path.is_file() {
        bail!(
            "{}: not found; a checkpoint in the diffusers layout has one for each of \
             transformer, transformer_2, vae and text_encoder",
            path.display()
        );
    }
    let config = read_json(&path)?;
    validate(&config).with_context(|| format!("{} is not supported", path.display()))?;
    Ok(config)
}
