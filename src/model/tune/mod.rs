//! Finds out how this machine computes fastest: ways of computing the same are tried one after the
//! other, and the quickest right one is taken.

mod choices;
mod kept;

pub use choices::choices;
pub use kept::Store;

use anyhow::{Result, ensure};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use serde::Serialize;

use crate::runtime::{Device, Tuning, f32};
use crate::util::show::chain;

/// The part of the time that has to be saved: less is noise.
const MARGIN: f64 = 0.03;
/// How often each candidate is measured: what there is time for, but fewer runs prove nothing.
const ROUNDS: [usize; 2] = [3, 7];
/// What takes so many times as long as the quickest is not measured more often.
const HOPELESS: f64 = 1.5;

/// What is measured: evaluated results of some device.
pub type Compute = Box<dyn Fn(Device) -> Result<Vec<Array>>>;

/// Ways to do the same.
pub struct Choice {
    /// What they are ways of.
    pub name: &'static str,
    /// The way without tuning.
    pub untuned: String,
    /// The others, and what they change.
    pub candidates: Vec<(String, Tuning)>,
    /// How far a result may be from the untuned one, relative to its largest value.
    pub tolerance: f64,
    /// Makes what is measured on such a device.
    pub prepare: Box<dyn Fn(Device) -> Result<Compute>>,
}

/// What came of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is what is done from now on.
    Chosen,
    /// It is no faster, or not by enough.
    NotFaster,
    /// Its result is another.
    Wrong,
    /// It cannot be computed.
    Failed(String),
    /// There was no time left for it.
    NoTime,
}

/// A candidate that was tried; the first one of an [`Outcome`] is the untuned way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// What it is.
    pub name: String,
    /// Seconds of its quickest run.
    pub seconds: Option<f64>,
    /// How far its result is from the untuned one, relative to the largest value.
    pub off: Option<f64>,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of a choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Its name.
    pub choice: &'static str,
    /// What was tried.
    pub trials: Vec<Trial>,
}

impl Outcome {
    /// How many times faster the chosen way is than the untuned one.
    pub fn gain(&self) -> Option<f64> {
        let chosen = self.trials.iter().find(|t| t.verdict == Verdict::Chosen)?;
        Some(self.trials.first()?.seconds? / chosen.seconds?)
    }
}

/// Makes each choice for the `untuned` device, in about `seconds` by a `clock` of seconds; every
/// outcome is told at once.
///
/// What was chosen before is in effect when the next choice is measured.
pub fn choose(
    untuned: Device,
    choices: &[Choice],
    seconds: f64,
    clock: &dyn Fn() -> f64,
    tell: &mut dyn FnMut(&Outcome),
) -> Tuning {
    let end = clock() + seconds;
    let mut tuning = Tuning::NONE;
    for (choice, left) in choices.iter().zip((1..=choices.len()).rev()) {
        let now = clock();
        let trials = choice.trials(untuned, tuning, now + (end - now) / left as f64, clock);
        let chosen = trials.iter().position(|t| t.verdict == Verdict::Chosen);
        if let Some((_, change)) = chosen.and_then(|at| choice.candidates.get(at.checked_sub(1)?)) {
            tuning = tuning.and(*change);
        }
        tell(&Outcome {
            choice: choice.name,
            trials,
        });
    }
    tuning
}

