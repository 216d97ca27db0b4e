//! How strongly, and when, the prompt is followed.

use serde::{Deserialize, Serialize};

use super::Expert;

/// Guidance scale of each expert: `uncond + scale * (cond - uncond)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuideScale {
    /// For timesteps below the boundary.
    pub low: f32,
    /// For timesteps at or above it.
    pub high: f32,
}

impl GuideScale {
    /// The scale of an expert.
    pub fn of(self, expert: Expert) -> f32 {
        match expert {
            Expert::LowNoise | Expert::Single => self.low,
            Expert::HighNoise => self.high,
        }
    }

    /// Whether any step needs the negative prompt: with a scale of 1 the unconditional
    /// prediction cancels out.
    pub fn needs_negative(self) -> bool {
        self.low != 1.0 || self.high != 1.0
    }
}

/// The steps that are guided, as shares of the schedule: those numbered from `start` to before
/// `end`, each times the number of steps. Outside guidance is 1, which spares the unconditional
/// pass (Kynkäänniemi et al., arXiv:2404.07724).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, f64)", into = "(f64, f64)")]
pub struct GuideInterval {
    /// Where it begins.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
}

impl Default for GuideInterval {
    fn default() -> Self {
        Self {
            start: 0.0,
            end: 1.0,
        }
    }
}

impl From<(f64, f64)> for GuideInterval {
    fn from((start, end): (f64, f64)) -> Self {
        Self { start, end }
    }
}

impl From<GuideInterval> for (f64, f64) {
    fn from(interval: GuideInterval) -> Self {
        (interval.start, interval.end)
    }
}

impl GuideInterval {
    /// Whether the step `index` of `steps` is guided.
    pub fn covers(self, index: usize, steps: usize) -> bool {
        let at = index as f64;
        let edge = |share: f64| (share * steps as f64).round();
        edge(self.start) <= at && at < edge(self.end)
    }
}
