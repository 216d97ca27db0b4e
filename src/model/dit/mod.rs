//! The diffusion transformer of Wan2.x, one expert.
//!
//! Mirrors `WanModel` of Wan-Video/Wan2.2 (`wan/modules/model.py`) with diffusers' tensor names
//! (`WanTransformer3DModel`). A clip is one sequence; guidance runs as separate passes, as the
//! reference's do, or as two copies of the sequence one after the other, so there is no batch
//! axis.

mod block;
pub mod cost;
mod embed;
mod image;
pub(super) mod keys;
mod padding;
mod rope;
pub mod share;
mod stream;

pub use block::{CrossKv, LARGE_BYTES};
pub use embed::{patchify, time_sinusoid, unpatchify};
pub use rope::Rope;
pub use stream::Stream;

use std::rc::Rc;

use anyhow::{Result, ensure};
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};

use super::layers::{Linear, Weight, f32};
use super::umt5::pad_rows;
use super::{
    MAX_LAYERS, MAX_WIDTH, MemoryPlan, Role, TensorSource, check_dimensions, check_epsilon, product,
};
use crate::runtime::{Device, rows};
use block::Block;
use image::ImageEmbedder;
use share::{Share, own_rows};
use stream::Shared;

/// Dimensions of one expert, with diffusers' names (`transformer/config.json`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct DitConfig {
    /// Latent frames, rows and columns per token; (1, 2, 2) in every published Wan.
    pub patch_size: [i32; 3],
    /// Attention heads.
    pub num_attention_heads: i32,
    /// Channels per head.
    pub attention_head_dim: i32,
    /// Input channels: the noise's, and with a masked picture beside it 4 of the mask and as many of
    /// the picture.
    pub in_channels: i32,
    /// Output channels.
    pub out_channels: i32,
    /// Width of the text encoder's output.
    pub text_dim: i32,
    /// Width of the sinusoidal time embedding.
    pub freq_dim: i32,
    /// Hidden width of the feed-forward layers.
    pub ffn_dim: i32,
    /// Transformer blocks.
    pub num_layers: i32,
    /// Whether cross-attention has an affine LayerNorm in front.
    pub cross_attn_norm: bool,
    /// Epsilon of every norm.
    pub eps: f32,
    /// Longest axis, in tokens, that the rotary tables cover.
    pub rope_max_seq_len: i32,
    /// Kind of query and key norm; only `rms_norm_across_heads` exists.
    #[serde(default)]
    pub qk_norm: Option<String>,
    /// Width of the CLIP features of a picture that Wan2.1 image-to-video attends to.
    #[serde(default)]
    pub image_dim: Option<i32>,
    /// Inputs of the keys and values of those features: the residual stream's width.
    #[serde(default)]
    pub added_kv_proj_dim: Option<i32>,
    /// Rows of the learned positions of Wan2.1's first-last-frame model: those of both pictures.
    #[serde(default)]
    pub pos_embed_seq_len: Option<i32>,
}

