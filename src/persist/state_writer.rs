//! When and where a run's state is written.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Identity;
use super::file;
use crate::progress::{EventKind, Progress};
use crate::runtime::State;
use crate::util::show::{Show, chain};

/// How the name of a spare state's folder begins, and the state's own.
const SPARE_FOLDER: &str = "wan-i2v-";
const SPARE: &str = "run.wan-state";

/// Keeps a run's state on disk.
///
/// Where the state cannot be written, because the disk is full or the folder has vanished, it goes to
/// the folder for temporary files, and the run continues: the last state that was written stays
/// wherever it is until there is a newer one.
#[derive(Debug)]
pub struct StateWriter {
    path: PathBuf,
    /// `None`: nothing is written.
    every: Option<usize>,
    identity: Identity,
    /// Where it goes when it cannot go to `path`.
    spare: Option<PathBuf>,
    /// The last one, with the steps that it has.
    latest: Option<(PathBuf, usize)>,
    /// Whether the last one could not be written to `path`, which is reported once.
    failing: bool,
}

impl StateWriter {
    /// Keeps the state of the run `identity` at `path`, after every `every` steps; with `None` it
    /// is never written, only removed at the end. Nobody else may be writing there.
    pub fn new(path: PathBuf, every: Option<usize>, identity: Identity) -> Self {
        file::remove_stale(&path);
        Self {
            path,
            every: every.map(|every| every.max(1)),
            identity,
            spare: None,
            latest: None,
            failing: false,
        }
    }

    /// The run, of which nothing has been saved, is another after all.
    pub fn change(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// The run resumes the state at `path`, which has `step` steps.
    pub fn found(&mut self, path: &Path, step: usize) {
        self.spare = is_spare(path).then(|| path.to_owned());
        self.latest = Some((path.to_owned(), step));
    }

    /// Where the state is kept while it can be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the last state lies, and how many steps it has.
    pub fn latest(&self) -> Option<(&Path, usize)> {
        self.latest
            .as_ref()
            .map(|(path, step)| (path.as_path(), *step))
    }

    /// Whether the state after `step` steps of `steps` is to be written.
    pub(crate) fn is_due(&self, step: usize, steps: usize) -> bool {
        let due = |every| step.is_multiple_of(every) || step == steps;
        self.every.is_some_and(due)
    }

    /// Writes the state after `step` steps, unless it is the last one written. A failure
    /// is reported as a warning.
    pub(crate) fn save(
        &mut self,
        step: usize,
        state: impl FnOnce() -> State,
        progress: &mut dyn Progress,
    ) {
        if self.every.is_none() || self.latest().is_some_and(|(_, latest)| latest == step) {
            return;
        }
        let (path, bytes) = match self.write(&state(), step, progress) {
            Ok(written) => written,
            Err(error) => {
                let kept = match self.latest() {
                    Some((path, step)) => {
                        format!("the state after step {step} stays in {}", path.shown())
                    }
                    None => "none is on disk yet".to_owned(),
                };
                let text = format!(
                    "the state after step {step} cannot be saved; {kept}, and the run continues: {}",
                    chain(&error)
                );
                progress.report(EventKind::Warning(&text));
                return;
            }
        };
        progress.report(EventKind::Saved {
            step,
            path: &path,
            bytes,
        });
        self.latest = Some((path, step));
    }

    fn write(
        &mut self,
        state: &State,
        step: usize,
        progress: &mut dyn Progress,
    ) -> Result<(PathBuf, u64)> {
        let error = match file::write(&self.path, &self.identity, state) {
            Ok(bytes) => {
                self.failing = false;
                if let Some(spare) = self.spare.take() {
                    remove_spare(&spare);
                }
                return Ok((self.path.clone(), bytes));
            }
            Err(error) => error,
        };
        let spare = match &self.spare {
            Some(spare) => spare.clone(),
            None => new_spare()?,
        };
        let written = file::write(&spare, &self.identity, state);
        let bytes = written.map_err(|second| {
            error.context(format!(
                "neither in {} ({second:#})",
                env::temp_dir().shown()
            ))
        });
        match bytes {
            Ok(bytes) => {
                if !self.failing {
                    let text = format!(
                        "the state after step {step} cannot be saved as {}; until it can it is kept \
                         as {}",
                        self.path.shown(),
                        spare.shown()
                    );
                    progress.report(EventKind::Warning(&text));
                }
                self.failing = true;
                self.spare = Some(spare.clone());
                Ok((spare, bytes))
            }
            Err(error) => {
                // The last one that could be written stays.
                if self.spare.is_none() {
                    remove_spare(&spare);
                }
                Err(error)
            }
        }
    }

    /// Removes the state: the clip is complete. One that it resumed, and that the user keeps elsewhere,
    /// stays.
    pub fn finish(self) {
        file::remove(&self.path);
        if let Some(spare) = self.spare {
            remove_spare(&spare);
        }
    }
}

/// A name in a new folder of this user's own, in that for temporary files.
fn new_spare() -> Result<PathBuf> {
    let folder = tempfile::Builder::new()
        .prefix(SPARE_FOLDER)
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .with_context(|| format!("nothing can be created in {}", env::temp_dir().shown()))?;
    Ok(folder.keep().join(SPARE))
}

/// Whether a run that could not write elsewhere has made it.
fn is_spare(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name);
    let random = folder.and_then(|name| name.to_str()?.strip_prefix(SPARE_FOLDER));
    path.ends_with(SPARE) && random.is_some_and(|random| random.len() == 6)
}

fn remove_spare(path: &Path) {
    file::remove(path);
    // What has something else in it stays.
    let _ = path.parent().map(fs::remove_dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spare_state_lies_in_a_folder_of_its_own() {
        let spare = new_spare().unwrap();
        assert!(is_spare(&spare) && !is_spare(Path::new("wan-i2v-abcdef/mine.wan-state")));
        let folder = spare.parent().unwrap();
        assert_eq!(
            folder.metadata().unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        file::write(&spare, &Identity::from(Vec::new()), &State::default()).unwrap();
        remove_spare(&spare);
        assert!(!folder.exists());
    }
}
