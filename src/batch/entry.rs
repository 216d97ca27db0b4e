//! A clip of a batch, checked and known, but not made.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;

use super::report::ClipReport;
use crate::clip::metadata::Metadata;
use crate::clip::{Identity, Request, Settings, Stage};
use crate::media::clip::frame_files;
use crate::model::MemoryPlan;
use crate::persist::{Lock, MadeWith, SavedRun, can_resume, file, state_path};
use crate::pipeline::plan::{Budget, Forecast, PlannedMemory, Rates};
use crate::pipeline::{Clip, InputCache, Job, Keys};
use crate::runtime::{Device, again};

/// What is left to do of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipStatus {
    /// It is there, made from the same.
    UpToDate,
    /// A saved run of it has taken so many steps.
    Resumable(usize),
    /// Everything.
    Missing,
}

/// A clip of a batch.
#[derive(Debug)]
pub struct Entry {
    job: Job,
    device: Device,
    memory: MemoryPlan,
    identity: Identity,
    forecast: Forecast,
}

impl Entry {
    /// Checks everything that can be checked before a model is loaded, and that the clip fits into
    /// `budget`.
    ///
    /// # Errors
    /// As [`Job::prepare`] and [`Job::plan_memory_or_refuse`].
    pub fn prepare(
        request: Request,
        device: Device,
        budget: Budget,
        rates: Option<&mut Rates>,
        stock: &mut InputCache,
    ) -> Result<Self> {
        let mut job = Job::prepare_from(request, stock)?;
        let PlannedMemory {
            memory,
            mut forecast,
            ..
        } = job.plan_memory_or_refuse(device, budget, None)?;
        if let Some(rates) = rates {
            forecast.measure(rates, job.checkpoint());
            forecast = forecast.timed(Some(rates));
        }
        let mut identity = job.identity(device, &memory)?;
        if again().is_some_and(|again| again.budget.is_some()) {
            identity.mix_parts();
        }
        job.forget_pixels(stock);
        Ok(Self {
            forecast,
            job,
            device,
            memory,
            identity,
        })
    }

    /// Has the clip, of which nothing has been made, computed on another device, if it fits there.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn compute_on(&mut self, device: Device, budget: Budget) -> Result<()> {
        let planned = self.job.plan_memory_or_refuse(device, budget, None)?;
        self.identity = self.job.identity(device, &planned.memory)?;
        (self.memory, self.forecast) = (planned.memory, planned.forecast);
        self.device = device;
        Ok(())
    }

    /// The job.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The job, to be looked on at.
    pub fn job_mut(&mut self) -> &mut Job {
        &mut self.job
    }

    /// Its settled settings.
    pub fn settings(&self) -> &Settings {
        self.job.settings()
    }

    /// Whatever its pixels depend on.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is computed.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What it costs.
    pub fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// Whether it is made with the same networks, loaded in the same way.
    pub(super) fn shares(&self, other: &Self) -> bool {
        let is_same = Rc::ptr_eq(self.job.checkpoint(), other.job.checkpoint());
        is_same && self.device == other.device
    }

    /// Where it goes.
    pub fn output(&self) -> &Path {
        self.job.output()
    }

    /// A hash that tells whether another clip is the same.
    pub fn digest(&self) -> String {
        self.identity.digest()
    }

    /// What is left to do; `before` is what an earlier report says of the clip.
    ///
    /// # Errors
    /// When a saved run is damaged, or is of another clip and would be lost.
    pub fn status(&self, before: Option<&ClipReport>) -> Result<ClipStatus> {
        if self.is_there(before)? {
            return Ok(ClipStatus::UpToDate);
        }
        self.unfinished()
    }

    /// Refuses to replace what the same clip's runs have not made; `before` is what an earlier report
    /// says of it.
    ///
    /// # Errors
    /// As [`Job::check_replaces`].
    pub fn check_replaces(&self, before: Option<&ClipReport>, status: ClipStatus) -> Result<()> {
        let is_decoded = status == ClipStatus::Resumable(self.settings().steps as usize);
        let is_own = is_decoded || self.is_reported(before);
        self.job.check_replaces(self.device, is_own)
    }

    /// What is left to do of a clip that is not there.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn unfinished(&self) -> Result<ClipStatus> {
        let state = state_path(self.output());
        file::check_replace(&state)?;
        if !state.exists() {
            return Ok(ClipStatus::Missing);
        }
        let saved = SavedRun::read(&state)?;
        Ok(match can_resume(&saved, &self.identity, true)? {
            true => ClipStatus::Resumable(saved.steps_taken()),
            false => ClipStatus::Missing,
        })
    }

    /// Removes what a killed run has left of a clip that is there.
    pub fn tidy(&self) {
        // Whoever is at work on it tidies up.
        let Ok(_lock) = Lock::take(self.output()) else {
            return;
        };
        self.job.remove_stale();
        let state = state_path(self.output());
        if state.exists()
            && let Ok(saved) = SavedRun::read(&state)
            && saved.identity.differences(&self.identity).is_empty()
        {
            file::remove(&state);
        }
    }

    /// Whether the clip, and its strip, are there and made from the same. The file itself says so,
    /// or, where it keeps no record, the report.
    fn is_there(&self, before: Option<&ClipReport>) -> Result<bool> {
        if self.job.keeps_metadata() {
            return self.job.is_there(self.device);
        }
        let has_strip = self.job.strip().is_none_or(Path::is_file);
        let is_plain = || Metadata::read(self.output()).is_err();
        Ok(has_strip && self.job.is_whole() && is_plain() && self.is_reported(before))
    }

    /// Whether a report says that this very file was made from the same.
    fn is_reported(&self, before: Option<&ClipReport>) -> bool {
        before.is_some_and(|before| {
            before.digest.as_ref() == Some(&self.digest())
                && before.bytes == Some(bytes(self.output()))
        })
    }

    /// What the run needs of it.
    pub(super) fn into_clip(self, number: usize, ready: bool) -> (Clip, Identity) {
        let keys = self.keys();
        let clip = Clip {
            job: self.job,
            device: self.device,
            memory: self.memory,
            ready,
            keys,
            number,
        };
        (clip, self.identity)
    }

    /// By what its parts are told from those of other clips.
    pub(super) fn keys(&self) -> Keys {
        // Another version or machine may round otherwise.
        let here = MadeWith::here();
        let hash = |what: &str, rest: &str| {
            blake3::hash(format!("{what} {here} {rest}").as_bytes()).to_hex()[..32].to_owned()
        };
        let text = self.identity.hash_of(Stage::Text);
        let (prompt, negative) = self.job.token_ids();
        let key = |ids: &[u32]| hash("text", &format!("{text} {ids:?}"));
        Keys {
            prompt: key(prompt),
            negative: key(negative.unwrap_or_default()),
            condition: hash("image", &self.identity.hash_of(Stage::Image)),
        }
    }
}

/// The size of a clip's file; of a folder, of its frames together.
pub fn bytes(output: &Path) -> u64 {
    if output.is_dir() {
        let frames = frame_files(output);
        return frames.filter_map(|f| Some(f.metadata().ok()?.len())).sum();
    }
    fs::metadata(output).map_or(0, |meta| meta.len())
}
