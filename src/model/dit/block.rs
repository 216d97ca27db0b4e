//! One transformer block: self-attention, cross-attention, feed-forward.

use std::iter;

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result as MlxResult};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::eval;

use super::keys::{Gathered, laid_out};
use super::padding::copies_as_offsets;
use super::share::Heads;
use super::stream::Shared;
use super::{DitConfig, Rope, Stream, TimeEmbedding};
use crate::model::layers::Linear;
use crate::model::{MemoryPlan, Role, Scope, TensorSource};
use crate::runtime::{Device, Kernels};

/// Bytes of the residual stream above which a block is evaluated step by step instead of at once.
pub const LARGE_BYTES: usize = 1 << 20;

/// A block's cross-attention keys and values for one prompt: `[1, heads, rows, head_dim]` each, in
/// the matmul dtype.
#[derive(Clone, Debug)]
pub struct CrossKv {
    /// Keys, after the key norm.
    pub keys: Array,
    /// Values.
    pub values: Array,
    /// Added to the scores of each key, `[1, 1, 1, rows]`, float32, when the last rows stand for
    /// several equal ones.
    pub weights: Option<Array>,
    /// Keys and values of pictures, `[1, heads, rows, head_dim]` each, attended to by themselves.
    pub image: Option<(Array, Array)>,
}

/// Projections of pictures' features to keys and values.
#[derive(Debug)]
struct ImageKv {
    to_k: Linear,
    to_v: Linear,
    norm_k: Array,
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
    device: Device,
}

impl Attention {
    fn load(config: &DitConfig, source: &mut Scope<'_>, device: Device) -> Result<Self> {
        let dim = config.dim();
        let mut linear =
            |name| Linear::load(&mut source.scope(name), [dim, dim], Role::Matmul)?.on(device);
        let (to_q, to_k, to_v) = (linear("to_q")?, linear("to_k")?, linear("to_v")?);
        let to_out = linear("to_out.0")?;
        let mut norm = |name| source.tensor(name, &[dim], Role::Exact);
        Ok(Self {
            to_q,
            to_k,
            to_v,
            to_out,
            norm_q: norm("norm_q.weight")?,
            norm_k: norm("norm_k.weight")?,
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
            eps: config.eps,
            device,
        })
    }

    /// Projections of queries, normalised, and rotated if they have places: `[n, dim]` to `[1,
    /// heads, n, head_dim]` in the same dtype.
    fn queries(&self, projected: &Array, rope: Option<&Rope>) -> MlxResult<Array> {
        self.heads(projected, Some(&self.norm_q), rope)
    }

    /// As [`Self::queries`], of keys.
    fn keys(&self, projected: &Array, rope: Option<&Rope>) -> MlxResult<Array> {
        self.heads(projected, Some(&self.norm_k), rope)
    }

    /// Projections of values, `[n, dim]`, to `[1, heads, n, head_dim]`.
    fn values(&self, projected: &Array) -> MlxResult<Array> {
        self.heads(projected, None, None)
    }

    fn heads(
        &self,
        projected: &Array,
        norm: Option<&Array>,
        rope: Option<&Rope>,
    ) -> MlxResult<Array> {
        let norm = norm.map(|weight| (weight, self.eps));
        let rope = rope.map(|rope| [rope.cos(), rope.sin()]);
        self.device
            .to_heads(projected, self.heads, norm, rope)?
            .as_dtype(projected.dtype())
    }

    /// Attention of `[1, heads, n, head_dim]` queries, before the output projection: `[n, dim]`.
    fn attend(&self, q: &Array, kv: &CrossKv, score_bytes: u64) -> MlxResult<Array> {
        let q = q.as_dtype(kv.values.dtype())?;
        let weights = kv.weights.as_ref();
        let text = self.attend_to([&q, &kv.keys, &kv.values], weights, score_bytes)?;
        match &kv.image {
            Some((keys, values)) => {
                let image = self.attend_to([&q, keys, values], None, score_bytes)?;
                text.add(image)
            }
            None => Ok(text),
        }
    }

