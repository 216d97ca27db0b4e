//! What the image encoder costs.

use super::ClipVisionConfig;
use crate::model::MemoryPlan;
use crate::model::cost::{F32, Operations, number};
use crate::runtime::Device;

/// The encoder on a picture.
pub fn operations(config: &ClipVisionConfig) -> Operations {
    let (tokens, width) = (number(config.tokens()), number(config.hidden_size));
    let patch = 3 * number(config.patch_size).pow(2);
    let layer = Operations::product(tokens, width, width).times(4)
        + Operations::product(tokens, width, number(config.intermediate_size)).times(2)
        + Operations::attention(tokens, tokens, width);
    Operations::product(tokens - 1, patch, width)
        + layer.times(number(config.num_hidden_layers - 1))
}

/// The encoder on a picture, its weights aside: residual stream, projections, hidden layers and scores
/// of one layer.
pub fn peak_bytes(config: &ClipVisionConfig, device: Device) -> u64 {
    let (tokens, width) = (config.tokens(), config.hidden_size);
    let heads = config.num_attention_heads;
    let shape = [heads, tokens, tokens, width / heads];
    let rows = 6 * number(width) + 3 * number(config.intermediate_size);
    F32 * number(tokens) * rows + device.scores_at_once(shape, MemoryPlan::WHOLE.score_bytes)
}
