//! Signs of broken kernels and of settings that a run does not survive.

use anyhow::{Result, ensure};
use mlx_rs::Array;

use crate::runtime::{all_finite, to_host};

/// Predictions that spread less than this have collapsed: what broken kernels leave of a
/// velocity whose spread is near 1.
const COLLAPSED: f64 = 1e-6;

/// A prediction that is not finite.
#[derive(Debug)]
pub(super) struct NotFinite {
    pub(super) place: String,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the prediction is not finite, first in {}\nhint: try --dtype f32 or --device cpu and please \
             report it",
            self.place
        )
    }
}

impl std::error::Error for NotFinite {}

/// Refuses a broken prediction: kernels that overflow leave NaN or nothing, which would otherwise
/// show as a black clip hours later. `first_broken` finds the first block whose output is not
/// finite.
///
/// # Errors
/// When the prediction is not finite or has collapsed.
pub(super) fn check_prediction(
    velocity: &Array,
    first_broken: impl FnOnce() -> Result<Option<usize>>,
) -> Result<()> {
    let values = to_host(velocity)?;
    let (mut sum, mut squares) = (0.0_f64, 0.0_f64);
    for &value in &values {
        sum += f64::from(value);
        squares += f64::from(value) * f64::from(value);
    }
    let count = values.len().max(1) as f64;
    let variance = squares / count - (sum / count).powi(2);
    if !squares.is_finite() {
        let place = first_broken()?.map(|block| format!("block {block}"));
        let place = place.unwrap_or("the output head".into());
        return Err(NotFinite { place }.into());
    }
    ensure!(
        values.len() < 2 || variance.max(0.0).sqrt() > COLLAPSED,
        "the prediction has collapsed to {:.3e} everywhere\nhint: try --dtype f32 or --device cpu and \
         please report it",
        sum / count
    );
    Ok(())
}

/// Refuses latents that a solver's step has broken.
///
/// # Errors
/// When they are not finite.
pub(super) fn check_latents(latents: &Array) -> Result<()> {
    ensure!(
        all_finite(latents)?,
        "the latents are no longer finite after the solver's step\nhint: try --dtype f32, a smaller \
         --guide-scale or another --solver"
    );
    Ok(())
}