impl DitConfig {
    /// Width of the residual stream.
    pub fn dim(&self) -> i32 {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Tokens along each axis of a clip of `[frames, rows, columns]` latents.
    pub fn token_grid(&self, latents: [i32; 3]) -> [i32; 3] {
        let [frames, rows, columns] = self.patch_size;
        [latents[0] / frames, latents[1] / rows, latents[2] / columns]
    }

    /// Tokens of such a clip.
    pub fn tokens(&self, latents: [i32; 3]) -> i32 {
        self.token_grid(latents).iter().product()
    }

    /// Values per token at the output.
    fn patch_volume(&self) -> i32 {
        self.patch_size.iter().product()
    }

    /// Refuses configurations that this network does not implement.
    ///
    /// # Errors
    /// Names the field, what it holds and what is supported.
    pub fn validate(&self) -> Result<()> {
        let [frames, rows, columns] = self.patch_size;
        let per_token = |channels| product(&[channels, frames, rows, columns]);
        check_dimensions(
            &[
                ("patch_size", frames.min(rows).min(columns).into()),
                ("num_attention_heads", self.num_attention_heads.into()),
                ("attention_head_dim", self.attention_head_dim.into()),
                (
                    "num_attention_heads * attention_head_dim",
                    product(&[self.num_attention_heads, self.attention_head_dim]),
                ),
                ("in_channels", self.in_channels.into()),
                ("out_channels", self.out_channels.into()),
                ("in_channels * patch_size", per_token(self.in_channels)),
                ("out_channels * patch_size", per_token(self.out_channels)),
                ("text_dim", self.text_dim.into()),
                ("freq_dim", self.freq_dim.into()),
                ("ffn_dim", self.ffn_dim.into()),
                ("rope_max_seq_len", self.rope_max_seq_len.into()),
            ],
            MAX_WIDTH,
        )?;
        check_dimensions(&[("num_layers", self.num_layers.into())], MAX_LAYERS)?;
        check_epsilon("eps", self.eps)?;
        ensure!(
            self.attention_head_dim % 2 == 0 && self.attention_head_dim >= 6,
            "attention_head_dim is {}; rotary embedding needs an even number of at least 6",
            self.attention_head_dim
        );
        ensure!(
            self.freq_dim % 2 == 0,
            "freq_dim is {}; expected an even number",
            self.freq_dim
        );
        ensure!(
            self.qk_norm.as_deref() == Some("rms_norm_across_heads"),
            "qk_norm is {:?}; only \"rms_norm_across_heads\" is supported",
            self.qk_norm
        );
        ensure!(
            self.image_dim.is_some() == self.added_kv_proj_dim.is_some()
                && self
                    .added_kv_proj_dim
                    .is_none_or(|inputs| inputs == self.dim()),
            "image_dim is {:?} and added_kv_proj_dim {:?}; expected both or none, the second the width {}",
            self.image_dim,
            self.added_kv_proj_dim,
            self.dim()
        );
        ensure!(
            self.in_channels >= self.out_channels,
            "in_channels and out_channels are {} and {}; expected at least as many in as out",
            self.in_channels,
            self.out_channels
        );
        for (field, value) in [
            ("image_dim", self.image_dim),
            ("pos_embed_seq_len", self.pos_embed_seq_len),
        ] {
            if let Some(value) = value {
                check_dimensions(&[(field, value.into())], MAX_WIDTH)?;
            }
        }
        ensure!(
            self.pos_embed_seq_len.is_none() || self.image_dim.is_some(),
            "pos_embed_seq_len is {:?} without image_dim; positions of pictures need pictures",
            self.pos_embed_seq_len
        );
        Ok(())
    }
}

/// One expert with its weights.
#[derive(Debug)]
pub struct Dit {
    config: DitConfig,
    device: Device,
    /// The patch embedding's columns for the noise's channels, with its bias where there are no others.
    patch_noise: Linear,
    /// Its columns for the condition's channels, and its bias.
    patch_condition: Option<Linear>,
    time_in: Linear,
    time_out: Linear,
    time_proj: Linear,
    text_in: Linear,
    text_out: Linear,
    image: Option<ImageEmbedder>,
    blocks: Vec<Block>,
    /// Output modulation table `[2, dim]`, float32.
    scale_shift_table: Array,
    proj_out: Linear,
}

/// What a pass computes from the timestep alone; shared by the conditional and the
/// unconditional pass of a step.
#[derive(Clone, Debug)]
pub struct TimeEmbedding {
    /// `[1, dim]`, float32: modulates the output head.
    pub embedding: Array,
    /// `[6, dim]`, float32: modulates every block.
    pub projection: Array,
    /// Of the tokens of the first latent frame, where that is a picture without noise.
    pub given: Option<GivenTime>,
}

/// The first tokens of a clip, which have a timestep of their own.
#[derive(Clone, Debug)]
pub struct GivenTime {
    /// How many there are.
    pub tokens: i32,
    /// As [`TimeEmbedding::embedding`].
    pub embedding: Array,
    /// As [`TimeEmbedding::projection`].
    pub projection: Array,
}

impl Dit {
    /// Takes every tensor of the expert from `source`.
    ///
    /// # Errors
    /// Whatever the source refuses, with the tensor's name.
    pub fn load(config: &DitConfig, source: &mut dyn TensorSource, device: Device) -> Result<Self> {
        config.validate()?;
        let dim = config.dim();
        let [pt, ph, pw] = config.patch_size;
        let patch_values = config.in_channels * config.patch_volume();
        // A convolution whose stride equals its kernel is a linear layer on flattened patches.
        let patch_weight = source
            .tensor(
                "patch_embedding.weight",
                &[dim, config.in_channels, pt, ph, pw],
                Role::Matmul,
            )?
            .reshape(&[dim, patch_values])?;
        let patch_bias = source.tensor("patch_embedding.bias", &[dim], Role::Matmul)?;
        let noise_values = config.out_channels * config.patch_volume();
        let columns = |from: i32, to: i32| -> MlxResult<Weight> {
            Ok(Weight::Dense(patch_weight.try_index((.., from..to))?))
        };

        let mut embedder = source.scope("condition_embedder");
        let mut linear =
            |name, sides, role| Linear::load(&mut embedder.scope(name), sides, role)?.on(device);
        let mut time = |name, sides| linear(name, sides, Role::Stored).map(Linear::in_float32);
        let time_in = time("time_embedder.linear_1", [config.freq_dim, dim])?;
        let time_out = time("time_embedder.linear_2", [dim, dim])?;
        let time_proj = time("time_proj", [dim, 6 * dim])?;
        let text_in = linear(
            "text_embedder.linear_1",
            [config.text_dim, dim],
            Role::Matmul,
        )?;
        let text_out = linear("text_embedder.linear_2", [dim, dim], Role::Matmul)?;

        let blocks = (0..config.num_layers)
            .map(|i| Block::load(config, &mut source.scope(&format!("blocks.{i}")), device))
            .collect::<Result<Vec<_>>>()?;
        let image = (config.image_dim.map(|features| {
            ImageEmbedder::load(config, features, &mut source.scope(image::SCOPE), device)
        }))
        .transpose()?;
        let head_values = config.out_channels * config.patch_volume();
        // The bias goes with the last columns.
        let (beside, noise_bias) = match patch_values > noise_values {
            true => {
                let columns = columns(noise_values, patch_values)?;
                let linear = Linear::from_weight(columns, Some(patch_bias))?;
                (Some(linear.on(device)?), None)
            }
            false => (None, Some(patch_bias)),
        };
        Ok(Self {
            patch_noise: Linear::from_weight(columns(0, noise_values)?, noise_bias)?.on(device)?,
            patch_condition: beside,
            time_in,
            time_out,
            time_proj,
            text_in,
            text_out,
            image,
            blocks,
            scale_shift_table: source
                .tensor("scale_shift_table", &[1, 2, dim], Role::Exact)?
                .reshape(&[2, dim])?,
            proj_out: Linear::load(
                &mut source.scope("proj_out"),
                [dim, head_values],
                Role::Exact,
            )?
            .on(device)?,
            config: config.clone(),
            device,
        })
    }

