//! The solvers, one step at a time.

use mlx_rs::Array;
use mlx_rs::error::Result;

use super::noise::randn;
use super::{Schedule, Solver};
use crate::runtime::State;

/// A run of a solver: the schedule and what the solver remembers of earlier steps.
#[derive(Clone, Debug)]
pub struct Sampler {
    solver: Solver,
    schedule: Schedule,
    /// Of the initial noise.
    seed: u64,
    step: usize,
    /// Clean estimates of the last step and the one before.
    last: Option<Array>,
    before_last: Option<Array>,
    /// UniPC: the latents that the last prediction started from, and its order.
    predicted_from: Option<(Array, usize)>,
}

impl Sampler {
    /// A run at its first step; `seed` is that of the initial noise.
    pub fn new(solver: Solver, schedule: Schedule, seed: u64) -> Self {
        Self {
            solver,
            schedule,
            seed,
            step: 0,
            last: None,
            before_last: None,
            predicted_from: None,
        }
    }

    /// The noise levels and timesteps of the run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The step that comes next, from 0.
    pub fn step_index(&self) -> usize {
        self.step
    }

    /// What the coming step takes the clean latents to be, where the network predicted `velocity`
    /// for the latents `x`. Lazy.
    ///
    /// Past the last step it is `x`.
    pub fn estimate(&self, x: &Array, velocity: &Array) -> Result<Array> {
        let sigma = self.schedule.sigmas.get(self.step).copied();
        weighted(&[(1.0, x), (-sigma.unwrap_or(0.0), velocity)])
    }

    /// Takes one step from latents `x`, where the network predicted `velocity`, both of one
    /// shape and float32; returns the latents at the next noise level. Lazy.
    ///
    /// Past the last step the latents come back as they are.
    pub fn step(&mut self, x: &Array, velocity: &Array) -> Result<Array> {
        if self.step >= self.schedule.steps() {
            return Ok(x.clone());
        }
        let sigma = self.schedule.sigmas[self.step];
        let next_sigma = self.schedule.sigmas[self.step + 1];
        if self.solver == Solver::Euler {
            self.step += 1;
            return weighted(&[(1.0, x), (next_sigma - sigma, velocity)]);
        }
        let clean = self.estimate(x, velocity)?;
        let next = match self.solver {
            Solver::Lcm => {
                self.step += 1;
                // Noise of its own for each step, whatever the number of them.
                let seed = self.seed.wrapping_add(self.step as u64);
                return renoise(&clean, next_sigma, || {
                    Array::from_slice(&randn(seed, x.size()), x.shape())
                });
            }
            Solver::UniPc => self.unipc(x, &clean)?,
            Solver::DpmPlusPlus | Solver::Euler => self.dpm(x, &clean)?,
        };
        self.before_last = self.last.replace(clean);
        self.step += 1;
        Ok(next)
    }

    /// Puts what it remembers into a run's state.
    pub fn save(&self, state: &mut State) {
        state.set_count("step", self.step);
        state.set_optional("solver.last", self.last.as_ref());
        state.set_optional("solver.before_last", self.before_last.as_ref());
        if let Some((from, order)) = &self.predicted_from {
            state.set("solver.predicted_from", from);
            state.set_count("solver.order", *order);
        }
    }

