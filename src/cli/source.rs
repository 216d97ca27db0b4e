//! What the command line calls a model: a path, or a repository of the hub.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The path of a model on this disk; `what` is the flag or argument that names it.
///
/// # Errors
/// When there is no such thing.
pub fn local(source: &Path, what: &str) -> Result<PathBuf> {
    ensure!(
        source.exists(),
        "{what} {}: no such file or folder",
        source.display()
    );
    Ok(source.to_owned())
}
