//! A part's dimensions: from a configuration beside it, or from its tensors' shapes.

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::PartName;
use super::names;
use super::part::Part;
use crate::model::dit::{Dit, DitConfig};
use crate::model::umt5::{Umt5, Umt5Config};
use crate::model::vae::{VaeConfig, VaeDecoder, VaeEncoder};
use crate::model::{Recorder, TensorSpec};

/// The file beside a part, or beside all of them, that holds dimensions.
pub const CONFIG: &str = "config.json";
/// The key of [`CONFIG`] under which this program writes what mlx-video's keys cannot say.
pub const OWN_KEY: &str = "wan_i2v";

/// The dimensions of a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PartConfig {
    /// Of an expert.
    Expert(DitConfig),
    /// Of the autoencoder.
    Vae(VaeConfig),
    /// Of the text encoder.
    TextEncoder(Umt5Config),
}

impl PartName {
    /// Its key in our own configuration.
    pub fn key(self) -> &'static str {
        match self {
            PartName::HighNoise => "high_noise_model",
            PartName::LowNoise => "low_noise_model",
            PartName::Vae => "vae",
            PartName::TextEncoder => "text_encoder",
        }
    }
}

impl PartConfig {
    /// Reads or infers the dimensions of a part.
    ///
    /// # Errors
    /// When the configuration is malformed or not supported, or the tensors that show a
    /// dimension are missing.
    pub fn of(part: &Part, name: PartName) -> Result<Self> {
        Ok(match name {
            PartName::HighNoise | PartName::LowNoise => Self::Expert(expert(part, name)?),
            PartName::Vae => Self::Vae(vae(part)?),
            PartName::TextEncoder => Self::TextEncoder(text_encoder(part)?),
        })
    }

    /// Every tensor of a network of these dimensions.
    ///
    /// # Errors
    /// When the dimensions are not supported.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        let mut recorder = Recorder::default();
        match self {
            Self::Expert(config) => drop(Dit::load(config, &mut recorder)?),
            Self::Vae(config) => {
                VaeEncoder::load(config, &mut recorder, Recorder::BACKEND)?;
                VaeDecoder::load(config, &mut recorder, Recorder::BACKEND)?;
            }
            Self::TextEncoder(config) => drop(Umt5::load(config, &mut recorder)?),
        }
        Ok(recorder.specs)
    }
}

/// The dimensions of an expert.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn expert(part: &Part, name: PartName) -> Result<DitConfig> {
    let found = read(part, name, |json, text| {
        if mentions(
            json,
            "WanTransformer3DModel",
            &["num_attention_heads", "attention_head_dim"],
        ) {
            return parse(text).map(Some);
        }
        match json.get("num_heads").is_some() && json.get("dim").is_some() {
            true => {
                let look = |name: &str| part.canonical_shape(name);
                names::config::expert_from(json, &look).map(Some)
            }
            false => Ok(None),
        }
    })?;
    match found {
        Some((config, file)) => {
            DitConfig::validate(&config).with_context(|| unsupported(&file))?;
            Ok(config)
        }
        None => {
            let config = names::config::infer_expert(&|name| part.canonical_shape(name))
                .with_context(|| inferred(part))?;
            config.validate().with_context(|| inferred(part))?;
            Ok(config)
        }
    }
}

/// The dimensions of a VAE.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn vae(part: &Part) -> Result<VaeConfig> {
    let found = read(part, PartName::Vae, |json, text| {
        match mentions(
            json,
            "AutoencoderKLWan",
            &["z_dim", "base_dim", "latents_mean"],
        ) {
            true => parse(text).map(Some),
            false => Ok(None),
        }
    })?;
    match found {
        Some((config, file)) => {
            VaeConfig::validate(&config).with_context(|| unsupported(&file))?;
            Ok(config)
        }
        None => {
            let config = names::config::infer_vae(&|name| part.canonical_shape(name))
                .with_context(|| inferred(part))?;
            config.validate().with_context(|| inferred(part))?;
            Ok(config)
        }
    }
}

/// The dimensions of a text encoder.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn text_encoder(part: &Part) -> Result<Umt5Config> {
    let found = read(part, PartName::TextEncoder, |json, text| {
        match mentions(json, "UMT5EncoderModel", &["d_model", "d_kv", "d_ff"]) {
            true => parse(text).map(Some),
            false => Ok(None),
        }
    })?;
    match found {
        Some((config, file)) => {
            Umt5Config::validate(&config).with_context(|| unsupported(&file))?;
            Ok(config)
        }
        None => {
            let config = names::config::infer_text(&|name| part.canonical_shape(name))
                .with_context(|| inferred(part))?;
            config.validate().with_context(|| inferred(part))?;
            Ok(config)
        }
    }
}

/// The configuration beside a part with the file's name, if it is about such a part.
fn read<T: DeserializeOwned>(
    part: &Part,
    name: PartName,
    parse_foreign: impl Fn(&Value, &[u8]) -> Result<Option<T>>,
) -> Result<Option<(T, String)>> {
    let files = &part.store().location().files;
    if !files.has(CONFIG) {
        return Ok(None);
    }
    let file = files.name(CONFIG);
    let text = files.read(CONFIG)?;
    let malformed = || format!("{file} does not hold what is expected there");
    let json: Value = parse(&text).with_context(malformed)?;
    ensure!(json.is_object(), "{}: it is no JSON object", malformed());
    let own = json.get(OWN_KEY).and_then(|own| own.get(name.key()));
    let config = match own {
        Some(own) => T::deserialize(own).map(Some).map_err(Into::into),
        None => parse_foreign(&json, &text),
    };
    let config = config.with_context(malformed)?;
    Ok(config.map(|config| (config, file)))
}

/// Whether a configuration is of a diffusers or transformers class, by its name or by a field that
/// others lack.
fn mentions(json: &Value, class: &str, fields: &[&str]) -> bool {
    json.get("_class_name").is_some_and(|name| name == class)
        || fields.iter().any(|field| json.get(field).is_some())
}

/// From the text and not from the parsed value, since its errors name the line.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(Into::into)
}

fn unsupported(file: &str) -> String {
    format!("{file} is not supported")
}

fn inferred(part: &Part) -> String {
    format!(
        "{}: no {CONFIG} beside it tells the dimensions, and neither do the tensors' shapes",
        part.store().location()
    )
}