    /// Takes it from there.
    ///
    /// # Errors
    /// When something is missing or is there that this solver does not have after so many steps, or
    /// the state is of a longer run.
    pub fn restore(&mut self, state: &State) -> anyhow::Result<()> {
        let step = state.count("step")?;
        anyhow::ensure!(
            step <= self.schedule.steps(),
            "the saved run has taken {step} of {} steps",
            self.schedule.steps()
        );
        let latents = state.array("latents")?;
        let memory = |name: &str, expected: bool| {
            let array = state.optional(name);
            let is_right = match &array {
                Some(array) => expected && array.shape() == latents.shape(),
                None => !expected,
            };
            anyhow::ensure!(
                is_right,
                "the saved run's {name} is not what {} has after {step} steps",
                self.solver
            );
            Ok(array)
        };
        let remembers = !matches!(self.solver, Solver::Euler | Solver::Lcm);
        let last = memory("solver.last", remembers && step >= 1)?;
        let before_last = memory("solver.before_last", remembers && step >= 2)?;
        let predicts = self.solver == Solver::UniPc && step >= 1;
        let predicted_from = match memory("solver.predicted_from", predicts)? {
            Some(from) => Some((from, state.count("solver.order")?)),
            None => None,
        };
        anyhow::ensure!(
            predicted_from
                .as_ref()
                .is_none_or(|(_, order)| (1..=2).contains(order)),
            "the saved run's solver.order is none of a solver"
        );
        (self.step, self.last, self.before_last) = (step, last, before_last);
        self.predicted_from = predicted_from;
        Ok(())
    }

    /// Half the logarithm of the signal-to-noise ratio at a noise level of the schedule.
    fn lambda(&self, index: usize) -> f64 {
        let sigma = self.schedule.sigmas[index];
        (1.0 - sigma).ln() - sigma.ln()
    }

    /// DPM-Solver++ (2M), first order at the first and the last step.
    fn dpm(&self, x: &Array, clean: &Array) -> Result<Array> {
        let i = self.step;
        let (sigma, next) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
        let h = self.lambda(i + 1) - self.lambda(i);
        let gain = -(1.0 - next) * (-h).exp_m1();
        let last_step = i + 1 == self.schedule.steps();
        let previous = self.last.as_ref().filter(|_| !last_step);
        let Some(previous) = previous else {
            return weighted(&[(next / sigma, x), (gain, clean)]);
        };
        // Infinite after a start at sigma 1, which takes the correction away.
        let ratio = (self.lambda(i) - self.lambda(i - 1)) / h;
        let correction = 0.5 * gain / ratio;
        weighted(&[
            (next / sigma, x),
            (gain + correction, clean),
            (-correction, previous),
        ])
    }

    /// UniPC: corrects the latents with the new estimate, then predicts the next ones.
    fn unipc(&mut self, x: &Array, clean: &Array) -> Result<Array> {
        let corrected = match (&self.predicted_from, &self.last) {
            (Some((from, order)), Some(last)) => self.correct(from, *order, last, clean)?,
            _ => x.clone(),
        };
        let i = self.step;
        let order = if self.last.is_none() || i + 1 == self.schedule.steps() {
            1
        } else {
            2
        };
        let (sigma, next) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
        let h = self.lambda(i + 1) - self.lambda(i);
        let gain = -(1.0 - next) * (-h).exp_m1();
        let predicted = match (&self.last, order) {
            (Some(last), 2) => {
                let ratio = (self.lambda(i - 1) - self.lambda(i)) / h;
                let correction = 0.5 * gain / ratio;
                weighted(&[
                    (next / sigma, &corrected),
                    (gain - correction, clean),
                    (correction, last),
                ])?
            }
            _ => weighted(&[(next / sigma, &corrected), (gain, clean)])?,
        };
        self.predicted_from = Some((corrected, order));
        Ok(predicted)
    }

    /// UniPC's corrector: redoes the last step, of `order`, from the latents `from`, now that
    /// the estimate `clean` at its end is known.
    fn correct(&self, from: &Array, order: usize, last: &Array, clean: &Array) -> Result<Array> {
        let i = self.step;
        let (start, end) = (self.schedule.sigmas[i - 1], self.schedule.sigmas[i]);
        let h = self.lambda(i) - self.lambda(i - 1);
        let b = (-h).exp_m1();
        let gain = -(1.0 - end) * b;
        match (order, &self.before_last) {
            (2, Some(before_last)) => {
                // Solves the 2 x 2 system of the reference: rows [1, 1] and [ratio, 1].
                let ratio = (self.lambda(i - 2) - self.lambda(i - 1)) / h;
                let phi_1 = b / -h - 1.0;
                let phi_2 = phi_1 / -h - 0.5;
                let (b1, b2) = (phi_1 / b, 2.0 * phi_2 / b);
                let rho_old = (b1 - b2) / (1.0 - ratio);
                let rho_new = b1 - rho_old;
                let old = gain * rho_old / ratio;
                weighted(&[
                    (end / start, from),
                    (gain * (1.0 - rho_new) - old, last),
                    (gain * rho_new, clean),
                    (old, before_last),
                ])
            }
            _ => weighted(&[(end / start, from), (0.5 * gain, last), (0.5 * gain, clean)]),
        }
    }
}

