//! Which transformer predicts a step.

use serde::{Deserialize, Serialize};

/// One of a model's diffusion transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expert {
    /// For timesteps at or above the boundary.
    HighNoise,
    /// For timesteps below it.
    LowNoise,
    /// The only one, for all.
    Single,
}

impl Expert {
    /// All, the first steps' first.
    pub const ALL: [Self; 3] = [Self::HighNoise, Self::LowNoise, Self::Single];

    /// What it is called in a sentence: `high-noise expert`, or `transformer`.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::HighNoise => "high-noise expert",
            Self::LowNoise => "low-noise expert",
            Self::Single => "transformer",
        }
    }
}

impl std::fmt::Display for Expert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Expert::HighNoise => "high-noise",
            Expert::LowNoise => "low-noise",
            Expert::Single => "single",
        })
    }
}
