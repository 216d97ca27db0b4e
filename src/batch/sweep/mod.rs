//! Clips over all combinations of some settings: what is varied, what each run gave, and all of it
//! side by side as a table, plots, a sheet and a clip of clips. `docs/sweep.md` explains each.
//!
//! The runs themselves are clips of a batch: a run is settings in, an [`Outcome`] out.

mod axes;
mod grid;
mod outcome;
mod plot;
mod spool;
mod table;

pub use axes::{Axis, Run, runs};
pub use grid::Grid;
pub use outcome::{Metrics, Outcome, PhaseCost, SCHEMA};
pub use plot::svg;
pub use table::{csv, rows};

/// A run of a sweep and what came of it: an outcome, or why there is none.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which run.
    pub run: Run,
    /// What came of it.
    pub result: std::result::Result<Outcome, String>,
}
