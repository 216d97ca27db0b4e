//! Which saved run to go on from, and where this one's is kept.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::clip::Identity;
use crate::persist::{EXTENSION, Lock, SavedRun, StateWriter, can_resume, file, state_path};
use anyhow::{Context, Result, ensure};
use clap::Args;

use super::stderr::{self, Style, event, say, style};

/// Stopping and going on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Stopping and going on")]
pub struct ResumeArgs {
    /// Go on from a saved run: auto from this clip's, if there is one; never; or from this file
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    resume: PathBuf,

    /// Where the run's state is kept until the clip is complete
    /// [default: the output's name and .wan-state, beside it]
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    checkpoint: Option<PathBuf>,

    /// Save the state after every so many steps
    #[arg(long, value_name = "N", default_value = "1", hide_short_help = true)]
    checkpoint_every: NonZeroUsize,

    /// Save no state
    #[arg(long, hide_short_help = true, conflicts_with_all = ["checkpoint", "checkpoint_every"])]
    no_checkpoint: bool,
}

/// What the user has left open.
#[derive(Clone, Debug)]
pub struct Open {
    /// Whether any seed will do.
    pub seed: bool,
    /// What the clip's name begins with when the seed is to be a part of it.
    pub stem: Option<PathBuf>,
}

impl Open {
    /// The clip's name with a seed, unless the user has named it.
    pub fn output(&self, seed: u64) -> Option<PathBuf> {
        let mut name = self.stem.clone()?.into_os_string();
        name.push(format!("-{seed}.mp4"));
        Some(name.into())
    }
}

/// A run that may begin.
#[derive(Debug)]
pub struct Start {
    /// Keeps its state.
    pub keeper: StateWriter,
    /// What it goes on from.
    pub from: Option<SavedRun>,
    /// Where the clip goes.
    pub output: PathBuf,
    /// The right to write the clip and the state.
    _locks: Vec<Lock>,
    resume: PathBuf,
    saves: bool,
}

impl ResumeArgs {
    /// Steps after which the state is saved; `None` for never.
    pub fn every(&self) -> Option<usize> {
        (!self.no_checkpoint).then_some(self.checkpoint_every.get())
    }

    /// Refuses what names one clip's state.
    ///
    /// # Errors
    /// Names the flag.
    pub fn check_for_many(&self) -> Result<()> {
        let one = self.is_never() || self.resume.as_os_str() == "auto";
        ensure!(
            one && self.checkpoint.is_none(),
            "--checkpoint PATH and --resume PATH are for one clip; the clips of a batch are saved \
             beside where they go"
        );
        Ok(())
    }

    /// Whether saved runs are not gone on from.
    pub fn is_never(&self) -> bool {
        self.resume.as_os_str() == "never"
    }

    /// Takes the right to write the output, and finds what to go on from. Where the user has left
    /// the seed open, that of the saved run is taken.
    ///
    /// # Errors
    /// When another run writes the output, or the saved run is damaged or another.
    pub fn start(self, output: &Path, identity: &Identity, open: &Open) -> Result<Start> {
        let mut output = output.to_owned();
        let (mut identity, mut found) = (identity.clone(), None);
        let (never, every) = (self.is_never(), self.every());
        let auto = self.resume.as_os_str() == "auto";
        if !auto && !never {
            let saved = SavedRun::read(&self.resume).context("--resume")?;
            found = Some(saved);
        } else if auto && self.checkpoint.is_none() && open.stem.is_some() && open.seed {
            found = newest(open, &identity);
        }
        // The name goes with the seed.
        if let Some(saved) = &found {
            take_seed(&mut identity, saved, open);
            let named = saved.identity.seed().filter(|_| open.seed);
            output = named.and_then(|seed| open.output(seed)).unwrap_or(output);
        }

        let mut locks = vec![lock(&output)?];
        crate::media::clip::remove_stale(&output);
        let usual = state_path(&output);
        let path = self.checkpoint.unwrap_or_else(|| usual.clone());
        if path != usual {
            locks.push(lock(&path).context("--checkpoint")?);
            ensure!(
                file::may_replace(&path),
                "--checkpoint {}: there is something else; choose another name",
                path.display()
            );
        }
        if !never && path.exists() {
            let there = SavedRun::read(&path)?;
            let mut seeded = identity.clone();
            if found.is_none() {
                take_seed(&mut seeded, &there, open);
            }
            let same = can_resume(&there, &seeded, found.is_none())?;
            if same && found.is_none() {
                (identity, found) = (seeded, Some(there));
            }
        }
        if let Some(saved) = &found {
            can_resume(saved, &identity, false)?;
        }

        let mut keeper = StateWriter::new(path, every, identity);
        if let Some(saved) = &found {
            keeper.found(&saved.path, saved.steps_taken());
        }
        Ok(Start {
            keeper,
            from: found,
            output,
            _locks: locks,
            resume: self.resume,
            saves: every.is_some(),
        })
    }
}

