//! What the settings of a clip may be, wherever they come from. `name` is the flag or the field
//! of a file, as whoever reads the error knows it.

use std::fmt::Display;

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
        "{}expected 4n + 1 (1, 5, 9, ... 81 ...) up to {MAX_FRAMES}, such as {}",
        found(name, frames),
        (frames.clamp(1, MAX_FRAMES) - 1) / 4 * 4 + 1
    );
    Ok(())
}

/// Checks a number of denoising steps.
pub fn check_steps(name: &str, steps: u32) -> Result<()> {
    ensure!(
        (1..=MAX_STEPS).contains(&steps),
        "{}expected 1 to {MAX_STEPS}",
        found(name, steps)
    );
    Ok(())
}

/// Checks a frame rate.
pub fn check_fps(name: &str, fps: f64) -> Result<()> {
    ensure!(
        (0.1..=240.0).contains(&fps),
        "{}expected 0.1 to 240 frames per second",
        found(name, fps)
    );
    Ok(())
}

/// Checks a schedule's shift.
pub fn check_shift(name: &str, shift: f64) -> Result<()> {
    ensure!(
        shift > 0.0 && shift <= 1000.0,
        "{}expected a positive number, at most 1000",
        found(name, shift)
    );
    Ok(())
}

/// Checks guidance scales.
pub fn check_guide_scale(name: &str, low: f32, high: f32) -> Result<()> {
    ensure!(
        [low, high].iter().all(|scale| scale.abs() <= 1000.0),
        "{}expected numbers of at most 1000",
        found(name, format_args!("{low},{high}"))
    );
    Ok(())
}

/// Checks the guided share of the steps.
pub fn check_interval(name: &str, start: f64, end: f64) -> Result<()> {
    ensure!(
        (0.0..=1.0).contains(&start) && (0.0..=1.0).contains(&end) && start < end,
        "{}expected two shares of the steps from 0 to 1, the first smaller than the second",
        found(name, format_args!("{start},{end}"))
    );
    Ok(())
}

/// The largest area in pixels.
pub const MAX_AREA: u64 = MAX_SIDE as u64 * MAX_SIDE as u64;

/// Checks an area in pixels.
pub fn check_area(name: &str, area: u64) -> Result<()> {
    ensure!(
        (256..=MAX_AREA).contains(&area),
        "{}expected 256 to {MAX_AREA} pixels",
        found(name, area)
    );
    Ok(())
}

/// Checks a size in pixels, whose sides are multiples of `multiple`.
pub fn check_size(name: &str, width: u32, height: u32, multiple: u32) -> Result<()> {
    for (side, pixels) in [("width", width), ("height", height)] {
        let what = format!(
            "{}the {side} {pixels}",
            found(name, format_args!("{width}x{height}"))
        );
        check_multiple(&what, pixels, multiple)?;
    }
    Ok(())
}

/// Checks a width or a height in pixels, as [`check_size`] does.
pub fn check_side(name: &str, side: u32, multiple: u32) -> Result<()> {
    check_multiple(&format!("{}{side}", found(name, side)), side, multiple)
}

fn check_multiple(what: &str, pixels: u32, multiple: u32) -> Result<()> {
    ensure!(
        pixels.is_multiple_of(multiple) && (multiple..=MAX_SIDE).contains(&pixels),
        "{what} is not a multiple of {multiple} from {multiple} to {MAX_SIDE}; the nearest is {}",
        nearest_multiple(pixels, multiple)
    );
    Ok(())
}

/// The size that is `side` pixels one way, and the other way what `other` / `this` makes of it.
pub fn nearest_side(side: u32, [this, other]: [usize; 2], multiple: u32) -> u32 {
    let exact = f64::from(side) * other as f64 / this as f64;
    nearest_multiple(exact.min(f64::from(u32::MAX)) as u32, multiple)
}

fn nearest_multiple(pixels: u32, multiple: u32) -> u32 {
    let rounded = (u64::from(pixels) + u64::from(multiple) / 2) / u64::from(multiple);
    (rounded * u64::from(multiple)).clamp(
        u64::from(multiple),
        u64::from(MAX_SIDE / multiple * multiple),
    ) as u32
}

/// How an error begins: `--steps 0: `. Where no name is given, the caller says what was found.
fn found(name: &str, value: impl Display) -> String {
    match name {
        "" => String::new(),
        _ => format!("{name} {value}: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_multiples_stay_in_range() {
        assert_eq!(nearest_multiple(0, 16), 16);
        assert_eq!(nearest_multiple(100, 16), 96);
        assert_eq!(nearest_multiple(u32::MAX, 16), MAX_SIDE);
    }
}
