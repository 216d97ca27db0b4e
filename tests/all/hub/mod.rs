//! Fetching from a hub that runs here, over 127.0.0.1 and nothing else.

mod adapters;
mod catalogue;
mod command;
mod converting;
mod faults;
mod fetching;
mod full_disk;
mod heads;
mod interrupting;
mod layouts;
mod models;
mod program;
mod pth;
mod refusals;
mod server;
mod shards;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use server::{COMMIT, REPO, Server, sha256};
use tempfile::TempDir;
use wan_i2v::hub::{Config, Hub, Listing, RemoteFile, RepoId};

/// A server, a cache, and how they are used.
struct Bench {
    server: Server,
    folder: TempDir,
    config: Config,
}

impl Bench {
    fn new() -> Self {
        let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
        let mut config = Config::new(folder.path().join("hub"));
        config.endpoint = server.url();
        config.connect = Duration::from_secs(2);
        config.lock = Duration::from_millis(150);
        config.tries = 3;
        config.pause = Duration::from_millis(1);
        Self {
            server,
            folder,
            config,
        }
    }

    /// As a new process would have it.
    fn hub(&self) -> Hub {
        Hub::new(self.config.clone()).unwrap()
    }

    fn repo_folder(&self) -> PathBuf {
        self.config.cache.join("models--owner--model")
    }

    fn list(&self) -> Result<Listing> {
        self.hub().list(&repo())
    }

    fn file(&self, path: &str) -> RemoteFile {
        let files = self.list().unwrap().files;
        self.server.log();
        files.into_iter().find(|file| file.path == path).unwrap()
    }

    fn fetch(&self, path: &str) -> Result<PathBuf> {
        let file = self.file(path);
        self.hub().fetch(&repo(), COMMIT, &file, &mut |_| {})
    }

    /// The cache's partial files.
    fn parts(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.repo_folder().join("blobs")) else {
            return Vec::new();
        };
        let paths = entries.map(|entry| entry.unwrap().path());
        let is_part = |path: &PathBuf| path.extension().is_some_and(|end| end == "incomplete");
        paths.filter(is_part).collect()
    }
}

fn repo() -> RepoId {
    REPO.parse().unwrap()
}

/// Bytes without a pattern that a shift would hide.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..len).map(next).collect()
}

/// That a fetched file is `content`, in the place where all clients look for it.
fn assert_cached(bench: &Bench, path: &str, hash: &str, content: &[u8]) {
    let repo = bench.repo_folder();
    let pointer = repo.join("snapshots").join(COMMIT).join(path);
    assert!(fs::read(&pointer).unwrap() == content, "{path} differs");
    let up = "../".repeat(path.split('/').count() + 1);
    assert_eq!(
        fs::read_link(&pointer).unwrap(),
        Path::new(&format!("{up}blobs/{hash}"))
    );
    assert!(
        fs::symlink_metadata(repo.join("blobs").join(hash))
            .unwrap()
            .is_file()
    );
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(bench.parts().is_empty());
}

fn assert_large_cached(bench: &Bench, path: &str, content: &[u8]) {
    assert_cached(bench, path, &sha256(content), content);
}
