//! In what parts a clip is computed.

use super::vae::cost::{choose_decode_tiling, choose_encode_tiling};
use super::vae::{Tiling, VaeConfig};
use crate::runtime::{Device, equal_parts};

/// In what parts a clip is computed, so that it keeps to a memory budget. Decided once per clip and
/// handed to every forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Rows of a clip's tokens that a transformer block computes at once; more go in chunks: only
    /// keys and values need all of them. The sums are the same, but a BLAS may round a row
    /// differently in a product of fewer rows.
    pub chunk_rows: i32,
    /// Score matrices of attention beyond this many bytes are computed in parts. Without a fused
    /// kernel the whole matrix exists at once, and one that is too large ends in
    /// `kIOGPUCommandBufferCallbackErrorOutOfMemory` (ddalcu/mlx-serve#321).
    pub score_bytes: u64,
    /// Whether the conditional and the unconditional pass of a step run as one, which reads every
    /// weight once instead of twice.
    pub joint_passes: bool,
    /// Whether passes apart share the first block's self-attention, which no prompt has a part in: it is
    /// as large as the stream, and a fortieth of a pass.
    pub shared_start: bool,
    /// Tiles of the frames that the VAE encodes; `None`: whole frames.
    pub encode_tiling: Option<Tiling>,
    /// Tiles of the frames that it decodes.
    pub decode_tiling: Option<Tiling>,
}

/// Above it the products take so much longer than reading their weights that joint passes gain
/// nothing.
const JOINT_TOKENS: i32 = 2048;

impl MemoryPlan {
    /// A short clip where memory is no matter: all rows, both passes and whole frames at once.
    pub const WHOLE: Self = Self {
        chunk_rows: i32::MAX,
        score_bytes: 512 << 20,
        joint_passes: true,
        shared_start: true,
        encode_tiling: None,
        decode_tiling: None,
    };

    /// The plan of a clip of `tokens` where memory is no matter.
    pub const fn of_tokens(tokens: i32) -> Self {
        Self {
            joint_passes: tokens <= JOINT_TOKENS,
            ..Self::WHOLE
        }
    }

    /// Rows of the chunks in which `tokens` go.
    pub fn chunk_of(&self, tokens: u64) -> u64 {
        let tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        equal_parts(tokens, self.chunk_rows).max(1) as u64
    }

    /// The same with frames of a clip of `grid` latents in tiles where the VAE takes more than
    /// `budget` bytes for whole ones.
    pub fn in_tiles(self, vae: &VaeConfig, device: Device, grid: [i32; 3], budget: u64) -> Self {
        Self {
            encode_tiling: choose_encode_tiling(vae, device, &self, grid, budget),
            decode_tiling: choose_decode_tiling(vae, device, &self, grid, budget),
            ..self
        }
    }
}
