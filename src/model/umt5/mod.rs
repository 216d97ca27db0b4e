//! The UMT5 text encoder.
//!
//! Mirrors `T5Encoder` of Wan-Video/Wan2.2 (`wan/modules/t5.py`) with the tensor names of
//! transformers' `UMT5EncoderModel`. Unlike T5, every layer has a relative position table of
//! its own, and attention scores are not scaled.

pub mod cost;

use anyhow::{Result, ensure};
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::softmax_axis;
use mlx_rs::{Array, fast};
use serde::{Deserialize, Serialize};

use super::layers::{Linear, f32};
use super::{
    MAX_LAYERS, MAX_WIDTH, Role, Scope, TensorSource, check_dimensions, check_epsilon, product,
};
use crate::runtime::{Device, count_product};

/// Dimensions of the encoder, with transformers' names (`text_encoder/config.json`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Umt5Config {
    /// Width of the residual stream and of the output.
    pub d_model: i32,
    /// Channels per head.
    pub d_kv: i32,
    /// Hidden width of the gated feed-forward layers.
    pub d_ff: i32,
    /// Encoder layers.
    pub num_layers: i32,
    /// Attention heads.
    pub num_heads: i32,
    /// Rows of the embedding table.
    pub vocab_size: i32,
    /// Buckets of the relative position tables.
    pub relative_attention_num_buckets: i32,
    /// Distance from which all positions share the last bucket.
    pub relative_attention_max_distance: i32,
    /// Epsilon of the RMS norms.
    pub layer_norm_epsilon: f32,
    /// Activation of the feed-forward layers; only `gated-gelu` exists.
    #[serde(default = "gated_gelu")]
    pub feed_forward_proj: String,
}

fn gated_gelu() -> String {
    "gated-gelu".into()
}

impl Umt5Config {
    /// Refuses configurations that this network does not implement.
    ///
    /// # Errors
    /// Names the field, what it holds and what is supported.
    pub fn validate(&self) -> Result<()> {
        check_dimensions(
            &[
                ("d_model", self.d_model.into()),
                ("d_kv", self.d_kv.into()),
                ("d_ff", self.d_ff.into()),
                ("num_heads", self.num_heads.into()),
                ("num_heads * d_kv", product(&[self.num_heads, self.d_kv])),
                ("vocab_size", self.vocab_size.into()),
                (
                    "relative_attention_num_buckets",
                    self.relative_attention_num_buckets.into(),
                ),
                (
                    "relative_attention_max_distance",
                    self.relative_attention_max_distance.into(),
                ),
            ],
            MAX_WIDTH,
        )?;
        check_dimensions(&[("num_layers", self.num_layers.into())], MAX_LAYERS)?;
        check_epsilon("layer_norm_epsilon", self.layer_norm_epsilon)?;
        ensure!(
            self.relative_attention_num_buckets % 4 == 0
                && self.relative_attention_max_distance > self.relative_attention_num_buckets / 4,
            "relative_attention_num_buckets is {} and relative_attention_max_distance is {}; \
             expected a multiple of 4 and a distance above a quarter of it",
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance
        );
        ensure!(
            self.feed_forward_proj == "gated-gelu",
            "feed_forward_proj is {:?}; only \"gated-gelu\" is supported",
            self.feed_forward_proj
        );
        Ok(())
    }
}

/// The encoder with its weights. It computes in float32 whatever their dtype: with bfloat16 products the
/// prompt alone moves a clip's latents by 0.2%, and there are few of them.
#[derive(Debug)]
pub struct Umt5 {
    config: Umt5Config,
    device: Device,
    embedding: Array,
    layers: Vec<Layer>,
    final_norm: Array,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Array,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// `[buckets, heads]`, float32.
    position_table: Array,
    ffn_norm: Array,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn load(config: &Umt5Config, source: &mut Scope<'_>, device: Device) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let mut attention = source.scope("0.SelfAttention");
        let mut linear = |name, sides| {
            Linear::load_without_bias(&mut attention.scope(name), sides, Role::Matmul)?
                .in_float32()
                .on(device)
        };
        let q = linear("q", [width, inner])?;
        let k = linear("k", [width, inner])?;
        let v = linear("v", [width, inner])?;
        let o = linear("o", [inner, width])?;
        let mut ffn = source.scope("1.DenseReluDense");
        let mut linear = |name, sides| {
            Linear::load_without_bias(&mut ffn.scope(name), sides, Role::Matmul)?
                .in_float32()
                .on(device)
        };
        let gate = linear("wi_0", [width, config.d_ff])?;
        let up = linear("wi_1", [width, config.d_ff])?;
        let down = linear("wo", [config.d_ff, width])?;
        let mut exact = |name, shape: &[i32]| source.tensor(name, shape, Role::Exact);
        Ok(Self {
            position_table: exact(
                "0.SelfAttention.relative_attention_bias.weight",
                &[config.relative_attention_num_buckets, config.num_heads],
            )?,
            attention_norm: exact("0.layer_norm.weight", &[width])?,
            ffn_norm: exact("1.layer_norm.weight", &[width])?,
            q,
            k,
            v,
            o,
            gate,
            up,
            down,
        })
    }
}

