//! One transformer block: self-attention, cross-attention, feed-forward.

use anyhow::Result;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, fast};

use super::{DitConfig, Rope};
use crate::backend::attention;
use crate::model::layers::{Linear, f32, gelu_tanh};
use crate::model::{Role, TensorSource};

/// A block's cross-attention keys and values for one prompt: `[1, heads, text_len, head_dim]`
/// each, in the matmul dtype.
#[derive(Clone, Debug)]
pub struct CrossKv {
    /// Keys, after the key norm.
    pub keys: Array,
    /// Values.
    pub values: Array,
}

/// The projections and norms of one attention layer.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    /// RMSNorm weights over the whole width, before the split into heads; float32.
    norm_q: Array,
    norm_k: Array,
    heads: i32,
    head_dim: i32,
    eps: f32,
}

impl Attention {
    fn load(config: &DitConfig, source: &mut dyn TensorSource, name: &str) -> Result<Self> {
        let dim = config.dim();
        let mut linear =
            |part: &str| Linear::load(source, &format!("{name}.{part}"), dim, dim, Role::Matmul);
        let (to_q, to_k, to_v) = (linear("to_q")?, linear("to_k")?, linear("to_v")?);
        let to_out = linear("to_out.0")?;
        let mut norm =
            |part: &str| source.tensor(&format!("{name}.{part}.weight"), &[dim], Role::Exact);
        Ok(Self {
            to_q,
            to_k,
            to_v,
            to_out,
            norm_q: norm("norm_q")?,
            norm_k: norm("norm_k")?,
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
            eps: config.eps,
        })
    }

    /// Projected and normalised queries, `[n, heads, head_dim]`, float32.
    fn queries(&self, x: &Array) -> MlxResult<Array> {
        self.split(&fast::rms_norm(
            f32(&self.to_q.forward(x)?)?,
            Some(&self.norm_q),
            self.eps,
        )?)
    }

    /// Projected and normalised keys, `[n, heads, head_dim]`, float32.
    fn keys(&self, x: &Array) -> MlxResult<Array> {
        self.split(&fast::rms_norm(
            f32(&self.to_k.forward(x)?)?,
            Some(&self.norm_k),
            self.eps,
        )?)
    }

    /// Projected values, `[n, heads, head_dim]`, in the matmul dtype.
    fn values(&self, x: &Array) -> MlxResult<Array> {
        self.split(&self.to_v.forward(x)?)
    }

    fn split(&self, x: &Array) -> MlxResult<Array> {
        x.reshape(&[x.dim(0), self.heads, self.head_dim])
    }

    /// Attention of `[1, heads, n, head_dim]` operands and the output projection: `[n, dim]`.
    fn attend(&self, q: &Array, kv: &CrossKv) -> MlxResult<Array> {
        let scale = (f64::from(self.head_dim)).sqrt().recip() as f32;
        let q = q.as_dtype(kv.values.dtype())?;
        let out = attention(&q, &kv.keys, &kv.values, scale)?;
        let tokens = out.dim(2);
        let joined = out
            .transpose_axes(&[0, 2, 1, 3])?
            .reshape(&[tokens, self.heads * self.head_dim])?;
        self.to_out.forward(&joined)
    }
}

/// `[n, heads, head_dim]` to `[1, heads, n, head_dim]`.
fn heads_first(x: &Array) -> MlxResult<Array> {
    x.transpose_axes(&[1, 0, 2])?.expand_dims(0)
}

/// One transformer block with its weights.
#[derive(Debug)]
pub(super) struct Block {
    self_attention: Attention,
    cross_attention: Attention,
    /// Affine LayerNorm in front of cross-attention: weight and bias `[dim]`.
    cross_norm: Option<(Array, Array)>,
    ffn_in: Linear,
    ffn_out: Linear,
    /// `[6, dim]`, float32.
    scale_shift_table: Array,
    eps: f32,
}

impl Block {
    pub(super) fn load(
        config: &DitConfig,
        source: &mut dyn TensorSource,
        name: &str,
    ) -> Result<Self> {
        let dim = config.dim();
        let self_attention = Attention::load(config, source, &format!("{name}.attn1"))?;
        let cross_attention = Attention::load(config, source, &format!("{name}.attn2"))?;
        // diffusers calls the reference's norm3 norm2.
        let cross_norm = if config.cross_attn_norm {
            Some((
                source.tensor(&format!("{name}.norm2.weight"), &[dim], Role::Exact)?,
                source.tensor(&format!("{name}.norm2.bias"), &[dim], Role::Exact)?,
            ))
        } else {
            None
        };
        let ffn = |part: &str| format!("{name}.ffn.net.{part}");
        Ok(Self {
            self_attention,
            cross_attention,
            cross_norm,
            ffn_in: Linear::load(source, &ffn("0.proj"), dim, config.ffn_dim, Role::Matmul)?,
            ffn_out: Linear::load(source, &ffn("2"), config.ffn_dim, dim, Role::Matmul)?,
            scale_shift_table: source
                .tensor(
                    &format!("{name}.scale_shift_table"),
                    &[1, 6, dim],
                    Role::Exact,
                )?
                .reshape(&[6, dim])?,
            eps: config.eps,
        })
    }

    /// Keys and values for embedded text `[text_len, dim]`; evaluated.
    pub(super) fn cross_kv(&self, context: &Array) -> MlxResult<CrossKv> {
        let values = heads_first(&self.cross_attention.values(context)?)?;
        let keys = heads_first(&self.cross_attention.keys(context)?)?.as_dtype(values.dtype())?;
        mlx_rs::transforms::eval([&keys, &values])?;
        Ok(CrossKv { keys, values })
    }

    /// `x` `[tokens, dim]`, float32, to the same; `time` is the projection `[6, dim]`.
    pub(super) fn forward(
        &self,
        x: &Array,
        time: &Array,
        rope: &Rope,
        cross: &CrossKv,
    ) -> MlxResult<Array> {
        let modulation = self.scale_shift_table.add(time)?;
        let row = |i: i32| modulation.try_index(i);
        let one_plus = |i: i32| row(i)?.add(Array::from_f32(1.0));

        // (1 + scale) and shift are the weight and bias of one LayerNorm kernel.
        let h = fast::layer_norm(x, &one_plus(1)?, &row(0)?, self.eps)?;
        let values = heads_first(&self.self_attention.values(&h)?)?;
        let keys =
            heads_first(&rope.rotate(&self.self_attention.keys(&h)?)?)?.as_dtype(values.dtype())?;
        let queries = heads_first(&rope.rotate(&self.self_attention.queries(&h)?)?)?;
        let h = self
            .self_attention
            .attend(&queries, &CrossKv { keys, values })?;
        let x = x.add(f32(&h)?.multiply(row(2)?)?)?;

        let h = match &self.cross_norm {
            Some((weight, bias)) => fast::layer_norm(&x, weight, bias, self.eps)?,
            None => x.clone(),
        };
        let queries = heads_first(&self.cross_attention.queries(&h)?)?;
        let x = x.add(f32(&self.cross_attention.attend(&queries, cross)?)?)?;

        let h = fast::layer_norm(&x, &one_plus(4)?, &row(3)?, self.eps)?;
        let h = self
            .ffn_out
            .forward(&gelu_tanh(&self.ffn_in.forward(&h)?)?)?;
        x.add(f32(&h)?.multiply(row(5)?)?)
    }
}
