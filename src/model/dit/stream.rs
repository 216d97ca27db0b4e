//! The residual stream between blocks.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::concatenate;

use crate::runtime::rows;

/// The residual stream `[tokens, dim]`, float32: whole, or in the chunks of rows that a block computes at
/// once, each with a buffer of its own, so that it never exists twice.
#[derive(Clone, Debug)]
pub struct Stream(Vec<Array>);

impl Stream {
    /// Of rows that follow each other.
    pub(super) fn of_chunks(chunks: Vec<Array>) -> Self {
        Self(chunks)
    }

    /// All rows in one array.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn whole(&self) -> Result<Array> {
        match self.0.as_slice() {
            [whole] => Ok(whole.clone()),
            chunks => concatenate(chunks, 0),
        }
    }

    /// The same, cut between the rows `row - 1` and `row`, if it is not yet.
    ///
    /// # Errors
    /// When MLX fails.
    pub(super) fn cut_at(&self, row: i32) -> Result<Self> {
        let mut chunks = Vec::new();
        for (chunk, (start, end)) in self.0.iter().zip(self.ranges()) {
            if start < row && row < end {
                chunks.push(rows(chunk, 0, row - start)?);
                chunks.push(rows(chunk, row - start, end - start)?);
            } else {
                chunks.push(chunk.clone());
            }
        }
        Ok(Self(chunks))
    }

    /// The only array, where the stream is whole.
    pub(super) fn as_whole(&self) -> Option<&Array> {
        match self.0.as_slice() {
            [whole] => Some(whole),
            _ => None,
        }
    }

    /// Its chunks.
    pub(super) fn chunks(&self) -> &[Array] {
        &self.0
    }

    /// The first row of each chunk, and the one behind its last.
    pub(super) fn ranges(&self) -> Vec<(i32, i32)> {
        let mut end = 0;
        let range = |chunk: &Array| {
            let start = end;
            end += chunk.dim(0);
            (start, end)
        };
        self.0.iter().map(range).collect()
    }

    /// Puts `f` of each chunk, evaluated, and of its first and last row in its place.
    pub(super) fn replace(
        mut self,
        mut f: impl FnMut(&Array, (i32, i32)) -> Result<Array>,
    ) -> Result<Self> {
        let ranges = self.ranges();
        for (chunk, range) in self.0.iter_mut().zip(ranges) {
            let new = f(chunk, range)?;
            new.eval()?;
            *chunk = new;
        }
        Ok(self)
    }
}

impl From<Array> for Stream {
    fn from(whole: Array) -> Self {
        Self(vec![whole])
    }
}