    /// The expert's dimensions.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// The text-embedding MLP: encoder output `[n, text_dim]` to `[n, dim]`.
    ///
    /// Each expert has weights of its own: sharing one expert's result with the other was the
    /// first bug of the report that this project grew from.
    pub fn embed_text(&self, encoded: &Array) -> MlxResult<Array> {
        let hidden = self.device.gelu_tanh(&self.text_in.forward(encoded)?)?;
        self.text_out.forward(&hidden)
    }

    /// Cross-attention keys and values of every block for one prompt; evaluated.
    ///
    /// `encoded` is the text encoder's output `[n, text_dim]` of the real tokens. The reference
    /// pads it with zero rows to `text_len` and attends to all of them. Behind the text-embedding
    /// MLP those rows are one constant vector, so they are one key here, which weighs as much as
    /// all of them. Computed once per expert and prompt.
    pub fn cross_kv(&self, encoded: &Array, text_len: i32) -> MlxResult<Vec<CrossKv>> {
        let padding = text_len - encoded.dim(0);
        if padding <= 0 {
            return self.cross_kv_of_embedded(&self.embed_text(encoded)?, 1);
        }
        let padded = pad_rows(encoded, encoded.dim(0) + 1)?;
        self.cross_kv_of_embedded(&self.embed_text(&padded)?, padding)
    }

