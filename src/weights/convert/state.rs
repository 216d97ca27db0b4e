//! What an unfinished conversion has done, so that the next run goes on there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::assign::Assignment;
use super::finished::check_target;
use crate::util::files::{is_litter, is_still, open_own, open_regular, read_small};
use crate::util::show::Show;
use crate::util::temporary;
use crate::weights::PartName;
use crate::weights::config::PartConfig;

/// The state's file in the unfinished folder.
const FILE: &str = "conversion-state.json";
/// The most bytes of it: a line for each tensor of a model.
const MAX_STATE: u64 = 64 << 20;
/// The file that is locked while a run fills the folder.
const LOCK: &str = ".lock";
/// The folder inside the unfinished one where files of the source may lie.
const SOURCE: &str = "source";

/// One written tensor of the source, with how far it is from what was read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its canonical name.
    pub name: String,
    /// How it was stored.
    pub from: String,
    /// How it is written.
    pub to: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The largest absolute difference between a value read and the one written.
    pub max_error: f64,
    /// Root of the summed squared differences over that of the values.
    pub relative_error: f64,
    /// BLAKE3 of the bytes of each tensor that it became, by name.
    pub blake3: Vec<(String, String)>,
}

/// One written file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileState {
    /// The part that it belongs to.
    pub part: PartName,
    /// The number of the source's file that its tensors come from.
    pub shard: usize,
    /// Its name while the conversion is unfinished.
    pub name: String,
    /// Its finished tensors, in order.
    pub tensors: Vec<TensorReport>,
    /// Whether they are all.
    pub complete: bool,
}

/// Everything done so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// What is converted and how; another one starts anew.
    identity: Value,
    /// The files written so far, in order.
    pub files: Vec<FileState>,
    /// The bits that layers were given, where a size was asked for.
    #[serde(default)]
    pub assignment: Assignment,
    /// The dimensions of the parts begun so far.
    pub configs: BTreeMap<PartName, PartConfig>,
    /// Files of the source that are done with: nothing of them is needed any more.
    pub shards_done: Vec<(PartName, usize)>,
}

/// The right to fill the folder that becomes a target, for as long as this lives: taken before
/// anything is fetched for it, so that no two runs get into each other's way.
#[derive(Debug)]
pub struct Reserved {
    target: PathBuf,
    folder: PathBuf,
    /// Held while this run fills the folder.
    lock: File,
}

impl Reserved {
    /// Creates or reopens the folder beside `target` that becomes `target` at the end.
    ///
    /// # Errors
    /// When the target is there, another run is filling the folder, or it cannot be written.
    pub fn new(target: &Path) -> Result<Self> {
        check_target(target)?;
        ensure!(
            target.file_name().is_some(),
            "{}: is no name for a folder",
            target.shown()
        );
        let folder = unfinished_folder(target);
        let path = folder.join(LOCK);
        let is_empty = names(&folder).next().is_none();
        ensure!(
            is_empty || path.is_file() || folder.join(FILE).is_file(),
            "{}: this is in the way, and no unfinished conversion\nhint: move it away, or choose another \
             name",
            folder.shown()
        );
        let open = || {
            fs::create_dir_all(&folder)?;
            open_own(&path)
        };
        let lock = open().with_context(|| format!("cannot write in {}", folder.shown()))?;
        ensure!(
            lock.try_lock().is_ok() && is_still(&lock, &path),
            "{}: another wan-i2v is filling this folder",
            folder.shown()
        );
        Ok(Self {
            target: target.to_owned(),
            folder,
            lock,
        })
    }

    /// The folder that it becomes.
    pub fn target(&self) -> &Path {
        &self.target
    }
}

