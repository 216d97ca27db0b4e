//! What a run gave.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Run;
use crate::clip::Identity;
use crate::diagnose::analyze::{FrameStats, Report, Status, page};
use crate::pipeline::{Passes, Phase, Summary};
use crate::util::files::{MAX_JSON, read_small};

/// The version of an outcome's JSON. Outcomes of another one are made anew.
pub const SCHEMA: u32 = 2;

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was varied, by flag.
    pub settings: Vec<(String, String)>,
    /// The clip's file, in the sweep's folder.
    pub clip: String,
    /// Whatever the clip depends on.
    pub identity: Identity,
    /// Frames a second.
    pub fps: f64,
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Frames.
    pub frames: u32,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Wall time and memory of each phase.
    pub phases: Vec<PhaseCost>,
    /// The most memory that arrays took, in bytes.
    pub peak_bytes: u64,
    /// Passes through the transformers that were computed, and those that a cache stood in for.
    pub passes: (usize, usize),
    /// What the clip is like.
    pub metrics: Metrics,
}

/// What a phase took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseCost {
    /// Which one.
    pub phase: Phase,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The most memory that arrays took, in bytes.
    pub peak_bytes: u64,
}

/// A clip in a few figures, of those that [`crate::diagnose::analyze`] measures on every frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// PSNR of the first frame against the picture, in dB; `None` when they are equal.
    pub first_psnr: Option<f64>,
    /// SSIM of the same; `None` for tiny frames.
    pub first_ssim: Option<f64>,
    /// Contrast of the last frame over the picture's.
    pub contrast_kept: f64,
    /// Mean difference from frame to frame, in levels.
    pub motion: f64,
    /// Mean sharpness over the picture's.
    pub sharpness: f64,
    /// The largest noise, in levels.
    pub noise: f64,
    /// The largest amplitude of a checkerboard of 8 pixels, in levels.
    pub checkerboard: f64,
    /// Symptoms of a broken pipeline, and from which frame.
    pub alarms: Vec<String>,
}

impl Metrics {
    /// Of a clip's report, which compares with the picture.
    ///
    /// # Errors
    /// When the report is of no frames or without a picture.
    pub fn of(report: &Report) -> Result<Self> {
        let first = report.first_frame.as_ref().context("no picture")?;
        let last = report.frames.last().context("no frames")?;
        let picture = &first.picture;
        let count = report.frames.len() as f64;
        let mean =
            |value: fn(&FrameStats) -> f64| report.frames.iter().map(value).sum::<f64>() / count;
        let most =
            |value: fn(&FrameStats) -> f64| report.frames.iter().map(value).fold(0.0, f64::max);
        let steps: Vec<f64> = report.frames.iter().filter_map(|f| f.difference).collect();
        let alarms = report.verdicts.iter().filter(|v| v.status == Status::Alarm);
        Ok(Self {
            first_psnr: first.psnr,
            first_ssim: first.ssim,
            contrast_kept: last.contrast / picture.contrast.max(1e-3),
            motion: steps.iter().sum::<f64>() / steps.len().max(1) as f64,
            sharpness: mean(|f| f.sharpness) / picture.sharpness.max(1e-3),
            noise: most(|f| f.noise),
            checkerboard: most(|f| f.checkerboard.px8),
            alarms: alarms
                .map(|v| format!("{} ({})", v.symptom.name(), v.found()))
                .collect(),
        })
    }
}

impl Outcome {
    /// Of a run that has just ended.
    ///
    /// # Errors
    /// As [`Metrics::of`].
    pub fn of(run: &Run, identity: Identity, summary: &Summary, report: &Report) -> Result<Self> {
        let phases: Vec<PhaseCost> = summary
            .phases
            .iter()
            .map(|phase| PhaseCost {
                phase: phase.phase,
                seconds: phase.seconds,
                peak_bytes: phase.memory.peak,
            })
            .collect();
        let Passes {
            computed, reused, ..
        } = summary.passes;
        Ok(Self {
            schema: SCHEMA,
            settings: run.settings.clone(),
            clip: run.clip(),
            identity,
            fps: summary.settings.fps,
            width: summary.frame_size.0,
            height: summary.frame_size.1,
            frames: summary.settings.frames,
            seconds: summary.seconds,
            peak_bytes: phases.iter().map(|p| p.peak_bytes).max().unwrap_or(0),
            phases,
            passes: (computed, reused),
            metrics: Metrics::of(report)?,
        })
    }

    /// Writes it down; the file appears under its name when it is complete.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        page::write(path, &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// The outcome at `path`, if one exists of the same run, whose clip is in `folder`. What cannot
    /// be read counts as missing.
    pub fn finished(path: &Path, folder: &Path, identity: &Identity) -> Option<Self> {
        let outcome: Self = serde_json::from_slice(&read_small(path, MAX_JSON).ok()?).ok()?;
        let same = outcome.schema == SCHEMA
            && outcome.identity.is_of_same(identity)
            && folder.join(&outcome.clip).exists();
        same.then_some(outcome)
    }
}
