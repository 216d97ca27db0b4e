//! The amplitude of a checkerboard that lies on the grid of the VAE.

use super::plane::Plane;

/// Periods in pixels that are measured: the decoder's last upsampling, a latent pixel (stride 8),
/// and a patch of the transformer (2 latent pixels).
pub const PERIODS: [usize; 3] = [2, 8, 16];

/// The amplitude in levels of a checkerboard of `period` pixels in `plane`: A when A is added on
/// the fields of one colour and subtracted on the others. Fields are squares of half a period, the
/// first one in the upper left corner, where the grids of latents and patches begin. 0 for a plane
/// that is not larger than a field.
///
/// With h = period / 2 and c = 1 or -1 for the two colours, every pixel has an estimate
///
/// c(x, y) (f(x, y) - f(x + h, y) - f(x, y + h) + f(x + h, y + h)) / 4,
///
/// which is A wherever the frame is a checkerboard upon any sum of a profile along x and one along
/// y. Whatever else is in the picture (edges that slant, texture) gives estimates of either sign in
/// few places, so the mean of the middle half of all estimates is taken, of which such places are
/// no part. The result's absolute value is the amplitude.
pub(super) fn amplitude(plane: &Plane, period: usize) -> f64 {
    let half = (period / 2).max(1);
    let (Some(width), Some(height)) = (
        plane.width.checked_sub(half),
        plane.height.checked_sub(half),
    ) else {
        return 0.0;
    };
    let mut estimates = Vec::with_capacity(width * height);
    for y in 0..height {
        let (row, below) = (plane.row(y), plane.row(y + half));
        for x in 0..width {
            let mixed = row[x] - row[x + half] - below[x] + below[x + half];
            let colour = if (x / half + y / half).is_multiple_of(2) {
                0.25
            } else {
                -0.25
            };
            estimates.push(colour * mixed);
        }
    }
    middle_mean(&mut estimates).abs()
}

/// Mean of the values between the quartiles; 0 of none.
fn middle_mean(values: &mut [f32]) -> f64 {
    let quarter = values.len() / 4;
    if values.is_empty() {
        return 0.0;
    }
    values.select_nth_unstable_by(quarter, f32::total_cmp);
    let upper = &mut values[quarter..];
    let middle = upper.len() - quarter;
    upper.select_nth_unstable_by(middle - 1, f32::total_cmp);
    let sum: f64 = upper[..middle].iter().map(|&value| f64::from(value)).sum();
    sum / middle as f64
}
