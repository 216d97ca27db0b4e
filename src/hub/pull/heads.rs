//! What a model on the hub is, from the heads of its files: they are fetched, the tensors are not.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};
use tempfile::TempDir;

use super::{archive, select};
use crate::hub::pull::sparse::{Sparse, hole};
use crate::hub::{Hub, RemoteFile, RepoId, Selection};
use crate::util::show::{Show, chain};
use crate::weights::container::gguf;
use crate::weights::inspect::Report;
use crate::weights::layout::Layout;
use crate::weights::store::may_hold_tensors;
use crate::weights::{Files, PartName};

/// What is fetched of a file first: the whole header of a shard, the beginning of others.
const FIRST: u64 = 64 << 10;
/// The most that a header may have; safetensors' own limit is 100 MB.
const MAX_HEADER: u64 = 100_000_008;
/// The most of a JSON file that is fetched; what is larger holds no dimensions.
const MAX_JSON: u64 = 4 << 20;
/// JSON files of which it is enough to know that they are there.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// A repository's files with nothing in them but what tells what they are, in a folder that goes
/// when this does.
#[derive(Debug)]
pub struct Heads {
    folder: PathBuf,
    _temporary: TempDir,
    repo: RepoId,
    /// What they are of.
    pub selection: Selection,
    /// Bytes that were fetched.
    pub fetched: u64,
}

impl Heads {
    /// Fetches the heads of the files that a model needs, or of those that are named.
    ///
    /// # Errors
    /// When the hub cannot be asked, it is unclear what is needed, or a head cannot be told from
    /// the rest.
    pub fn fetch(hub: &Hub, repo: &RepoId, paths: &[String]) -> Result<Self> {
        let (listing, selection) = select(hub, repo, paths)?;
        let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
        // As in the cache, the repository's name may tell which expert it has.
        let folder = temporary.path().join(repo.id());
        let mut fetched = 0;
        for file in &selection.files {
            let one = One {
                hub,
                repo,
                commit: &listing.commit,
                file,
                folder: &folder,
            };
            fetched += one
                .fetch()
                .with_context(|| format!("{repo}: {}", file.path))?;
        }
        Ok(Self {
            folder,
            _temporary: temporary,
            repo: repo.clone(),
            selection,
            fetched,
        })
    }

    /// The folder that they are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the model, or the one file named, is.
    ///
    /// # Errors
    /// As [`Layout::of_path`], about the repository's files.
    pub fn report(&self, part: Option<PartName>) -> Result<Report> {
        let root = self.folder.as_path();
        let layout = match (part, self.selection.files.as_slice()) {
            (Some(_), [one]) => Layout::of_path(&root.join(&one.path), part),
            _ => Layout::of_folder(&Files::from(root)),
        };
        let mut layout = layout.map_err(|error| self.about_repository(&error))?;
        if let Some(part) = part {
            layout.keep(part);
        }
        let mut report = Report::of(&layout);
        let rename = |text: &mut String| *text = self.renamed(text);
        report.problems.iter_mut().for_each(rename);
        report.tokenizer.iter_mut().for_each(rename);
        for part in &mut report.parts {
            rename(&mut part.path);
            part.error.iter_mut().for_each(rename);
        }
        Ok(report)
    }

    /// The message with the repository in place of the temporary folder.
    fn about_repository(&self, error: &Error) -> Error {
        anyhow!("{}", self.renamed(&chain(error)))
    }

    fn renamed(&self, text: &str) -> String {
        let folder = self.folder.shown().to_string();
        text.replace(&folder, &self.repo.to_string())
    }
}

/// A file of the repository.
struct One<'a> {
    hub: &'a Hub,
    repo: &'a RepoId,
    commit: &'a str,
    file: &'a RemoteFile,
    folder: &'a Path,
}

impl One<'_> {
    /// Fetches its head; returns how many bytes.
    fn fetch(&self) -> Result<u64> {
        let Self { file, .. } = self;
        let name = file.path.rsplit('/').next().unwrap_or(&file.path);
        let is_there = self.hub.fetched(self.repo, self.commit, file) == file.size;
        let is_small = name.ends_with(".json") && file.size <= MAX_JSON;
        if may_hold_tensors(name) && !is_there {
            return self.head();
        }
        if is_there || (is_small && !TOKENIZER.contains(&name)) {
            self.whole()?;
            return Ok(if is_there { 0 } else { file.size });
        }
        hole(&self.folder.join(&file.path), file.size)?;
        Ok(0)
    }

    fn whole(&self) -> Result<PathBuf> {
        self.hub
            .fetch_to(self.repo, self.commit, self.file, self.folder, &mut |_| ())
    }

    fn head(&self) -> Result<u64> {
        let (file, folder) = (self.file, self.folder);
        let mut sparse = Sparse::create(self.hub, self.repo, self.commit, file, folder)?;
        sparse.fetch(0..FIRST)?;
        if file.size > FIRST {
            match sparse.bytes::<8>(0)? {
                [b'P', b'K', 3, 4, ..] => archive::fetch(&mut sparse)?,
                [b'G', b'G', b'U', b'F', ..] => grow(&mut sparse)?,
                length => {
                    // What is no length of a header, the reader will say.
                    let end = u64::from_le_bytes(length).saturating_add(8);
                    if end <= MAX_HEADER {
                        sparse.fetch(0..end)?;
                    }
                }
            }
        }
        Ok(sparse.fetched())
    }
}

/// Fetches more and more of a GGUF file until its header is there, which says its own length
/// nowhere.
fn grow(sparse: &mut Sparse) -> Result<()> {
    let mut end = FIRST;
    loop {
        // Holes are zeros, which may look like a header too; but then it ends behind `end`.
        let data = sparse.look(gguf::header).ok().and_then(|header| {
            let starts = header.tensors.iter().map(|tensor| tensor.start);
            starts.min().and_then(|start| u64::try_from(start).ok())
        });
        if data.is_some_and(|data| data <= end) || end >= sparse.size().min(MAX_HEADER) {
            return Ok(());
        }
        end = end.saturating_mul(4);
        sparse.fetch(0..end)?;
    }
}
