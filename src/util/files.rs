//! Reading small files within bounds, and telling files apart.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::util::show::Show;
use anyhow::{Result, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::Value;

/// The most bytes of a configuration, an index or another file of settings: an index of A14B has
/// 0.1 MB.
pub(crate) const MAX_JSON: u64 = 16 << 20;

/// The most bytes of what the program keeps for itself: rates, a token, the beginning of a report.
pub(crate) const MAX_OWN: u64 = 1 << 20;

/// The most bytes of a job file: more than a million jobs.
pub(crate) const MAX_JOBS: u64 = 256 << 20;

/// The most bytes of a batch's report, which has half a kilobyte a clip.
pub(crate) const MAX_REPORT: u64 = 1 << 30;

/// Whether a file's name is one that systems give to what they leave in folders, and nobody made:
/// macOS' `._NAME` beside every file on exFAT and network drives, its `.DS_Store`, Windows' `Thumbs.db`.
pub(crate) fn is_litter(name: &str) -> bool {
    const NAMES: [&str; 5] = [
        ".ds_store",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",
    ];
    name.starts_with("._") || NAMES.contains(&name.to_ascii_lowercase().as_str())
}

/// The content of a regular file of at most `most` bytes. A pipe or a device in its place is refused
/// at once, where reading it could wait, or go on, forever.
///
/// # Errors
/// When it cannot be read, is no regular file or is larger.
pub(crate) fn read_small(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let size = file.metadata()?.len();
    ensure!(size <= most, "it has {size} bytes; expected at most {most}");
    read_to(file, most)
}

/// Opens a regular file to read it; a pipe or a device in its place is refused at once.
///
/// # Errors
/// When it cannot be opened or is no regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    // Opening a pipe that nobody writes to would wait as well.
    let file = open(path, OFlags::NONBLOCK)?;
    let kind = file.metadata()?.file_type();
    let found = match kind.is_file() {
        true => return Ok(file),
        false if kind.is_dir() => "a folder",
        false => "no regular file",
    };
    Err(io::Error::other(format!("it is {found}")))
}

/// Opens a file or a pipe without waiting for somebody who writes into it; what a writer who is there
/// has yet to write is waited for.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_now(path: &Path) -> io::Result<File> {
    let file = open(path, OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

/// The first bytes of a regular file, at most so many; nothing of a link.
pub(crate) fn read_head(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let file = open(path, OFlags::NONBLOCK | OFlags::NOFOLLOW)?;
    if !file.metadata()?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut head = Vec::new();
    file.take(most).read_to_end(&mut head)?;
    Ok(head)
}

fn open(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Whether a file of JSON of at most `most` bytes lies at `path` for which something holds, by which
/// this program tells its own.
pub(crate) fn is_json(path: &Path, most: u64, holds: impl FnOnce(&Value) -> bool) -> bool {
    let json = read_small(path, most).ok();
    let value = json.and_then(|json| serde_json::from_slice(&json).ok());
    value.is_some_and(|value| holds(&value))
}

/// As [`read_small`], of what may be a pipe too.
///
/// # Errors
/// When it cannot be read or is larger.
pub(crate) fn read_stream(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_to(File::open(path)?, most)
}

/// Opens a file that this program makes under a name that others can foresee, as it is or new. What
/// somebody else put there, a link or a file that has another name too, is refused untouched.
///
/// # Errors
/// When it cannot be opened, or is no regular file of this one name.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let refused = |what: &str| {
        let text = format!("{} {what}\nhint: remove it", path.shown());
        Err(io::Error::new(ErrorKind::AlreadyExists, text))
    };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = match options.custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return refused("is a link");
        }
        other => other?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return refused("is no regular file");
    }
    // None: it was removed in between, which whoever locks it finds out.
    if metadata.nlink() > 1 {
        return refused("has another name too");
    }
    Ok(file)
}

/// `path` without the links and dots on the way to it, as far as it exists; of a folder, without those at
/// its end too. A link to a file stays: what is written under its name takes its place.
pub(crate) fn real(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().collect();
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) if real.is_dir() => real,
        (_, Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
            real(Path::new(".")).join(name)
        }
        (_, Some(parent), Some(name)) => real(parent).join(name),
        _ => path,
    }
}

/// Whether `file` is what lies at `path`, and not what was there before.
pub(crate) fn is_still(file: &File, path: &Path) -> bool {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), path.metadata()) {
        (Ok(held), Ok(there)) => id(held) == id(there),
        _ => false,
    }
}

fn read_to(file: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= most,
        "it has more than {most} bytes, the most that are read"
    );
    Ok(bytes)
}

/// The folder for what this program keeps and can do without, by the XDG rules and macOS's.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    let folder = match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ if cfg!(target_os = "macos") => home()?.join("Library/Caches"),
        _ => home()?.join(".cache"),
    };
    Some(folder.join("wan-i2v"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systems_leave_in_folders_is_litter() {
        for name in ["._model.safetensors", ".DS_Store", "Thumbs.db", "__MACOSX"] {
            assert!(is_litter(name), "{name}");
        }
        for name in ["_model.safetensors", ".hidden", "model.safetensors", "db"] {
            assert!(!is_litter(name), "{name}");
        }
    }

    #[test]
    fn what_others_put_in_the_place_of_our_own_file_stays_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("thesis"), "three years").unwrap();
        std::os::unix::fs::symlink(path("thesis"), path("link")).unwrap();
        std::fs::hard_link(path("thesis"), path("other")).unwrap();
        for (name, said) in [
            ("link", "is a link"),
            ("other", "another name"),
            ("thesis", "another"),
        ] {
            let error = open_own(&path(name)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(open_own(folder.path()).is_err());
        assert_eq!(std::fs::read(path("thesis")).unwrap(), b"three years");
        std::fs::write(path("own"), "kept").unwrap();
        open_own(&path("own")).unwrap();
        assert_eq!(std::fs::read(path("own")).unwrap(), b"kept");
        open_own(&path("new")).unwrap();
        assert!(path("new").is_file());
    }

    #[test]
    fn a_folder_has_one_real_path_and_a_link_to_a_file_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("frames/sub")).unwrap();
        std::fs::write(root.join("clip"), "").unwrap();
        std::os::unix::fs::symlink("frames", root.join("link")).unwrap();
        std::os::unix::fs::symlink("clip", root.join("other")).unwrap();
        for (path, expected) in [
            ("frames/", "frames"),
            ("link", "frames"),
            ("link/./sub/..", "frames"),
            ("link/new/clip", "frames/new/clip"),
            ("link/../other", "other"),
        ] {
            assert_eq!(real(&root.join(path)), root.join(expected), "{path}");
        }
        let here = Path::new(".").canonicalize().unwrap();
        assert_eq!(real(Path::new("new")), here.join("new"));
    }

    #[test]
    fn what_is_too_large_or_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read_small(&path, 10).unwrap(), [7; 10]);
        let error = |error: anyhow::Error| error.to_string();
        assert!(error(read_small(&path, 9).unwrap_err()).contains("has 10 bytes"));
        assert!(error(read_stream(&path, 9).unwrap_err()).contains("more than 9"));
        let zero = Path::new("/dev/zero");
        assert!(error(read_small(zero, 10).unwrap_err()).contains("no regular file"));
        assert!(error(read_stream(zero, 10).unwrap_err()).contains("more than 10"));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert!(error(read_small(&pipe, 10).unwrap_err()).contains("no regular file"));
    }
}
