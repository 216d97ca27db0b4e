//! Measurements that are kept in the cache's folder, for the next time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::util::files::{MAX_OWN, cache_folder, read_small};

/// A file in the cache's folder, if there is one.
pub(super) fn cache_file(name: &str) -> Option<PathBuf> {
    Some(cache_folder()?.join(name))
}

/// What a file holds, which may be nothing, or of another version; the newest last.
pub(super) fn read<T: DeserializeOwned>(file: &Path) -> Vec<T> {
    let kept = read_small(file, MAX_OWN).ok();
    let all = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
    all.unwrap_or_default()
}

/// Puts `newest` into a file, the last of `most`, in place of those that it `replaces`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn keep<T: Clone + Serialize + DeserializeOwned>(
    file: &Path,
    newest: &T,
    most: usize,
    replaces: impl Fn(&T) -> bool,
) -> Result<()> {
    let folder = file.parent().context("it is in no folder")?;
    fs::create_dir_all(folder)?;
    let mut all: Vec<T> = read(file);
    all.retain(|other| !replaces(other));
    all.push(newest.clone());
    let more = all.len().saturating_sub(most);
    all.drain(..more);
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut new, &all)?;
    new.persist(file)?;
    Ok(())
}
