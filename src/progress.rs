//! How a run tells what it is doing.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use mlx_rs::memory;
use nix::sys::resource::{UsageWho, getrusage};

use crate::clip::Plan;
use crate::sampling::Expert;

/// A part of a run that takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            Network::Expert(expert) => write!(f, "{expert} expert"),
            Network::VaeDecoder => f.write_str("VAE's decoder"),
        }
    }
}

/// Memory at some moment, in bytes. What cannot be told is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The settings it was made with.
    pub plan: Plan,
    /// Passes through the transformers.
    pub passes: Passes,
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
    /// What the expert was told of the noise.
    pub timestep: i64,
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhaseReport {
    /// Which one.
    pub phase: Phase,
    /// Wall time, loading included.
    pub seconds: f64,
    /// Memory at its end.
    pub memory: Memory,
}

/// What happens in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
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
    /// They are there.
    Loaded {
        /// Whose.
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
    /// The state after so many steps is on disk.
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
    /// What follows is about this clip of several, counted from 0, or about all of them.
    Turn(Option<usize>),
    /// A clip of several is complete and in its place.
    Made {
        /// Its number, from 0.
        clip: usize,
        /// What was made. Its phases are those that it had to itself.
        summary: &'a Summary,
    },
    /// A clip of several cannot be made; the others go on.
    Failed {
        /// Its number, from 0.
        clip: usize,
        /// Why.
        error: &'a str,
    },
}

/// Hears of a run's progress. Phases come one after another.
pub trait Progress {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>);

    /// Whether the run shall stop at the next unit's end, or a network's, and keep its state.
    fn stops(&self) -> bool {
        false
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
pub(super) fn go_on(progress: &dyn Progress) -> Result<()> {
    if progress.stops() {
        bail!(Interrupted);
    }
    Ok(())
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _event: &Event<'_>) {}
}

/// Passes everything on, and keeps the reports of the phases.
pub(super) struct Recorder<'a> {
    pub(super) inner: &'a mut dyn Progress,
    pub(super) phases: Vec<PhaseReport>,
}

impl Progress for Recorder<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::PhaseFinished(report) = event {
            self.phases.push(*report);
        }
        self.inner.event(event);
    }

    fn stops(&self) -> bool {
        self.inner.stops()
    }
}

/// A phase under way: what every phase tells of itself.
#[derive(Debug)]
pub(super) struct Stage {
    phase: Phase,
    units: usize,
    done: usize,
    start: Instant,
}

impl Stage {
    /// Begins a phase of which `done` units are done already.
    pub(super) fn start(
        phase: Phase,
        units: usize,
        done: usize,
        progress: &mut dyn Progress,
    ) -> Self {
        // A counter that cannot be reset shows the peak of more than this phase.
        let _ = memory::reset_peak_memory();
        progress.event(&Event::PhaseStarted { phase, units, done });
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
    pub(super) fn advance(&mut self, progress: &mut dyn Progress) -> Result<()> {
        self.done += 1;
        progress.event(&Event::Unit {
            phase: self.phase,
            done: self.done,
            units: self.units,
        });
        go_on(progress)
    }

    /// Passes over what cannot be done.
    pub(super) fn pass_over(&mut self, units: usize) {
        self.done = units.min(self.units);
    }

    /// Ends the phase.
    pub(super) fn finish(self, progress: &mut dyn Progress) -> PhaseReport {
        let report = PhaseReport {
            phase: self.phase,
            seconds: self.start.elapsed().as_secs_f64(),
            memory: Memory::now(),
        };
        progress.event(&Event::PhaseFinished(report));
        report
    }
}

/// Loads a network and tells of it; returns it with the seconds that it took.
///
/// # Errors
/// When loading fails, or the run shall stop here.
pub(super) fn load<T>(
    network: Network,
    progress: &mut dyn Progress,
    load: impl FnOnce() -> Result<T>,
) -> Result<(T, f64)> {
    progress.event(&Event::Loading(network));
    let start = Instant::now();
    let loaded = load()?;
    let seconds = start.elapsed().as_secs_f64();
    progress.event(&Event::Loaded { network, seconds });
    go_on(progress)?;
    Ok((loaded, seconds))
}
