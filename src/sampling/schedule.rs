//! Noise schedules and solvers of the flow-matching differential equation.
//!
//! The schedule is the original Wan one (Wan-Video/Wan2.2, `wan/utils/fm_solvers_unipc.py` and
//! `fm_solvers.py`), not that of diffusers' scheduler classes: at 40 steps their timesteps
//! differ by up to 4 and their sigmas by 0.004.
//!
//! A latent at noise level sigma is `(1 - sigma) * clean + sigma * noise`; the network predicts
//! the velocity `noise - clean`. Coefficients are float64 on the host, latents float32.

use anyhow::{Context, Result, ensure};
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
    /// Latent consistency sampling: from each estimate of the clean latents fresh noise leads to the next
    /// noise level, as models want it that were distilled by distribution matching (FastWan, TI2V-5B-Turbo;
    /// NVIDIA/TensorRT-LLM, `FastWanPipeline`).
    Lcm,
}

impl std::fmt::Display for Solver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Solver::UniPc => "unipc",
            Solver::DpmPlusPlus => "dpm++",
            Solver::Euler => "euler",
            Solver::Lcm => "lcm",
        })
    }
}

/// How the noise levels of a run are chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Sigmas {
    /// As Wan's own program spaces them, with timesteps cut to integers.
    #[default]
    Wan,
    /// `1 - i / steps`, shifted, with timesteps as they come: what step-distilled models are trained
    /// for. ModelTC/LightX2V, `schedulers/wan/step_distill/scheduler.py`, takes the same from a grid of
    /// 1000.
    Flow,
    /// These, from the first to the one before 0.
    List(Vec<f64>),
}

impl std::fmt::Display for Sigmas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wan => f.write_str("wan"),
            Self::Flow => f.write_str("flow"),
            Self::List(list) => {
                let list: Vec<String> = list.iter().map(f64::to_string).collect();
                f.write_str(&list.join(","))
            }
        }
    }
}

impl std::str::FromStr for Sigmas {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        const EXPECTED: &str = "expected wan, flow, or noise levels that fall from 1 at most to above 0, \
                                such as 1,0.9375,0.8333,0.625";
        match text.trim() {
            "wan" => return Ok(Self::Wan),
            "flow" => return Ok(Self::Flow),
            _ => {}
        }
        let list = text.split(',').map(|number| number.trim().parse::<f64>());
        let mut list = list.collect::<Result<Vec<_>, _>>().context(EXPECTED)?;
        // Lists are published with and without the end.
        list.pop_if(|last| *last == 0.0);
        let falls = list.is_sorted_by(|a, b| a > b);
        let fits = list.iter().all(|sigma| *sigma > 0.0 && *sigma <= 1.0);
        ensure!(falls && fits && !list.is_empty(), EXPECTED);
        Ok(Self::List(list))
    }
}

impl TryFrom<String> for Sigmas {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Sigmas> for String {
    fn from(sigmas: Sigmas) -> Self {
        sigmas.to_string()
    }
}

/// Training timesteps; timesteps are sigmas times this.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// The noise levels of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// `steps + 1` noise levels, falling from near 1 to 0.
    pub sigmas: Vec<f64>,
    /// `steps` timesteps, as they are fed to the network: integers in Wan's own schedule.
    pub timesteps: Vec<f64>,
    /// The first steps, of the high-noise expert; without it timesteps decide.
    pub high_steps: Option<usize>,
}

