//! What the networks compute with, beside matrix products: in MLX's operations ([`elementwise`],
//! [`compiled`]) and on the host ([`cpu`]).

pub mod compiled;
pub mod cpu;
pub mod elementwise;