/// Clean latents with fresh noise of a level, which is not asked for where there is none.
///
/// # Errors
/// When MLX fails.
pub fn renoise(clean: &Array, sigma: f64, noise: impl FnOnce() -> Array) -> Result<Array> {
    if sigma == 0.0 {
        return Ok(clean.clone());
    }
    weighted(&[(1.0 - sigma, clean), (sigma, &noise())])
}

/// The sum of scaled arrays; terms with a weight of zero are left out.
fn weighted(terms: &[(f64, &Array)]) -> Result<Array> {
    let mut sum: Option<Array> = None;
    for (weight, array) in terms {
        if *weight == 0.0 {
            continue;
        }
        let term = if *weight == 1.0 {
            (*array).clone()
        } else {
            array.multiply(Array::from_f32(*weight as f32))?
        };
        sum = Some(match sum {
            Some(sum) => sum.add(term)?,
            None => term,
        });
    }
    match (sum, terms.first()) {
        (Some(sum), _) => Ok(sum),
        (None, Some((_, array))) => mlx_rs::ops::zeros_like(array),
        (None, None) => Err(mlx_rs::error::Exception::custom("a sum of no terms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run with `solver` has after so many of four steps.
    fn state_after(solver: Solver, steps: usize) -> State {
        let mut sampler = Sampler::new(solver, Schedule::new(solver, 4, 5.0), 7);
        let mut x = Array::from_slice(&[0.5_f32, -1.0], &[2]);
        for _ in 0..steps {
            x = sampler.step(&x, &x).unwrap();
        }
        let mut state = State::default();
        state.set("latents", &x);
        sampler.save(&mut state);
        state
    }

    fn restored(solver: Solver, state: &State) -> anyhow::Result<Sampler> {
        let mut sampler = Sampler::new(solver, Schedule::new(solver, 4, 5.0), 7);
        sampler.restore(state).map(|()| sampler)
    }

    #[test]
    fn a_state_that_no_run_has_is_refused() {
        for solver in [
            Solver::Euler,
            Solver::Lcm,
            Solver::UniPc,
            Solver::DpmPlusPlus,
        ] {
            for steps in 0..=4 {
                let state = state_after(solver, steps);
                let sampler = restored(solver, &state).unwrap();
                assert_eq!(sampler.step_index(), steps);
                for claimed in (0..=4).filter(|&claimed| claimed != steps) {
                    let mut lies = state.clone();
                    lies.set_count("step", claimed);
                    // These remember nothing; from two steps on the others remember the same.
                    let same =
                        matches!(solver, Solver::Euler | Solver::Lcm) || claimed.min(steps) >= 2;
                    assert_eq!(
                        restored(solver, &lies).is_ok(),
                        same,
                        "{solver} {steps} {claimed}"
                    );
                }
            }
        }
        let state = state_after(Solver::UniPc, 2);
        for order in [0, 3, usize::MAX] {
            let mut lies = state.clone();
            lies.set_count("solver.order", order);
            assert!(restored(Solver::UniPc, &lies).is_err());
        }
        let mut lies = state.clone();
        lies.set("solver.last", &Array::from_slice(&[1.0_f32], &[1]));
        let error = restored(Solver::UniPc, &lies).unwrap_err().to_string();
        assert!(error.contains("solver.last"), "{error}");
    }
}
