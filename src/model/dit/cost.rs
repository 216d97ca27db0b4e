//! What an expert costs: floating-point operations of its parts, and the most bytes that its arrays
//! take at once, besides the weights.

use super::padding::keys_of_copies;
use super::{DitConfig, LARGE_BYTES};
use crate::model::MemoryPlan;
use crate::model::cost::{F32, Operations, number};
use crate::runtime::{Device, Kernels};
use crate::sampling::CacheMethod;

/// What an expert computes once per clip for one prompt: text embedding and the keys and values
/// of every block. `rows` are the real tokens and, when there is padding, one more.
pub fn prompt(config: &DitConfig, rows: u64) -> Operations {
    let width = number(config.dim());
    Operations::product(rows, number(config.text_dim), width)
        + Operations::product(rows, width, width)
        + Operations::product(rows, width, width).times(2 * number(config.num_layers))
}

/// Rows of a prompt of `tokens` tokens, padded to `text_len`: those that go through products, and the
/// keys that come of them.
pub fn text_rows(device: Device, tokens: usize, text_len: usize) -> [u64; 2] {
    let copies = text_len.saturating_sub(tokens);
    let keys = keys_of_copies(copies as i32, device.dtype.matmul_dtype());
    [
        (tokens + copies.min(1)) as u64,
        tokens as u64 + number(keys),
    ]
}

/// What an expert computes once per clip of pictures' features, `rows` of them: their embedding, and the
/// keys and values of every block.
pub fn pictures(config: &DitConfig, rows: u64) -> Operations {
    let width = number(config.dim());
    let features = number(config.image_dim.unwrap_or(0));
    Operations::product(rows, features, features)
        + Operations::product(rows, features, width)
        + Operations::product(rows, width, width).times(2 * number(config.num_layers))
}

/// What a step computes once, whatever the prompts: the time embedding.
pub fn step(config: &DitConfig) -> Operations {
    let width = number(config.dim());
    Operations::product(1, number(config.freq_dim), width)
        + Operations::product(1, width, width)
        + Operations::product(1, width, 6 * width)
}

/// The patch embedding and the first block's self-attention: once per step where passes share them,
/// when one is computed at all.
pub fn start(config: &DitConfig, tokens: u64) -> Operations {
    let patch: u64 = config.patch_size.iter().map(|&p| number(p)).product();
    let channels = number(config.in_channels) * patch;
    Operations::product(tokens, channels, number(config.dim())) + attend_self(config, tokens)
}

fn attend_self(config: &DitConfig, tokens: u64) -> Operations {
    let width = number(config.dim());
    Operations::product(tokens, width, width).times(4)
        + Operations::attention(tokens, tokens, width)
}

/// A pass behind [`start`] with a prompt of `text` keys and pictures of `image` ones: the rest of the
/// blocks and the head.
pub fn pass(config: &DitConfig, tokens: u64, [text, image]: [u64; 2]) -> Operations {
    let (width, layers) = (number(config.dim()), number(config.num_layers));
    let patch: u64 = config.patch_size.iter().map(|&p| number(p)).product();
    let with_text = Operations::product(tokens, width, width).times(2)
        + Operations::attention(tokens, text, width)
        + Operations::attention(tokens, image, width)
        + Operations::product(tokens, width, number(config.ffn_dim)).times(2);
    with_text.times(layers)
        + attend_self(config, tokens).times(layers.saturating_sub(1))
        + Operations::product(tokens, width, number(config.out_channels) * patch)
}

/// Values of the blocks' matrices.
pub fn weights(config: &DitConfig) -> u64 {
    let width = number(config.dim());
    // With keys and values of pictures where there are such.
    let squares = 8 + 2 * u64::from(config.image_dim.is_some());
    number(config.num_layers) * (squares * width * width + 2 * width * number(config.ffn_dim))
}

