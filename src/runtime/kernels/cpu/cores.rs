//! The parts in which cores compute.

/// The parts in which cores compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// How many times smaller a core's blocks are than they may be.
    pub divisor: i32,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { divisor: 1 }
    }
}

impl Blocks {
    /// Rows of a block of products of `[rows, inner]` and `[inner, columns]` that one core is to sum
    /// up.
    ///
    /// The sums, with what they are made of, stay in a core's cache, of 1 MiB at least where there are vector
    /// units to keep busy.
    pub fn rows(self, inner: i32, columns: i32) -> i32 {
        let [inner, columns] = [inner, columns].map(|side| i64::from(side.max(1)));
        let rows = (BLOCK_PRODUCTS / (inner * columns)).min(BLOCK_VALUES / columns);
        (rows as i32 / self.divisor.max(1)).max(64)
    }
}

const BLOCK_PRODUCTS: i64 = 1 << 25;
const BLOCK_VALUES: i64 = 1 << 18;
