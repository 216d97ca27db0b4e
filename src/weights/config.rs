//! A part's dimensions: from a configuration beside it, or from its tensors' shapes.

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Conditioning;
use super::files::Files;
use super::layout::PartName;
use super::naming::config::Look;
use super::naming::{self, Kind};
use super::part::Part;
use crate::model::clip_vision::{ClipVision, ClipVisionConfig};
use crate::model::dit::{Dit, DitConfig};
use crate::model::umt5::{Umt5, Umt5Config};
use crate::model::vae::{VaeConfig, VaeDecoder, VaeEncoder};
use crate::model::{Recorder, TensorSpec};
use crate::util::show::Show;

/// The file beside a part, or beside all of them, that holds dimensions.
pub const CONFIG: &str = "config.json";
/// More layers than any network may have.
const MAX_LAYERS: i32 = 1024;
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
    /// Of the image encoder.
    ImageEncoder(ClipVisionConfig),
}

impl PartName {
    /// Its key in our own configuration.
    pub fn key(self) -> &'static str {
        match self {
            PartName::HighNoise => "high_noise_model",
            PartName::LowNoise => "low_noise_model",
            PartName::Vae => "vae",
            PartName::TextEncoder => "text_encoder",
            PartName::Transformer => "model",
            PartName::ImageEncoder => "image_encoder",
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
            PartName::HighNoise | PartName::LowNoise | PartName::Transformer => {
                Self::Expert(expert(part, name)?)
            }
            PartName::Vae => Self::Vae(vae(part)?),
            PartName::TextEncoder => Self::TextEncoder(text_encoder(part)?),
            PartName::ImageEncoder => Self::ImageEncoder(image_encoder(part)?),
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
            Kind::ImageEncoder => given_image_encoder(files)?.map(Self::ImageEncoder),
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
            Self::ImageEncoder(config) => {
                let all = config.with_last_layer();
                ClipVision::load(&all, &mut recorder, Recorder::DEVICE)?;
            }
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

/// Takes from the tensors whether an expert attends to pictures: some published configurations say so
/// without them (Wan-AI/Wan2.2-I2V-A14B-Diffusers at 348da65), and early ones of Wan2.1 do not say it.
pub(crate) fn look_for_images(config: &mut DitConfig, look: Look) {
    let of_block = |i: i32, module: &str| look(&format!("blocks.{i}.attn2.{module}.weight"));
    // Not checked yet: whatever a file says.
    let layers = config.num_layers.min(MAX_LAYERS);
    let dim = config
        .num_attention_heads
        .saturating_mul(config.attention_head_dim);
    let has = |module| (0..layers).any(|i| of_block(i, module).is_some());
    let width = look("condition_embedder.image_embedder.norm1.weight");
    let number = |shape: Vec<usize>, axis| i32::try_from(*shape.get(axis)?).ok();
    if let Some(width) = width.and_then(|shape| number(shape, 0)) {
        let positions = look("condition_embedder.image_embedder.pos_embed");
        config.image_dim = Some(width);
        config.added_kv_proj_dim = Some(dim);
        config.pos_embed_seq_len = positions.and_then(|shape| number(shape, 1));
    } else if has("to_k") && !has("add_k_proj") {
        without_images(config);
    }
}

/// Drops the claim of an image branch that has another width than the transformer.
fn without_false_claim(config: &mut DitConfig) {
    let (heads, width) = (config.num_attention_heads, config.attention_head_dim);
    if config.added_kv_proj_dim != heads.checked_mul(width) {
        without_images(config);
    }
}

fn without_images(config: &mut DitConfig) {
    config.image_dim = None;
    config.added_kv_proj_dim = None;
    config.pos_embed_seq_len = None;
}

/// Refuses the experts of other models and dimensions that are not supported.
fn check_expert(config: &DitConfig) -> Result<()> {
    config.validate()?;
    Conditioning::of(config).map(|_| ())
}

/// The dimensions of a VAE.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn vae(part: &Part) -> Result<VaeConfig> {
    // A small one may lie beside the configuration of another.
    let is_tiny = part.names().naming == naming::Naming::Taehv;
    let given = given_vae(&part.store().location().files)?;
    if let Some(config) = given.filter(|config| config.tiny == is_tiny) {
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

/// The dimensions of an image encoder.
///
/// # Errors
/// As [`PartConfig::of`].
pub fn image_encoder(part: &Part) -> Result<ClipVisionConfig> {
    if let Some(config) = given_image_encoder(&part.store().location().files)? {
        return Ok(config);
    }
    let look = |name: &str| part.canonical_shape(name);
    let config = naming::config::infer_image(&look).with_context(|| untold(part))?;
    config.validate().with_context(|| untold(part))?;
    Ok(config)
}

/// Without tensors to `look` at, what a configuration leaves out is as in the published models.
fn given_expert(files: &Files, name: PartName, look: Option<Look>) -> Result<Option<DitConfig>> {
    const FIELDS: [&str; 2] = ["num_attention_heads", "attention_head_dim"];
    let foreign = |json: &Value, text: &[u8]| {
        if mentions(json, "WanTransformer3DModel", &FIELDS) {
            let mut config: DitConfig = parse(text)?;
            match look {
                Some(look) => look_for_images(&mut config, look),
                None => without_false_claim(&mut config),
            }
            return Ok(Some(config));
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

fn given_image_encoder(files: &Files) -> Result<Option<ClipVisionConfig>> {
    const FIELDS: [&str; 1] = ["image_size"];
    let foreign = |json: &Value, text: &[u8]| match mentions(json, "CLIPVisionModel", &FIELDS) {
        true => parse(text).map(Some),
        false => Ok(None),
    };
    let name = PartName::ImageEncoder;
    read(files, name, foreign, ClipVisionConfig::validate)
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
