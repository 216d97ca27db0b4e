//! From noise to latents: schedules, solvers, guidance, caches of steps, and the noise itself.

mod cache_settings;
mod expert;
mod guidance;
pub mod noise;
mod schedule;
mod solver;
mod step_cache;

pub use cache_settings::{CacheMethod, CacheSettings};
pub use expert::Expert;
pub use guidance::{GuideInterval, GuideScale};
pub use schedule::{Schedule, Sigmas, Solver};
pub use solver::{Sampler, renoise};
pub(crate) use step_cache::StepCache;
