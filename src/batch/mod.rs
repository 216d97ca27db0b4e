//! Many clips in one run: what they have in common is loaded and encoded once.
//!
//! [`table`] reads a file of jobs, [`seeds`] and [`template`] say which clips a job stands for and
//! what they are called, an [`Entry`] is one of them, checked, [`run`] makes them, and [`report`]
//! and [`gallery`] are what is left on disk of how it went. `ranks` shares them with other machines.

mod capacity;
mod costs;
mod entry;
pub mod gallery;
pub(crate) mod ranks;
pub mod report;
mod run;
pub mod seeds;
pub mod sweep;
pub mod table;
pub mod template;

pub use capacity::{Capacity, capacity};
pub use costs::Costs;
pub use entry::{ClipStatus, Entry, bytes};
pub use run::{BatchOptions, check_output, lock, run};
