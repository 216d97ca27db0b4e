//! One transformer block: self-attention, cross-attention, feed-forward.

use anyhow::Result;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, fast};

use super::{DitConfig, Rope};
use crate::backend::attention;
use crate::model::layers::{Linear, f32, gelu_tanh};
use crate::model::{Role, TensorSource};

/// A block's cross-attention keys and values for one prompt: `[1, heads, rows, head_dim]` each, in
/// the matmul dtype.
#[derive(Clone, Debug)]
pub struct CrossKv {
    /// Keys, after the key norm.
    pub keys: Array,
    /// Values.
    pub values: Array,
    /// Added to the scores of each key, `[1, 1, 1, rows]`, float32, when the last row stands for
    /// several equal ones.
    pub weights: Option<Array>,
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
        let out = attention(&q, &kv.keys, &kv.values, scale, kv.weights.as_ref())?;
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

    /// Keys and values for embedded text `[rows, dim]`, its last row standing for `copies` equal
    /// ones; evaluated.
    pub(super) fn cross_kv(&self, context: &Array, copies: i32) -> MlxResult<CrossKv> {
        let values = heads_first(&self.cross_attention.values(context)?)?;
        let keys = heads_first(&self.cross_attention.keys(context)?)?.as_dtype(values.dtype())?;
        mlx_rs::transforms::eval([&keys, &values])?;
        // Equal keys share one softmax term: n e^s = e^(s + ln n).
        let weights = (copies > 1).then(|| {
            let mut weights = vec![0.0; context.dim(0) as usize];
            if let Some(last) = weights.last_mut() {
                *last = f64::from(copies).ln() as f32;
            }
            Array::from_slice(&weights, &[1, 1, 1, context.dim(0)])
        });
        Ok(CrossKv {
            keys,
            values,
            weights,
        })
    }

    /// The block's first half, self-attention, which no prompt has a part in: `x` `[tokens, dim]`,
    /// float32, to the same; `time` is the projection `[6, dim]`.
    pub(super) fn attend_self(&self, x: &Array, time: &Array, rope: &Rope) -> MlxResult<Array> {
        let modulation = Modulation::new(&self.scale_shift_table, time)?;
        // (1 + scale) and shift are the weight and bias of one LayerNorm kernel.
        let h = fast::layer_norm(x, &modulation.one_plus(1)?, &modulation.row(0)?, self.eps)?;
        let values = heads_first(&self.self_attention.values(&h)?)?;
        let keys =
            heads_first(&rope.rotate(&self.self_attention.keys(&h)?)?)?.as_dtype(values.dtype())?;
        let queries = heads_first(&rope.rotate(&self.self_attention.queries(&h)?)?)?;
        let kv = CrossKv {
            keys,
            values,
            weights: None,
        };
        let h = self.self_attention.attend(&queries, &kv)?;
        x.add(f32(&h)?.multiply(modulation.row(2)?)?)
    }

    /// The second half, cross-attention and feed-forward; shapes as in [`Self::attend_self`].
    pub(super) fn attend_text(&self, x: &Array, time: &Array, cross: &CrossKv) -> MlxResult<Array> {
        let modulation = Modulation::new(&self.scale_shift_table, time)?;
        let h = match &self.cross_norm {
            Some((weight, bias)) => fast::layer_norm(x, weight, bias, self.eps)?,
            None => x.clone(),
        };
        let queries = heads_first(&self.cross_attention.queries(&h)?)?;
        let x = x.add(f32(&self.cross_attention.attend(&queries, cross)?)?)?;

        let h = fast::layer_norm(&x, &modulation.one_plus(4)?, &modulation.row(3)?, self.eps)?;
        let h = self
            .ffn_out
            .forward(&gelu_tanh(&self.ffn_in.forward(&h)?)?)?;
        x.add(f32(&h)?.multiply(modulation.row(5)?)?)
    }
}

/// A block's six modulation vectors at one timestep.
struct Modulation(Array);

impl Modulation {
    fn new(table: &Array, time: &Array) -> MlxResult<Self> {
        table.add(time).map(Self)
    }

    fn row(&self, i: i32) -> MlxResult<Array> {
        self.0.try_index(i)
    }

    fn one_plus(&self, i: i32) -> MlxResult<Array> {
        self.row(i)?.add(Array::from_f32(1.0))
    }
}
