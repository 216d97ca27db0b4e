//! What the text encoder costs.

use super::Umt5Config;
use crate::model::cost::{F32, Operations, number};
use crate::runtime::{Device, Kernels, Precision};

/// The text encoder on a prompt of `tokens`.
pub fn operations(config: &Umt5Config, tokens: u64) -> Operations {
    let width = number(config.d_model);
    let inner = number(config.num_heads) * number(config.d_kv);
    let layer = Operations::product(tokens, width, inner).times(4)
        + Operations::product(tokens, width, number(config.d_ff)).times(3)
        + Operations::attention(tokens, tokens, inner);
    layer.times(number(config.num_layers))
}

/// Values of the layers' matrices.
pub fn weights(config: &Umt5Config) -> u64 {
    let inner = number(config.num_heads) * number(config.d_kv);
    number(config.num_layers) * number(config.d_model) * (4 * inner + 3 * number(config.d_ff))
}

/// What has to be unpacked for a text encoder with `quantized` values to encode a prompt of `tokens`.
pub fn unpacking(device: Device, quantized: u64, tokens: u64) -> Operations {
    match tokens > number(device.dense_above) {
        true => Operations::unpacking(quantized),
        false => Operations::default(),
    }
}

/// The text encoder on `tokens` tokens, with `quantized` values: residual stream, one layer's
/// activations, its scores, weights in float32.
pub fn peak_bytes(config: &Umt5Config, device: Device, tokens: u64, quantized: u64) -> u64 {
    let inner = number(config.num_heads) * number(config.d_kv);
    let scores = 3 * number(config.num_heads) * tokens * tokens;
    let width = number(config.d_model);
    let ffn = number(config.d_ff);
    let unpacks = quantized > 0 && tokens > number(device.dense_above);
    let widens = quantized == 0 && device.dtype != Precision::F32;
    let widened = match device.kernels {
        _ if !unpacks && !widens => 0,
        // One after the other.
        Kernels::Cpu if unpacks => width * inner.max(ffn),
        // Those of a layer.
        _ => width * (4 * inner + 3 * ffn),
    };
    F32 * (tokens * (4 * width + 4 * inner + 3 * ffn) + scores + widened)
}