    /// The part of [`Self::cross_kv`] behind the text-embedding MLP: `embedded` is `[rows, dim]`,
    /// its last row standing for `copies` equal ones.
    pub fn cross_kv_of_embedded(&self, embedded: &Array, copies: i32) -> MlxResult<Vec<CrossKv>> {
        self.blocks
            .iter()
            .map(|block| block.cross_kv(embedded, copies))
            .collect()
    }

    /// Keys and values of pictures' CLIP features `[rows, image_dim]` in every block, for
    /// [`CrossKv::image`]; none where the model takes no features.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn image_kv(&self, features: &Array) -> MlxResult<Vec<(Array, Array)>> {
        let Some(image) = &self.image else {
            return Ok(Vec::new());
        };
        let embedded = image.forward(features)?;
        let blocks = self.blocks.iter();
        let all = blocks.filter_map(|block| block.image_kv(&embedded).transpose());
        all.collect()
    }

    /// The time embedding of a timestep (0 to 1000), in float32, where the first `given` tokens are a
    /// picture's: those have timestep 0 (`textimage2video.py` of Wan-Video/Wan2.2).
    ///
    /// # Errors
    /// When MLX fails.
    pub fn embed_times(&self, timestep: f64, given: i32) -> MlxResult<TimeEmbedding> {
        let mut time = self.embed_time(timestep)?;
        if given > 0 {
            let TimeEmbedding {
                embedding,
                projection,
                ..
            } = self.embed_time(0.0)?;
            time.given = Some(GivenTime {
                tokens: given,
                embedding,
                projection,
            });
        }
        Ok(time)
    }

    /// The time embedding of a timestep (0 to 1000), in float32.
    pub fn embed_time(&self, timestep: impl Into<f64>) -> MlxResult<TimeEmbedding> {
        self.embed_sinusoid(&time_sinusoid(timestep.into(), self.config.freq_dim))
    }

    /// The MLPs behind [`Self::embed_time`], on a sinusoid `[1, freq_dim]`.
    pub fn embed_sinusoid(&self, sinusoid: &Array) -> MlxResult<TimeEmbedding> {
        let hidden = self.device.silu(&self.time_in.forward(sinusoid)?)?;
        let embedding = self.time_out.forward(&hidden)?;
        let projection = self
            .time_proj
            .forward(&self.device.silu(&embedding)?)?
            .reshape(&[6, self.config.dim()])?;
        Ok(TimeEmbedding {
            embedding,
            projection,
            given: None,
        })
    }

    /// One forward pass.
    ///
    /// * `input`: `[in_channels, frames, height, width]` latents, noise then condition;
    /// * `time`: of [`Self::embed_time`];
    /// * `rope`: the tables of this latent grid;
    /// * `cross`: of [`Self::cross_kv`];
    /// * `memory`: rows and bytes of scores at once.
    ///
    /// Returns the predicted velocity `[out_channels, frames, height, width]`, float32.
    pub fn forward(
        &self,
        input: &Array,
        time: &TimeEmbedding,
        rope: &Rope,
        cross: &[CrossKv],
        memory: &MemoryPlan,
    ) -> MlxResult<Array> {
        self.forward_observed(input, time, rope, cross, memory, &mut |_, _| Ok(()))
    }

