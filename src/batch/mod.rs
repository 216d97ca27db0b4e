//! Many clips in one run: what they have in common is loaded and encoded once.
//!
//! [`table`] reads a file of jobs, [`seeds`] and [`template`] say which clips a job stands for and
//! what they are called, an [`Entry`] is one of them, checked, [`run`] makes them, and [`report`]
//! is what is left on disk of how it went.

mod costs;
mod entry;
pub mod report;
mod room;
mod run;
pub mod seeds;
pub mod table;
pub mod template;

pub use costs::Costs;
pub use entry::{Entry, Standing, bytes};
pub use room::{Room, room};
pub use run::{Terms, run};