/// Leaves nothing of a run that has done nothing.
impl Drop for Reserved {
    fn drop(&mut self) {
        if names(&self.folder).count() == 1 && is_still(&self.lock, &self.folder.join(LOCK)) {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(self.folder.join(LOCK));
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The folder that is being filled, with its state.
#[derive(Debug)]
pub struct Unfinished {
    /// Its path.
    pub folder: PathBuf,
    /// What is done.
    pub state: State,
    /// Whether a former run began it.
    pub resumed: bool,
    reserved: Reserved,
}

/// What was refused before anything was written is not in the way of the corrected command.
impl Drop for Unfinished {
    fn drop(&mut self) {
        // Beside the state and the lock there is what has been fetched of a source, which belongs to it.
        let is_bare = names(&self.folder).count() == 2;
        if !self.resumed && self.state.files.is_empty() && is_bare {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(self.folder.join(FILE));
        }
    }
}

impl Unfinished {
    /// What a former run has done in the folder, or nothing yet.
    ///
    /// # Errors
    /// When it was begun for something else.
    pub fn open(reserved: Reserved, identity: &Value) -> Result<Self> {
        let folder = reserved.folder.clone();
        remove_temporary(&folder);
        let path = folder.join(FILE);
        let (state, resumed) = match read_small(&path, MAX_STATE) {
            Ok(json) => {
                let state: State = serde_json::from_slice(&json).with_context(|| {
                    format!("{} is damaged\nhint: remove the folder", path.shown())
                })?;
                ensure!(
                    !is_of_older_scales(&state.identity, identity),
                    "{}: an unfinished conversion is in the way whose scales an older version chose, \
                     otherwise than this one\nhint: remove the folder",
                    folder.shown()
                );
                ensure!(
                    state.identity == *identity,
                    "{}: an unfinished conversion of another source or with other options is in \
                     the way{}; finish it with the same command, or remove the folder",
                    folder.shown(),
                    of_commit(&state.identity["source"])
                );
                (state, true)
            }
            Err(_) => (
                State {
                    identity: identity.clone(),
                    files: Vec::new(),
                    assignment: Assignment::new(),
                    configs: BTreeMap::new(),
                    shards_done: Vec::new(),
                },
                false,
            ),
        };
        let unfinished = Self {
            folder,
            state,
            resumed,
            reserved,
        };
        unfinished.save()?;
        Ok(unfinished)
    }

    /// The dimensions of a part that has been begun.
    ///
    /// # Errors
    /// When it has not.
    pub fn config(&self, name: PartName) -> Result<&PartConfig> {
        let config = self.state.configs.get(&name);
        config.with_context(|| format!("the {name} has no files"))
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self) -> Result<()> {
        write_whole(
            &self.folder.join(FILE),
            &serde_json::to_vec(&self.state).context("cannot write the state")?,
        )
    }

    /// Makes the folder the target.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<()> {
        let target = self.reserved.target();
        // Perhaps of a pull that was refused before it began.
        let source = self.folder.join(SOURCE);
        if source.exists() {
            fs::remove_dir_all(&source)
                .with_context(|| format!("cannot remove {}", source.shown()))?;
        }
        fs::rename(&self.folder, target)
            .with_context(|| format!("cannot create {}", target.shown()))?;
        // Only now: without its state a folder that was not renamed would be converted anew.
        tidy(target).with_context(|| format!("cannot tidy {}", target.shown()))
    }
}

/// Removes from a finished folder what a run has left that was killed at its very end.
pub fn tidy_left(target: &Path) {
    // Not while a run is about to do so itself.
    if let Ok(lock) = open_regular(&target.join(LOCK))
        && lock.try_lock().is_ok()
    {
        // What cannot be removed does no harm.
        let _ = tidy(target);
    }
}

/// Removes from a finished folder what is of its conversion only; the lock goes last, so that it is
/// there as long as anything is.
fn tidy(target: &Path) -> std::io::Result<()> {
    for name in [FILE, LOCK] {
        match fs::remove_file(target.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Whether what was begun is the same but for the way in which scales are chosen.
fn is_of_older_scales(begun: &Value, wanted: &Value) -> bool {
    let mut now = wanted.clone();
    let own = now
        .as_object_mut()
        .and_then(|fields| fields.remove("scales"));
    own.is_some() && now == *begun
}

/// The revision of the hub that a conversion is of: a branch may have moved on.
pub fn of_commit(source: &Value) -> String {
    let text = |key: &str| source[key].as_str();
    match (text("repository"), text("commit")) {
        (Some(repository), Some(commit)) => format!(" (of {repository}@{commit})"),
        _ => String::new(),
    }
}

/// What is in a folder, but for what systems leave there.
fn names(folder: &Path) -> impl Iterator<Item = OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    names.filter(|name| !is_litter(&name.to_string_lossy()))
}

/// What cannot be removed is left; it does no harm but to be there.
fn remove_temporary(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if temporary::is_name(&entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The folder that becomes `target`.
fn unfinished_folder(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    target.with_file_name(name)
}

/// Where files of the source may lie while they are needed: inside the unfinished folder.
pub fn source_folder(target: &Path) -> PathBuf {
    unfinished_folder(target).join(SOURCE)
}

/// Bytes that an unfinished conversion into `target` takes already.
pub fn unfinished_bytes(target: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![unfinished_folder(target)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                // What a file takes of the disk: it has its full length from the start.
                Ok(meta) => bytes += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

/// Writes a small file so that it is either the old or the new one, whatever happens.
///
/// # Errors
/// When the disk refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", path.shown());
    let mut file = temporary::file(path)?;
    file.write_all(bytes).with_context(context)?;
    file.as_file().sync_data().with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_user_s_is_not_taken_for_an_unfinished_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let notes = folder.path().join("model.partial/source/notes");
        fs::create_dir_all(notes.parent().unwrap()).unwrap();
        fs::write(&notes, "mine").unwrap();
        let error = Reserved::new(&target).unwrap_err().to_string();
        assert!(error.contains("no unfinished conversion"), "{error}");
        assert_eq!(
            fs::read_dir(folder.path().join("model.partial"))
                .unwrap()
                .count(),
            1
        );
        fs::remove_dir_all(folder.path().join("model.partial")).unwrap();
        Reserved::new(&target).unwrap();
    }
}
