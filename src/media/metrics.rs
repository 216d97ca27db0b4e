//! How alike two 8-bit pictures are: PSNR and SSIM.

use anyhow::{Result, ensure};
use image::RgbImage;

/// Taps of SSIM's Gaussian window, in pixels.
const WINDOW: usize = 11;
/// Its standard deviation, in pixels.
const DEVIATION: f64 = 1.5;
/// The largest level.
const PEAK: f64 = 255.0;

/// Peak signal-to-noise ratio in dB over all three channels; infinite for equal pictures.
///
/// # Errors
/// When the pictures differ in size or are empty.
pub fn psnr(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    Ok(psnr_of_mean_square(mean_square(a, b)?))
}

/// PSNR in dB of a mean squared difference of 8-bit levels.
///
/// For a clip take the mean over all of its frames: the mean of the frames' own PSNRs is infinite
/// as soon as one frame is equal.
pub fn psnr_of_mean_square(mean_square: f64) -> f64 {
    10.0 * (PEAK * PEAK / mean_square).log10()
}

/// Mean squared difference of the levels over all three channels.
///
/// # Errors
/// As [`psnr`].
pub fn mean_square(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    check(a, b, 1)?;
    let sum: f64 = a
        .iter()
        .zip(b.iter())
        .map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2))
        .sum();
    Ok(sum / a.len() as f64)
}

/// Structural similarity, 1 for equal pictures: Wang et al., "Image quality assessment: from error
/// visibility to structural similarity" (2004), with its Gaussian window of 11 x 11 pixels and
/// deviation 1.5, K1 = 0.01, K2 = 0.03, population variances, and windows that lie within the
/// picture only; the mean over the windows and the three channels.
///
/// # Errors
/// When the pictures differ in size, or a side is below 11 pixels.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    check(a, b, WINDOW as u32)?;
    let (width, height) = (a.width() as usize, a.height() as usize);
    let kernel = gaussian();
    let mut sum = 0.0;
    for channel in 0..3 {
        let plane = |picture: &RgbImage| -> Vec<f64> {
            let levels = picture.iter().skip(channel).step_by(3);
            levels.map(|&level| f64::from(level)).collect()
        };
        sum += ssim_plane(&plane(a), &plane(b), width, height, &kernel);
    }
    Ok(sum / 3.0)
}

/// Mean SSIM of two planes of `width * height` levels.
fn ssim_plane(a: &[f64], b: &[f64], width: usize, height: usize, kernel: &[f64; WINDOW]) -> f64 {
    let c1 = (0.01 * PEAK).powi(2);
    let c2 = (0.03 * PEAK).powi(2);
    let product =
        |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let weigh = |plane: &[f64]| weigh(plane, width, height, kernel);
    let (mean_a, mean_b) = (weigh(a), weigh(b));
    let (aa, bb, ab) = (
        weigh(&product(a, a)),
        weigh(&product(b, b)),
        weigh(&product(a, b)),
    );
    let sum: f64 = (0..mean_a.len())
        .map(|i| {
            let (ma, mb) = (mean_a[i], mean_b[i]);
            let (va, vb) = (aa[i] - ma * ma, bb[i] - mb * mb);
            let covariance = ab[i] - ma * mb;
            (2.0 * ma * mb + c1) * (2.0 * covariance + c2)
                / ((ma * ma + mb * mb + c1) * (va + vb + c2))
        })
        .sum();
    sum / mean_a.len() as f64
}

