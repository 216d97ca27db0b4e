//! Makes `src/diagnose/doctor/golden.json`: what is kept of the clip that `wan-i2v doctor` renders.
//!
//! On the CPU in float32, whose clips of the miniature are diffusers' to a level of 255
//! (`scripts/compare_diffusers.py`).
//! Usage: cargo run --release --example golden-doctor > src/diagnose/doctor/golden.json

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use anyhow::Result;
use wan_i2v::diagnose::doctor::golden::{Gist, render};
use wan_i2v::runtime::{Device, DeviceKind, Precision};

fn main() -> Result<()> {
    let device = Device::select(Some(DeviceKind::Cpu), Some(Precision::F32))?;
    let frames = render(device)?;
    if let Some(folder) = std::env::args_os().nth(1) {
        // For looking at.
        for (i, frame) in frames.iter().enumerate() {
            frame.save(std::path::Path::new(&folder).join(format!("{i:02}.png")))?;
        }
    }
    println!("{}", serde_json::to_string(&Gist::of(&frames)?)?);
    Ok(())
}
