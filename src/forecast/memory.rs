//! The most bytes that a phase's arrays take at once, besides the weights.
//!
//! Counted from what the code keeps alive between two evaluations; a test compares the sums with
//! what MLX measures.

use crate::backend::{Backend, MAX_SCORE_BYTES};
use crate::model::dit::DitConfig;
use crate::model::umt5::Umt5Config;
use crate::model::vae::{SPATIAL_STRIDE, VaeConfig};

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

/// Decoding one latent frame after the first.
pub fn decode(config: &VaeConfig, backend: Backend, cells: [u64; 3]) -> u64 {
    let base = number(config.decoder_base_dim.unwrap_or(config.base_dim));
    pixels(config, backend, cells, base)
}

/// Encoding one chunk of four frames.
pub fn encode(config: &VaeConfig, backend: Backend, cells: [u64; 3]) -> u64 {
    pixels(config, backend, cells, number(config.base_dim))
}

/// The widest level: four frames of full size, a few copies at once, and its caches.
fn pixels(config: &VaeConfig, _backend: Backend, cells: [u64; 3], base: u64) -> u64 {
    let frame = cells[1] * cells[2] * number(SPATIAL_STRIDE * SPATIAL_STRIDE);
    let widest = config.dim_mult.first().map_or(1, |&m| number(m)) * base;
    let frames = if cells[0] > 1 { 4 } else { 1 };
    F32 * frame * widest * frames * 6
}
