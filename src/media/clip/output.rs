//! Where a clip goes: the kind of a path, and what is put there meanwhile.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, is_separator};

use anyhow::{Result, bail, ensure};
use tempfile::TempDir;

use super::png::is_frame_name;
use crate::util::show::Show;
use crate::util::temporary::{self, without_slash};

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
    let kind = OutputKind::from_path(path)?;
    check_place(path)?;
    match kind {
        OutputKind::Mp4 | OutputKind::Gif => temporary::file(path).map(drop),
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
        "{}: is a folder\nhint: name a file in it",
        path.shown()
    );
    check_place(path)?;
    temporary::file(path).map(drop)
}

/// Refuses a link, whose target would not be replaced, and a missing folder.
fn check_place(path: &Path) -> Result<()> {
    ensure!(
        path.is_dir() || !path.is_symlink(),
        "cannot write {}: it is a link\nhint: name the file that it leads to, or remove it",
        path.shown()
    );
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        bail!(
            "cannot write {}: the folder {} does not exist\nhint: create it first; --parents has a \
             run do that",
            path.shown(),
            folder.shown()
        );
    }
    Ok(())
}

/// Whether a clip, or another file, at `path` would replace something: a folder counts by its frames.
pub fn is_taken(path: &Path) -> bool {
    match path.is_dir() {
        true => frame_files(path).next().is_some(),
        false => fs::symlink_metadata(path).is_ok(),
    }
}

/// The frames in a folder.
pub fn frame_files(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| is_frame_name(&entry.file_name()))
}

/// A temporary folder for the frames of `path`: inside it if it exists, else beside it; removed
/// when dropped.
pub(super) fn temporary_folder(path: &Path) -> Result<TempDir> {
    ensure!(
        path.is_dir() || fs::symlink_metadata(without_slash(path)).is_err(),
        "cannot write frames into {}: it is not a folder\nhint: remove it or choose another name",
        path.shown()
    );
    temporary::folder(path)
}

/// Removes what runs that were killed have left of a clip at `path`. None may be writing it now.
pub fn remove_stale(path: &Path) {
    temporary::remove_stale(path);
    for folder in temporary::leftovers(path) {
        // A link leads to somebody else's.
        if folder.is_symlink() {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if is_frame_name(&entry.file_name()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        // What has something else in it stays.
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_killed_run_go_and_what_others_put_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("frames");
        for existing in [false, true] {
            let left = temporary_folder(&target).unwrap().keep();
            let notes = left.join("notes");
            fs::write(left.join("frame_00000.png"), "").unwrap();
            fs::write(&notes, "mine").unwrap();
            remove_stale(&target);
            assert_eq!(fs::read_dir(&left).unwrap().count(), 1, "{existing}");
            fs::remove_file(notes).unwrap();
            // The link's folder is another's.
            let other = folder.path().join("other");
            fs::create_dir_all(&other).unwrap();
            fs::write(other.join("frame_00000.png"), "").unwrap();
            remove_stale(&target);
            assert!(!left.exists());
            std::os::unix::fs::symlink(&other, &left).unwrap();
            remove_stale(&target);
            assert!(other.join("frame_00000.png").exists());
            fs::create_dir_all(&target).unwrap();
        }
    }
}
