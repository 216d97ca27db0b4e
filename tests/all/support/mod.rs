//! Helpers that several modules share.

pub mod checkpoint;
pub mod containers;
pub mod folders;
pub mod forms;
pub mod gguf;
pub mod golden;
pub mod isolated;
pub mod layouts;
pub mod portable;
pub mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// The miniature's folder.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tiny/model");

/// Keeps every other test from MLX while the guard lives: its default stream belongs to one thread
/// at a time, and `cargo test` runs tests on several. A test that computes in this process holds it.
pub fn mlx() -> MutexGuard<'static, ()> {
    static MLX: Mutex<()> = Mutex::new(());
    MLX.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `test` on `cases` values, the same ones every time.
pub fn check<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(3),
        max_shrink_iters: 50,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(strategy, |value| {
            test(value);
            Ok(())
        })
        .unwrap();
}

/// Names of what is in a folder.
pub fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Fails unless `message` holds every part.
#[track_caller]
pub fn assert_holds(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}
