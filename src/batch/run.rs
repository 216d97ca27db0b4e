//! Makes the clips of a batch.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Capacity, Entry};
use crate::clip::Identity;
use crate::media::clip::remove_stale;
use crate::persist::{Lock, SavedRun, StateWriter, can_resume, state_path};
use crate::pipeline::{
    Clip, ClipObserver, EmbeddingStore, EventKind, Progress, Scheduler, Summary,
};
use crate::util::show::Show;

/// The folder in a batch's own where encoded prompts and pictures wait.
const SHELF: &str = ".wan-batch";

/// How a batch is run.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions<'a> {
    /// The batch's folder.
    pub folder: &'a Path,
    /// What the memory allows.
    pub capacity: Capacity,
    /// Steps after which a clip's state is saved; `None` saves none.
    pub every: Option<usize>,
    /// Saved runs are replaced instead of resumed.
    pub fresh: bool,
}

/// Makes clips, each under the number that events call it by, and told whether it goes on from a
/// saved run. Each one's end is an event.
///
/// # Errors
/// When another batch is at work in the folder, MLX fails, or [`Interrupted`](crate::pipeline::Interrupted).
pub fn run(
    entries: Vec<(usize, Entry, bool)>,
    options: BatchOptions<'_>,
    progress: &mut dyn Progress,
) -> Result<()> {
    let waiting = options.folder.join(SHELF);
    let lock =
        Lock::take(&waiting).with_context(|| format!("--output-dir {}", options.folder.shown()))?;
    if !lock.is_held() {
        warn_of_no_locks(options.folder, progress);
    }
    let mut shelf = EmbeddingStore::at(waiting);
    let mut host = Batch {
        options,
        identities: HashMap::new(),
        begun: HashMap::new(),
    };
    for entries in by_model(entries) {
        let mut clips = Vec::new();
        for (number, entry, saved) in entries {
            let (clip, identity) = entry.into_clip(number, saved);
            host.identities.insert(number, identity);
            clips.push(clip);
        }
        let making = Scheduler {
            clips,
            at_once: options.capacity.at_once,
            concurrent: options.capacity.concurrent,
            store: &mut shelf,
            observer: &mut host,
        };
        making.run(progress)?;
    }
    shelf.clear();
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

fn warn_of_no_locks(place: &Path, progress: &mut dyn Progress) {
    let text = format!(
        "the file system of {} has no locks; see to it that no other run writes there",
        place.shown()
    );
    progress.report(EventKind::Warning(&text));
}

/// A clip that has begun.
struct StartedClip {
    keeper: StateWriter,
    _lock: Lock,
}

struct Batch<'a> {
    options: BatchOptions<'a>,
    identities: HashMap<usize, Identity>,
    begun: HashMap<usize, StartedClip>,
}

impl ClipObserver for Batch<'_> {
    fn begin(&mut self, clip: &Clip, progress: &mut dyn Progress) -> Result<Option<SavedRun>> {
        let identity = self.identities.get(&clip.number);
        let identity = identity.context("the clip is not of this batch")?;
        let output = clip.job.output();
        let lock = Lock::take(output)?;
        remove_stale(output);
        let path = state_path(output);
        let mut saved = None;
        if !self.options.fresh && path.exists() {
            let there = SavedRun::read(&path)?;
            saved = can_resume(&there, identity, true)?.then_some(there);
        }
        let mut keeper = StateWriter::new(path, self.options.every, identity.clone());
        if let Some(saved) = &saved {
            keeper.found(&saved.path, saved.steps_taken());
            if let Some(warning) = saved.foreign() {
                progress.report(EventKind::Warning(&warning));
            }
        }
        let begun = StartedClip {
            keeper,
            _lock: lock,
        };
        self.begun.insert(clip.number, begun);
        Ok(saved)
    }

    fn writer(&mut self, clip: &Clip) -> Option<&mut StateWriter> {
        let begun = self.begun.get_mut(&clip.number)?;
        Some(&mut begun.keeper)
    }

    fn end(&mut self, clip: &Clip, made: Result<Summary>, progress: &mut dyn Progress) {
        let begun = self.begun.remove(&clip.number);
        match made {
            Ok(summary) => {
                if let Some(begun) = begun {
                    begun.keeper.finish();
                }
                progress.report(EventKind::Made(&summary));
            }
            Err(error) => {
                let mut text = format!("{error:#}");
                let usual = state_path(clip.job.output());
                let kept = begun.as_ref().and_then(|begun| begun.keeper.latest());
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
