//! A clip under way: from its first step to its file.

use anyhow::Result;
use mlx_rs::Array;

use super::Clip;
use crate::media::tags::Tags;
use crate::persist::dump::Dump;
use crate::pipeline::decode::ClipDecoder;
use crate::pipeline::denoise::Denoiser;
use crate::pipeline::file::ClipFile;
use crate::pipeline::{Passes, Summary};
use crate::progress::{Memory, PhaseReport, Progress};
use crate::weights::Expert;

/// A clip that is ready to be denoised.
pub(super) struct StartedClip<'c> {
    pub(super) denoiser: Denoiser<'c>,
    pub(super) dump: Option<Dump>,
    pub(super) tags: Option<Tags>,
}

impl<'c> StartedClip<'c> {
    pub(super) fn activate(self, clip: Clip) -> ActiveClip<'c> {
        ActiveClip {
            clip,
            work: Work::Denoising(Box::new(self.denoiser)),
            dump: self.dump,
            tags: self.tags,
            phases: Vec::new(),
        }
    }
}

/// A clip under way.
pub(super) struct ActiveClip<'c> {
    pub(super) clip: Clip,
    pub(super) work: Work<'c>,
    pub(super) dump: Option<Dump>,
    pub(super) tags: Option<Tags>,
    pub(super) phases: Vec<PhaseReport>,
}

/// How far it is.
pub(super) enum Work<'c> {
    Denoising(Box<Denoiser<'c>>),
    Denoised {
        latents: Array,
        passes: Passes,
    },
    /// It is complete, or cannot be made.
    Ended,
}

impl ActiveClip<'_> {
    pub(super) fn next_expert(&self) -> Option<Expert> {
        match &self.work {
            Work::Denoising(denoiser) => denoiser.next_expert(),
            _ => None,
        }
    }

    /// The last step is taken: keeps the latents alone.
    pub(super) fn denoised(&mut self) {
        if let Work::Denoising(denoiser) = &self.work {
            self.work = Work::Denoised {
                latents: denoiser.latents().clone(),
                passes: denoiser.passes(),
            };
        }
    }

    /// Phases of one kind count as one.
    pub(super) fn add(&mut self, report: PhaseReport) {
        match self.phases.iter_mut().find(|p| p.phase == report.phase) {
            Some(phase) => {
                phase.seconds += report.seconds;
                phase.memory = Memory {
                    peak: phase.memory.peak.max(report.memory.peak),
                    ..report.memory
                };
            }
            None => self.phases.push(report),
        }
    }

    pub(super) fn decode(
        &mut self,
        latents: &Array,
        passes: Passes,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Summary> {
        let Clip {
            job,
            device,
            memory,
            ..
        } = &self.clip;
        let mut file = ClipFile::create(
            &job.request,
            &job.settings,
            &job.checkpoint.vae,
            self.tags.take(),
        )?;
        let mut push = |frame: &_| file.push(frame);
        let dump = self.dump.as_ref();
        let report = decoder.decode(*device, memory, latents, dump, progress, &mut push)?;
        file.finish()?;
        self.phases.push(report);
        Ok(Summary {
            seconds: self.phases.iter().map(|phase| phase.seconds).sum(),
            passes,
            sent: 0,
            phases: self.phases.clone(),
            memory: Memory::now(),
            settings: self.clip.job.settings.clone(),
            frame_size: self.clip.job.frame_size(),
        })
    }
}