impl Choice {
    fn trials(
        &self,
        untuned: Device,
        tuning: Tuning,
        end: f64,
        clock: &dyn Fn() -> f64,
    ) -> Vec<Trial> {
        let first = (&self.untuned, Tuning::NONE);
        let others = self.candidates.iter().map(|(name, change)| (name, *change));
        let devices: Vec<Device> = (std::iter::once(first).chain(others.clone()))
            .map(|(_, change)| untuned.tuned(tuning.and(change)))
            .collect();
        let mut trials: Vec<Trial> = (std::iter::once(first).chain(others))
            .map(|(name, _)| Trial {
                name: name.clone(),
                seconds: None,
                off: None,
                verdict: Verdict::NoTime,
            })
            .collect();
        if clock() >= end {
            return trials;
        }
        // The measure of all is the untuned device, of the dtype that was chosen.
        let measure = untuned.tuned(Tuning {
            precision: tuning.precision,
            ..Tuning::NONE
        });
        let prepared = (self.prepare)(measure).and_then(|compute| {
            let expected = compute(measure)?;
            Ok((compute, expected))
        });
        let (compute, expected) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                trials[0].verdict = Verdict::Failed(chain(&error));
                return trials;
            }
        };
        // The first run pays for kernels being made and memory being touched; and it is looked at.
        for (trial, device) in trials.iter_mut().zip(&devices) {
            if clock() >= end {
                return trials;
            }
            let first = match *device == measure {
                true => Ok(0.0),
                false => compute(*device).and_then(|found| off(&expected, &found)),
            };
            match first {
                Ok(off) => {
                    trial.off = Some(off);
                    trial.verdict = match off <= self.tolerance {
                        true => Verdict::NotFaster,
                        false => Verdict::Wrong,
                    };
                }
                Err(error) => trial.verdict = Verdict::Failed(chain(&error)),
            }
        }
        drop(expected);
        // In turns: what else the machine does at the moment slows all of them.
        let mut quickest = f64::INFINITY;
        let mut rounds = 0;
        'rounds: while rounds < ROUNDS[1] {
            for (at, (trial, device)) in trials.iter_mut().zip(&devices).enumerate() {
                let before = clock();
                if before >= end {
                    break 'rounds;
                }
                let known = trial.seconds.unwrap_or(0.0);
                let is_hopeless = at > 0 && rounds >= ROUNDS[0] && known > HOPELESS * quickest;
                if trial.verdict != Verdict::NotFaster || is_hopeless {
                    continue;
                }
                if let Err(error) = compute(*device) {
                    trial.verdict = Verdict::Failed(chain(&error));
                    continue;
                }
                let seconds = clock() - before;
                trial.seconds = Some(trial.seconds.map_or(seconds, |s: f64| s.min(seconds)));
                quickest = quickest.min(seconds);
            }
            rounds += 1;
        }
        if rounds < ROUNDS[0] {
            for trial in (trials.iter_mut()).filter(|t| t.verdict == Verdict::NotFaster) {
                trial.verdict = Verdict::NoTime;
            }
        }
        let Some(usual) = trials[0].seconds else {
            return trials;
        };
        let right = trials.iter_mut().skip(1);
        let best = (right.filter(|trial| trial.verdict == Verdict::NotFaster))
            .filter_map(|trial| Some((trial.seconds?, trial)))
            .min_by(|(a, _), (b, _)| a.total_cmp(b));
        if let Some((seconds, trial)) = best
            && seconds < usual * (1.0 - MARGIN)
        {
            trial.verdict = Verdict::Chosen;
        }
        trials
    }
}

/// The largest difference, relative to the largest value of the array that is expected; infinite where a
/// value is not finite.
fn off(expected: &[Array], found: &[Array]) -> Result<f64> {
    let mut most = 0.0_f64;
    for (expected, found) in expected.iter().zip(found) {
        ensure!(
            expected.shape() == found.shape(),
            "its result is {:?}; expected {:?}",
            found.shape(),
            expected.shape()
        );
        let (expected, found) = (f32(expected)?, f32(found)?);
        let off = match largest(&found.subtract(&expected)?)? {
            0.0 => 0.0,
            difference => difference / largest(&expected)?,
        };
        most = if off.is_nan() {
            f64::INFINITY
        } else {
            most.max(off)
        };
    }
    Ok(most)
}

