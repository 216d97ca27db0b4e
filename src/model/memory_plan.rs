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

    /// The first row of each chunk in which `tokens` go, and the one behind its last. The first `given`
    /// ones, which are modulated differently, share none with others.
    pub fn ranges(&self, tokens: i32, given: i32) -> Vec<(i32, i32)> {
        let given = given.clamp(0, tokens);
        let mut chunks = Vec::new();
        for (from, to) in [(0, given), (given, tokens)] {
            let mut start = from;
            while start < to {
                let each = equal_parts(to - from, self.chunk_rows);
                let end = start.saturating_add(each).min(to);
                chunks.push((start, end));
                start = end;
            }
        }
        chunks
    }

    /// Rows of each chunk of [`Self::ranges`].
    pub fn chunks(&self, tokens: u64, given: u64) -> impl Iterator<Item = u64> + use<> {
        let [tokens, given] = [tokens, given].map(|rows| i32::try_from(rows).unwrap_or(i32::MAX));
        let ranges = self.ranges(tokens, given).into_iter();
        ranges.map(|(start, end)| (end - start) as u64)
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
