//! Benchmarks of the parts that a clip's time goes into: `cargo bench`, or `cargo bench -- dit`
//! for those whose name has `dit` in it. Networks have one layer of the published shapes and
//! constant weights, so nothing is read from a checkpoint. The device is the default one.
//!
//! Where a network is measured, divan's items are floating-point operations: `60 Gitem/s` is
//! 60 GFLOP/s.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

mod attention;
mod dit;
mod media;
mod product;
mod quantize;
mod schedule;
mod source;
mod umt5;
mod unpack;
mod vae;

use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{Bencher, Divan};
use wan_i2v::runtime::{Device, operations};

fn main() {
    // The whole series in a few minutes on two cores; flags on the command line come first.
    Divan::default()
        .sample_count(10)
        .sample_size(1)
        .max_time(Duration::from_secs(3))
        .config_with_args()
        .main();
}

fn device() -> Device {
    Device::select(None, None).unwrap()
}

/// Measures `f` after one run that warms it up and counts its operations.
fn bench_operations<T>(bencher: Bencher, mut f: impl FnMut() -> T) {
    let before = operations();
    drop(f());
    let count = ItemsCount::new(operations() - before);
    bencher.counter(count).bench_local(f);
}