/// What has to be unpacked for an expert with `quantized` values: for prompts, and pictures, of `rows` each,
/// `steps` steps on `tokens`, the first `given` of them a picture's, of which `guided` with two passes.
///
/// All of a block's products are taken to be quantized alike; those outside the blocks are few.
pub fn unpacking(
    config: &DitConfig,
    device: Device,
    memory: &MemoryPlan,
    quantized: u64,
    rows: &[u64],
    [tokens, given]: [u64; 2],
    [steps, guided]: [u64; 2],
) -> Operations {
    let (width, layers) = (number(config.dim()), number(config.num_layers));
    let square = width * width;
    let feed_forward = 2 * width * number(config.ffn_dim);
    let all = weights(config);
    let least = number(device.dense_above);
    let prompts = rows.iter().filter(|&&rows| rows > least).count() as u64;
    // Every chunk of tokens unpacks anew.
    let chunks = memory.chunks(tokens, given);
    let chunks = chunks.filter(|&rows| rows > least).count() as u64;
    let joint_passes = memory.joint_passes && given == 0;
    let passes = match joint_passes {
        true => steps,
        false => steps + guided,
    };
    let starts = match joint_passes || memory.shared_start {
        true => steps,
        false => passes,
    };
    let start = starts * 4 * square;
    let pass = layers * (2 * square + feed_forward) + layers.saturating_sub(1) * 4 * square;
    let unpacked = prompts * layers * 2 * square + chunks * (start + passes * pass);
    // As large a part of it as of the weights.
    let share = u128::from(unpacked) * u128::from(quantized) / u128::from(all.max(1));
    Operations::unpacking(u64::try_from(share).unwrap_or(u64::MAX))
}

/// What denoising with one expert is about.
#[derive(Clone, Copy, Debug)]
pub struct Denoising {
    /// Tokens of the clip.
    pub tokens: u64,
    /// Those of them that are a picture's, the first ones.
    pub given: u64,
    /// Keys that the prompts leave, of both together, and pictures.
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
pub fn peak_bytes(config: &DitConfig, device: Device, memory: &MemoryPlan, clip: Denoising) -> u64 {
    let (width, size) = (
        number(config.dim()),
        device.dtype.matmul_dtype_size() as u64,
    );
    let Denoising {
        tokens,
        given,
        cells,
        ..
    } = clip;
    let joint_passes = memory.joint_passes && given == 0;
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
    // The residual stream, and what the passes of a step share.
    let shared = u64::from(clip.guided && (joint_passes || memory.shared_start));
    let kept = kv + tables + latents + cached + (1 + shared) * stream * F32;
    let chunk = memory.chunks(tokens, given).max().unwrap_or(0);
    let scores = device.scores_at_once(
        [
            config.num_attention_heads,
            i32::try_from(chunk).unwrap_or(i32::MAX),
            i32::try_from(tokens).unwrap_or(i32::MAX),
            config.attention_head_dim,
        ],
        memory.score_bytes,
    );
    let hidden = |rows: u64| rows * number(config.ffn_dim) * size;
    let copies = match clip.guided && joint_passes {
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
            // Keys and values of all rows.
            let weighing = 2 * stream * size + 4 * rows + scores.max(square);
            let hidden = hidden(chunk);
            let feed_forward = 2 * rows + hidden + hidden.max(rows + wide);
            weighing.max(feed_forward)
        }
        // How many buffers of a row's width a graph of MLX's operations holds was measured, without
        // unpacked weights, all of which exist at once.
        (Kernels::Mlx, false) => {
            let hidden = 2 * hidden(copies * tokens) + wide;
            let scores = copies * scores + 4 * square;
            both + match rows > LARGE_BYTES as u64 {
                true => (9 * rows + scores).max(4 * rows + hidden),
                false => 15 * rows + scores + hidden,
            }
        }
        (Kernels::Mlx, true) => {
            let rows = chunk * width * F32;
            let attention = 2 * stream * size + 6 * rows + scores + 2 * square;
            attention.max(4 * rows + 2 * hidden(chunk) + wide)
        }
    };
    kept + work
}