    /// [`Self::forward`], showing the residual stream `[tokens, dim]` to `observe` after each
    /// block, with the block's index.
    pub fn forward_observed(
        &self,
        input: &Array,
        time: &TimeEmbedding,
        rope: &Rope,
        cross: &[CrossKv],
        memory: &MemoryPlan,
        observe: &mut dyn FnMut(usize, &Stream) -> MlxResult<()>,
    ) -> MlxResult<Array> {
        let noise = input.try_index(0..self.config.out_channels)?;
        let beside = self.patch_condition.as_ref();
        let condition = beside.map(|_| input.try_index(self.config.out_channels..));
        let given = time.given.as_ref().map_or(0, |given| given.tokens);
        let tokens = self.embed(&noise, condition.transpose()?.as_ref(), given, memory)?;
        let start = self.start(tokens, time, rope, memory)?;
        let x = self.finish(start, time, rope, cross, memory, observe)?;
        self.head(&x, time, [1, 2, 3].map(|axis| input.dim(axis)))
    }

    /// The patch embedding: `noise` `[out_channels, frames, height, width]` and, where the model has
    /// channels for it, `condition` `[in_channels - out_channels, frames, height, width]` to the stream,
    /// in the chunks of [`MemoryPlan::ranges`], of which none has both the first `given` tokens and others.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn embed(
        &self,
        noise: &Array,
        condition: Option<&Array>,
        given: i32,
        memory: &MemoryPlan,
    ) -> MlxResult<Stream> {
        self.embed_shared(noise, condition, given, memory, None)
    }

    /// As [`Self::embed`], of this machine's rows where the sequence is shared.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn embed_shared(
        &self,
        noise: &Array,
        condition: Option<&Array>,
        given: i32,
        memory: &MemoryPlan,
        share: Option<&Rc<dyn Share>>,
    ) -> MlxResult<Stream> {
        let patches = |x: &Array| patchify(&f32(x)?, self.config.patch_size);
        let noise = patches(noise)?;
        let beside = self.patch_condition.as_ref().zip(condition);
        let beside = beside.map(|(linear, condition)| {
            let condition = patches(condition);
            condition.map(|condition| (linear, condition))
        });
        let beside = beside.transpose()?;
        let embed = |start: i32, end: i32| -> MlxResult<Array> {
            let x = f32(&self.patch_noise.forward(&rows(&noise, start, end)?)?)?;
            match &beside {
                Some((linear, condition)) => {
                    x.add(f32(&linear.forward(&rows(condition, start, end)?)?)?)
                }
                None => Ok(x),
            }
        };
        let tokens = noise.dim(0);
        let mut chunks = memory.ranges(tokens, given);
        let shared = share.map(|share| {
            let (first, end) = own_rows(&**share, tokens);
            chunks.retain_mut(|(from, to)| {
                (*from, *to) = ((*from).max(first), (*to).min(end));
                from < to
            });
            let with = Rc::clone(share);
            Shared {
                with,
                first,
                tokens,
            }
        });
        if let ([(start, end)], None) = (chunks.as_slice(), &shared) {
            return Ok(embed(*start, *end)?.into());
        }
        let chunk = |&(start, end): &(i32, i32)| {
            let x = embed(start, end)?;
            x.eval()?;
            Ok(x)
        };
        let chunks = chunks.iter().map(chunk);
        Ok(Stream::of_chunks(chunks.collect::<MlxResult<_>>()?, shared))
    }

    /// What a pass computes before it meets a prompt, shared by the conditional and the
    /// unconditional one: the first block's self-attention on the stream of [`Self::embed`];
    /// evaluated.
    pub fn start(
        &self,
        tokens: Stream,
        time: &TimeEmbedding,
        rope: &Rope,
        memory: &MemoryPlan,
    ) -> MlxResult<Stream> {
        let x = match self.blocks.first() {
            Some(first) => first.attend_self(tokens, time, rope, memory)?,
            None => tokens,
        };
        eval(x.chunks())?;
        Ok(x)
    }

    /// The rest of the blocks, with a prompt, behind [`Self::start`]; `observe` as in
    /// [`Self::forward_observed`].
    pub fn finish(
        &self,
        start: Stream,
        time: &TimeEmbedding,
        rope: &Rope,
        cross: &[CrossKv],
        memory: &MemoryPlan,
        observe: &mut dyn FnMut(usize, &Stream) -> MlxResult<()>,
    ) -> MlxResult<Stream> {
        self.finish_all(start, time, rope, &[cross], memory, observe)
    }

    /// [`Self::finish`] for two prompts at once: the same sums, but each weight is read once. Where the
    /// first tokens have a time of their own they go one after the other.
    pub fn finish_both(
        &self,
        start: &Stream,
        time: &TimeEmbedding,
        rope: &Rope,
        cross: [&[CrossKv]; 2],
        memory: &MemoryPlan,
        observe: &mut dyn FnMut(usize, &Stream) -> MlxResult<()>,
    ) -> MlxResult<[Stream; 2]> {
        if time.given.is_some() {
            let mut one =
                |cross| self.finish_all(start.clone(), time, rope, &[cross], memory, observe);
            return Ok([one(cross[0])?, one(cross[1])?]);
        }
        let start = start.whole()?;
        let tokens = start.dim(0);
        let twice = concatenate(&[&start, &start], 0)?;
        let x = self.finish_all(twice.into(), time, rope, &cross, memory, observe)?;
        let x = x.whole()?;
        Ok([
            rows(&x, 0, tokens)?.into(),
            rows(&x, tokens, 2 * tokens)?.into(),
        ])
    }

    fn finish_all(
        &self,
        start: Stream,
        time: &TimeEmbedding,
        rope: &Rope,
        cross: &[&[CrossKv]],
        memory: &MemoryPlan,
        observe: &mut dyn FnMut(usize, &Stream) -> MlxResult<()>,
    ) -> MlxResult<Stream> {
        let mut x = start;
        for (i, block) in self.blocks.iter().enumerate() {
            let prompts: Vec<_> = cross.iter().filter_map(|kv| kv.get(i)).collect();
            if i > 0 {
                x = block.attend_self(x, time, rope, memory)?;
            }
            x = block.attend_text(x, time, &prompts, memory)?;
            // Block by block: one command buffer for a whole pass trips the GPU's watchdog
            // or its memory limit on long clips (ddalcu/mlx-serve#321).
            eval(x.chunks())?;
            observe(i, &x)?;
        }
        Ok(x)
    }

    /// The output head: `x` of [`Self::finish`] to the velocity `[out_channels, frames, height,
    /// width]`, float32; `grid` is the latents' frames, height and width.
    pub fn head(&self, x: &Stream, time: &TimeEmbedding, grid: [i32; 3]) -> MlxResult<Array> {
        let modulation = |embedding: &Array| -> MlxResult<[Array; 2]> {
            let all = self.scale_shift_table.add(embedding)?;
            let scale = all.try_index(1)?.add(Array::from_f32(1.0))?;
            Ok([scale, all.try_index(0)?])
        };
        let rest = modulation(&time.embedding)?;
        let given = time.given.as_ref();
        let first = given.map(|given| {
            let modulation = modulation(&given.embedding);
            modulation.map(|modulation| (given.tokens, modulation))
        });
        let first = first.transpose()?;
        let x = match &first {
            Some((tokens, _)) => x.cut_at(*tokens)?,
            None => x.clone(),
        };
        let head = |(x, (start, _)): (&Array, (i32, i32))| {
            let [scale, shift] = match &first {
                Some((tokens, first)) if start < *tokens => first,
                _ => &rest,
            };
            let x = self.device.layer_norm(x, scale, shift, self.config.eps)?;
            let x = self.proj_out.forward(&x)?;
            x.eval()?;
            Ok(x)
        };
        let chunks = x.chunks().iter().zip(x.ranges());
        let chunks = chunks.map(head).collect::<MlxResult<_>>()?;
        let x = Stream::of_chunks(chunks, x.shared().cloned()).gathered()?;
        unpatchify(&x, grid, self.config.patch_size)?.as_dtype(Dtype::Float32)
    }
}
