//! What is wrong: with a clip ([`analyze`]), between two runs ([`compare`]), with a machine
//! ([`doctor`]).

pub mod analyze;
pub mod compare;
pub mod doctor;
#[doc(hidden)]
pub mod lab;
