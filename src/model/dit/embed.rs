//! Time embedding and the way between latents and tokens.

use mlx_rs::Array;
use mlx_rs::error::Result;

/// The sinusoidal embedding `[1, dim]` of a timestep: cosines, then sines.
///
/// Computed in float64 as `sinusoidal_embedding_1d` of the reference does. `timestep` is a
/// float only so that the effect of not truncating it can be measured; the reference feeds
/// integers.
pub fn time_sinusoid(timestep: f64, dim: i32) -> Array {
    let half = dim / 2;
    let angles: Vec<f64> = (0..half)
        .map(|i| timestep * 10_000f64.powf(-f64::from(i) / f64::from(half)))
        .collect();
    let values: Vec<f32> = angles
        .iter()
        .map(|a| a.cos() as f32)
        .chain(angles.iter().map(|a| a.sin() as f32))
        .collect();
    Array::from_slice(&values, &[1, dim])
}

/// Latents `[channels, frames, height, width]` to patches `[tokens, channels * pt * ph * pw]`,
/// in the order of the patch convolution's weight.
pub fn patchify(latents: &Array, patch: [i32; 3]) -> Result<Array> {
    let (c, f, h, w) = (
        latents.dim(0),
        latents.dim(1),
        latents.dim(2),
        latents.dim(3),
    );
    let [pt, ph, pw] = patch;
    latents
        .reshape(&[c, f / pt, pt, h / ph, ph, w / pw, pw])?
        .transpose_axes(&[1, 3, 5, 0, 2, 4, 6])?
        .reshape(&[(f / pt) * (h / ph) * (w / pw), c * pt * ph * pw])
}

/// Output tokens `[tokens, pt * ph * pw * channels]` to latents
/// `[channels, frames, height, width]`; `grid` is the latents' frames, height and width.
pub fn unpatchify(tokens: &Array, grid: [i32; 3], patch: [i32; 3]) -> Result<Array> {
    let [f, h, w] = grid;
    let [pt, ph, pw] = patch;
    let c = tokens.dim(1) / (pt * ph * pw);
    tokens
        .reshape(&[f / pt, h / ph, w / pw, pt, ph, pw, c])?
        .transpose_axes(&[6, 0, 3, 1, 4, 2, 5])?
        .reshape(&[c, f, h, w])
}
