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

/// Decoding a clip: one latent frame's activations and what the convolutions carry over.
pub fn decode(config: &VaeConfig, cells: [u64; 3]) -> u64 {
    let base = number(config.decoder_base_dim.unwrap_or(config.base_dim));
    // Carried frames are whole from the third chunk on. Both factors are measured, on the
    // miniature.
    pixels(config, cells, base, if cells[0] > 2 { 30.0 } else { 23.4 })
}

/// Encoding the conditioning video, as [`decode`].
pub fn encode(config: &VaeConfig, cells: [u64; 3]) -> u64 {
    let base = number(config.base_dim);
    pixels(config, cells, base, if cells[0] > 2 { 25.0 } else { 17.0 })
}

/// `copies` times the widest level's activations, of as many frames as a chunk has.
fn pixels(config: &VaeConfig, cells: [u64; 3], base: u64, copies: f64) -> u64 {
    let frame = cells[1] * cells[2] * number(SPATIAL_STRIDE * SPATIAL_STRIDE);
    let widest = config.dim_mult.first().map_or(1, |&m| number(m)) * base;
    let frames = if cells[0] > 1 { 4 } else { 1 };
    ((F32 * frame * widest * frames) as f64 * copies) as u64
}
