//! The vision encoder of CLIP ViT-H/14, whose states before the last layer Wan2.1 attends to.
//!
//! Mirrors `VisionTransformer` of Wan-Video/Wan2.1 (`wan/modules/clip.py`, `use_31_block`) with the
//! tensor names of transformers' `CLIPVisionModel`.

pub mod cost;

use anyhow::{Result, ensure};
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, nn};
use ndarray::ArrayView3;
use serde::{Deserialize, Serialize};

use super::layers::{Linear, Weight};
use super::{
    MAX_LAYERS, MAX_WIDTH, MemoryPlan, Role, Scope, TensorSource, check_dimensions, check_epsilon,
};
use crate::runtime::Device;

/// Mean and standard deviation of each colour in the pictures that CLIP was trained on
/// (openai/CLIP, `clip/clip.py`; Wan-Video/Wan2.1, `wan/modules/clip.py`).
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Dimensions of the encoder, with transformers' names (`image_encoder/config.json`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ClipVisionConfig {
    /// Width of the residual stream and of the features.
    pub hidden_size: i32,
    /// Attention heads.
    pub num_attention_heads: i32,
    /// Layers, of which the last one is not computed.
    pub num_hidden_layers: i32,
    /// Hidden width of the feed-forward layers.
    pub intermediate_size: i32,
    /// Rows and columns of a picture.
    pub image_size: i32,
    /// Rows and columns of a patch.
    pub patch_size: i32,
    /// Activation of the feed-forward layers; only `gelu` is computed.
    pub hidden_act: String,
    /// Epsilon of the norms.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f32,
}

/// That of every published CLIP.
fn layer_norm_eps() -> f32 {
    1e-5
}

impl ClipVisionConfig {
    /// Refuses configurations that this network does not implement.
    ///
    /// # Errors
    /// Names the field, what it holds and what is supported.
    pub fn validate(&self) -> Result<()> {
        let Self {
            hidden_size,
            num_attention_heads,
            image_size,
            patch_size,
            ..
        } = *self;
        check_dimensions(
            &[
                ("hidden_size", hidden_size.into()),
                ("num_attention_heads", num_attention_heads.into()),
                ("intermediate_size", self.intermediate_size.into()),
            ],
            MAX_WIDTH,
        )?;
        check_dimensions(
            &[
                ("image_size", image_size.into()),
                ("patch_size", patch_size.into()),
            ],
            4096,
        )?;
        check_dimensions(
            &[("num_hidden_layers", self.num_hidden_layers.into())],
            MAX_LAYERS,
        )?;
        check_epsilon("layer_norm_eps", self.layer_norm_eps)?;
        ensure!(
            hidden_size % num_attention_heads == 0,
            "hidden_size is {hidden_size}, which is no multiple of num_attention_heads, \
             {num_attention_heads}"
        );
        ensure!(
            image_size % patch_size == 0,
            "image_size is {image_size}, which is no multiple of patch_size, {patch_size}"
        );
        ensure!(
            self.hidden_act == "gelu",
            "hidden_act is {:?}; only \"gelu\" is supported, which CLIP ViT-H/14 has",
            self.hidden_act
        );
        Ok(())
    }

    /// Rows of features of a picture: one for each patch, and one for all.
    pub fn tokens(&self) -> i32 {
        let side = self.image_size / self.patch_size;
        side * side + 1
    }

    /// The same with a further layer: what [`ClipVision::load`] asks for then is every layer of this one.
    pub fn with_last_layer(&self) -> Self {
        Self {
            num_hidden_layers: self.num_hidden_layers + 1,
            ..self.clone()
        }
    }
}

/// The encoder with its weights. It computes in float32: there are a picture or two in a clip.
#[derive(Debug)]
pub struct ClipVision {
    config: ClipVisionConfig,
    device: Device,
    patches: Linear,
    /// `[1, hidden_size]`.
    class: Array,
    /// `[tokens, hidden_size]`.
    positions: Array,
    norm: Norm,
    layers: Vec<Layer>,
}

/// Weight and bias of a layer norm.
type Norm = [Array; 2];

#[derive(Debug)]
struct Layer {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
}

fn load_norm(source: &mut Scope<'_>, width: i32) -> Result<Norm> {
    Ok([
        source.tensor("weight", &[width], Role::Exact)?,
        source.tensor("bias", &[width], Role::Exact)?,
    ])
}

impl Layer {
    fn load(config: &ClipVisionConfig, source: &mut Scope<'_>, device: Device) -> Result<Self> {
        let (width, hidden) = (config.hidden_size, config.intermediate_size);
        let norm1 = load_norm(&mut source.scope("layer_norm1"), width)?;
        let norm2 = load_norm(&mut source.scope("layer_norm2"), width)?;
        let mut linear =
            |name, sides| Linear::load(&mut source.scope(name), sides, Role::Exact)?.on(device);
        Ok(Self {
            norm1,
            q: linear("self_attn.q_proj", [width, width])?,
            k: linear("self_attn.k_proj", [width, width])?,
            v: linear("self_attn.v_proj", [width, width])?,
            out: linear("self_attn.out_proj", [width, width])?,
            norm2,
            up: linear("mlp.fc1", [width, hidden])?,
            down: linear("mlp.fc2", [hidden, width])?,
        })
    }
}

