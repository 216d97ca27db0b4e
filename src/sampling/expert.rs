//! Which of the two transformers predicts a step.

use serde::Serialize;

/// One of the two diffusion transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expert {
    /// For timesteps at or above the boundary.
    HighNoise,
    /// For timesteps below it.
    LowNoise,
}

impl std::fmt::Display for Expert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Expert::HighNoise => "high-noise",
            Expert::LowNoise => "low-noise",
        })
    }
}
