//! How a run tells what it is doing.

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

/// Hears of a run's progress. Phases come one after another.
pub trait Progress {
    /// A phase of `units` units begins.
    fn start(&mut self, phase: Phase, units: usize);
    /// What is under way within the unit, such as an expert being loaded.
    fn detail(&mut self, text: &str);
    /// A unit is done.
    fn advance(&mut self);
    /// The phase is done.
    fn finish(&mut self);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _phase: Phase, _units: usize) {}
    fn detail(&mut self, _text: &str) {}
    fn advance(&mut self) {}
    fn finish(&mut self) {}
}