    fn attend_to(
        &self,
        qkv: [&Array; 3],
        weights: Option<&Array>,
        score_bytes: u64,
    ) -> MlxResult<Array> {
        let scale = (f64::from(self.head_dim)).sqrt().recip() as f32;
        self.device
            .merged_attention(qkv, scale, weights, score_bytes)
    }
}

/// One transformer block with its weights.
#[derive(Debug)]
pub(super) struct Block {
    self_attention: Attention,
    cross_attention: Attention,
    image: Option<ImageKv>,
    /// Affine LayerNorm in front of cross-attention: weight and bias `[dim]`.
    cross_norm: Option<(Array, Array)>,
    ffn_in: Linear,
    ffn_out: Linear,
    /// `[6, dim]`, float32.
    scale_shift_table: Array,
    eps: f32,
    device: Device,
}

impl Block {
    pub(super) fn load(config: &DitConfig, source: &mut Scope<'_>, device: Device) -> Result<Self> {
        let dim = config.dim();
        let self_attention = Attention::load(config, &mut source.scope("attn1"), device)?;
        let cross_attention = Attention::load(config, &mut source.scope("attn2"), device)?;
        let image = (config.added_kv_proj_dim.map(|inputs| {
            let mut source = source.scope("attn2");
            let mut linear = |name| {
                Linear::load(&mut source.scope(name), [inputs, dim], Role::Matmul)?.on(device)
            };
            Ok::<_, anyhow::Error>(ImageKv {
                to_k: linear("add_k_proj")?,
                to_v: linear("add_v_proj")?,
                norm_k: source.tensor("norm_added_k.weight", &[dim], Role::Exact)?,
            })
        }))
        .transpose()?;
        // diffusers calls the reference's norm3 norm2.
        let cross_norm = if config.cross_attn_norm {
            Some((
                source.tensor("norm2.weight", &[dim], Role::Exact)?,
                source.tensor("norm2.bias", &[dim], Role::Exact)?,
            ))
        } else {
            None
        };
        let mut ffn = source.scope("ffn.net");
        let mut linear =
            |name, sides| Linear::load(&mut ffn.scope(name), sides, Role::Matmul)?.on(device);
        Ok(Self {
            self_attention,
            cross_attention,
            image,
            cross_norm,
            ffn_in: linear("0.proj", [dim, config.ffn_dim])?,
            ffn_out: linear("2", [config.ffn_dim, dim])?,
            scale_shift_table: source
                .tensor("scale_shift_table", &[1, 6, dim], Role::Exact)?
                .reshape(&[6, dim])?,
            eps: config.eps,
            device,
        })
    }

    /// Keys and values for embedded text `[rows, dim]`, its last row standing for `copies` equal
    /// ones; evaluated.
    pub(super) fn cross_kv(&self, context: &Array, copies: i32) -> MlxResult<CrossKv> {
        let attention = &self.cross_attention;
        let values = attention.values(&attention.to_v.forward(context)?)?;
        let keys = attention.keys(&attention.to_k.forward(context)?, None)?;
        if copies <= 1 {
            eval([&keys, &values])?;
            return Ok(CrossKv {
                keys,
                values,
                weights: None,
                image: None,
            });
        }
        let offsets = copies_as_offsets(copies, keys.dtype());
        let rows = context.dim(0);
        let repeated = |x: Array| {
            let last = x.try_index((.., .., rows - 1.., ..))?;
            let again = iter::repeat_n(&last, offsets.len() - 1);
            concatenate(&iter::once(&x).chain(again).collect::<Vec<_>>(), 2)
        };
        let (keys, values) = (repeated(keys)?, repeated(values)?);
        eval([&keys, &values])?;
        let mut weights = vec![0.0; rows as usize - 1];
        weights.extend(&offsets);
        let count = weights.len() as i32;
        Ok(CrossKv {
            keys,
            values,
            weights: Some(Array::from_slice(&weights, &[1, 1, 1, count])),
            image: None,
        })
    }

    /// Keys and values for embedded pictures `[rows, dim]`, where the block attends to them; evaluated.
    pub(super) fn image_kv(&self, embedded: &Array) -> MlxResult<Option<(Array, Array)>> {
        let Some(image) = &self.image else {
            return Ok(None);
        };
        let attention = &self.cross_attention;
        let values = attention.values(&image.to_v.forward(embedded)?)?;
        let keys = image.to_k.forward(embedded)?;
        let keys = attention.heads(&keys, Some(&image.norm_k), None)?;
        eval([&keys, &values])?;
        Ok(Some((keys, values)))
    }