impl Umt5 {
    /// Takes every tensor of the encoder from `source`.
    ///
    /// # Errors
    /// Whatever the source refuses, with the tensor's name.
    pub fn load(
        config: &Umt5Config,
        source: &mut dyn TensorSource,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let embedding = source.tensor(
            "shared.weight",
            &[config.vocab_size, config.d_model],
            Role::Table,
        )?;
        let mut encoder = source.scope("encoder");
        let layers = (0..config.num_layers)
            .map(|i| {
                Layer::load(
                    config,
                    &mut encoder.scope(&format!("block.{i}.layer")),
                    device,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let final_norm =
            encoder.tensor("final_layer_norm.weight", &[config.d_model], Role::Exact)?;
        Ok(Self {
            embedding,
            layers,
            final_norm,
            config: config.clone(),
            device,
        })
    }

    /// Encodes token ids: `[ids.len(), d_model]`, float32; evaluated.
    ///
    /// Only real tokens go in. The reference pads to 512 and masks the padding inside the
    /// encoder, which leaves the real rows the same.
    ///
    /// # Errors
    /// When there is no id or one lies outside the vocabulary.
    pub fn encode(&self, ids: &[u32]) -> Result<Array> {
        ensure!(!ids.is_empty(), "no token to encode");
        if let Some(id) = ids.iter().find(|&&id| id >= self.config.vocab_size as u32) {
            anyhow::bail!(
                "token id {id} lies outside the text encoder's vocabulary of {}: the tokenizer \
                 does not belong to this text encoder",
                self.config.vocab_size
            );
        }
        let tokens = ids.len() as i32;
        let buckets = Array::from_slice(&self.buckets(tokens), &[tokens * tokens]);
        let mut x = f32(&self
            .embedding
            .take_axis(Array::from_slice(ids, &[tokens]), 0)?)?;
        for layer in &self.layers {
            x = self.layer(layer, &x, &buckets)?;
            x.eval()?;
        }
        let x = fast::rms_norm(&x, Some(&self.final_norm), self.config.layer_norm_epsilon)?;
        x.eval()?;
        Ok(x)
    }

    fn layer(&self, layer: &Layer, x: &Array, buckets: &Array) -> MlxResult<Array> {
        let (tokens, eps) = (x.dim(0), self.config.layer_norm_epsilon);
        let (heads, head_dim) = (self.config.num_heads, self.config.d_kv);
        let split = |x: Array| {
            x.reshape(&[tokens, heads, head_dim])?
                .transpose_axes(&[1, 0, 2])
        };
        let h = fast::rms_norm(x, Some(&layer.attention_norm), eps)?;
        let q = split(layer.q.forward(&h)?)?;
        let k = split(layer.k.forward(&h)?)?;
        let v = split(layer.v.forward(&h)?)?;
        // At most 512 tokens: the score matrix is small, and written out it keeps the mask-like
        // position bias away from fused kernels (see runtime::MAX_KERNEL_ROWS).
        let bias = layer
            .position_table
            .take_axis(buckets, 0)?
            .reshape(&[tokens, tokens, heads])?
            .transpose_axes(&[2, 0, 1])?;
        // Scores, and the values that they weigh.
        count_product(2 * heads * tokens, head_dim, tokens);
        let scores = f32(&q.matmul(k.swap_axes(1, 2)?)?)?.add(&bias)?;
        let weights = softmax_axis(&scores, -1, true)?.as_dtype(v.dtype())?;
        let h = weights
            .matmul(&v)?
            .transpose_axes(&[1, 0, 2])?
            .reshape(&[tokens, heads * head_dim])?;
        let x = x.add(f32(&layer.o.forward(&h)?)?)?;

        let h = fast::rms_norm(&x, Some(&layer.ffn_norm), eps)?;
        let gate = self.device.gelu_tanh(&layer.gate.forward(&h)?)?;
        let h = gate.multiply(layer.up.forward(&h)?)?;
        x.add(f32(&layer.down.forward(&h)?)?)
    }

    /// Bucket of every (query, key) pair, row-major: half of the buckets for keys behind the
    /// query, half for keys ahead; in each half exact distances first, then logarithmic ones.
    /// The logarithm is float32, as transformers' `_relative_position_bucket` computes it.
    fn buckets(&self, tokens: i32) -> Vec<i32> {
        let half = self.config.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let span =
            (f64::from(self.config.relative_attention_max_distance) / f64::from(exact)).ln() as f32;
        let bucket = |offset: i32| {
            let distance = offset.abs();
            let within = if distance < exact {
                distance
            } else {
                let log = (distance as f32 / exact as f32).ln() / span * (half - exact) as f32;
                (exact + log as i32).min(half - 1)
            };
            within + if offset > 0 { half } else { 0 }
        };
        (0..tokens)
            .flat_map(|query| (0..tokens).map(move |key| bucket(key - query)))
            .collect()
    }

    /// The encoder's dimensions.
    pub fn config(&self) -> &Umt5Config {
        &self.config
    }
}

/// Pads an encoded prompt `[n, d_model]` with zero rows to `[text_len, d_model]`, after the
/// encoder, as the reference does.
pub fn pad_rows(encoded: &Array, text_len: i32) -> MlxResult<Array> {
    let (n, width) = (encoded.dim(0), encoded.dim(1));
    if n >= text_len {
        return encoded.try_index(0..text_len);
    }
    let padding = mlx_rs::ops::zeros_dtype(&[text_len - n, width], encoded.dtype())?;
    mlx_rs::ops::concatenate(&[encoded.clone(), padding], 0)
}
