//! Noise schedules and solvers of the flow-matching differential equation.
//!
//! The schedule is the original Wan one (Wan-Video/Wan2.2, `wan/utils/fm_solvers_unipc.py` and
//! `fm_solvers.py`), not that of diffusers' scheduler classes: at 40 steps their timesteps
//! differ by up to 4 and their sigmas by 0.004.
//!
//! A latent at noise level sigma is `(1 - sigma) * clean + sigma * noise`; the network predicts
//! the velocity `noise - clean`. Coefficients are float64 on the host, latents float32.

use serde::{Deserialize, Serialize};

/// How the differential equation is solved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// UniPC of order 2, `bh2`, predictor and corrector (arXiv:2302.04867).
    #[default]
    UniPc,
    /// DPM-Solver++ (2M), midpoint (arXiv:2211.01095).
    #[serde(rename = "dpm++")]
    DpmPlusPlus,
    /// Euler's method.
    Euler,
}

impl std::fmt::Display for Solver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Solver::UniPc => "unipc",
            Solver::DpmPlusPlus => "dpm++",
            Solver::Euler => "euler",
        })
    }
}

/// Training timesteps; timesteps are sigmas times this.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// The noise levels of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// `steps + 1` noise levels, falling from near 1 to 0.
    pub sigmas: Vec<f64>,
    /// `steps` integer timesteps, as they are fed to the network.
    pub timesteps: Vec<i64>,
}

impl Schedule {
    /// The schedule of `steps` steps with `shift`, as the reference builds it for `solver`.
    ///
    /// UniPC (and Euler, which the reference lacks) starts at the largest training sigma, 0.999
    /// rounded to float32; DPM++ starts at 1. Timesteps are truncated from float64 sigmas, then
    /// sigmas are rounded to float32, as in the reference; the spacing is numpy's `linspace`,
    /// to the last bit, since truncation shows every rounding.
    pub fn new(solver: Solver, steps: usize, shift: f64) -> Self {
        let largest = match solver {
            Solver::UniPc | Solver::Euler => f64::from(0.999_f32),
            Solver::DpmPlusPlus => 1.0,
        };
        let spacing = -largest / steps as f64;
        let shifted = (0..steps).map(|i| {
            let sigma: f64 = i as f64 * spacing + largest;
            shift * sigma / (1.0 + (shift - 1.0) * sigma)
        });
        let mut sigmas: Vec<f64> = shifted.collect();
        let timesteps = sigmas
            .iter()
            .map(|sigma| (sigma * TRAIN_TIMESTEPS) as i64)
            .collect();
        sigmas.push(0.0);
        for sigma in &mut sigmas {
            *sigma = f64::from(*sigma as f32);
        }
        Self { sigmas, timesteps }
    }

    /// Steps of the run.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }
}
