//! What the settings of a clip may be, wherever they come from. `name` is the flag or the field
//! of a file, as whoever reads the error knows it.

use anyhow::{Result, ensure};

/// The longest side of a frame in pixels. With [`MAX_FRAMES`] it keeps sizes within what 32-bit
/// shapes can count.
pub const MAX_SIDE: u32 = 8192;
const MAX_FRAMES: u32 = 4001;
const MAX_STEPS: u32 = 1000;

/// Checks a number of frames.
pub fn check_frames(name: &str, frames: u32) -> Result<()> {
    ensure!(
        frames % 4 == 1 && frames <= MAX_FRAMES,
        "{name} {frames}: expected 4n + 1 (1, 5, 9, ... 81 ...) up to {MAX_FRAMES}, such as {}",
        (frames.clamp(1, MAX_FRAMES) - 1) / 4 * 4 + 1
    );
    Ok(())
}

/// Checks a number of denoising steps.
pub fn check_steps(name: &str, steps: u32) -> Result<()> {
    ensure!(
        (1..=MAX_STEPS).contains(&steps),
        "{name} {steps}: expected 1 to {MAX_STEPS}"
    );
    Ok(())
}

/// Checks a frame rate.
pub fn check_fps(name: &str, fps: f64) -> Result<()> {
    ensure!(
        (0.1..=240.0).contains(&fps),
        "{name} {fps}: expected 0.1 to 240 frames per second"
    );
    Ok(())
}

/// Checks a schedule's shift.
pub fn check_shift(name: &str, shift: f64) -> Result<()> {
    ensure!(
        shift > 0.0 && shift <= 1000.0,
        "{name} {shift}: expected a positive number, at most 1000"
    );
    Ok(())
}

/// Checks guidance scales.
pub fn check_guide_scale(name: &str, low: f32, high: f32) -> Result<()> {
    ensure!(
        [low, high].iter().all(|scale| scale.abs() <= 1000.0),
        "{name} {low},{high}: expected numbers of at most 1000"
    );
    Ok(())
}

/// Checks an area in pixels.
pub fn check_area(name: &str, area: u64) -> Result<()> {
    let most = u64::from(MAX_SIDE) * u64::from(MAX_SIDE);
    ensure!(
        (256..=most).contains(&area),
        "{name} {area}: expected 256 to {most} pixels"
    );
    Ok(())
}