impl ClipVision {
    /// Takes every tensor that is needed from `source`: not those of the last layer, nor of the norm
    /// after it.
    ///
    /// # Errors
    /// Whatever the source refuses, with the tensor's name.
    pub fn load(
        config: &ClipVisionConfig,
        source: &mut dyn TensorSource,
        device: Device,
    ) -> Result<Self> {
        let (width, side) = (config.hidden_size, config.patch_size);
        let mut embeddings = source.scope("embeddings");
        let class = embeddings.tensor("class_embedding", &[width], Role::Exact)?;
        let mut exact = |name, shape: &[i32]| embeddings.tensor(name, shape, Role::Exact);
        let patches = exact("patch_embedding.weight", &[width, 3, side, side])?;
        let positions = exact("position_embedding.weight", &[config.tokens(), width])?;
        let norm = load_norm(&mut source.scope("pre_layrnorm"), width)?;
        let mut layers = source.scope("encoder.layers");
        let layers = (0..config.num_hidden_layers - 1)
            .map(|i| Layer::load(config, &mut layers.scope(&i.to_string()), device))
            .collect::<Result<_>>()?;
        Ok(Self {
            patches: Linear::from_weight(Weight::Dense(patches.reshape(&[width, -1])?), None)?
                .on(device)?,
            class: class.reshape(&[1, width])?,
            positions,
            norm,
            layers,
            config: config.clone(),
            device,
        })
    }

    /// The features `[tokens, hidden_size]` of a picture `[image_size, image_size, 3]` in [-1, 1]: the
    /// states before the last layer, float32; evaluated.
    ///
    /// # Errors
    /// When the picture has another size, or MLX fails.
    pub fn encode(&self, picture: ArrayView3<'_, f32>) -> Result<Array> {
        let mut x = self.embed(&self.patches_of(picture)?)?;
        for layer in &self.layers {
            x = self.layer(layer, &x)?;
            x.eval()?;
        }
        Ok(x)
    }

    /// The picture's patches, normalised, one in a row: `[patches, 3 * patch_size * patch_size]`.
    fn patches_of(&self, picture: ArrayView3<'_, f32>) -> Result<Array> {
        let (side, patch) = (
            self.config.image_size as usize,
            self.config.patch_size as usize,
        );
        ensure!(
            picture.dim() == (side, side, 3),
            "a picture of {:?} for the image encoder; expected {side} x {side} RGB",
            picture.dim()
        );
        let mut values = Vec::with_capacity(side * side * 3);
        for (top, left) in (0..side).step_by(patch).flat_map(|top| {
            let lefts = (0..side).step_by(patch);
            lefts.map(move |left| (top, left))
        }) {
            for colour in 0..3 {
                for (row, column) in (0..patch * patch).map(|at| (at / patch, at % patch)) {
                    let value = picture[[top + row, left + column, colour]];
                    values.push(normalised(value, colour));
                }
            }
        }
        let rows = self.config.tokens() - 1;
        Ok(Array::from_slice(
            &values,
            &[rows, (3 * patch * patch) as i32],
        ))
    }

    fn embed(&self, patches: &Array) -> MlxResult<Array> {
        let embedded = self.patches.forward(patches)?;
        let x = concatenate(&[&self.class, &embedded], 0)?.add(&self.positions)?;
        self.normed(&x, &self.norm)
    }

    fn normed(&self, x: &Array, [weight, bias]: &Norm) -> MlxResult<Array> {
        self.device
            .layer_norm(x, weight, bias, self.config.layer_norm_eps)
    }

    fn layer(&self, layer: &Layer, x: &Array) -> MlxResult<Array> {
        let (heads, width) = (self.config.num_attention_heads, self.config.hidden_size);
        let h = self.normed(x, &layer.norm1)?;
        let project = |linear: &Linear| {
            self.device
                .to_heads(&linear.forward(&h)?, heads, None, None)
        };
        let (q, k, v) = (project(&layer.q)?, project(&layer.k)?, project(&layer.v)?);
        let scale = ((width / heads) as f32).sqrt().recip();
        let whole = MemoryPlan::WHOLE.score_bytes;
        let h = self.device.attention([&q, &k, &v], scale, None, whole)?;
        let h = h.transpose_axes(&[0, 2, 1, 3])?.reshape(&[-1, width])?;
        let x = x.add(layer.out.forward(&h)?)?;

        let h = layer.up.forward(&self.normed(&x, &layer.norm2)?)?;
        x.add(layer.down.forward(&nn::gelu(&h)?)?)
    }

    /// The encoder's dimensions.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }
}

/// A value in [-1, 1] of a colour (red, green, blue) as the encoder was trained on it, by the reference's
/// arithmetic.
pub fn normalised(value: f32, colour: usize) -> f32 {
    (value.mul_add(0.5, 0.5) - MEAN[colour]) / DEVIATION[colour]
}
