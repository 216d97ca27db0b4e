//! Writes a small checkpoint with random weights in the diffusers layout:
//! `cargo run --example random-checkpoint -- DIR`. Its clips are noise; it shows that the whole
//! path runs, nothing more.

#[path = "../tests/support/checkpoint.rs"]
mod checkpoint;
#[path = "../tests/support/portable.rs"]
mod portable;

use std::path::Path;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let target = std::env::args_os()
        .nth(1)
        .context("usage: random-checkpoint DIR")?;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    checkpoint::write(
        &tests.join("golden/a"),
        &tests.join("data/tokenizer"),
        Path::new(&target),
        "a",
    )
}