/// The window's weighted mean wherever it lies within the plane.
fn weigh(plane: &[f64], width: usize, height: usize, kernel: &[f64; WINDOW]) -> Vec<f64> {
    let columns = width - WINDOW + 1;
    let mut rows = Vec::with_capacity(columns * height);
    for row in plane.chunks_exact(width) {
        rows.extend(row.windows(WINDOW).map(|window| dot(window, kernel)));
    }
    let mut means = Vec::with_capacity(columns * (height - WINDOW + 1));
    for y in 0..=height - WINDOW {
        for x in 0..columns {
            let column = (0..WINDOW).map(|i| kernel[i] * rows[(y + i) * columns + x]);
            means.push(column.sum());
        }
    }
    means
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The window's taps along one axis; they add up to 1.
fn gaussian() -> [f64; WINDOW] {
    let centre = (WINDOW / 2) as f64;
    let taps: [f64; WINDOW] = std::array::from_fn(|i| {
        (-(i as f64 - centre).powi(2) / (2.0 * DEVIATION * DEVIATION)).exp()
    });
    let sum: f64 = taps.iter().sum();
    taps.map(|tap| tap / sum)
}

fn check(a: &RgbImage, b: &RgbImage, side: u32) -> Result<()> {
    ensure!(
        a.dimensions() == b.dimensions(),
        "pictures of {:?} and {:?} pixels cannot be compared",
        a.dimensions(),
        b.dimensions()
    );
    ensure!(
        a.width() >= side && a.height() >= side,
        "pictures of {:?} pixels cannot be compared; expected at least {side} along each side",
        a.dimensions()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// A picture of whole-number formulas, which the reference script repeats.
    fn first() -> RgbImage {
        RgbImage::from_fn(24, 17, |x, y| {
            Rgb([
                ((x * 11 + y * 7) % 256) as u8,
                ((x * x + 3 * y) % 256) as u8,
                ((x * y * 5 + 40) % 256) as u8,
            ])
        })
    }

    /// Another one: the first, disturbed.
    fn second() -> RgbImage {
        let mut picture = first();
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            for (channel, level) in pixel.0.iter_mut().enumerate() {
                let noise = (x * 13 + y * 29 + channel as u32 * 17) % 41;
                *level = (u32::from(*level) * 9 / 10 + noise).min(255) as u8;
            }
        }
        picture
    }

    #[test]
    fn psnr_of_known_differences() {
        let grey = |level| RgbImage::from_pixel(16, 12, Rgb([level; 3]));
        assert_eq!(psnr(&grey(7), &grey(7)).unwrap(), f64::INFINITY);
        // A difference of 1 everywhere: 20 log10(255).
        assert!((psnr(&grey(7), &grey(8)).unwrap() - 48.130_803_608_679_1).abs() < 1e-9);
        assert!(psnr(&grey(0), &grey(255)).unwrap().abs() < 1e-12);
        // One channel of one pixel of 192 by 10 levels: 100 / 576.
        let mut spot = grey(7);
        spot.put_pixel(3, 4, Rgb([7, 17, 7]));
        assert!((mean_square(&grey(7), &spot).unwrap() - 100.0 / 576.0).abs() < 1e-12);
    }

    /// Flat pictures leave SSIM's first factor: (2ab + C1) / (a² + b² + C1).
    #[test]
    fn ssim_of_flat_pictures() {
        let grey = |level| RgbImage::from_pixel(11, 15, Rgb([level; 3]));
        let expected = (2.0 * 100.0 * 120.0 + 6.5025) / (100.0 * 100.0 + 120.0 * 120.0 + 6.5025);
        assert!((ssim(&grey(100), &grey(120)).unwrap() - expected).abs() < 1e-9);
        assert!((ssim(&first(), &first()).unwrap() - 1.0).abs() < 1e-12);
    }

    /// skimage.metrics.structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
    /// use_sample_covariance=False, data_range=255) of scikit-image 0.26.0, with truncate 3.5 as its
    /// default, whose window is 11 wide; its mean leaves out the 5 border pixels, as ours does.
    #[test]
    fn ssim_equals_scikit_image() {
        let measured = ssim(&first(), &second()).unwrap();
        assert!(
            (measured - 0.927_641_012_319_123_4).abs() < 1e-9,
            "{measured}"
        );
        let noise = psnr(&first(), &second()).unwrap();
        assert!((noise - 24.032_480_334_738_153).abs() < 1e-9, "{noise}");
    }

    #[test]
    fn refuses_what_cannot_be_compared() {
        let picture = |width, height| RgbImage::new(width, height);
        assert!(psnr(&picture(4, 5), &picture(5, 4)).is_err());
        assert!(psnr(&picture(0, 5), &picture(0, 5)).is_err());
        assert!(ssim(&picture(10, 20), &picture(10, 20)).is_err());
        assert!(ssim(&picture(20, 10), &picture(20, 10)).is_err());
        assert!(ssim(&picture(11, 11), &picture(11, 11)).is_ok());
    }
}
