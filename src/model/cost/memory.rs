//! The most bytes that a phase's arrays take at once, besides the weights.
//!
//! Counted from what the code keeps alive between two evaluations; a test compares the sums with
//! what MLX measures.

use crate::model::MemoryPlan;
use crate::model::dit::{DitConfig, LARGE_BYTES};
use crate::model::umt5::Umt5Config;
use crate::model::vae::{Footprint, VaeConfig, decode_phases, encode_phases};
use crate::runtime::{Device, Kernels};
use crate::sampling::CacheMethod;

/// Bytes of a float32.
const F32: u64 = 4;

fn number(value: i32) -> u64 {
    value.max(0) as u64
}

/// The text encoder on `tokens` tokens, with `quantized` values: residual stream, one layer's
/// activations, its scores, unpacked weights.
pub fn text_encoder(config: &Umt5Config, device: Device, tokens: u64, quantized: u64) -> u64 {
    let inner = number(config.num_heads) * number(config.d_kv);
    let scores = 3 * number(config.num_heads) * tokens * tokens;
    let width = number(config.d_model);
    let unpacked = match device.kernels {
        _ if quantized == 0 || tokens <= number(device.dense_above) => 0,
        // One after the other.
        Kernels::Cpu => width * inner.max(number(config.d_ff)),
        // Those of a layer.
        Kernels::Mlx => quantized / number(config.num_layers).max(1),
    };
    F32 * (tokens * (4 * width + 4 * inner + 3 * number(config.d_ff)) + scores)
        + unpacked * device.dtype.matmul_dtype_size() as u64
}

/// What denoising with one expert is about.
#[derive(Clone, Copy, Debug)]
pub struct Denoising {
    /// Tokens of the clip.
    pub tokens: u64,
    /// Keys that the prompts leave, of both together.
    pub text_rows: u64,
    /// Whether weights are quantized.
    pub quantized: bool,
    /// Whether a step has two passes.
    pub guided: bool,
    /// The clip's latents: frames, rows, columns.
    pub cells: [u64; 3],
    /// The cache's method.
    pub cache: CacheMethod,
}

/// One expert: keys and values of all blocks, the condition's embedding, rotary tables, what a
/// cache keeps, one block's activations.
pub fn denoising(config: &DitConfig, device: Device, memory: &MemoryPlan, clip: Denoising) -> u64 {
    let (width, size) = (
        number(config.dim()),
        device.dtype.matmul_dtype_size() as u64,
    );
    let Denoising { tokens, cells, .. } = clip;
    let stream = tokens * width;
    let kv = 2 * number(config.num_layers) * clip.text_rows * width * size;
    let tables = tokens * number(config.attention_head_dim) * F32;
    let pixels = cells.iter().product::<u64>();
    let latents = number(2 * config.in_channels) * pixels * F32;
    let passes = 1 + u64::from(clip.guided);
    let cached = match clip.cache {
        CacheMethod::Off => 0,
        CacheMethod::TeaCache { .. } => passes * stream * F32,
        CacheMethod::EasyCache { .. } => passes * number(config.out_channels) * pixels * F32,
    };
    // Residual stream, condition and the shared start stay.
    let kept = kv + tables + latents + cached + 3 * stream * F32;
    let chunk = tokens.min(number(memory.chunk_rows));
    let scores = device.scores_at_once(
        device.dtype.matmul_dtype(),
        [
            config.num_attention_heads,
            i32::try_from(chunk).unwrap_or(i32::MAX),
            i32::try_from(tokens).unwrap_or(i32::MAX),
            config.attention_head_dim,
        ],
        memory.score_bytes,
    );
    let hidden = |rows: u64| rows * number(config.ffn_dim) * size;
    let copies = match clip.guided && memory.joint_passes {
        true => 2,
        false => 1,
    };
    let rows = copies * stream * F32;
    let both = (copies - 1) * stream * F32;
    let unpacks = clip.quantized && chunk > number(device.dense_above);
    // A weight of attention, and one of the feed-forward network.
    let [square, wide] =
        [width, number(config.ffn_dim)].map(|side| u64::from(unpacks) * width * side * size);
    let work = match (device.kernels, chunk < tokens) {
        // Chains of operations are one pass, and unpacked weights come one by one, so that buffers
        // can be told from the code: keys, values and queries; what they weigh, of one copy;
        // projections and the same with heads first, one after the other.
        (Kernels::Cpu, false) => {
            let attention = (3 * rows + stream * F32 + scores).max(5 * rows + square);
            let hidden = hidden(copies * tokens);
            both + attention.max(2 * rows + hidden + hidden.max(rows + wide))
        }
        (Kernels::Cpu, true) => {
            let rows = chunk * width * F32;
            let finished = stream * F32 - rows;
            // Keys and values, while their chunks are joined and afterwards.
            let joining = 4 * stream * size;
            let weighing = 2 * stream * size + finished + 4 * rows + scores.max(square);
            let hidden = hidden(chunk);
            let feed_forward = finished + 2 * rows + hidden + hidden.max(rows + wide);
            joining.max(weighing).max(feed_forward)
        }
        // How many buffers of a row's width a graph of MLX's operations holds was measured, without
        // unpacked weights, all of which exist at once.
        (Kernels::Mlx, false) => {
            let hidden = 2 * (hidden(copies * tokens) + wide);
            let scores = copies * scores + 4 * square;
            both + match rows > LARGE_BYTES as u64 {
                true => (9 * rows + scores).max(4 * rows + hidden),
                false => 15 * rows + scores + hidden,
            }
        }
        (Kernels::Mlx, true) => {
            let rows = chunk * width * F32;
            let finished = stream * F32;
            let attention = 2 * stream * size + finished + 10 * rows + scores + 4 * square;
            attention.max(finished + 4 * rows + 2 * (hidden(chunk) + wide))
        }
    };
    kept + work
}

/// Decoding a clip of `[frames, rows, columns]` latents: one latent frame's activations, or one
/// tile's, and what the convolutions carry over.
pub fn decode(config: &VaeConfig, device: Device, memory: &MemoryPlan, grid: [i32; 3]) -> u64 {
    most(&decode_phases(config, device, memory, grid))
}

/// Encoding the conditioning video, as [`decode`].
pub fn encode(config: &VaeConfig, device: Device, memory: &MemoryPlan, grid: [i32; 3]) -> u64 {
    most(&encode_phases(config, device, memory, grid))
}

fn most(phases: &[Footprint]) -> u64 {
    let besides_weights = |phase: &Footprint| phase.total() - phase.weights;
    phases.iter().map(besides_weights).max().unwrap_or(0)
}