impl Schedule {
    /// Wan's own schedule of `steps` steps with `shift`, as the reference builds it for `solver`.
    ///
    /// UniPC (and Euler, which the reference lacks) starts at the largest training sigma, 0.999
    /// rounded to float32; DPM++ starts at 1. Timesteps are truncated from float64 sigmas, then
    /// sigmas are rounded to float32, as in the reference; the spacing is numpy's `linspace`,
    /// to the last bit, since truncation shows every rounding.
    pub fn new(solver: Solver, steps: usize, shift: f64) -> Self {
        let largest = match solver {
            Solver::UniPc | Solver::Euler | Solver::Lcm => f64::from(0.999_f32),
            Solver::DpmPlusPlus => 1.0,
        };
        let spacing = -largest / steps as f64;
        let sigmas = (0..steps).map(|i| shifted(i as f64 * spacing + largest, shift));
        Self::of(sigmas.collect(), |sigma| (sigma * TRAIN_TIMESTEPS).trunc())
    }

    /// The schedule of `sigmas`.
    pub fn with_sigmas(sigmas: &Sigmas, solver: Solver, steps: usize, shift: f64) -> Self {
        let exact = |sigma: f64| sigma * TRAIN_TIMESTEPS;
        match sigmas {
            Sigmas::Wan => Self::new(solver, steps, shift),
            Sigmas::Flow => {
                let sigmas = (0..steps).map(|i| shifted(1.0 - i as f64 / steps as f64, shift));
                Self::of(sigmas.collect(), exact)
            }
            Sigmas::List(list) => Self::of(list.clone(), exact),
        }
    }

    fn of(mut sigmas: Vec<f64>, timestep: impl Fn(f64) -> f64) -> Self {
        let timesteps = sigmas.iter().map(|&sigma| timestep(sigma)).collect();
        sigmas.push(0.0);
        for sigma in &mut sigmas {
            *sigma = f64::from(*sigma as f32);
        }
        Self {
            sigmas,
            timesteps,
            high_steps: None,
        }
    }

    /// Steps of the run.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }
}

fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lists that LightX2V publishes for four and eight steps.
    #[test]
    fn distilled_schedules_are_the_published_ones() {
        let four = Schedule::with_sigmas(&Sigmas::Flow, Solver::Euler, 4, 5.0);
        let expected = [1000.0, 937.5, 2500.0 / 3.0, 625.0];
        let near = |found: &[f64], expected: &[f64], most: f64| {
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| (a - b).abs() < most)
        };
        assert!(near(&four.timesteps, &expected, 1e-6 * 1000.0));
        let sigmas = [1.0, 0.9375, 0.833_333_3, 0.625, 0.0];
        assert!(near(&four.sigmas, &sigmas, 1e-6));
        let eight = Schedule::with_sigmas(&Sigmas::Flow, Solver::Euler, 8, 5.0);
        let expected = [1000.0, 972.2, 937.5, 892.9, 833.3, 750.0, 625.0, 416.7];
        assert!(near(&eight.timesteps, &expected, 0.05));
        // From the grid of a thousand, by index, as its scheduler has it.
        for (i, timestep) in four.timesteps.iter().enumerate() {
            let of_grid = shifted(1.0 - (250 * i) as f64 / 1000.0, 5.0) * 1000.0;
            assert!((of_grid - timestep).abs() < 1e-6);
        }
    }

    #[test]
    fn lists_are_read_and_written() {
        let read = |text: &str| text.parse::<Sigmas>();
        let fast = Sigmas::List(vec![1.0, 0.757, 0.522]);
        assert_eq!(read("1.0, 0.757, 0.522, 0").unwrap(), fast);
        assert_eq!(read("1,0.757,0.522").unwrap(), fast);
        for sigmas in [fast, Sigmas::Wan, Sigmas::Flow] {
            assert_eq!(read(&sigmas.to_string()).unwrap(), sigmas);
        }
        for wrong in [
            "", "0", "1,1", "0.5,0.6", "1.1,0.5", "1,nan", "1,-1", "1,x", "karras",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let list = Schedule::with_sigmas(&read("1,0.5").unwrap(), Solver::Euler, 7, 5.0);
        assert_eq!(
            (list.timesteps, list.sigmas),
            (vec![1000.0, 500.0], vec![1.0, 0.5, 0.0])
        );
    }
}
