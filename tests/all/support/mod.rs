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

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps every other test from MLX while the guard lives: its default stream belongs to one thread
/// at a time, and `cargo test` runs tests on several. A test that computes in this process holds it.
pub fn mlx() -> MutexGuard<'static, ()> {
    static MLX: Mutex<()> = Mutex::new(());
    MLX.lock().unwrap_or_else(PoisonError::into_inner)
}
