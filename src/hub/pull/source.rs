//! A model on the hub, whose files come one at a time and go when they have been converted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use serde_json::{Value, json};

use super::index;
use crate::hub::{Hub, RemoteFile, RepoId, Selection};
use crate::util::show::Show;
use crate::weights::config::PartConfig;
use crate::weights::convert::{ConvertSource, Event, Options, write_whole};
use crate::weights::layout::{Layout, spiece_entry};
use crate::weights::naming::Detected;
use crate::weights::part::Part;
use crate::weights::store::{Location, may_hold_tensors};
use crate::weights::{Extras, Files, PartName};

/// A part's files on the hub.
#[derive(Debug)]
struct RemotePart {
    name: PartName,
    files: Vec<RemoteFile>,
    /// Whose names the tensors have, from the index of a part in several files.
    names: Option<Detected>,
    /// The dimensions of such a part.
    config: Option<PartConfig>,
}

/// Brings the parts of a model on the hub.
#[derive(Debug)]
pub struct HubSource<'a> {
    hub: &'a Hub,
    repo: RepoId,
    commit: String,
    source: Value,
    /// Where files are while they are needed.
    folder: PathBuf,
    parts: Vec<RemotePart>,
    rest: Extras,
}

impl<'a> HubSource<'a> {
    /// Fetches everything but the weights and checks by the indexes that no tensor will be
    /// missing. Files go into a folder of the commit's own below `folder`, where nothing is of
    /// another repository.
    ///
    /// # Errors
    /// When a file cannot be fetched or an index does not hold what the architecture needs.
    pub fn new(
        hub: &'a Hub,
        repo: &RepoId,
        commit: &str,
        selection: &Selection,
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join(commit);
        let folder = folder.as_path();
        let mut groups: BTreeMap<PartName, Vec<RemoteFile>> = BTreeMap::new();
        for (name, file) in selection.parts().with_context(|| repo.to_string())? {
            groups.entry(name).or_default().push(file.clone());
        }
        for file in &selection.files {
            if !may_hold_tensors(&file.path) {
                hub.fetch_to(repo, commit, file, folder, &mut |_| ())?;
            }
        }
        let root = Files::from(folder);
        let parts = groups
            .into_iter()
            .map(|(name, files)| {
                let (names, config) = match files.len() {
                    1 => (None, None),
                    _ => {
                        let found = index::check(&root, name, &files, selection);
                        let (names, config) =
                            found.with_context(|| format!("{repo}: the {name}"))?;
                        (Some(names), Some(config))
                    }
                };
                Ok(RemotePart {
                    name,
                    files,
                    names,
                    config,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            hub,
            repo: repo.clone(),
            commit: commit.to_owned(),
            source: Self::source(repo, commit, selection),
            folder: folder.to_owned(),
            parts,
            rest: Extras::of(&Layout::beside(&root))?,
        })
    }

    /// What is converted: every file that is, or goes with it.
    pub fn source(repo: &RepoId, commit: &str, selection: &Selection) -> Value {
        let mut files: Vec<_> = selection
            .files
            .iter()
            .map(|file| (&file.path, file.size))
            .collect();
        files.sort();
        json!({
            // Without the revision: the commit says more, and a branch moves on.
            "repository": repo.id(),
            "commit": commit,
            "files": files,
        })
    }

    fn part(&self, name: PartName) -> Result<&RemotePart> {
        let part = self.parts.iter().find(|part| part.name == name);
        part.with_context(|| format!("{} has no {name}", self.repo))
    }

    /// Keeps the tokenizer inside a text encoder's file, which will be gone when it is needed;
    /// another run finds it where the repository's own would be.
    fn keep_tokenizer(&mut self, part: &Part) -> Result<()> {
        const NAME: &str = "spiece.model";
        if let Some(entry) = spiece_entry(part.store()) {
            let content = part.store().bytes(entry).to_vec();
            write_whole(&self.folder.join(NAME), &content)?;
            self.rest.tokenizer = Some((NAME.to_owned(), content));
        }
        Ok(())
    }

    /// The most bytes that the disk will hold: the result and the largest file of the source.
    ///
    /// # Errors
    /// When a configuration is not supported.
    pub fn disk_bytes(&self, options: &Options) -> Result<u64> {
        let (mut result, mut largest) = (0_u64, 0);
        for part in &self.parts {
            // Sizes are what the hub says.
            let sizes = part.files.iter().map(|file| file.size);
            let bytes = sizes.clone().fold(0, u64::saturating_add);
            largest = sizes.fold(largest, u64::max);
            let location = self.location(&part.files[0]);
            let config = PartConfig::given(&location.files, part.name)?;
            result = result.saturating_add(match config {
                Some(config) => options.result_bytes(part.name, &config, bytes)?,
                // Of an unknown network no more than it has now.
                None => bytes,
            });
        }
        Ok(result.saturating_add(largest))
    }

    fn location(&self, file: &RemoteFile) -> Location {
        let (files, name) = Files::holding(&self.folder.join(&file.path));
        Location {
            files,
            names: vec![name],
            index: None,
        }
    }
}

impl ConvertSource for HubSource<'_> {
    fn identity(&self) -> Value {
        self.source.clone()
    }

    fn parts(&self) -> Vec<PartName> {
        self.parts.iter().map(|part| part.name).collect()
    }

    fn config(&self, name: PartName, part: &Part) -> Result<PartConfig> {
        // A share lacks the tensors that would tell what a configuration leaves out.
        match &self.part(name)?.config {
            Some(config) => Ok(config.clone()),
            None => PartConfig::of(part, name),
        }
    }

    fn shards(&self, name: PartName) -> usize {
        self.part(name).map_or(0, |part| part.files.len())
    }

    fn shard_bytes(&self, name: PartName, shard: usize) -> u64 {
        self.part(name).map_or(0, |part| part.files[shard].size)
    }

    fn open(
        &mut self,
        name: PartName,
        shard: usize,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Part> {
        let part = self.part(name)?;
        let file = &part.files[shard];
        on_event(Event::Fetching(&file.path, file.size));
        let mut before = 0;
        self.hub
            .fetch_to(&self.repo, &self.commit, file, &self.folder, &mut |there| {
                on_event(Event::Fetched(there.saturating_sub(before)));
                before = before.max(there);
            })?;
        let location = self.location(file);
        match &part.names {
            Some(names) => Part::open_share(&location, names.clone()),
            None => {
                let part = Part::open(&location, name.kind())?;
                part.check(&self.config(name, &part)?.specs()?)?;
                if self.rest.tokenizer.is_none() {
                    self.keep_tokenizer(&part)?;
                }
                Ok(part)
            }
        }
    }

    fn release(&mut self, name: PartName, shard: usize) -> Result<()> {
        let path = self.folder.join(&self.part(name)?.files[shard].path);
        match fs::remove_file(&path) {
            Err(error) if path.exists() => {
                Err(error).with_context(|| format!("cannot remove {}", path.shown()))
            }
            _ => Ok(()),
        }
    }

    fn rest(&self) -> &Extras {
        &self.rest
    }

    fn close(&mut self) -> Result<()> {
        fs::remove_dir_all(&self.folder)
            .with_context(|| format!("cannot remove {}", self.folder.shown()))
    }
}