    /// The block's first half, self-attention, which no prompt has a part in: the stream of
    /// `copies * tokens` rows to the same. Copies of the sequence
    /// share the products and attend to themselves alone.
    pub(super) fn attend_self(
        &self,
        x: Stream,
        time: &TimeEmbedding,
        rope: &Rope,
        memory: &MemoryPlan,
    ) -> MlxResult<Stream> {
        let modulations = self.modulations(time)?;
        let Some(x) = x.as_whole() else {
            return self.attend_self_in_chunks(x, &modulations, rope, memory);
        };
        let modulation = modulations.of(0);
        // Self-attention
        let h = self.modulated(x, &modulation.scale_msa, &modulation.shift_msa)?;
        let attention = &self.self_attention;
        let copies = x.dim(0) / rope.tokens().max(1);
        let values = self.of_copies(&attention.to_v.forward(&h)?, copies, |values| {
            laid_out(self.device, attention.values(values)?)
        })?;
        eval_all_if_large(x, &values)?;
        let keys = self.of_copies(&attention.to_k.forward(&h)?, copies, |keys| {
            laid_out(self.device, attention.keys(keys, Some(rope))?)
        })?;
        eval_all_if_large(x, &keys)?;
        let queries = self.of_copies(&attention.to_q.forward(&h)?, copies, |queries| {
            attention.queries(queries, Some(rope))
        })?;
        drop(h);
        eval_all_if_large(x, &queries)?;
        let attended = queries
            .into_iter()
            .zip(keys.into_iter().zip(values))
            .map(|(queries, (keys, values))| {
                let kv = CrossKv {
                    keys,
                    values,
                    weights: None,
                    image: None,
                };
                attention.attend(&queries, &kv, memory.score_bytes)
            })
            .collect::<MlxResult<Vec<_>>>()?;
        let attended = self.device.joined(&attended)?;
        eval_if_large(x, &[&attended])?;
        let h = attention.to_out.forward(&attended)?;
        drop(attended);
        let out = self.device.add_gated(x, &h, &modulation.gate_msa)?;
        drop(h);
        eval_if_large(x, &[&out])?;
        Ok(out.into())
    }

    /// [`Self::attend_self`] of one sequence in chunks: as well as keys and values only a chunk's
    /// activations exist at once.
    fn attend_self_in_chunks(
        &self,
        x: Stream,
        modulations: &Modulations,
        rope: &Rope,
        memory: &MemoryPlan,
    ) -> MlxResult<Stream> {
        let attention = &self.self_attention;
        let modulated = |x: &Array, start| {
            let modulation = modulations.of(start);
            self.modulated(x, &modulation.scale_msa, &modulation.shift_msa)
        };
        let values_of = |h: &Array| attention.values(&attention.to_v.forward(h)?);
        let keys_of = |h: &Array, (start, end)| {
            let part = rope.part(start, end)?;
            attention.keys(&attention.to_k.forward(h)?, Some(&part))
        };
        let queries_of = |x: &Array, (start, end)| {
            let part = rope.part(start, end)?;
            let projected = attention.to_q.forward(&modulated(x, start)?)?;
            let queries = attention.queries(&projected, Some(&part))?;
            drop(projected);
            queries.eval()?;
            Ok::<_, Exception>(queries)
        };
        let shared = x.shared().cloned();
        let [keys, values] = match &shared {
            None => self
                .gathered(&x, |x, range| {
                    let h = modulated(x, range.0)?;
                    Ok([keys_of(&h, range)?, values_of(&h)?])
                })?
                .map(Heads::Here),
            // The values travel while the keys are computed, and those while the first queries are.
            Some(Shared { with, tokens, .. }) => {
                let begin = |[part]: [Array; 1]| Heads::begin(&**with, &part, *tokens);
                let values =
                    self.gathered(&x, |x, range| Ok([values_of(&modulated(x, range.0)?)?]))?;
                let values = begin(values)?;
                let keys = self.gathered(&x, |x, range| {
                    Ok([keys_of(&modulated(x, range.0)?, range)?])
                })?;
                [begin(keys)?, values]
            }
        };
        let first = x.chunks().first().zip(x.ranges().first().copied());
        let mut first = first.map(|(x, range)| queries_of(x, range)).transpose()?;
        let kv = CrossKv {
            keys: keys.finish(self.device)?,
            values: values.finish(self.device)?,
            weights: None,
            image: None,
        };
        x.replace(|x, range| {
            let queries = match first.take() {
                Some(queries) => queries,
                None => queries_of(x, range)?,
            };
            let attended = attention.attend(&queries, &kv, memory.score_bytes)?;
            attended.eval()?;
            drop(queries);
            let h = attention.to_out.forward(&attended)?;
            self.device
                .add_gated(x, &h, &modulations.of(range.0).gate_msa)
        })
    }