fn largest(x: &Array) -> Result<f64> {
    let most = x.abs()?.max(None)?;
    let most = most.try_item_exact::<f32>();
    Ok(f64::from(
        most.map_err(|e| Exception::custom(e.to_string()))?,
    ))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use anyhow::bail;

    use super::*;
    use crate::runtime::DeviceKind;

    fn device() -> Device {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        Device::new(DeviceKind::Cpu, None)
    }

    fn rows(dense_above: i32) -> Tuning {
        Tuning {
            dense_above: Some(dense_above),
            ..Tuning::NONE
        }
    }

    fn blocks(divisor: i32) -> Tuning {
        Tuning {
            block_divisor: Some(divisor),
            ..Tuning::NONE
        }
    }

    /// A choice whose candidates take so long by a false clock, and have such results.
    fn choice(
        clock: &Rc<Cell<f64>>,
        candidates: &[Tuning],
        run: impl Fn(Device) -> Result<(f64, f32)> + Clone + 'static,
    ) -> Choice {
        let clock = Rc::clone(clock);
        Choice {
            name: "something",
            untuned: "as it is".to_owned(),
            candidates: candidates.iter().map(|t| (t.to_string(), *t)).collect(),
            tolerance: 0.01,
            prepare: Box::new(move |_| {
                let (clock, run) = (Rc::clone(&clock), run.clone());
                Ok(Box::new(move |device| {
                    let (seconds, value) = run(device)?;
                    clock.set(clock.get() + seconds);
                    Ok(vec![Array::from_slice(&[1.0, value], &[2])])
                }))
            }),
        }
    }

    fn decide(choices: &[Choice], seconds: f64, clock: &Rc<Cell<f64>>) -> (Tuning, Vec<Outcome>) {
        let mut outcomes = Vec::new();
        let tuning = choose(
            device(),
            choices,
            seconds,
            &|| clock.get(),
            &mut |outcome| outcomes.push(outcome.clone()),
        );
        (tuning, outcomes)
    }

    fn verdicts(outcome: &Outcome) -> Vec<Verdict> {
        outcome.trials.iter().map(|t| t.verdict.clone()).collect()
    }

    #[test]
    fn the_quickest_right_candidate_wins() {
        let clock = Rc::new(Cell::new(100.0));
        // By the rows: wrong, no number, a failure, and then slower, quicker, quickest.
        let all = [10, 11, 12, 20, 21, 22].map(rows);
        let choice = choice(&clock, &all, |device| {
            Ok(match device.dense_above {
                10 => (0.1, 1.02),
                11 => (0.1, f32::NAN),
                12 => bail!("no such kernel"),
                20 => (1.3, 1.0),
                21 => (0.9, 1.009),
                22 => (0.8, 1.0),
                _ => (1.0, 1.0),
            })
        });
        let (tuning, outcomes) = decide(&[choice], 1000.0, &clock);
        assert_eq!(tuning, rows(22));
        let failed = Verdict::Failed("no such kernel".to_owned());
        let expected = [
            Verdict::NotFaster,
            Verdict::Wrong,
            Verdict::Wrong,
            failed,
            Verdict::NotFaster,
            Verdict::NotFaster,
            Verdict::Chosen,
        ];
        assert_eq!(verdicts(&outcomes[0]), expected);
        let trials = &outcomes[0].trials;
        assert!((outcomes[0].gain().unwrap() - 1.25).abs() < 1e-9);
        assert_eq!(
            (trials[1].seconds, trials[2].off),
            (None, Some(f64::INFINITY))
        );
        assert!((trials[4].seconds.unwrap() - 1.3).abs() < 1e-9);
    }

    #[test]
    fn what_is_hardly_faster_changes_nothing() {
        let clock = Rc::new(Cell::new(0.0));
        let choice = choice(&clock, &[rows(9)], |device| {
            Ok((if device.dense_above == 9 { 0.98 } else { 1.0 }, 1.0))
        });
        let (tuning, outcomes) = decide(&[choice], 1000.0, &clock);
        assert_eq!((tuning, outcomes[0].gain()), (Tuning::NONE, None));
    }

    /// The quickest of several runs counts, since others may have been disturbed.
    #[test]
    fn a_disturbed_run_decides_nothing() {
        let clock = Rc::new(Cell::new(0.0));
        let runs = Rc::new(Cell::new(0));
        let choice = choice(&clock, &[rows(9)], move |_| {
            runs.set(runs.get() + 1);
            // Two runs are looked at first.
            Ok((if runs.get() == 3 { 5.0 } else { 1.0 }, 1.0))
        });
        let (tuning, outcomes) = decide(&[choice], 1000.0, &clock);
        assert_eq!(tuning, Tuning::NONE);
        assert_eq!(outcomes[0].trials[0].seconds, Some(1.0));
    }

    #[test]
    fn a_choice_that_cannot_be_measured_leaves_the_others() {
        let clock = Rc::new(Cell::new(0.0));
        let broken = choice(&clock, &[rows(9)], |_| bail!("no memory"));
        let seen = Rc::new(Cell::new(Tuning::NONE));
        let last = Rc::clone(&seen);
        let sound = choice(&clock, &[blocks(2), blocks(4)], move |device| {
            let by = device.blocks().divisor;
            Ok((1.0 / f64::from(by), 1.0))
        });
        let after = choice(&clock, &[rows(9)], move |device| {
            last.set(device.tuning);
            Ok((1.0, 1.0))
        });
        let (tuning, outcomes) = decide(&[broken, sound, after], 1000.0, &clock);
        assert_eq!(tuning, blocks(4));
        assert_eq!(outcomes.len(), 3);
        let failed = Verdict::Failed("no memory".to_owned());
        assert_eq!(verdicts(&outcomes[0]), [failed, Verdict::NoTime]);
        // What was chosen is in effect.
        assert_eq!(seen.get(), blocks(4).and(rows(9)));
    }

    #[test]
    fn the_time_is_kept_and_shared() {
        let clock = Rc::new(Cell::new(0.0));
        let slow = |device: Device| Ok((if device.dense_above == 9 { 6.0 } else { 10.0 }, 1.0));
        let choices = [
            choice(&clock, &[rows(9)], slow),
            choice(&clock, &[rows(9), rows(8)], slow),
        ];
        let (tuning, outcomes) = decide(&choices, 130.0, &clock);
        // Two runs to look at and three of each: 64 seconds; of what is left the second choice has too
        // few.
        assert_eq!(tuning, rows(9));
        assert_eq!(verdicts(&outcomes[0])[1], Verdict::Chosen);
        let slow = &outcomes[1].trials;
        assert!(slow.iter().all(|trial| trial.verdict == Verdict::NoTime));
        assert!(clock.get() < 130.0 + 10.0, "{}", clock.get());
        let none = decide(&choices, 0.0, &clock);
        assert_eq!(none.0, Tuning::NONE);
        assert_eq!(
            verdicts(&none.1[1]),
            [Verdict::NoTime, Verdict::NoTime, Verdict::NoTime]
        );
    }
}
