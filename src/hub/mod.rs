//! Models from the Hugging Face hub: what a repository holds, and its files, fetched into the
//! cache that all of the hub's clients share or to a folder.
//!
//! The official client, `hf-hub`, brings 40 crates for one request and two paths, and its downloads
//! can neither be given timeouts nor check a hash; so requests and files are asked for here.

mod address;
mod cache;
mod config;
mod digest;
mod http;
mod layout;
mod listing;
pub mod pull;
mod range;
mod repo;
mod sets;
mod transfer;
mod verify;

pub use config::Config;
pub use digest::Hash;
pub use layout::{Layout, Selection, named, needed};
pub use listing::{Listing, RemoteFile};
pub use repo::RepoId;
pub(crate) use repo::is_address;
pub use verify::{Outcome, Verified, check_hashes, verify};

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use disk::{free_disk, size_text};

use self::cache::Cached;
use self::http::{Http, Target};
pub(crate) use self::listing::check_path;
use self::listing::parse_listing;
use self::repo::is_commit;
use self::transfer::{Transfer, hash_of};
use crate::util::disk;
use crate::util::show::Show;

/// The hub, or offline what the cache has of it.
pub struct Hub {
    config: Config,
    http: Http,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl Hub {
    /// The hub that the environment names; see [`Config::from_env`]. Pauses that somebody who waits
    /// would notice are announced to `on_pause`.
    ///
    /// # Errors
    /// When a variable cannot be used.
    pub fn from_env(on_pause: fn(&str)) -> Result<Self> {
        Self::new(Config {
            on_pause,
            ..Config::from_env()?
        })
    }

    /// A hub.
    ///
    /// # Errors
    /// When its address cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let http = Http::new(&config)?;
        Ok(Self { config, http })
    }

    /// How the hub is used.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The files of a revision with their sizes and hashes. Fetches none of them.
    ///
    /// # Errors
    /// When there is no such repository or revision, it may not be read, or the hub cannot be
    /// reached; offline, when it is not in the cache.
    pub fn list(&self, repo: &RepoId) -> Result<Listing> {
        if self.config.offline {
            return Cached::new(&self.config.cache, repo)
                .listing()
                .with_context(|| {
                    let cache = self.config.cache.shown();
                    let forbidden = "and HF_HUB_OFFLINE=1 forbids to fetch it";
                    match Cached::new(&self.config.cache, repo).snapshots().first() {
                        Some(commit) => format!(
                            "the cache {cache} has {repo}, but no note of which commit {:?} is \
                             (refs/{}), {forbidden}\nhint: name the commit: {}@{commit}",
                            repo.revision(),
                            repo.revision(),
                            repo.id()
                        ),
                        None => format!("{repo} is not in the cache {cache}, {forbidden}"),
                    }
                });
        }
        let answer = self.http.listing(repo)?;
        parse_listing(&answer).with_context(|| format!("the hub's listing of {repo}"))
    }

    /// The content of an address anywhere in the web, of at most `most` bytes.
    ///
    /// # Errors
    /// When it cannot be fetched or is larger; offline always.
    pub fn address(&self, url: &str, most: u64) -> Result<Vec<u8>> {
        ensure!(!self.config.offline, "HF_HUB_OFFLINE=1 forbids to fetch it");
        self.http.public(url, most)
    }

    /// Fetches a file into the cache, unless it is there, and returns its path in the snapshot.
    /// `progress` hears how many of its bytes are there; what an earlier try left is read again
    /// and counted as it is. The number falls when a server makes it begin anew.
    ///
    /// # Errors
    /// When it cannot be fetched: what came is kept, and another call goes on from there. A file
    /// with the wrong hash is removed.
    pub fn fetch(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &RemoteFile,
        progress: &mut dyn FnMut(u64),
    ) -> Result<PathBuf> {
        check(commit, file)?;
        let cached = Cached::new(&self.config.cache, repo);
        let pointer = cached.snapshot(commit).join(&file.path);
        if has_size(&pointer, file.size) {
            cached.note_commit(commit)?;
            progress(file.size);
            return Ok(pointer);
        }
        let hash = self.allowed(repo, file)?;
        let blob = cached.blob(hash);
        let lock = cached.lock(hash, self.config.lock)?;
        if !has_size(&blob, file.size) {
            let part = cached.part(hash);
            self.transfer(repo, commit, file, hash, &part, progress)?;
            fs::rename(&part, &blob)
                .with_context(|| format!("cannot rename {} to its hash", part.shown()))?;
        }
        let pointer = cached.link(commit, &file.path, hash)?;
        drop(lock);
        cached.note_commit(commit)?;
        progress(file.size);
        Ok(pointer)
    }

