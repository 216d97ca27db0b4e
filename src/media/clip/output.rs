//! Where a clip goes: the kind of a path, and temporary names beside it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf, is_separator};

use crate::util::show::Show;
use anyhow::{Context, Result, bail, ensure};
use tempfile::{NamedTempFile, TempDir};

/// The formats a clip is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// `.mp4`: H.264 video.
    Mp4,
    /// `.gif`: a looping animation.
    Gif,
    /// A path that ends in `/` or is an existing folder: `frame_00000.png` and so on inside it.
    Frames,
}

impl OutputKind {
    /// The kind that `path` asks for by its form.
    ///
    /// # Errors
    /// When the extension is missing or unknown.
    pub fn from_path(path: &Path) -> Result<Self> {
        let text = path.to_string_lossy();
        if text.ends_with(is_separator) || path.is_dir() {
            return Ok(Self::Frames);
        }
        let extension = path
            .extension()
            .map(|e| e.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("mp4") => Ok(Self::Mp4),
            Some("gif") => Ok(Self::Gif),
            found => bail!(
                "cannot tell the clip's format from {text:?} ({}); end it in .mp4 or .gif, \
                 or in / for a folder of PNG frames",
                found.map_or("no extension".into(), |e| format!("the extension is .{e}"))
            ),
        }
    }
}

/// Checks that a clip can be put at `path`, without leaving a trace.
///
/// # Errors
/// When the path's kind is unknown, the folder it is to be created in does not exist or nothing can
/// be created there, or something of another kind is in the way.
pub fn check_writable(path: &Path) -> Result<()> {
    match OutputKind::from_path(path)? {
        OutputKind::Mp4 | OutputKind::Gif => temporary_file(path).map(drop),
        OutputKind::Frames => temporary_folder(path).map(drop),
    }
}

/// Checks that a file whose name ends in `.extension` can be put at `path`, without leaving a trace.
/// `what` it is, the error says.
pub(crate) fn check_file(path: &Path, what: &str, extension: &str) -> Result<()> {
    let found = path.extension().and_then(OsStr::to_str);
    ensure!(
        found.is_some_and(|found| found.eq_ignore_ascii_case(extension)),
        "{}: {what} is written there; end its name in .{extension}",
        path.shown()
    );
    ensure!(
        !path.is_dir(),
        "{}: is a folder; name a file in it",
        path.shown()
    );
    temporary_file(path).map(drop)
}

/// A temporary file beside `path`, to be renamed to it; removed when dropped.
pub(crate) fn temporary_file(path: &Path) -> Result<NamedTempFile> {
    let parent = parent(path)?;
    let mut builder = tempfile::Builder::new();
    // tempfile's files are private by default; the clip gets what the umask allows, like any file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .prefix(&temporary_prefix(path))
        .tempfile_in(&parent)
        .with_context(|| cannot_write(path, &parent))
}

/// A temporary folder for the frames of `path`: inside it if it exists, else beside it; removed
/// when dropped.
pub(super) fn temporary_folder(path: &Path) -> Result<TempDir> {
    let parent = if path.is_dir() {
        path.to_owned()
    } else {
        parent(path)?
    };
    ensure!(
        path.is_dir() || fs::symlink_metadata(without_slash(path)).is_err(),
        "cannot write frames into {}: it is not a folder; remove it or choose another name",
        path.shown()
    );
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder
        .prefix(&temporary_prefix(path))
        .tempdir_in(&parent)
        .with_context(|| cannot_write(path, &parent))
}

/// Removes what runs that were killed have left of a clip at `path`. None may be writing it now.
pub fn remove_stale(path: &Path) {
    let prefix = temporary_prefix(path);
    let folders = [path.is_dir().then(|| path.to_owned()), parent(path).ok()];
    for folder in folders.into_iter().flatten() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&prefix) {
                continue;
            }
            // What cannot be removed does no harm but to be there.
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
        }
    }
}

/// Hidden, and telling whose it is should a power cut leave one behind. The clip's name has a part
/// in it, as a hash because it may be as long as names can be.
fn temporary_prefix(path: &Path) -> String {
    let name = without_slash(path);
    let name = name.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_encoded_bytes()).to_hex();
    format!(".wan-i2v-{}-", &hash[..12])
}

fn cannot_write(path: &Path, parent: &Path) -> String {
    format!(
        "cannot write {}: nothing can be created in the folder {}",
        path.shown(),
        parent.shown()
    )
}

/// The folder that holds `path`, which must exist.
fn parent(path: &Path) -> Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => bail!("cannot write a clip to {}", path.shown()),
    };
    ensure!(
        parent.is_dir(),
        "cannot write {}: the folder {} does not exist; create it first",
        path.shown(),
        parent.shown()
    );
    Ok(parent.to_owned())
}

/// `path` without a trailing separator, with which a file of that name would look absent.
pub(super) fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}