fn lock(path: &Path) -> Result<Lock> {
    let lock = Lock::take(path)?;
    if !lock.is_held() {
        stderr::warning(&format!(
            "the file system of {} has no locks; see to it that no other run writes there",
            path.display()
        ));
    }
    Ok(lock)
}

fn take_seed(identity: &mut Identity, saved: &SavedRun, open: &Open) {
    if let Some(seed) = saved.identity.seed()
        && open.seed
    {
        identity.set_seed(seed);
    }
}

/// The newest saved run in the current folder that differs in nothing but the seed, and that nobody
/// is working on.
fn newest(open: &Open, identity: &Identity) -> Option<SavedRun> {
    let stem = open.stem.as_ref()?.to_string_lossy().into_owned();
    let seed_of = |name: &str| {
        let rest = name.strip_prefix(&stem)?.strip_prefix('-')?;
        let seed = rest.strip_suffix(&format!(".mp4.{EXTENSION}"))?;
        seed.parse::<u64>().ok()
    };
    let mut found: Vec<(SystemTime, PathBuf, PathBuf)> = fs::read_dir(".")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let seed = seed_of(&entry.file_name().to_string_lossy())?;
            let time = entry.metadata().and_then(|meta| meta.modified()).ok()?;
            Some((time, PathBuf::from(entry.file_name()), open.output(seed)?))
        })
        .collect();
    found.sort();
    found.into_iter().rev().find_map(|(_, state, output)| {
        let _free = Lock::take(&output).ok()?;
        let saved = SavedRun::read(&state).ok()?;
        let mut seeded = identity.clone();
        take_seed(&mut seeded, &saved, open);
        saved
            .identity
            .differences(&seeded)
            .is_empty()
            .then_some(saved)
    })
}

impl Start {
    /// The seed of the run that it goes on from.
    pub fn seed(&self) -> Option<u64> {
        self.from.as_ref()?.identity.seed()
    }

    /// Tells what it goes on from.
    pub fn tell(&self, dumps: bool) {
        let Some(saved) = &self.from else {
            return;
        };
        let step = saved.steps_taken();
        if style() == Style::Json {
            let path = saved.path.to_string_lossy();
            event("resume", serde_json::json!({ "path": path, "step": step }));
        } else {
            say!(
                "going on after step {step}, saved in {}",
                saved.path.display()
            );
        }
        if let Some(warning) = saved.foreign() {
            stderr::warning(&warning);
        }
        if dumps {
            stderr::warning(
                "--dump: what the saved run has computed already is not computed, and not written, \
                 again",
            );
        }
    }

    /// How to go on after the run has ended early.
    pub fn hint(&self) -> String {
        match self.keeper.latest() {
            Some((path, step)) => {
                let usual = self.resume.as_os_str() == "auto" && path == self.keeper.path();
                let with = if usual {
                    String::new()
                } else {
                    format!(" with --resume {}", path.display())
                };
                format!(
                    "the state after step {step} is in {}; the same command{with} goes on from there",
                    path.display()
                )
            }
            None if self.saves => "nothing was saved yet; the same command starts anew".to_owned(),
            None => "nothing was saved (--no-checkpoint)".to_owned(),
        }
    }
}
