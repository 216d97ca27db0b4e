//! Runs that can be stopped, or fail, and resume: their state on disk after every step.
//!
//! `format` is the bytes, [`mod@file`] reads and writes them, [`state_writer`] when and where the state is written, [`lock`] that no
//! two runs write one thing. Encoded prompts and pictures wait in an `EmbeddingStore`; [`dump`]
//! writes intermediates for a comparison.

pub mod dump;
mod embedding_store;
pub mod file;
mod format;
pub mod lock;
pub mod state_writer;

pub(crate) use embedding_store::EmbeddingStore;
pub use file::SavedRun;
pub use format::{MadeWith, Started};
pub use lock::Lock;
pub use state_writer::StateWriter;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::clip::Identity;
use crate::util::show::Show;

/// Whether the run `identity` can resume `saved`; one that it cannot resume may be replaced, if
/// `may_replace`, when that loses no step.
///
/// # Errors
/// When steps would be lost; says in what the two differ.
pub fn can_resume(saved: &SavedRun, identity: &Identity, may_replace: bool) -> Result<bool> {
    let differences = saved.identity.differences(identity);
    if differences.is_empty() {
        return Ok(true);
    }
    if may_replace && saved.steps_taken() == 0 {
        return Ok(false);
    }
    let lines: Vec<String> = differences.iter().map(|d| format!("\n  {d}")).collect();
    bail!(
        "{} is a saved run with other settings, after {} steps:{}\n\
         hint: give the same settings to resume it, another --output to keep it, or --resume never \
         to start from the beginning and replace it",
        saved.path.shown(),
        saved.steps_taken(),
        lines.concat()
    )
}

/// The end of a state's name.
pub const EXTENSION: &str = "wan-state";

/// The most bytes of a file's name that file systems take.
const MAX_NAME: usize = 255;

/// Where the state of the run that makes `output` is kept: `clip.mp4.wan-state` for `clip.mp4`,
/// `frames.wan-state` for the folder `frames/`.
pub fn state_path(output: &Path) -> PathBuf {
    sibling(output, "", EXTENSION)
}

/// A name in the folder of `path`: the path's own with something before and after it.
fn sibling(path: &Path, before: &str, extension: &str) -> PathBuf {
    // Without a trailing separator.
    let path: PathBuf = path.components().collect();
    let own = path.file_name().unwrap_or_else(|| OsStr::new("output"));
    let mut name = OsString::from(before);
    if before.len() + own.len() + 1 + extension.len() > MAX_NAME {
        name.push(&blake3::hash(own.as_encoded_bytes()).to_hex()[..32]);
    } else {
        name.push(own);
    }
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_lie_next_to_what_is_made() {
        let of = |output: &str| state_path(Path::new(output));
        assert_eq!(of("clip.mp4"), Path::new("clip.mp4.wan-state"));
        assert_eq!(of("a/b/clip.gif"), Path::new("a/b/clip.gif.wan-state"));
        assert_eq!(of("a/frames/"), Path::new("a/frames.wan-state"));
        assert_eq!(of("."), Path::new("./output.wan-state"));
        let long = of(&format!("a/{}.mp4", "x".repeat(250)));
        assert!(long.file_name().is_some_and(|name| name.len() < 60));
        assert_eq!(long.parent(), Some(Path::new("a")));
    }
}
