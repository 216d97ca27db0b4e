//! Where encoded prompts and pictures wait for the clips that they are for: on disk, as many as
//! there may be, or in memory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::clip::{Identity, Item};
use crate::persist::{EXTENSION, SavedRun, file};
use crate::progress::{EventKind, Progress};
use crate::runtime::State;
use crate::util::show::chain;
use crate::util::temporary;

/// Arrays by key. Equal things have equal keys, and are kept once.
#[derive(Debug, Default)]
pub(crate) struct EmbeddingStore {
    /// `None`: they are kept in memory.
    folder: Option<PathBuf>,
    here: HashMap<String, State>,
    /// How many clips still want each.
    wanted: HashMap<String, usize>,
    /// Whether one could not be written, which is reported once.
    failing: bool,
}

impl EmbeddingStore {
    /// One that keeps its arrays in `folder`, which is made when it is needed, and finds there what
    /// an earlier run has left.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self {
            folder: Some(folder),
            ..Self::default()
        }
    }

    /// One more clip wants `key`.
    pub(crate) fn reserve(&mut self, key: &str) {
        *self.wanted.entry(key.to_owned()).or_default() += 1;
    }

    /// Whether `key` need not be made any more.
    pub(crate) fn has(&self, key: &str) -> bool {
        // One that is damaged is made again.
        self.here.contains_key(key) || self.read(key).is_ok_and(|found| found.is_some())
    }

    /// Keeps arrays until the last clip that wants it has it. Where it cannot be written, it
    /// stays in memory.
    pub(crate) fn put(&mut self, key: &str, arrays: State, progress: &mut dyn Progress) {
        match self.write(key, &arrays) {
            Ok(true) => return,
            Err(error) if !self.failing => {
                let text = format!(
                    "what is encoded cannot be put on disk and stays in memory: {}",
                    chain(&error)
                );
                progress.report(EventKind::Warning(&text));
                self.failing = true;
            }
            Ok(false) | Err(_) => {}
        }
        self.here.insert(key.to_owned(), arrays);
    }

    /// The arrays of a key.
    ///
    /// # Errors
    /// When they are not there, or cannot be read any more.
    pub(crate) fn get(&self, key: &str) -> Result<State> {
        if let Some(arrays) = self.here.get(key) {
            return Ok(arrays.clone());
        }
        let found = self.read(key)?;
        found.ok_or_else(|| {
            anyhow::anyhow!("the encodings of this clip are gone\nhint: run the same command again")
        })
    }

    /// A clip that wanted `key` has it, or wants it no more.
    pub(crate) fn release(&mut self, key: &str) {
        let Some(wanted) = self.wanted.get_mut(key) else {
            return;
        };
        *wanted = wanted.saturating_sub(1);
        if *wanted == 0 {
            self.wanted.remove(key);
            self.here.remove(key);
            if let Some(path) = self.path(key) {
                file::remove(&path);
            }
        }
    }

    /// Removes what is left on disk, and the folder if nothing else is in it.
    pub(crate) fn clear(self) {
        let Some(folder) = &self.folder else { return };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if temporary::is_name(&entry.file_name()) {
                file::remove_temporary(&path);
            } else if is_key(path.file_stem()) && path.extension() == Some(OsStr::new(EXTENSION)) {
                file::remove(&path);
            }
        }
        let _ = fs::remove_dir(folder);
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        Some(folder.join(format!("{key}.{EXTENSION}")))
    }

    fn write(&self, key: &str, arrays: &State) -> Result<bool> {
        let (Some(folder), Some(path)) = (&self.folder, self.path(key)) else {
            return Ok(false);
        };
        fs::create_dir_all(folder)?;
        file::write(&path, &identity(key), arrays)?;
        Ok(true)
    }

    fn read(&self, key: &str) -> Result<Option<State>> {
        let Some(path) = self.path(key).filter(|path| path.exists()) else {
            return Ok(None);
        };
        let saved = SavedRun::read(&path)?;
        let same = saved.identity == identity(key);
        Ok(same.then_some(saved.state))
    }
}

/// Whether a name has the form of keys: hexadecimal digits.
fn is_key(name: Option<&OsStr>) -> bool {
    let bytes = name.unwrap_or_default().as_encoded_bytes();
    bytes.len() == 32 && bytes.iter().all(u8::is_ascii_hexdigit)
}

fn identity(key: &str) -> Identity {
    Identity::from(vec![Item::new("key", &[], key)])
}
