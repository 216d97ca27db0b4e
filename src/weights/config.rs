//! A part's dimensions: from a configuration beside it, or from its tensors' shapes.

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::Files;
use super::layout::PartName;
use super::naming::config::Look;
use super::naming::{self, Kind};
use super::part::{OTHER_MODEL, Part};
use crate::model::dit::{Dit, DitConfig};
use crate::model::umt5::{Umt5, Umt5Config};
use crate::model::vae::{VaeConfig, VaeDecoder, VaeEncoder};
use crate::model::{Recorder, TensorSpec};
use crate::util::show::Show;

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

    /// Reads the dimensions of a part from the configuration in its folder alone; nothing when
    /// that does not tell them.
    ///
    /// # Errors
    /// When the configuration is malformed or not supported.
    pub fn given(files: &Files, name: PartName) -> Result<Option<Self>> {
        Ok(match name.kind() {
            Kind::Expert => given_expert(files, name, None)?.map(Self::Expert),
            Kind::Vae => given_vae(files)?.map(Self::Vae),
            Kind::TextEncoder => given_text_encoder(files)?.map(Self::TextEncoder),
        })
    }

    /// Every tensor of a network of these dimensions.
    ///
    /// # Errors
    /// When the dimensions are not supported.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        let mut recorder = Recorder::default();
        match self {
            Self::Expert(config) => drop(Dit::load(config, &mut recorder, Recorder::DEVICE)?),
            Self::Vae(config) => {
                VaeEncoder::load(config, &mut recorder, Recorder::DEVICE)?;
                VaeDecoder::load(config, &mut recorder, Recorder::DEVICE)?;
            }
            Self::TextEncoder(config) => drop(Umt5::load(config, &mut recorder, Recorder::DEVICE)?),
        }
        Ok(recorder.specs)
    }
}

/// The dimensions of an expert.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn expert(part: &Part, name: PartName) -> Result<DitConfig> {
    let look = |name: &str| part.canonical_shape(name);
    if let Some(config) = given_expert(&part.store().location().files, name, Some(&look))? {
        return Ok(config);
    }
    let config = naming::config::infer_expert(&look).with_context(|| untold(part))?;
    check_expert(&config).with_context(|| part.store().location().to_string())?;
    Ok(config)
}

/// Refuses the experts of other models and dimensions that are not supported.
fn check_expert(config: &DitConfig) -> Result<()> {
    config.validate()?;
    let (inputs, outputs) = (config.in_channels, config.out_channels);
    let what = match (inputs, outputs) {
        (16, 16) => "an expert of a text-to-video model (T2V), which takes no picture",
        (48, 48) => "the transformer of Wan2.2 TI2V-5B",
        (52 | 100, 16) => "an expert of a Fun-Control model",
        _ => "no expert of Wan2.2 I2V-A14B",
    };
    ensure!(
        inputs == 2 * outputs + 4,
        "this is {what}: in_channels and out_channels are {inputs} and {outputs}; an image-to-video \
         expert has 36 (noise, 4 mask channels, image) and 16\nhint: {OTHER_MODEL}"
    );
    Ok(())
}

/// The dimensions of a VAE.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn vae(part: &Part) -> Result<VaeConfig> {
    if let Some(config) = given_vae(&part.store().location().files)? {
        return Ok(config);
    }
    let look = |name: &str| part.canonical_shape(name);
    let config = naming::config::infer_vae(&look).with_context(|| untold(part))?;
    config.validate().with_context(|| untold(part))?;
    Ok(config)
}

/// The dimensions of a text encoder.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn text_encoder(part: &Part) -> Result<Umt5Config> {
    if let Some(config) = given_text_encoder(&part.store().location().files)? {
        return Ok(config);
    }
    let look = |name: &str| part.canonical_shape(name);
    let config = naming::config::infer_text(&look).with_context(|| untold(part))?;
    config.validate().with_context(|| untold(part))?;
    Ok(config)
}

/// Without tensors to `look` at, what a configuration leaves out is as in the published models.
fn given_expert(files: &Files, name: PartName, look: Option<Look>) -> Result<Option<DitConfig>> {
    const FIELDS: [&str; 2] = ["num_attention_heads", "attention_head_dim"];
    let foreign = |json: &Value, text: &[u8]| {
        if mentions(json, "WanTransformer3DModel", &FIELDS) {
            return parse(text).map(Some);
        }
        // The original's, and mlx-video's.
        if json.get("num_heads").is_none() || json.get("dim").is_none() {
            return Ok(None);
        }
        match look {
            Some(look) => naming::config::expert_from(json, look).map(Some),
            None => naming::config::expert_of_original(json).map(Some),
        }
    };
    read(files, name, foreign, check_expert)
}

fn given_vae(files: &Files) -> Result<Option<VaeConfig>> {
    const FIELDS: [&str; 3] = ["z_dim", "base_dim", "latents_mean"];
    let foreign = |json: &Value, text: &[u8]| match mentions(json, "AutoencoderKLWan", &FIELDS) {
        true => parse(text).map(Some),
        false => Ok(None),
    };
    read(files, PartName::Vae, foreign, VaeConfig::validate)
}

fn given_text_encoder(files: &Files) -> Result<Option<Umt5Config>> {
    const FIELDS: [&str; 3] = ["d_model", "d_kv", "d_ff"];
    let foreign = |json: &Value, text: &[u8]| match mentions(json, "UMT5EncoderModel", &FIELDS) {
        true => parse(text).map(Some),
        false => Ok(None),
    };
    read(files, PartName::TextEncoder, foreign, Umt5Config::validate)
}

/// The configuration in a part's folder, if it is about such a part.
fn read<T: DeserializeOwned>(
    files: &Files,
    name: PartName,
    foreign: impl Fn(&Value, &[u8]) -> Result<Option<T>>,
    validate: impl Fn(&T) -> Result<()>,
) -> Result<Option<T>> {
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
        None => foreign(&json, &text),
    };
    let Some(config) = config.with_context(malformed)? else {
        return Ok(None);
    };
    validate(&config).with_context(|| format!("{file} is not supported"))?;
    Ok(Some(config))
}

/// Whether a configuration is of a diffusers or transformers class, by its name or by a field that
/// others lack.
fn mentions(json: &Value, class: &str, fields: &[&str]) -> bool {
    json.get("_class_name").is_some_and(|name| name == class)
        || fields.iter().any(|field| json.get(field).is_some())
}

/// From the text and not from the parsed value, since its errors name the line.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    // They quote it, too.
    serde_json::from_slice(text).map_err(|error| anyhow!("{}", error.to_string().shown()))
}

fn untold(part: &Part) -> String {
    format!(
        "{}: no {CONFIG} beside it tells the dimensions, and neither do the tensors' shapes",
        part.store().location()
    )
}
