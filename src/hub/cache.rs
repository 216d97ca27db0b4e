//! The cache that all of the hub's clients share:
//! <https://huggingface.co/docs/hub/local-cache>.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::digest::Hash;
use super::repo::is_commit;
use super::{Listing, RemoteFile, RepoId};
use crate::util::files::{is_litter, open_own, read_small};
use crate::util::show::Show;

/// The deepest folder of a repository that is looked at.
const MAX_DEPTH: usize = 16;

/// One repository in the cache.
pub(super) struct Cached<'a> {
    repo: &'a RepoId,
    root: &'a Path,
    folder: String,
}

impl<'a> Cached<'a> {
    pub(super) fn new(root: &'a Path, repo: &'a RepoId) -> Self {
        Self {
            repo,
            root,
            folder: format!("models--{}", repo.id().replace('/', "--")),
        }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join(&self.folder).join("snapshots").join(commit)
    }

    /// The file that holds the content with this hash.
    pub(super) fn blob(&self, hash: &Hash) -> PathBuf {
        self.blobs().join(hash.hex())
    }

    /// What is there of a blob that is being fetched. No other client's name for it: they may
    /// leave holes in theirs.
    pub(super) fn part(&self, hash: &Hash) -> PathBuf {
        self.blobs()
            .join(format!("{}.wan-i2v.incomplete", hash.hex()))
    }

    fn blobs(&self) -> PathBuf {
        self.root.join(&self.folder).join("blobs")
    }

    /// The commit of the revision, as far as the cache knows.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(self.repo.revision()) {
            return Some(self.repo.revision().to_owned());
        }
        let text = String::from_utf8(read_small(&self.reference(), 1 << 10).ok()?).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// The commits that the cache has files of.
    pub(super) fn snapshots(&self) -> Vec<String> {
        let folder = self.snapshot("x").with_file_name("");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| is_commit(name)).collect();
        names.sort();
        names
    }

    /// Notes that the revision is this commit, for offline use by any client.
    pub(super) fn note_commit(&self, commit: &str) -> Result<()> {
        if self.repo.revision() == commit || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference();
        let write = || -> io::Result<()> {
            let folder = path.parent().ok_or(ErrorKind::NotFound)?;
            fs::create_dir_all(folder)?;
            // As any other file, and not for this user only: caches are shared.
            let mut new = tempfile::Builder::new()
                .permissions(fs::Permissions::from_mode(0o666))
                .tempfile_in(folder)?;
            io::Write::write_all(&mut new, commit.as_bytes())?;
            new.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.shown()))
    }

    fn reference(&self) -> PathBuf {
        self.root
            .join(&self.folder)
            .join("refs")
            .join(self.repo.revision())
    }

    /// Makes `path` of the snapshot lead to the blob, in one step.
    pub(super) fn link(&self, commit: &str, path: &str, hash: &Hash) -> Result<PathBuf> {
        let pointer = self.snapshot(commit).join(path);
        // Out of the file's folders, the commit's and `snapshots`.
        let up = "../".repeat(path.split('/').count().saturating_add(1));
        let target = PathBuf::from(format!("{up}blobs/{}", hash.hex()));
        let make = || -> io::Result<()> {
            let folder = pointer.parent().ok_or(ErrorKind::NotFound)?;
            fs::create_dir_all(folder)?;
            if fs::read_link(&pointer).is_ok_and(|there| there == target) {
                return Ok(());
            }
            let new = tempfile::Builder::new()
                .prefix(".wan-i2v-")
                .make_in(folder, |path| symlink(&target, path));
            match new {
                Ok(new) => new.persist(&pointer).map_err(|error| error.error),
                // A file system without links holds the file itself, as Python's client does it.
                Err(error) if no_links(&error) => fs::rename(self.blob(hash), &pointer),
                Err(error) => Err(error),
            }
        };
        make().with_context(|| format!("cannot make {}", pointer.shown()))?;
        Ok(pointer)
    }

    /// Takes the lock under which a blob is fetched, waiting for it up to `wait`; it is free
    /// again when dropped.
    pub(super) fn lock(&self, hash: &Hash, wait: Duration) -> Result<File> {
        let folder = self.root.join(".locks").join(&self.folder);
        let path = folder.join(format!("{}.lock", hash.hex()));
        let open = || -> io::Result<File> {
            fs::create_dir_all(&folder)?;
            open_own(&path)
        };
        let file = open().with_context(|| format!("cannot write {}", path.shown()))?;
        let start = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) if start.elapsed() < wait => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(Errno::WOULDBLOCK) => bail!(
                    "another process is fetching the same file ({} is locked): wait until it is done",
                    path.shown()
                ),
                // Where there are no locks the hash still tells when two got into each other's way.
                _ => return Ok(file),
            }
        }
    }

    /// The files of the revision that are in the cache, sorted; `None` when it is not there.
    pub(super) fn listing(&self) -> Option<Listing> {
        let commit = self.commit()?;
        let mut files = Vec::new();
        collect(&self.snapshot(&commit), "", 0, &mut files).ok()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Some(Listing { commit, files })
    }
}

/// Lists what is in `folder` below `prefix`; links that lead nowhere are left out.
fn collect(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<RemoteFile>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_litter(&name) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if depth < MAX_DEPTH {
                collect(&path, &format!("{prefix}{name}/"), depth + 1, files)?;
            }
            continue;
        }
        let Some(meta) = fs::metadata(&path).ok().filter(fs::Metadata::is_file) else {
            continue;
        };
        let blob = fs::read_link(&path).ok();
        let blob = blob
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        files.push(RemoteFile {
            path: format!("{prefix}{name}"),
            size: meta.len(),
            hash: blob.and_then(Hash::from_blob_name),
        });
    }
    Ok(())
}

fn no_links(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unsupported | ErrorKind::PermissionDenied
    )
}
