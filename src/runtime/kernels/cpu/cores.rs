//! Work for MLX's CPU backend on all cores.

use mlx_rs::error::Result;
use mlx_rs::{Array, Device, Stream, with_stream};

/// The parts in which cores compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// How many times smaller a core's blocks are than they may be.
    pub divisor: i32,
    /// Bytes of scores that exist at once, if not fewer are asked for: between attention's two
    /// products they should not leave the caches.
    pub round_bytes: u64,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            divisor: 1,
            round_bytes: 8 << 20,
        }
    }
}

impl Blocks {
    /// Rows of a block of products of `[rows, inner]` and `[inner, columns]` that one core is to sum
    /// up.
    ///
    /// The sums, with what they are made of, stay in a core's cache, of 1 MiB at least
    /// where there are vector units to keep busy; and a product is small enough that no BLAS would give
    /// it to several threads (`scripts/mlx/mlx_shim.c` has its limit at 2^26 multiplications).
    pub fn rows(self, inner: i32, columns: i32) -> i32 {
        let [inner, columns] = [inner, columns].map(|side| i64::from(side.max(1)));
        let rows = (BLOCK_PRODUCTS / (inner * columns)).min(BLOCK_VALUES / columns);
        (rows as i32 / self.divisor.max(1)).max(64)
    }
}

const BLOCK_PRODUCTS: i64 = 1 << 25;
const BLOCK_VALUES: i64 = 1 << 18;

thread_local! {
    /// A stream of MLX's CPU backend per core: each has a thread of its own.
    static STREAMS: Vec<Stream> = {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).map(|_| Stream::new_with_device(&Device::cpu())).collect()
    };
}

/// What `f` makes of blocks of at most `block` of `rows` rows, start and end, which it is asked for
/// in turn and MLX's CPU backend will compute side by side.
pub fn in_parallel(
    rows: i32,
    block: i32,
    f: impl Fn(i32, i32) -> Result<Array>,
) -> Result<Vec<Array>> {
    let blocks = (0..rows).step_by(block.max(1) as usize);
    in_turn(blocks, |start| f(start, rows.min(start + block)))
}

/// What `f` makes of each of `work`, for which it is asked in turn and which MLX's CPU backend will
/// compute side by side.
pub fn in_turn<T>(
    work: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    f: impl Fn(T) -> Result<Array>,
) -> Result<Vec<Array>> {
    let work = work.into_iter();
    if work.len() <= 1 {
        return work.map(f).collect();
    }
    STREAMS.with(|streams| {
        work.zip(streams.iter().cycle())
            .map(|(item, stream)| with_stream(stream, || f(item)))
            .collect()
    })
}
