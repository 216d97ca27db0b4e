//! Files and folders that get their name when they are complete.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{Builder, NamedTempFile, TempDir};

use super::files::real;
use super::show::Show;

/// How every temporary name begins.
const PREFIX: &str = ".wan-i2v-";
/// Hexadecimal digits that tell what it is for.
const DIGITS: usize = 12;
/// Random characters at its end, as tempfile makes them.
const RANDOM: usize = 6;

/// A file beside `path`, to be renamed to it; removed when dropped.
pub(crate) fn file(path: &Path) -> Result<NamedTempFile> {
    make(path, &parent(path)?, 0o666, |builder, place| {
        builder.tempfile_in(place)
    })
}

/// A folder for the files of the folder `path`: inside it if it exists, else beside it; removed when
/// dropped.
pub(crate) fn folder(path: &Path) -> Result<TempDir> {
    let place = match path.is_dir() {
        true => path.to_owned(),
        false => parent(path)?,
    };
    make(path, &place, 0o777, |builder, place| {
        builder.tempdir_in(place)
    })
}

fn make<T>(
    path: &Path,
    place: &Path,
    mode: u32,
    make: impl Fn(&Builder, &Path) -> std::io::Result<T>,
) -> Result<T> {
    // A name that is too long, say, would be refused at the very end.
    if let Err(error) = fs::symlink_metadata(without_slash(path))
        && error.kind() != ErrorKind::NotFound
    {
        bail!("cannot write {}: {error}", path.shown());
    }
    let prefix = prefix(path);
    let mut builder = Builder::new();
    // tempfile's are private by default; what is made gets what the umask allows, like anything else.
    builder.permissions(Permissions::from_mode(mode));
    make(builder.prefix(&prefix), place).with_context(|| {
        format!(
            "cannot write {}: nothing can be created in the folder {}",
            path.shown(),
            place.shown()
        )
    })
}

/// What runs that were killed have left of `path`. Nobody may be writing it now.
pub(crate) fn leftovers(path: &Path) -> Vec<PathBuf> {
    let prefix = prefix(path);
    let places = [path.is_dir().then(|| path.to_owned()), parent(path).ok()];
    let places = places.into_iter().flatten();
    places
        .flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten())
        .filter(|entry| {
            let name = entry.file_name();
            is_name(&name) && name.to_string_lossy().starts_with(&prefix)
        })
        .map(|entry| entry.path())
        .collect()
}

/// Removes the files among [`leftovers`].
pub(crate) fn remove_stale(path: &Path) {
    for path in leftovers(path) {
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
            // What cannot be removed does no harm but to be there.
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether a name has the form of those that are made here.
pub(crate) fn is_name(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    rest.and_then(|rest| rest.split_once('-'))
        .is_some_and(|(digits, random)| {
            let own = |text: &str, count| {
                text.len() == count && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
            };
            own(digits, DIGITS) && own(random, RANDOM)
        })
}

/// The name's beginning has a hash of the final one, which may be as long as names can be.
fn prefix(path: &Path) -> String {
    let path = real(path);
    let name = path.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_encoded_bytes()).to_hex();
    format!("{PREFIX}{}-", &hash[..DIGITS])
}

/// The folder that holds `path`, which must exist.
fn parent(path: &Path) -> Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => bail!("cannot write to {}", path.shown()),
    };
    ensure!(
        parent.is_dir(),
        "cannot write {}: the folder {} does not exist\nhint: create it first",
        path.shown(),
        parent.shown()
    );
    Ok(parent.to_owned())
}

/// `path` without a trailing separator, with which a file of that name would look absent.
pub(crate) fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_run_s_rest_is_found_and_nothing_else_is() {
        let own = tempfile::tempdir().unwrap();
        let target = own.path().join("clip.mp4");
        let (_, left) = file(&target).unwrap().keep().unwrap();
        let other = file(&own.path().join("other.mp4")).unwrap();
        let text = left.to_string_lossy().into_owned();
        for foreign in [format!("{text}-notes"), text[..text.len() - 1].to_owned()] {
            fs::write(foreign, "mine").unwrap();
        }
        assert_eq!(leftovers(&target), [left]);
        remove_stale(&target);
        assert!(leftovers(&target).is_empty() && other.path().exists());
        assert_eq!(fs::read_dir(own.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_cannot_be_named_is_refused_at_once() {
        let own = tempfile::tempdir().unwrap();
        let long = own.path().join("x".repeat(256));
        for error in [file(&long).map(drop), folder(&long).map(drop)] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("too long"), "{error}");
        }
        assert_eq!(fs::read_dir(own.path()).unwrap().count(), 0);
    }
}
