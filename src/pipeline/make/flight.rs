//! A clip in flight: from its first step to its file.

use anyhow::{Context, Result};
use mlx_rs::Array;

use super::Clip;
use crate::media::clip::ClipWriter;
use crate::media::strip::FilmStrip;
use crate::media::tags::Tags;
use crate::persist::dump::Dump;
use crate::pipeline::decode::ClipDecoder;
use crate::pipeline::denoise::Denoiser;
use crate::pipeline::{Job, Passes, Summary};
use crate::progress::{Memory, PhaseReport, Progress};
use crate::weights::Expert;

/// What a clip begins with.
pub(super) struct StartedClip<'c> {
    pub(super) denoiser: Denoiser<'c>,
    pub(super) dump: Option<Dump>,
    pub(super) tags: Option<Tags>,
}

impl<'c> StartedClip<'c> {
    pub(super) fn flight(self, clip: Clip) -> ActiveClip<'c> {
        ActiveClip {
            clip,
            work: Work::Denoising(Box::new(self.denoiser)),
            dump: self.dump,
            tags: self.tags,
            phases: Vec::new(),
        }
    }
}

/// A clip in flight.
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
    /// It is there, or cannot be made.
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
        let Job {
            request, settings, ..
        } = &self.clip.job;
        let tags = self.tags.take();
        let mut writer = ClipWriter::create(&request.output, &settings.clip_spec(), tags.as_ref())
            .with_context(|| format!("--output {}", request.output.display()))?;
        let strip = request.strip.as_deref();
        let mut strip = strip
            .map(|path| FilmStrip::new(path, settings.frames, tags))
            .transpose()
            .context("--strip")?;
        let (clip, dump) = (&self.clip, self.dump.as_ref());
        let report = decoder.decode(
            clip.device,
            &clip.memory,
            latents,
            dump,
            progress,
            &mut |frame| {
                if let Some(strip) = &mut strip {
                    strip.push(frame);
                }
                writer.push(frame)
            },
        )?;
        writer
            .finish()
            .with_context(|| format!("--output {}", request.output.display()))?;
        if let Some(strip) = strip {
            strip.finish().context("--strip; the clip is complete")?;
        }
        self.phases.push(report);
        Ok(Summary {
            seconds: self.phases.iter().map(|phase| phase.seconds).sum(),
            passes,
            phases: self.phases.clone(),
            memory: Memory::now(),
            settings: self.clip.job.settings.clone(),
        })
    }
}
