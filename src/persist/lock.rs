//! No two runs write one thing.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::sibling;
use crate::util::files::{is_still, open_own, real};
use crate::util::show::Show;

/// Times that a lock file is opened again because its owner has just removed it.
const ATTEMPTS: usize = 100;

/// The right to write something, for as long as this lives. The system takes it back from a process
/// that ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// `None` where the file system has no locks.
    file: Option<File>,
}

impl Lock {
    /// Takes the right to write `target`, whether or not it exists and however it is spelt.
    ///
    /// # Errors
    /// When another run has it, or the lock's file cannot be created next to it, nor in it if it is a
    /// folder.
    pub fn take(target: &Path) -> Result<Self> {
        let own = real(target);
        let mut path = sibling(&own, ".", "wan-lock");
        // The root of a volume, say.
        let closed =
            |error: std::io::Error| matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem);
        if own.is_dir() && open_own(&path).is_err_and(closed) {
            path = own.join(".wan-lock");
        }
        for _ in 0..ATTEMPTS {
            let file = open_own(&path)
                .with_context(|| format!("cannot create the lock {}", path.shown()))?;
            ensure!(
                file.metadata()?.len() == 0,
                "{} is no lock of this program, which are empty\nhint: move it away",
                path.shown()
            );
            match file.try_lock() {
                Ok(()) if is_still(&file, &path) => {
                    let file = Some(file);
                    return Ok(Self { path, file });
                }
                // Its owner removed it before it released it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!(
                    "another wan-i2v is writing {}\nhint: wait for it, or choose another --output",
                    target.shown()
                ),
                Err(TryLockError::Error(_)) => return Ok(Self { path, file: None }),
            }
        }
        bail!("cannot lock {}", path.shown())
    }

    /// Whether the file system keeps others out; some network shares cannot.
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held, so that nobody's newer one goes.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_link_in_the_lock_s_place_leaves_its_target_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let thesis = folder.path().join("thesis.txt");
        fs::write(&thesis, "three years").unwrap();
        let link = folder.path().join(".clip.mp4.wan-lock");
        std::os::unix::fs::symlink(&thesis, link).unwrap();
        let error = Lock::take(&folder.path().join("clip.mp4")).unwrap_err();
        assert!(format!("{error:#}").contains("is a link"), "{error:#}");
        assert_eq!(fs::read(&thesis).unwrap(), b"three years");
    }

    #[test]
    fn a_file_in_the_lock_s_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let thesis = folder.path().join(".clip.mp4.wan-lock");
        fs::write(&thesis, "three years").unwrap();
        let error = Lock::take(&folder.path().join("clip.mp4")).unwrap_err();
        assert!(
            error.to_string().contains("no lock of this program"),
            "{error:#}"
        );
        assert_eq!(fs::read(&thesis).unwrap(), b"three years");
    }

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("clip.mp4");
        let first = Lock::take(&target).unwrap();
        assert!(first.is_held());
        let error = Lock::take(&target).unwrap_err().to_string();
        assert!(error.contains("another wan-i2v is writing") && error.contains("clip.mp4"));
        assert!(Lock::take(&folder.path().join("other.mp4")).is_ok());
        drop(first);
        assert!(Lock::take(&target).is_ok());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_has_one_lock_however_it_is_spelt() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("frames/sub")).unwrap();
        std::os::unix::fs::symlink("frames", path("link")).unwrap();
        for first in ["frames", "frames/", "link", "link/.", "frames/sub/.."] {
            let lock = Lock::take(&path(first)).unwrap();
            for second in ["frames", "./frames/", "link/", "link/sub/.."] {
                assert!(Lock::take(&path(second)).is_err(), "{first}, {second}");
            }
            drop(lock);
        }
        // What is written under a link's name takes the link's place, and not that of a file.
        fs::write(path("clip.mp4"), "").unwrap();
        std::os::unix::fs::symlink("clip.mp4", path("other.mp4")).unwrap();
        let _first = Lock::take(&path("clip.mp4")).unwrap();
        Lock::take(&path("link/../other.mp4")).unwrap();
        assert!(Lock::take(&path("link/../clip.mp4")).is_err());
    }

    #[test]
    fn no_two_have_it_while_others_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("clip.mp4");
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if let Ok(lock) = Lock::take(&target) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 1);
    }
}
