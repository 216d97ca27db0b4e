//! Which saved run to resume from, and where this one's is kept.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::clip::Identity;
use crate::persist::{EXTENSION, Lock, SavedRun, StateWriter, can_resume, file, state_path};
use crate::pipeline::Job;
use crate::runtime::{self, Device, Tuning};
use anyhow::{Context, Result};

use crate::cli::commands::resolve::Open;
use crate::cli::flags::{ResumeArgs, ResumeFrom};
use crate::cli::ui::{Style, event, info, stderr, style};
use crate::util::files::real;
use crate::util::show::Show;

/// A run that may begin.
#[derive(Debug)]
pub(crate) struct Start {
    /// Keeps its state.
    pub(crate) writer: StateWriter,
    /// The saved run that it resumes from.
    pub(crate) from: Option<SavedRun>,
    /// The right to write the clip and the state.
    _locks: Vec<Lock>,
    resume: ResumeFrom,
    saves: bool,
}

impl ResumeArgs {
    /// Takes the right to write the output, and finds the saved run to resume from. Where the user has left
    /// the seed or the name open, those of the saved run are taken, or a name that is free. `identify` says
    /// what the run is with a tuning: that of the saved run counts. `None`: the same command has made the
    /// clip before.
    ///
    /// # Errors
    /// When another run writes the output, the output is another's, or the saved run is damaged or
    /// another.
    pub(crate) fn start(
        self,
        job: &mut Job,
        device: Device,
        identify: &dyn Fn(&Job, Tuning) -> Result<Identity>,
        open: &Open,
    ) -> Result<Option<Start>> {
        let (mut identity, mut found) = (identify(job, device.tuning)?, None);
        let every = self.every();
        // The process before this one knew which run it was.
        let before = runtime::again().and_then(|again| Some((again, again.state.clone()?)));
        let mut from = self.resume.clone();
        if let Some((again, state)) = before {
            from = ResumeFrom::File(state);
            if let Some(clip) = again.output.as_ref().filter(|_| open.stem.is_some()) {
                job.move_to(clip.clone());
            }
        }
        if let ResumeFrom::File(path) = &from {
            found = Some(SavedRun::read(path).context("--resume")?);
        } else if from == ResumeFrom::Auto
            && self.checkpoint.is_none()
            && open.stem.is_some()
            && open.seed
            && let Some((saved, output)) =
                newest(open, &|saved| resumed(job, identify, saved, open))
        {
            job.move_to(output);
            found = Some(saved);
        }
        let is_named = open.stem.is_none() || found.is_some();
        if let Some(saved) = &found {
            identity = resumed(job, identify, saved, open)?;
            if let Some(seed) = saved.identity.seed().filter(|_| open.seed) {
                job.reseed(seed);
            }
        }
        if !is_named && !job.overwrites() {
            for output in open.outputs(job.settings().seed).into_iter().flatten() {
                job.move_to(output);
                if !job.is_others(device)? {
                    break;
                }
            }
        }
        let output = job.output().to_owned();

        let mut locks = vec![lock(&output)?];
        let wants_all = self.resume == ResumeFrom::Never || job.overwrites() || job.dumps();
        if !wants_all && job.is_there(device)? {
            return Ok(None);
        }
        let usual = state_path(&output);
        let path = self.checkpoint.unwrap_or_else(|| usual.clone());
        if path != usual {
            locks.push(lock(&path).context("--checkpoint")?);
            // The state of another clip is covered by that clip's lock.
            let clip = path.with_extension("");
            let is_state = path.extension() == Some(OsStr::new(EXTENSION));
            if is_state && real(&clip) != real(&output) {
                locks.push(lock(&clip).context("--checkpoint")?);
            }
        }
        file::check_replace(&path)?;
        if from != ResumeFrom::Never && path.exists() {
            let there = SavedRun::read(&path)?;
            let seeded = match found {
                None => resumed(job, identify, &there, open)?,
                Some(_) => identity.clone(),
            };
            let same = can_resume(&there, &seeded, found.is_none())?;
            if same && found.is_none() {
                (identity, found) = (seeded, Some(there));
            }
        }
        if let Some(saved) = &found {
            can_resume(saved, &identity, false)?;
            if let Some(seed) = saved.identity.seed().filter(|_| open.seed) {
                job.reseed(seed);
            }
        }
        let steps = job.settings().steps as usize;
        let is_decoded = found.as_ref().map(SavedRun::steps_taken) == Some(steps);
        job.check_replaces(device, is_decoded)?;

        let mut writer = StateWriter::new(path, every, identity);
        if let Some(saved) = &found {
            writer.found(&saved.path, saved.steps_taken());
        }
        Ok(Some(Start {
            writer,
            from: found,
            _locks: locks,
            resume: self.resume,
            saves: every.is_some(),
        }))
    }
}

