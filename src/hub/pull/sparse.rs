//! A file of the hub on this machine's disk, in its full length, with the pieces that were asked
//! for and holes for the rest.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hub::{Hub, RemoteFile, RepoId};
use crate::util::show::Show;
use crate::weights::Files;

/// Bytes of one request at most.
const PIECE: u64 = 8 << 20;

/// Where a file is, on the hub and here.
pub(super) struct Sparse<'a> {
    pub hub: &'a Hub,
    pub repo: &'a RepoId,
    pub commit: &'a str,
    pub file: &'a RemoteFile,
    path: PathBuf,
    disk: File,
    /// What is there; no two overlap.
    there: Vec<Range<u64>>,
}

impl<'a> Sparse<'a> {
    /// Makes the file, all of it a hole.
    pub fn create(
        hub: &'a Hub,
        repo: &'a RepoId,
        commit: &'a str,
        file: &'a RemoteFile,
        folder: &Path,
    ) -> Result<Self> {
        let path = folder.join(&file.path);
        Ok(Self {
            disk: hole(&path, file.size)?,
            hub,
            repo,
            commit,
            file,
            path,
            there: Vec::new(),
        })
    }

    pub fn size(&self) -> u64 {
        self.file.size
    }

    /// Bytes that were fetched.
    pub fn fetched(&self) -> u64 {
        self.there.iter().map(|piece| piece.end - piece.start).sum()
    }

    /// Whether any byte of `range` is there.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        let touches = |piece: &Range<u64>| piece.start < range.end && range.start < piece.end;
        self.there.iter().any(touches)
    }

    /// Fetches what is missing of `range`, as far as the file reaches.
    pub fn fetch(&mut self, range: Range<u64>) -> Result<()> {
        let (mut at, end) = (range.start, range.end.min(self.size()));
        while at < end {
            if let Some(piece) = self.there.iter().find(|piece| piece.contains(&at)) {
                at = piece.end;
                continue;
            }
            let next = self.there.iter().map(|piece| piece.start);
            let next = next.filter(|&start| start > at).min().unwrap_or(end);
            let until = end.min(next).min(at.saturating_add(PIECE));
            let bytes = self
                .hub
                .fetch_range(self.repo, self.commit, self.file, at..until)?;
            self.put(at, &bytes)?;
            self.there.push(at..until);
            at = until;
        }
        Ok(())
    }

    /// Writes bytes that were not fetched.
    pub fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.disk
            .write_all_at(bytes, at)
            .with_context(|| format!("cannot write {}", self.path.shown()))
    }

    /// `N` bytes of it; zeros where it is a hole.
    pub fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.disk
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("cannot read {}", self.path.shown()))?;
        Ok(bytes)
    }

    /// Calls `look` with the whole file, mapped.
    pub fn look<T>(&self, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let (files, name) = Files::holding(&self.path);
        look(&files.map(&name)?)
    }
}

/// Makes a file of so many bytes that takes no room.
pub(super) fn hole(path: &Path, size: u64) -> Result<File> {
    let make = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        file.set_len(size)?;
        Ok::<_, std::io::Error>(file)
    };
    make().with_context(|| format!("cannot write {}", path.shown()))
}