    /// Fetches a file to its path below `folder`, unless it is there with the right hash. Until
    /// it is whole it is called `<path>.part`. What the cache has is linked instead.
    ///
    /// # Errors
    /// As for [`Self::fetch`].
    pub fn fetch_to(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &RemoteFile,
        folder: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<PathBuf> {
        check(commit, file)?;
        let path = folder.join(&file.path);
        let hash = file.hash.as_ref();
        if let Some(hash) = hash.filter(|_| has_size(&path, file.size)) {
            let found = hash_of(&path, hash, file.size)
                .with_context(|| format!("cannot read {}", path.shown()))?;
            if &found == hash {
                progress(file.size);
                return Ok(path);
            }
        }
        let cached = Cached::new(&self.config.cache, repo);
        let pointer = cached.snapshot(commit).join(&file.path);
        let places = [Some(pointer), hash.map(|hash| cached.blob(hash))];
        // Of the right size is not enough: whoever reads every byte can as well check them.
        let is_whole = |path: &PathBuf| {
            has_size(path, file.size)
                && hash.is_none_or(|hash| {
                    hash_of(path, hash, file.size).is_ok_and(|found| &found == hash)
                })
        };
        if let Some(there) = places.into_iter().flatten().find(is_whole) {
            link_to(&there, &path).with_context(|| format!("cannot make {}", path.shown()))?;
            progress(file.size);
            return Ok(path);
        }
        let hash = self.allowed(repo, file)?;
        let part = folder.join(format!("{}.part", file.path));
        self.transfer(repo, commit, file, hash, &part, progress)?;
        fs::rename(&part, &path)
            .with_context(|| format!("cannot rename {} to {}", part.shown(), path.shown()))?;
        progress(file.size);
        Ok(path)
    }

    /// The snapshot of a revision when the cache has all that its layout needs, without asking
    /// the hub.
    pub fn cached(&self, repo: &RepoId) -> Option<PathBuf> {
        let cached = Cached::new(&self.config.cache, repo);
        let listing = cached.listing()?;
        let selection = needed(&listing.files).ok()?;
        selection
            .missing
            .is_empty()
            .then(|| cached.snapshot(&listing.commit))
    }

    /// A file or folder of a repository in the cache, when the revision's commit is known there.
    pub fn cached_file(&self, repo: &RepoId, file: &str) -> Option<PathBuf> {
        let cached = Cached::new(&self.config.cache, repo);
        let path = cached.snapshot(&cached.listing()?.commit).join(file);
        path.exists().then_some(path)
    }

    /// Bytes of a file that need not be fetched any more: all, when the cache has it, or those
    /// of its beginning.
    pub fn fetched(&self, repo: &RepoId, commit: &str, file: &RemoteFile) -> u64 {
        let cached = Cached::new(&self.config.cache, repo);
        let hash = file.hash.as_ref();
        let blob = hash.map(|hash| cached.blob(hash));
        let pointer = cached.snapshot(commit).join(&file.path);
        if has_size(&pointer, file.size) || blob.is_some_and(|blob| has_size(&blob, file.size)) {
            return file.size;
        }
        let part = hash.and_then(|hash| fs::metadata(cached.part(hash)).ok());
        part.map_or(0, |meta| meta.len().min(file.size))
    }

    /// Bytes of the selected files that need not be fetched any more.
    pub fn fetched_bytes(&self, repo: &RepoId, commit: &str, selection: &Selection) -> u64 {
        let files = selection.files.iter();
        files.fold(0, |sum: u64, file| {
            sum.saturating_add(self.fetched(repo, commit, file))
        })
    }

    /// The hash of a file that may be fetched.
    fn allowed<'a>(&self, repo: &RepoId, file: &'a RemoteFile) -> Result<&'a Hash> {
        ensure!(
            !self.config.offline,
            "{} of {repo} is not in the cache {}, and HF_HUB_OFFLINE=1 forbids to fetch it",
            file.path,
            self.config.cache.shown()
        );
        file.hash
            .as_ref()
            .with_context(|| format!("the hash of {} of {repo} is not known", file.path))
    }

    fn transfer(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &RemoteFile,
        hash: &Hash,
        part: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let transfer = Transfer {
            http: &self.http,
            target: Target {
                repo,
                file: Some(&file.path),
            },
            url: self.http.file_url(repo, commit, &file.path),
            size: file.size,
            hash,
            part,
        };
        transfer.run(progress)
    }
}

/// What the caller gives may come from elsewhere than [`Hub::list`].
fn check(commit: &str, file: &RemoteFile) -> Result<()> {
    ensure!(is_commit(commit), "{commit:?} is not a commit");
    check_path(&file.path).context("the request")
}

/// Makes `path` lead to the file that `pointer` leads to.
fn link_to(pointer: &Path, path: &Path) -> io::Result<()> {
    let content = fs::canonicalize(pointer)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(content, path)
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}
