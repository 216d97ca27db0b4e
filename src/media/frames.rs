//! Frames from the VAE's value range to 8-bit RGB.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use ndarray::ArrayView3;

/// Converts one decoded frame, f32 `[height, width, 3]` in [-1, 1], to 8-bit RGB.
///
/// Values outside the range are clamped, and levels are rounded half to even, as diffusers'
/// `VideoProcessor` does (`denormalize`, `pt_to_numpy`, `numpy_to_pil`).
///
/// # Errors
/// When the frame is empty, does not have three channels, or holds a value that is not finite:
/// a NaN would otherwise silently become black.
pub fn to_rgb8(frame: ArrayView3<'_, f32>) -> Result<RgbImage> {
    let (height, width, channels) = frame.dim();
    ensure!(
        channels == 3 && height > 0 && width > 0,
        "a decoded frame has the shape [{height}, {width}, {channels}]; \
         expected [height, width, 3] with at least one pixel"
    );
    let mut levels = Vec::with_capacity(height * width * channels);
    for ((y, x, channel), &value) in frame.indexed_iter() {
        ensure!(
            value.is_finite(),
            "a decoded frame holds {value} at row {y}, column {x}, channel {channel}; \
             every value must be finite (the model or its weights produced invalid numbers)"
        );
        let unit = (value * 0.5 + 0.5).clamp(0.0, 1.0);
        levels.push((unit * 255.0).round_ties_even() as u8);
    }
    let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
    RgbImage::from_raw(width, height, levels)
        .with_context(|| format!("a frame of {width}x{height} pixels is too large for memory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, arr3};

    /// The value that stands for a level of 0 to 255.
    fn value(level: f32) -> f32 {
        level / 255.0 * 2.0 - 1.0
    }

    #[test]
    fn maps_the_range_and_clamps() {
        let frame = arr3(&[
            [[-1.0, 1.0, 0.0], [-7.0, 7.0, value(200.0)]],
            [
                [value(0.49), value(0.51), value(253.6)],
                [value(1.0), value(2.0), value(254.4)],
            ],
        ]);
        let image = to_rgb8(frame.view()).unwrap();
        assert_eq!(image.dimensions(), (2, 2));
        let expected = [0, 255, 128, 0, 255, 200, 0, 1, 254, 1, 2, 254];
        assert_eq!(image.into_raw(), expected);
    }

    #[test]
    fn rounds_half_to_even() {
        let levels = [124.5, 126.5, 129.5];
        for level in levels {
            let unit: f32 = value(level) * 0.5 + 0.5;
            assert_eq!(
                unit * 255.0,
                level,
                "this level is not exact and tests nothing"
            );
        }
        let image = to_rgb8(arr3(&[[levels.map(value)]]).view()).unwrap();
        assert_eq!(image.into_raw(), [124, 126, 130]);
    }

    #[test]
    fn every_level_survives_the_round_trip() {
        let frame = Array3::from_shape_fn((1, 256, 3), |(_, x, _)| x as f32 / 255.0 * 2.0 - 1.0);
        let image = to_rgb8(frame.view()).unwrap();
        assert!(
            image
                .enumerate_pixels()
                .all(|(x, _, p)| p.0 == [x as u8; 3])
        );
    }

    #[test]
    fn rows_and_columns_keep_their_places_in_any_memory_order() {
        let frame = Array3::from_shape_fn((2, 3, 3), |(y, x, c)| (y * 9 + x * 3 + c) as f32 / 20.0);
        let plain = to_rgb8(frame.view()).unwrap();
        let planar = frame
            .view()
            .permuted_axes([2, 0, 1])
            .as_standard_layout()
            .to_owned();
        assert_eq!(
            to_rgb8(planar.view().permuted_axes([1, 2, 0])).unwrap(),
            plain
        );
        assert_eq!(plain.dimensions(), (3, 2));
    }

    #[test]
    fn refuses_what_is_not_a_frame() {
        let mut frame = Array3::zeros((4, 4, 3));
        frame[[2, 1, 0]] = f32::NAN;
        let error = to_rgb8(frame.view()).unwrap_err().to_string();
        assert!(
            error.contains("NaN at row 2, column 1, channel 0"),
            "{error}"
        );
        frame[[2, 1, 0]] = f32::INFINITY;
        assert!(to_rgb8(frame.view()).is_err());
        assert!(to_rgb8(Array3::zeros((3, 4, 4)).view()).is_err());
        assert!(to_rgb8(Array3::zeros((0, 4, 3)).view()).is_err());
    }
}
