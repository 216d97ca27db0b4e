//! Whether a part's weights have come: a download into a file of full length ends in zeros.

use anyhow::{Result, bail};

use super::{Part, Values, usizes};
use crate::model::{Role, TensorSpec};
use crate::util::show::Show;
use crate::weights::store::Entry;

/// The key of a safetensors header that says that its weights are zeros on purpose, for measurements
/// that do not depend on them (`scripts/sparse_expert.py`).
const ON_PURPOSE: &str = "wan_i2v_zeros";
/// Bytes of a sample. No trained matrix has so many zeros in a row.
const SAMPLE: usize = 4 << 10;
/// Bytes from one sample to the next.
const STRIDE: usize = 16 << 20;
/// Samples in a row that are zeros where single rows of a table may be.
const ROWS: usize = 4;
/// The smallest matrix that is looked at, in bytes.
const SMALLEST: usize = 256;

impl Part {
    /// Refuses a part with a matrix that is zeros, whole or from somewhere on, where a trained one
    /// cannot be. Samples are looked at: a few pages of each matrix.
    ///
    /// # Errors
    /// Names the file and the tensor.
    pub fn check_filled(&self, specs: &[TensorSpec]) -> Result<()> {
        if self.store.metadata().contains_key(ON_PURPOSE) {
            return Ok(());
        }
        let empty = specs.iter().find_map(|spec| {
            // What is missing or misshapen other checks name.
            let found = self.find(&spec.name, &usizes(&spec.shape)).ok()?;
            let entry = match found.values {
                Values::Stored { entry, .. } => entry,
                Values::Packed { packed, .. } => packed,
                Values::Blocks { codes, .. } => codes,
            };
            let is_table = spec.role == Role::Table;
            let at = (spec.shape.len() > 1).then(|| self.zeros_at(entry, is_table))??;
            Some((found.name, entry, at))
        });
        let Some((name, entry, at)) = empty else {
            return Ok(());
        };
        let (file, location) = (self.store.file_of(entry), self.store.location());
        let unfinished = [
            "aria2",
            "part",
            "crdownload",
            "download",
            "!qB",
            "incomplete",
        ]
        .iter()
        .map(|end| format!("{file}.{end}"))
        .find(|name| location.files.has(name));
        bail!(
            "{}: the tensor {} is all zeros{}, which no trained weights are: the download is not \
             whole{}\nhint: download it again",
            location.files.name(file),
            name.shown(),
            match at {
                0 => String::new(),
                at => format!(" from byte {at} of {} on", entry.byte_len()),
            },
            match unfinished {
                Some(name) => format!(" ({} lies beside it)", name.shown()),
                None => String::new(),
            }
        )
    }

    /// The first byte of a tensor's where a sample of it is zeros.
    fn zeros_at(&self, entry: &Entry, is_table: bool) -> Option<usize> {
        let bytes = self.store.bytes(entry);
        if bytes.len() < SMALLEST {
            return None;
        }
        let last = bytes.len().saturating_sub(SAMPLE);
        let starts: Vec<usize> = (0..last).step_by(STRIDE).chain([last]).collect();
        let is_zero = |start: &usize| {
            let end = bytes.len().min(start + SAMPLE);
            bytes[*start..end].iter().all(|byte| *byte == 0)
        };
        if !is_table {
            return starts.into_iter().find(is_zero);
        }
        let zero: Vec<bool> = starts.iter().map(is_zero).collect();
        let needed = ROWS.min(zero.len());
        let run = zero.windows(needed).position(|run| run.iter().all(|z| *z));
        run.and_then(|at| starts.get(at).copied())
    }
}
