//! The most bytes that a phase's arrays take at once, besides the weights.
//!
//! Counted from what the code keeps alive between two evaluations; a test compares the sums with
//! what MLX measures.

use crate::backend::{Backend, MAX_SCORE_BYTES};
use crate::model::dit::DitConfig;
use crate::model::umt5::Umt5Config;
use crate::model::vae::{
    Footprint, VaeConfig, choose_decode_tiling, choose_encode_tiling, decode_phases, encode_phases,
};

/// Bytes of a float32.
const F32: u64 = 4;

fn number(value: i32) -> u64 {
    value.max(0) as u64
}

/// The text encoder on `tokens` tokens: residual stream, one layer's activations, its scores.
pub fn text_encoder(config: &Umt5Config, tokens: u64) -> u64 {
    let inner = number(config.num_heads) * number(config.d_kv);
    let scores = 3 * number(config.num_heads) * tokens * tokens;
    F32 * (tokens * (4 * number(config.d_model) + 4 * inner + 3 * number(config.d_ff)) + scores)
}

/// One expert: keys and values of all blocks, the condition's embedding, rotary tables, one
/// block's activations.
pub fn denoising(
    config: &DitConfig,
    backend: Backend,
    tokens: u64,
    text_rows: u64,
    cells: [u64; 3],
) -> u64 {
    let (width, size) = (
        number(config.dim()),
        backend.precision.matmul_dtype_size() as u64,
    );
    let stream = tokens * width;
    let kv = 2 * number(config.num_layers) * text_rows * width * size;
    let tables = tokens * number(config.attention_head_dim) * F32;
    let latents = number(2 * config.in_channels) * cells.iter().product::<u64>() * F32;
    let scores =
        (number(config.num_attention_heads) * tokens * tokens * F32).min(MAX_SCORE_BYTES as u64);
    // Residual stream, condition and the shared start stay; self-attention holds queries, keys and
    // values besides.
    let attention = 6 * stream * F32 + 2 * scores;
    let feed_forward = 2 * stream * F32 + 3 * tokens * number(config.ffn_dim) * size;
    kv + tables + latents + 3 * stream * F32 + attention.max(feed_forward)
}

/// Decoding a clip of `[frames, rows, columns]` latents: one latent frame's activations, or one
/// tile's, and what the convolutions carry over.
pub fn decode(config: &VaeConfig, backend: Backend, grid: [i32; 3]) -> u64 {
    let tiling = backend
        .vae_budget
        .and_then(|budget| choose_decode_tiling(config, backend, grid, budget));
    most(&decode_phases(config, backend, grid, tiling))
}

/// Encoding the conditioning video, as [`decode`].
pub fn encode(config: &VaeConfig, backend: Backend, grid: [i32; 3]) -> u64 {
    let tiling = backend
        .vae_budget
        .and_then(|budget| choose_encode_tiling(config, backend, grid, budget));
    most(&encode_phases(config, backend, grid, tiling))
}

fn most(phases: &[Footprint]) -> u64 {
    let besides_weights = |phase: &Footprint| phase.total() - phase.weights;
    phases.iter().map(besides_weights).max().unwrap_or(0)
}
