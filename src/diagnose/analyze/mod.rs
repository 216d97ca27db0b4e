//! What is wrong with a clip, in numbers: statistics of every frame and a verdict on every symptom
//! that a broken pipeline shows. `docs/analyze.md` explains each figure and each limit.
//!
//! [`Analyzer`] takes frames one by one and keeps no more than the last one; [`latents`] does the
//! same for latents. Either ends in a [`Report`].

mod causes;
mod checkerboard;
mod clip;
mod frames;
pub mod latents;
pub mod page;
mod plane;
mod report;
mod spectrum;
mod symptoms;
mod table;
mod verdict;

pub use checkerboard::PERIODS;
pub use clip::{file, is_latents};
pub use frames::{Analyzer, Checkerboard, FirstFrame, FrameStats, analyze};
pub use latents::LatentStats;
pub use report::{Report, SCHEMA, Size};
pub use spectrum::{GRID, Spectrum};
pub use verdict::{Status, Symptom, Verdict};
