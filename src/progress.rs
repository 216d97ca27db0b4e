//! Progress of a run: phases, events and summaries.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use mlx_rs::memory;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::clip::Settings;
use crate::sampling::Expert;

/// A part of a run that takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Encoding the prompts; a unit is a prompt.
    Text,
    /// Encoding the start picture; a unit is a latent frame.
    Image,
    /// Denoising; a unit is a step.
    Denoising,
    /// Decoding and writing; a unit is a latent frame.
    Decoding,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Text => "text",
            Phase::Image => "image",
            Phase::Denoising => "denoising",
            Phase::Decoding => "decoding",
        })
    }
}

/// A network whose weights are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The text encoder.
    TextEncoder,
    /// The encoder half of the VAE.
    VaeEncoder,
    /// The image encoder, whose features some transformers attend to.
    ImageEncoder,
    /// One of the transformers.
    Expert(Expert),
    /// The decoder half of the VAE.
    VaeDecoder,
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Network::TextEncoder => f.write_str("text encoder"),
            Network::VaeEncoder => f.write_str("VAE's encoder"),
            Network::ImageEncoder => f.write_str("image encoder"),
            Network::Expert(expert) => f.write_str(expert.in_words()),
            Network::VaeDecoder => f.write_str("VAE's decoder"),
        }
    }
}

/// Memory at some moment, in bytes; 0 where it is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What MLX has in use.
    pub active: u64,
    /// The most that MLX had in use since the phase began.
    pub peak: u64,
    /// The most that the process ever had in physical memory, mapped files included.
    pub process_peak: u64,
}

impl Memory {
    /// As it is now.
    pub fn now() -> Self {
        let active = memory::active_memory().unwrap_or_default() as u64;
        let peak = memory::peak_memory().unwrap_or_default() as u64;
        // Kibibytes but on a Mac.
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        let process = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss());
        Self {
            active,
            // MLX's own begins at zero when it is reset, whatever is in use then.
            peak: peak.max(active),
            process_peak: u64::try_from(process).unwrap_or_default() * unit,
        }
    }
}

/// Passes through a transformer, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passes {
    /// Those that were computed.
    pub computed: usize,
    /// Those that a cache stood in for.
    pub reused: usize,
    /// Unconditional ones that guidance did not need.
    pub unguided: usize,
}

impl Passes {
    /// Those that came after `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            computed: self.computed - before.computed,
            reused: self.reused - before.reused,
            unguided: self.unguided - before.unguided,
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The settings it was made with.
    pub settings: Settings,
    /// Columns and rows of its frames, which the VAE may make larger than the settings say.
    pub frame_size: (u32, u32),
    /// Passes through the transformers.
    pub passes: Passes,
    /// Bytes of arrays that this machine has sent to others.
    pub sent: u64,
    /// Its phases, in order.
    pub phases: Vec<PhaseReport>,
    /// Memory at its end.
    pub memory: Memory,
    /// Wall time of the whole run.
    pub seconds: f64,
}

/// A step that was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// The expert that predicted.
    pub expert: Expert,
    /// The timestep that the expert was given.
    pub timestep: f64,
    /// The noise level before the step.
    pub sigma: f64,
    /// Its passes through the expert.
    pub passes: Passes,
    /// Wall time, without loading the expert.
    pub seconds: f64,
    /// Seconds that are estimated to be left of denoising.
    pub left: Option<f64>,
    /// Memory after it.
    pub memory: Memory,
}

/// A phase that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Which one.
    pub phase: Phase,
    /// Wall time, loading included.
    pub seconds: f64,
    /// Memory at its end.
    pub memory: Memory,
}