fn lock(path: &Path) -> Result<Lock> {
    let lock = Lock::take(path)?;
    if !lock.is_held() {
        stderr::warning(&format!(
            "the file system of {} has no locks\nhint: see to it that no other run writes there",
            path.shown()
        ));
    }
    Ok(lock)
}

/// What the run is when it goes on as `saved` began: with its tuning, and its seed if that is open.
fn resumed(
    job: &Job,
    identify: &dyn Fn(&Job, Tuning) -> Result<Identity>,
    saved: &SavedRun,
    open: &Open,
) -> Result<Identity> {
    let mut identity = identify(job, saved.identity.tuning())?;
    if let Some(seed) = saved.identity.seed()
        && open.seed
    {
        identity.set_seed(seed);
    }
    Ok(identity)
}

/// The newest saved run in the current folder that differs in nothing but the seed, and that nobody
/// is working on, and the clip that it is of.
fn newest(
    open: &Open,
    resumed: &dyn Fn(&SavedRun) -> Result<Identity>,
) -> Option<(SavedRun, PathBuf)> {
    let stem = open.stem.as_ref()?.to_string_lossy().into_owned();
    let of_state = |name: &str| {
        let output = name.strip_suffix(&format!(".{EXTENSION}"))?;
        let rest = output.strip_prefix(&stem)?.strip_prefix('-')?;
        let mut numbers = rest.strip_suffix(".mp4")?.splitn(2, '-');
        let are_numbers = numbers.all(|number| number.parse::<u64>().is_ok());
        are_numbers.then(|| PathBuf::from(output))
    };
    let mut found: Vec<(SystemTime, PathBuf, PathBuf)> = fs::read_dir(".")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let output = of_state(&entry.file_name().to_string_lossy())?;
            let time = entry.metadata().and_then(|meta| meta.modified()).ok()?;
            Some((time, PathBuf::from(entry.file_name()), output))
        })
        .collect();
    found.sort();
    found.into_iter().rev().find_map(|(_, state, output)| {
        let _free = Lock::take(&output).ok()?;
        let saved = SavedRun::read(&state).ok()?;
        let now = resumed(&saved).ok()?;
        saved
            .identity
            .differences(&now)
            .is_empty()
            .then_some((saved, output))
    })
}

impl Start {
    /// Reports what it resumes from.
    pub(crate) fn report(&self, dumps: bool) {
        let Some(saved) = &self.from else {
            return;
        };
        let step = saved.steps_taken();
        if style() == Style::Json {
            let path = saved.path.to_string_lossy();
            event("resume", serde_json::json!({ "path": path, "step": step }));
        } else {
            info!(
                "resuming after step {step}, saved in {}",
                saved.path.shown()
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

    /// Why a run that ends early cannot go on by itself, if it cannot.
    pub(crate) fn unsaved(&self) -> Option<&'static str> {
        let why = "nothing was saved (--no-checkpoint), so the run cannot be resumed";
        (!self.saves).then_some(why)
    }

    /// How to resume after the run has ended early.
    pub(crate) fn hint(&self) -> String {
        match self.writer.latest() {
            Some((path, step)) => {
                let usual = self.resume == ResumeFrom::Auto && path == self.writer.path();
                let with = if usual {
                    String::new()
                } else {
                    format!(" with --resume {}", path.shown())
                };
                format!(
                    "the state after step {step} is in {}; the same command{with} resumes from there",
                    path.shown()
                )
            }
            None if self.saves => {
                "nothing was saved yet; the same command starts from scratch".to_owned()
            }
            None => "nothing was saved (--no-checkpoint)".to_owned(),
        }
    }
}
