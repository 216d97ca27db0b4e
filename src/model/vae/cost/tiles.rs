//! The tiling that keeps a pass within a memory budget.

use super::meter::values;
use super::{decode_peak_bytes, encode_peak_bytes};
use crate::model::MemoryPlan;
use crate::model::vae::{Tiling, VaeConfig};
use crate::runtime::Device;

/// What neighbouring tiles share, in latent rows and columns. With random weights 4 is the least
/// that keeps 45 dB on average frames; 6 does so also when tiles are so small that every pixel
/// is blended. The table is in docs/performance.md.
pub const OVERLAP: i32 = 6;

/// The tiling with the least work among those that decode within `budget` bytes; `None` when a whole
/// frame does. When nothing fits, the one that takes the least.
pub fn choose_decode_tiling(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
    budget: u64,
) -> Option<Tiling> {
    choose(grid, OVERLAP, budget, |decode_tiling| {
        let memory = MemoryPlan {
            decode_tiling,
            ..*memory
        };
        decode_peak_bytes(config, device, &memory, grid)
    })
}

/// As [`choose_decode_tiling`], for encoding.
pub fn choose_encode_tiling(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
    budget: u64,
) -> Option<Tiling> {
    choose(grid, OVERLAP, budget, |encode_tiling| {
        let memory = MemoryPlan {
            encode_tiling,
            ..*memory
        };
        encode_peak_bytes(config, device, &memory, grid)
    })
}

fn choose(
    [_, rows, columns]: [i32; 3],
    overlap: i32,
    budget: u64,
    bytes: impl Fn(Option<Tiling>) -> u64,
) -> Option<Tiling> {
    if bytes(None) <= budget {
        return None;
    }
    let mut best: Option<((bool, u64, u64), Tiling)> = None;
    for row_tile in sides(rows, overlap) {
        for column_tile in sides(columns, overlap) {
            let tiling = Tiling {
                tile: [row_tile, column_tile],
                overlap,
            };
            let tiles = tiling.tiles(rows, columns).len() as u64;
            if tiles == 1 {
                continue;
            }
            let needed = bytes(Some(tiling));
            let work = tiles * values(&[row_tile, column_tile]);
            // What fits comes before what does not; among the former less work, then less
            // memory, among the latter less memory.
            let key = if needed <= budget {
                (false, work, needed)
            } else {
                (true, needed, work)
            };
            if best.is_none_or(|(least, _)| key < least) {
                best = Some((key, tiling));
            }
        }
    }
    best.map(|(_, tiling)| tiling)
}

/// For every count of tiles along an axis, the smallest tile that needs no more of them; none
/// smaller than twice the overlap, below which most of the work is done twice and more.
fn sides(extent: i32, overlap: i32) -> Vec<i32> {
    let mut sides: Vec<i32> = (1..=extent.max(1))
        .map(|count| (extent - overlap + count - 1) / count + overlap)
        .take_while(|&side| side >= 2 * overlap)
        .collect();
    if sides.is_empty() {
        sides.push(extent);
    }
    sides.dedup();
    sides
}
