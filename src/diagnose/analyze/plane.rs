//! What is measured on one frame's luma by itself.

use image::RgbImage;

/// Luma weights of red, green and blue (ITU-R BT.709-6, item 3.2), as the clips' own encoding uses
/// them. They add up to 1: what is the same in all channels has the same size in luma.
const LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// A frame's luma, `[height, width]` in levels of 0 to 255.
#[derive(Clone, Debug)]
pub(super) struct Plane {
    pub width: usize,
    pub height: usize,
    /// Row by row.
    pub values: Vec<f32>,
}

impl Plane {
    pub fn of(frame: &RgbImage) -> Self {
        let luma = |pixel: &image::Rgb<u8>| -> f32 {
            let parts = pixel.0.iter().zip(LUMA);
            parts
                .map(|(&level, weight)| f32::from(level) * weight)
                .sum()
        };
        Self {
            width: frame.width() as usize,
            height: frame.height() as usize,
            values: frame.pixels().map(luma).collect(),
        }
    }

    pub fn row(&self, y: usize) -> &[f32] {
        &self.values[y * self.width..(y + 1) * self.width]
    }

    /// Variance of the Laplacian (4 neighbours, pixels with all of them): Pech-Pacheco et al.,
    /// "Diatom autofocusing in brightfield microscopy" (2000), as `cv2.Laplacian(luma).var()` but
    /// for the border. 0 for a frame without an inner pixel.
    pub fn sharpness(&self) -> f64 {
        let (mut count, mut sum, mut squares) = (0_u32, 0.0, 0.0);
        self.inner(|rows, x| {
            let [above, row, below] = rows;
            let laplacian = above[x] + below[x] + row[x - 1] + row[x + 1] - 4.0 * row[x];
            let laplacian = f64::from(laplacian);
            count += 1;
            sum += laplacian;
            squares += laplacian * laplacian;
        });
        let count = f64::from(count.max(1));
        (squares / count - (sum / count).powi(2)).max(0.0)
    }

    /// Standard deviation of white noise in the frame, in levels: Immerkær, "Fast noise variance
    /// estimation" (1996). Its mask is blind to slopes and to lines along the axes; fine texture
    /// counts as noise. 0 for a frame without an inner pixel.
    pub fn noise(&self) -> f64 {
        let (mut count, mut sum) = (0_u32, 0.0);
        self.inner(|rows, x| {
            let second = |row: &[f32]| row[x - 1] - 2.0 * row[x] + row[x + 1];
            let [above, row, below] = rows.map(second);
            count += 1;
            sum += f64::from((above - 2.0 * row + below).abs());
        });
        (std::f64::consts::PI / 2.0).sqrt() / 6.0 * sum / f64::from(count.max(1))
    }

    /// Gives each pixel that has neighbours on all sides: its row and those around it, its place.
    fn inner(&self, mut each: impl FnMut([&[f32]; 3], usize)) {
        for y in 1..self.height.saturating_sub(1) {
            let rows = [self.row(y - 1), self.row(y), self.row(y + 1)];
            for x in 1..self.width.saturating_sub(1) {
                each(rows, x);
            }
        }
    }
}