    /// What `project` makes of each chunk of a stream and its range of rows, `[1, heads, n, head_dim]` each: of
    /// all rows that are here; evaluated.
    fn gathered<const N: usize>(
        &self,
        x: &Stream,
        project: impl Fn(&Array, (i32, i32)) -> MlxResult<[Array; N]>,
    ) -> MlxResult<[Array; N]> {
        let ranges = x.ranges();
        let first = ranges.first().map_or(0, |(start, _)| *start);
        let own = ranges.last().map_or(0, |(_, end)| end - first);
        let mut all: Vec<Gathered> = Vec::new();
        for (x, range) in x.chunks().iter().zip(ranges) {
            let parts = project(x, range)?;
            if all.is_empty() {
                let room = |part| Gathered::of_rows(self.device, own, part);
                all = parts.iter().map(room).collect::<MlxResult<_>>()?;
            }
            for (all, part) in all.iter_mut().zip(&parts) {
                all.put(range.0 - first..range.1 - first, part)?;
            }
            eval(all.iter().map(Gathered::so_far))?;
        }
        let all = all.into_iter().map(Gathered::finished);
        let all: Vec<Array> = all.collect::<MlxResult<_>>()?;
        all.try_into()
            .map_err(|_| Exception::custom("a sequence without rows"))
    }

    /// The second half, cross-attention and feed-forward, each row by itself; as [`Self::attend_self`],
    /// with a prompt for each copy.
    pub(super) fn attend_text(
        &self,
        x: Stream,
        time: &TimeEmbedding,
        prompts: &[&CrossKv],
        memory: &MemoryPlan,
    ) -> MlxResult<Stream> {
        let modulations = self.modulations(time)?;
        let rows = |x: &Array, start| {
            let modulation = modulations.of(start);
            self.attend_text_rows(x, modulation, prompts, memory.score_bytes)
        };
        match x.as_whole() {
            Some(x) => Ok(rows(x, 0)?.into()),
            None => x.replace(|x, (start, _)| rows(x, start)),
        }
    }

    fn attend_text_rows(
        &self,
        x: &Array,
        modulation: &Modulation,
        prompts: &[&CrossKv],
        score_bytes: u64,
    ) -> MlxResult<Array> {
        // Cross-attention
        let h = match &self.cross_norm {
            Some((weight, bias)) => self.device.layer_norm(x, weight, bias, self.eps)?,
            None => x.clone(),
        };
        let attention = &self.cross_attention;
        let projected = attention.to_q.forward(&h)?;
        drop(h);
        let queries = self.of_copies(&projected, prompts.len() as i32, |queries| {
            attention.queries(queries, None)
        })?;
        drop(projected);
        eval_all_if_large(x, &queries)?;
        let attended = queries
            .into_iter()
            .zip(prompts)
            .map(|(queries, prompt)| attention.attend(&queries, prompt, score_bytes))
            .collect::<MlxResult<Vec<_>>>()?;
        let attended = self.device.joined(&attended)?;
        let x = self.device.add(x, &attention.to_out.forward(&attended)?)?;
        drop(attended);
        eval_if_large(&x, &[&x])?;

        // Feed-forward
        let h = self.modulated(&x, &modulation.c_scale_msa, &modulation.c_shift_msa)?;
        let projected = self.ffn_in.forward(&h)?;
        drop(h);
        let hidden = self.device.gelu_tanh(&projected)?;
        drop(projected);
        eval_if_large(&x, &[&hidden])?;
        let h = self.ffn_out.forward(&hidden)?;
        drop(hidden);
        self.device.add_gated(&x, &h, &modulation.c_gate_msa)
    }

