//! Configurations as the original and mlx-video write them.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::infer::{EPS, PATCH_SIZE, QK_NORM, ROPE_LENGTH};
use crate::model::dit::DitConfig;

/// Default width of the text embedding (Wan-Video/Wan2.2, `wan/modules/model.py`).
const TEXT_DIM: i32 = 4096;
/// Default width of the sinusoidal time embedding (as above).
const FREQ_DIM: i32 = 256;

/// What a `config.json` of the original layout or of an mlx-video folder says. Both use the
/// names of the original's constructor (Wan-Video/Wan2.2, `wan/modules/model.py`); mlx-video
/// (Blaizzy/mlx-video, `mlx_video/models/wan_2/config.py`) adds how to run the model.
///
/// The original leaves out `patch_size`, `text_dim`, `cross_attn_norm` and `qk_norm`
/// (`ignore_for_config` there); everything is optional here, and
/// [`expert_from`](super::config::expert_from) takes what is missing from the tensors.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct OriginalConfig {
    /// The class that wrote it: `WanModel` in the original layout, absent in mlx-video's.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// `i2v` for image-to-video.
    pub model_type: Option<String>,
    /// Latent frames, rows and columns per token.
    pub patch_size: Option<[i32; 3]>,
    /// Width of the residual stream.
    pub dim: Option<i32>,
    /// Hidden width of the feed-forward layers.
    pub ffn_dim: Option<i32>,
    /// Width of the sinusoidal time embedding.
    pub freq_dim: Option<i32>,
    /// Width of the text encoder's output.
    pub text_dim: Option<i32>,
    /// Input channels.
    pub in_dim: Option<i32>,
    /// Output channels.
    pub out_dim: Option<i32>,
    /// Attention heads.
    pub num_heads: Option<i32>,
    /// Transformer blocks.
    pub num_layers: Option<i32>,
    /// Whether cross-attention has an affine LayerNorm in front.
    pub cross_attn_norm: Option<bool>,
    /// Whether queries and keys are normalised; they are in every Wan.
    pub qk_norm: Option<bool>,
    /// Epsilon of every norm.
    pub eps: Option<f32>,
    /// Tokens that prompts are padded to.
    pub text_len: Option<i32>,
    /// mlx-video: how the experts' layers are quantized.
    pub quantization: Option<Quantization>,
    /// mlx-video: whether there are two experts.
    pub dual_model: Option<bool>,
    /// mlx-video: where the experts change, as a share of the training timesteps.
    pub boundary: Option<f64>,
    /// mlx-video: shift of the noise schedule.
    pub sample_shift: Option<f64>,
    /// mlx-video: denoising steps.
    pub sample_steps: Option<u32>,
    /// mlx-video: guidance.
    pub sample_guide_scale: Option<GuideScale>,
    /// mlx-video: frames per second.
    pub sample_fps: Option<f64>,
    /// mlx-video: frames of a clip.
    pub frame_num: Option<u32>,
    /// mlx-video: the negative prompt.
    pub sample_neg_prompt: Option<String>,
    /// mlx-video: most pixels per frame; 0 for no limit.
    pub max_area: Option<u64>,
}

/// MLX's affine quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Quantization {
    /// Bits per value.
    pub bits: u32,
    /// Values that share a scale and an offset.
    pub group_size: u32,
}

/// One guidance scale, or those of the low-noise and the high-noise expert.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum GuideScale {
    /// For both experts.
    One(f32),
    /// `[low, high]`.
    Two([f32; 2]),
}

impl GuideScale {
    /// The scales of the (low-noise, high-noise) experts.
    pub fn low_high(self) -> (f32, f32) {
        match self {
            GuideScale::One(scale) => (scale, scale),
            GuideScale::Two([low, high]) => (low, high),
        }
    }
}

impl OriginalConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// When it is no JSON object, a field has the wrong type, or another class wrote it.
    pub fn read(json: &Value) -> Result<Self> {
        const EXPECTED: &str =
            "not a configuration of an expert in the original's or mlx-video's form";
        // serde would take a list for the fields in their order.
        ensure!(json.is_object(), EXPECTED);
        let config = Self::deserialize(json).context(EXPECTED)?;
        if let Some(class) = &config.class_name {
            ensure!(
                class == "WanModel",
                "_class_name is {class:?}; expected \"WanModel\", an expert in the original layout"
            );
        }
        ensure!(
            config.qk_norm != Some(false),
            "qk_norm is false; only models that normalise queries and keys are supported"
        );
        Ok(config)
    }

    /// The expert that this describes, with the original's defaults for what its configuration
    /// leaves out.
    ///
    /// # Errors
    /// Names the field that is missing or does not fit another one.
    pub fn expert(&self) -> Result<DitConfig> {
        let field = |name: &str, value: Option<i32>| {
            value.with_context(|| format!("the configuration has no {name}"))
        };
        let (dim, heads) = (field("dim", self.dim)?, field("num_heads", self.num_heads)?);
        ensure!(
            dim > 0 && heads > 0 && dim % heads == 0,
            "dim is {dim} and num_heads is {heads}; expected a width that the heads divide"
        );
        Ok(DitConfig {
            patch_size: self.patch_size.unwrap_or(PATCH_SIZE),
            num_attention_heads: heads,
            attention_head_dim: dim / heads,
            in_channels: field("in_dim", self.in_dim)?,
            out_channels: field("out_dim", self.out_dim)?,
            text_dim: self.text_dim.unwrap_or(TEXT_DIM),
            freq_dim: self.freq_dim.unwrap_or(FREQ_DIM),
            ffn_dim: field("ffn_dim", self.ffn_dim)?,
            num_layers: field("num_layers", self.num_layers)?,
            cross_attn_norm: self.cross_attn_norm.unwrap_or(true),
            eps: self.eps.unwrap_or(EPS),
            rope_max_seq_len: ROPE_LENGTH,
            qk_norm: Some(QK_NORM.into()),
            image_dim: None,
            added_kv_proj_dim: None,
            pos_embed_seq_len: None,
        })
    }

    /// Checks what is given against what the shapes say.
    ///
    /// # Errors
    /// Names the field, what it says and what the tensors say.
    pub fn check(&self, found: &DitConfig) -> Result<()> {
        let dim = found
            .num_attention_heads
            .saturating_mul(found.attention_head_dim);
        for (field, given, found) in [
            ("dim", self.dim, dim),
            ("ffn_dim", self.ffn_dim, found.ffn_dim),
            ("freq_dim", self.freq_dim, found.freq_dim),
            ("text_dim", self.text_dim, found.text_dim),
            ("in_dim", self.in_dim, found.in_channels),
            ("out_dim", self.out_dim, found.out_channels),
            ("num_layers", self.num_layers, found.num_layers),
        ] {
            ensure!(
                given.is_none_or(|given| given == found),
                "config.json says that {field} is {}, but the tensors' shapes say {found}: they \
                 do not belong together",
                given.unwrap_or_default()
            );
        }
        ensure!(
            self.patch_size
                .is_none_or(|given| given == found.patch_size),
            "config.json says that patch_size is {:?}, but the tensors' shapes say {:?}: they do \
             not belong together",
            self.patch_size.unwrap_or_default(),
            found.patch_size
        );
        ensure!(
            self.cross_attn_norm
                .is_none_or(|given| given == found.cross_attn_norm),
            "config.json says that cross_attn_norm is {}, but the tensors say {}: they do not \
             belong together",
            self.cross_attn_norm.unwrap_or_default(),
            found.cross_attn_norm
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
