//! The residual stream between blocks.

use std::rc::Rc;

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::concatenate;

use super::share::{Share, gather_rows};
use crate::runtime::rows;

/// The residual stream `[tokens, dim]`, float32: whole, or in the chunks of rows that a block computes at
/// once, each with a buffer of its own, so that it never exists twice. With other machines it has this
/// one's rows.
#[derive(Clone, Debug)]
pub struct Stream {
    chunks: Vec<Array>,
    shared: Option<Shared>,
}

/// Whom a stream is shared with.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) with: Rc<dyn Share>,
    /// The first row that is here, and all of the sequence.
    pub(super) first: i32,
    pub(super) tokens: i32,
}

impl Stream {
    /// Of rows that follow each other.
    pub(super) fn of_chunks(chunks: Vec<Array>, shared: Option<Shared>) -> Self {
        Self { chunks, shared }
    }

    /// Whom it is shared with.
    pub(super) fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// Other values of the same rows.
    pub fn of_same_rows(&self, rows: Array) -> Self {
        Self::of_chunks(vec![rows], self.shared.clone())
    }

    /// All rows in one array, with those of other machines.
    pub(super) fn gathered(&self) -> Result<Array> {
        let whole = self.whole()?;
        match &self.shared {
            Some(shared) => gather_rows(&*shared.with, &whole, shared.tokens),
            None => Ok(whole),
        }
    }

    /// All rows that are here in one array.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn whole(&self) -> Result<Array> {
        match self.chunks.as_slice() {
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
        for (chunk, (start, end)) in self.chunks.iter().zip(self.ranges()) {
            if start < row && row < end {
                chunks.push(rows(chunk, 0, row - start)?);
                chunks.push(rows(chunk, row - start, end - start)?);
            } else {
                chunks.push(chunk.clone());
            }
        }
        Ok(Self::of_chunks(chunks, self.shared.clone()))
    }

    /// The only array, where the stream is whole.
    pub(super) fn as_whole(&self) -> Option<&Array> {
        match self.chunks.as_slice() {
            [whole] if self.shared.is_none() => Some(whole),
            _ => None,
        }
    }

    /// Its chunks.
    pub(super) fn chunks(&self) -> &[Array] {
        &self.chunks
    }

    /// The first row of each chunk, and the one behind its last.
    pub(super) fn ranges(&self) -> Vec<(i32, i32)> {
        let mut end = self.shared.as_ref().map_or(0, |shared| shared.first);
        let range = |chunk: &Array| {
            let start = end;
            end += chunk.dim(0);
            (start, end)
        };
        self.chunks.iter().map(range).collect()
    }

    /// Puts `f` of each chunk, evaluated, and of its first and last row in its place.
    pub(super) fn replace(
        mut self,
        mut f: impl FnMut(&Array, (i32, i32)) -> Result<Array>,
    ) -> Result<Self> {
        let ranges = self.ranges();
        for (chunk, range) in self.chunks.iter_mut().zip(ranges) {
            let new = f(chunk, range)?;
            new.eval()?;
            *chunk = new;
        }
        Ok(self)
    }
}

impl From<Array> for Stream {
    fn from(whole: Array) -> Self {
        Self::of_chunks(vec![whole], None)
    }
}