    fn modulations(&self, time: &TimeEmbedding) -> MlxResult<Modulations> {
        let modulations = Modulations::new(&self.scale_shift_table, time)?;
        if self.device.kernels == Kernels::Cpu {
            // Together: one by one each would wait for MLX's thread.
            eval(modulations.arrays())?;
        }
        Ok(modulations)
    }

    /// `f` of each of the `copies` that follow each other in the rows of `all`.
    fn of_copies(
        &self,
        all: &Array,
        copies: i32,
        f: impl Fn(&Array) -> MlxResult<Array>,
    ) -> MlxResult<Vec<Array>> {
        if copies == 1 {
            return Ok(vec![f(all)?]);
        }
        let tokens = all.dim(0) / copies.max(1);
        (0..copies)
            .map(|copy| f(&self.device.rows(all, copy * tokens, (copy + 1) * tokens)?))
            .collect()
    }

    /// `LayerNorm(x) * scale + shift`, which are the weight and bias of one LayerNorm kernel.
    fn modulated(&self, x: &Array, scale: &Array, shift: &Array) -> MlxResult<Array> {
        self.device.layer_norm(x, scale, shift, self.eps)
    }
}

/// Evaluates `arrays` when they belong to a long sequence `x`: MLX allocates all buffers of a
/// graph before its first kernel is done, and frees none while they wait. For a short one waiting
/// costs more than the memory.
fn eval_if_large(x: &Array, arrays: &[&Array]) -> MlxResult<()> {
    if x.nbytes() > LARGE_BYTES {
        eval(arrays.iter().copied())?;
    }
    Ok(())
}

fn eval_all_if_large(x: &Array, arrays: &[Array]) -> MlxResult<()> {
    eval_if_large(x, &arrays.iter().collect::<Vec<_>>())
}

/// A block's modulations of a clip's tokens.
struct Modulations {
    /// Of the first tokens, where they have a timestep of their own, and their number.
    given: Option<(i32, Modulation)>,
    rest: Modulation,
}

impl Modulations {
    fn new(table: &Array, time: &TimeEmbedding) -> MlxResult<Self> {
        let given = time.given.as_ref();
        let given = given.map(|given| {
            let modulation = Modulation::new(table, &given.projection);
            modulation.map(|modulation| (given.tokens, modulation))
        });
        Ok(Self {
            given: given.transpose()?,
            rest: Modulation::new(table, &time.projection)?,
        })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let given = self.given.iter().map(|(_, given)| given);
        given.chain([&self.rest]).flat_map(|all| {
            [
                &all.shift_msa,
                &all.scale_msa,
                &all.gate_msa,
                &all.c_shift_msa,
                &all.c_scale_msa,
                &all.c_gate_msa,
            ]
        })
    }

    /// Of a chunk that begins with the token `start`.
    fn of(&self, start: i32) -> &Modulation {
        match &self.given {
            Some((tokens, given)) if start < *tokens => given,
            _ => &self.rest,
        }
    }
}

/// A block's modulation at one timestep, `[dim]` each, float32: of self-attention (`msa`) and of the
/// feed-forward network (`c`). Scales are 1 more than the network's.
struct Modulation {
    shift_msa: Array,
    scale_msa: Array,
    gate_msa: Array,
    c_shift_msa: Array,
    c_scale_msa: Array,
    c_gate_msa: Array,
}

impl Modulation {
    /// Of the block's table and the projection of the time embedding, `[6, dim]` each.
    fn new(table: &Array, time: &Array) -> MlxResult<Self> {
        let all = table.add(time)?;
        let (row, one) = (|i: i32| all.try_index(i), Array::from_f32(1.0));
        Ok(Self {
            shift_msa: row(0)?,
            scale_msa: row(1)?.add(&one)?,
            gate_msa: row(2)?,
            c_shift_msa: row(3)?,
            c_scale_msa: row(4)?.add(&one)?,
            c_gate_msa: row(5)?,
        })
    }
}
