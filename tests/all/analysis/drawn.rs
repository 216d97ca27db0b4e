//! Clips to measure.

use image::{Rgb, RgbImage};

pub const WIDTH: u32 = 96;
pub const HEIGHT: u32 = 80;

/// A smooth background with a disc, a slanted bar and fine texture.
pub fn picture(shift: f64) -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let (x, y) = (f64::from(x), f64::from(y));
        let (dx, dy) = (x - 30.0 - shift, y - 34.0);
        let disc = (14.5 - dx.hypot(dy)).clamp(0.0, 1.0);
        let bar = (4.5 - (x - y - 30.0).abs() / 2_f64.sqrt()).clamp(0.0, 1.0);
        let fine = 5.0 * (0.7 * x + 0.4 * y).sin() * (0.31 * x - 0.9 * y).cos();
        let ground = 90.0 + 0.4 * x + 0.3 * y + fine;
        let over = |colour: f64, cover: f64, below: f64| below + cover * (colour - below);
        Rgb([220.0, 60.0, 70.0]
            .map(|disc_colour| over(disc_colour, disc, over(180.0, bar, ground)).round() as u8))
    })
}

/// A disc that moves two pixels a frame.
pub fn moving(frames: usize) -> Vec<RgbImage> {
    (0..frames).map(|i| picture(2.0 * i as f64)).collect()
}

/// All of one colour.
pub fn flat(colour: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(WIDTH, HEIGHT, Rgb(colour))
}

/// A checkerboard added to a frame: squares of half a period, the first one brighter.
pub fn with_checkerboard(frame: &RgbImage, period: u32, amplitude: i32) -> RgbImage {
    let mut frame = frame.clone();
    for (x, y, pixel) in frame.enumerate_pixels_mut() {
        let sign = if (x / (period / 2) + y / (period / 2)).is_multiple_of(2) {
            1
        } else {
            -1
        };
        pixel.0 = pixel
            .0
            .map(|level| (i32::from(level) + sign * amplitude).clamp(0, 255) as u8);
    }
    frame
}

/// Normal numbers that only depend on the seed (xorshift64*, sums of twelve uniform ones).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f64 {
        let mut uniform = || {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
            bits as f64 / (1_u64 << 53) as f64
        };
        (0..12).map(|_| uniform()).sum::<f64>() - 6.0
    }

    /// The frame with white noise of a standard deviation in levels.
    pub fn on(&mut self, frame: &RgbImage, deviation: f64) -> RgbImage {
        let mut frame = frame.clone();
        for pixel in frame.pixels_mut() {
            // The same in all channels, so that luma has as much of it.
            let noise = deviation * self.next();
            let noisy = |level: u8| (f64::from(level) + noise).round().clamp(0.0, 255.0) as u8;
            pixel.0 = pixel.0.map(noisy);
        }
        frame
    }
}
