//! Frame rates as exact fractions.

use anyhow::{Result, ensure};

/// A constant frame rate as `ticks_per_second / ticks_per_frame`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameRate {
    pub ticks_per_second: u32,
    pub ticks_per_frame: u32,
}

impl FrameRate {
    /// The rate nearest to `fps`: a broadcast rate n * 1000/1001 if `fps` is one to three decimals
    /// (23.976, 29.97, 59.94), else exact to a thousandth.
    ///
    /// # Errors
    /// When `fps` is not between 0.1 and 240.
    pub fn new(fps: f64) -> Result<Self> {
        ensure!(
            (0.1..=240.0).contains(&fps),
            "{fps} frames a second is out of range\nhint: give 0.1 to 240"
        );
        let whole = (fps * 1.001).round();
        let broadcast = whole >= 1.0 && (whole / 1.001 - fps).abs() < 5e-4;
        let (ticks_per_second, ticks_per_frame) = if broadcast {
            (whole as u32 * 1000, 1001)
        } else {
            ((fps * 1000.0).round() as u32, 1000)
        };
        let shared = gcd(ticks_per_second, ticks_per_frame);
        Ok(Self {
            ticks_per_second: ticks_per_second / shared,
            ticks_per_frame: ticks_per_frame / shared,
        })
    }

    /// The same rate in finer ticks, at least 10,000 a second: players round times to them.
    pub fn fine(self) -> Self {
        let mut rate = self;
        while rate.ticks_per_second < 10_000 {
            rate.ticks_per_second *= 2;
            rate.ticks_per_frame *= 2;
        }
        rate
    }

    /// When frame `index` starts, in hundredths of a second, rounded to the nearest.
    pub fn centiseconds(self, index: u32) -> u64 {
        let second = u64::from(self.ticks_per_second);
        (u64::from(index) * u64::from(self.ticks_per_frame) * 100 + second / 2) / second
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_fraction_that_is_meant() {
        for (fps, ticks_per_second, ticks_per_frame) in [
            (16.0, 16, 1),
            (24.0, 24, 1),
            (12.5, 25, 2),
            (23.976, 24_000, 1001),
            (24_000.0 / 1001.0, 24_000, 1001),
            (29.97, 30_000, 1001),
            (59.94, 60_000, 1001),
            (23.98, 1199, 50),
            (0.1, 1, 10),
            (240.0, 240, 1),
        ] {
            let rate = FrameRate::new(fps).unwrap();
            assert_eq!(
                rate,
                FrameRate {
                    ticks_per_second,
                    ticks_per_frame
                },
                "{fps}"
            );
            let fine = rate.fine();
            assert!(fine.ticks_per_second >= 10_000);
            assert_eq!(
                u64::from(fine.ticks_per_second) * u64::from(ticks_per_frame),
                u64::from(ticks_per_second) * u64::from(fine.ticks_per_frame)
            );
        }
        for fps in [0.0, -1.0, 0.05, 241.0, f64::NAN, f64::INFINITY] {
            assert!(FrameRate::new(fps).is_err(), "{fps}");
        }
    }
}
