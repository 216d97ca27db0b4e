//! Makes the clips of a batch.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::report::Report;
use super::{Capacity, Entry, gallery};
use crate::clip::Identity;
use crate::persist::{Lock, SavedRun, StateWriter, can_resume, file, state_path};
use crate::pipeline::{
    Clip, ClipObserver, EmbeddingStore, EventKind, Progress, Scheduler, Summary,
};
use crate::util::files::real;
use crate::util::show::{Show, chain};

/// The folder in a batch's own where encoded prompts and pictures wait.
const ENCODED: &str = ".wan-batch";

/// How a batch is run.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions<'a> {
    /// The batch's folder.
    pub folder: &'a Path,
    /// The right to work in it.
    pub lock: &'a Lock,
    /// What the memory allows.
    pub capacity: Capacity,
    /// Steps after which a clip's state is saved; `None` saves none.
    pub every: Option<usize>,
    /// Saved runs are replaced instead of resumed.
    pub fresh: bool,
}

/// Takes the right to work in a batch's folder.
///
/// # Errors
/// When another batch is at work in it.
pub fn lock(folder: &Path) -> Result<Lock> {
    let lock = Lock::take(&folder.join(ENCODED));
    lock.with_context(|| format!("--output-dir {}", folder.shown()))
}

/// Checks that a clip's `path` is not what a batch keeps in its folder for itself.
///
/// # Errors
/// When it is.
pub fn check_output(path: &Path, folder: &Path) -> Result<()> {
    // Where capital letters make no difference, they are the same.
    let real = |path: &Path| PathBuf::from(real(path).to_string_lossy().to_lowercase());
    for own in [
        folder.join(ENCODED),
        Report::path(folder),
        gallery::path(folder),
    ] {
        ensure!(
            !real(path).starts_with(real(&own)),
            "{}: {} is the batch's own\nhint: choose another name",
            path.shown(),
            own.shown()
        );
    }
    Ok(())
}

/// Makes clips, each under the number that events call it by, and told whether it goes on from a
/// saved run. Each one's end is an event.
///
/// # Errors
/// When MLX fails, or [`Interrupted`](crate::pipeline::Interrupted).
pub fn run(
    entries: Vec<(usize, Entry, bool)>,
    options: BatchOptions<'_>,
    progress: &mut dyn Progress,
) -> Result<()> {
    if !options.lock.is_held() {
        let text = format!(
            "the file system of {} has no locks\nhint: see to it that no other run writes there",
            options.folder.shown()
        );
        progress.report(EventKind::Warning(&text));
    }
    let mut store = EmbeddingStore::at(options.folder.join(ENCODED));
    let mut observer = Batch {
        options,
        identities: HashMap::new(),
        started: HashMap::new(),
    };
    for entries in by_model(entries) {
        let mut clips = Vec::new();
        for (number, entry, saved) in entries {
            let (clip, identity) = entry.into_clip(number, saved);
            observer.identities.insert(number, identity);
            clips.push(clip);
        }
        let making = Scheduler {
            clips,
            at_once: options.capacity.at_once,
            decoder_beside_expert: options.capacity.decoder_beside_expert,
            store: &mut store,
            observer: &mut observer,
        };
        making.run(progress)?;
    }
    store.clear();
    Ok(())
}

/// Clips that share networks, in the order of the first of each.
fn by_model(entries: Vec<(usize, Entry, bool)>) -> Vec<Vec<(usize, Entry, bool)>> {
    let mut groups: Vec<Vec<(usize, Entry, bool)>> = Vec::new();
    for entry in entries {
        let mut same = groups.iter_mut();
        let same = same.find(|group| group.iter().take(1).all(|(_, e, _)| e.shares(&entry.1)));
        match same {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    groups
}

/// A clip that is being made.
struct StartedClip {
    writer: StateWriter,
    _lock: Lock,
}

struct Batch<'a> {
    options: BatchOptions<'a>,
    identities: HashMap<usize, Identity>,
    started: HashMap<usize, StartedClip>,
}

impl ClipObserver for Batch<'_> {
    fn begin(&mut self, clip: &Clip, progress: &mut dyn Progress) -> Result<Option<SavedRun>> {
        let identity = self.identities.get(&clip.number);
        let identity = identity.context("the clip is not of this batch")?;
        let output = clip.job.output();
        let lock = Lock::take(output)?;
        clip.job.remove_stale();
        let path = state_path(output);
        file::check_replace(&path)?;
        let mut saved = None;
        if !self.options.fresh && path.exists() {
            let there = SavedRun::read(&path)?;
            saved = can_resume(&there, identity, true)?.then_some(there);
        }
        let mut writer = StateWriter::new(path, self.options.every, identity.clone());
        if let Some(saved) = &saved {
            writer.found(&saved.path, saved.steps_taken());
            if let Some(warning) = saved.foreign() {
                progress.report(EventKind::Warning(&warning));
            }
        }
        let started = StartedClip {
            writer,
            _lock: lock,
        };
        self.started.insert(clip.number, started);
        Ok(saved)
    }

    fn writer(&mut self, clip: &Clip) -> Option<&mut StateWriter> {
        let started = self.started.get_mut(&clip.number)?;
        Some(&mut started.writer)
    }

    fn end(&mut self, clip: &Clip, made: Result<Summary>, progress: &mut dyn Progress) {
        let started = self.started.remove(&clip.number);
        match made {
            Ok(summary) => {
                if let Some(started) = started {
                    started.writer.finish();
                }
                progress.report(EventKind::Made(&summary));
            }
            Err(error) => {
                let mut text = chain(&error);
                let usual = state_path(clip.job.output());
                let kept = started.as_ref().and_then(|clip| clip.writer.latest());
                if let Some((path, step)) = kept.filter(|(path, _)| *path != usual) {
                    text += &format!(
                        "; the state after step {step} is in {}: put it back as {} to go on from it",
                        path.shown(),
                        usual.shown()
                    );
                }
                progress.report(EventKind::Failed(&text));
            }
        }
    }
}
