//! What the networks cost: floating-point operations ([`flops`]) and bytes ([`memory`]).

pub mod flops;
pub mod memory;
mod rates;

pub use rates::Rates;