/// Something that happened in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event<'a> {
    /// The number of the clip that it is about, from 0; `None` where several clips share it.
    pub clip: Option<usize>,
    /// What happened.
    pub kind: EventKind<'a>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EventKind<'a> {
    /// A phase begins.
    PhaseStarted {
        /// Which one.
        phase: Phase,
        /// Units that it consists of.
        units: usize,
        /// Units that an earlier run has done.
        done: usize,
    },
    /// A network's weights are being read.
    Loading(Network),
    /// A network is loaded.
    Loaded {
        /// Which one.
        network: Network,
        /// Wall time that it took.
        seconds: f64,
    },
    /// A unit of a phase is done. Steps have an event of their own.
    Unit {
        /// The phase.
        phase: Phase,
        /// Units done.
        done: usize,
        /// Units of the phase.
        units: usize,
    },
    /// A step was taken.
    Step(StepReport),
    /// A phase has ended.
    PhaseFinished(PhaseReport),
    /// The state is on disk.
    Saved {
        /// Steps taken.
        step: usize,
        /// The file.
        path: &'a Path,
        /// Its size.
        bytes: u64,
    },
    /// Something that the user should know, which does not end the run.
    Warning(&'a str),
    /// A clip of a batch is complete and in its place. The summary's phases are those that the
    /// clip did not share.
    Made(&'a Summary),
    /// A clip of a batch cannot be made, and why; the others continue.
    Failed(&'a str),
}

/// Listens to a run. Phases come one after another.
pub trait Progress {
    /// Takes notice of an event.
    fn on_event(&mut self, event: &Event<'_>);

    /// Whether the run shall stop, and keep its state, as soon as the unit or the network under way
    /// is done.
    fn stops(&self) -> bool {
        false
    }
}

impl dyn Progress + '_ {
    /// Reports an event of no clip in particular; [`ForClip`] adds the clip.
    pub(crate) fn report(&mut self, kind: EventKind<'_>) {
        self.on_event(&Event { clip: None, kind });
    }
}

/// Reports everything as about one clip.
pub(crate) struct ForClip<'a> {
    pub(crate) inner: &'a mut dyn Progress,
    /// The clip's number.
    pub(crate) clip: usize,
}

impl Progress for ForClip<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        self.inner.on_event(&Event {
            clip: Some(self.clip),
            ..*event
        });
    }

    fn stops(&self) -> bool {
        self.inner.stops()
    }
}

/// Why a run ended early: its [`Progress`] asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the run was interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Ends a run that shall stop.
///
/// # Errors
/// [`Interrupted`].
pub(crate) fn check_stop(progress: &dyn Progress) -> Result<()> {
    if progress.stops() {
        bail!(Interrupted);
    }
    Ok(())
}

/// Listens to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn on_event(&mut self, _event: &Event<'_>) {}
}

/// Forwards everything, and keeps the reports of the phases.
pub(crate) struct Recorder<'a> {
    pub(crate) inner: &'a mut dyn Progress,
    pub(crate) phases: Vec<PhaseReport>,
}

impl Progress for Recorder<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        if let EventKind::PhaseFinished(report) = event.kind {
            self.phases.push(report);
        }
        self.inner.on_event(event);
    }

    fn stops(&self) -> bool {
        self.inner.stops()
    }
}

/// A phase under way, which reports its progress.
#[derive(Debug)]
pub(crate) struct RunningPhase {
    phase: Phase,
    units: usize,
    done: usize,
    start: Instant,
}

impl RunningPhase {
    /// Begins a phase of which `done` units are done already.
    pub(crate) fn start(
        phase: Phase,
        units: usize,
        done: usize,
        progress: &mut dyn Progress,
    ) -> Self {
        // A counter that cannot be reset shows the peak of more than this phase.
        let _ = memory::reset_peak_memory();
        progress.report(EventKind::PhaseStarted { phase, units, done });
        Self {
            phase,
            units,
            done,
            start: Instant::now(),
        }
    }

    /// A unit is done.
    ///
    /// # Errors
    /// When the run shall stop here.
    pub(crate) fn advance(&mut self, progress: &mut dyn Progress) -> Result<()> {
        self.done += 1;
        progress.report(EventKind::Unit {
            phase: self.phase,
            done: self.done,
            units: self.units,
        });
        check_stop(progress)
    }

    /// Skips ahead to `units`: what failed is not done.
    pub(crate) fn pass_over(&mut self, units: usize) {
        self.done = units.min(self.units);
    }

    /// Ends the phase.
    pub(crate) fn finish(self, progress: &mut dyn Progress) -> PhaseReport {
        let report = PhaseReport {
            phase: self.phase,
            seconds: self.start.elapsed().as_secs_f64(),
            memory: Memory::now(),
        };
        progress.report(EventKind::PhaseFinished(report));
        report
    }
}

/// Loads a network and reports it; returns it with the seconds that it took.
///
/// # Errors
/// When loading fails, or the run shall stop here.
pub(crate) fn load<T>(
    network: Network,
    progress: &mut dyn Progress,
    load: impl FnOnce() -> Result<T>,
) -> Result<(T, f64)> {
    progress.report(EventKind::Loading(network));
    let start = Instant::now();
    let loaded = load()?;
    let seconds = start.elapsed().as_secs_f64();
    progress.report(EventKind::Loaded { network, seconds });
    check_stop(progress)?;
    Ok((loaded, seconds))
}
