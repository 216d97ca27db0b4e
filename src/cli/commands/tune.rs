//! `wan-i2v tune`: finds out how this machine computes fastest; and the same before a first long run on a
//! GPU.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cli::flags::{MachineArgs, TuneArgs};
use crate::cli::ui::{columns, info, print, print_json, stderr};
use crate::model::tune::{Outcome, Store, Verdict, choices, choose};
use crate::runtime::{Device, DeviceKind, Tuning, again};
use crate::util::show::{Show, chain};

/// What tuning before a run may take.
const SECONDS: f64 = 50.0;
/// Runs of more seconds are long: tuning takes a tenth of them at most.
const LONG: f64 = 600.0;

impl TuneArgs {
    /// Measures, and keeps what is fastest.
    ///
    /// # Errors
    /// When there is no such device, or the choice cannot be kept.
    pub(crate) fn run(self) -> Result<()> {
        let store = Store::usual().context(
            "there is no folder to keep a tuning in: neither XDG_CACHE_HOME nor HOME is set",
        )?;
        if self.reset {
            let forgotten = store.forget()?;
            return match (self.json, forgotten) {
                (true, _) => print_json(&json!({ "forgotten": forgotten })),
                (_, true) => print("forgotten: this machine computes in the usual way again\n"),
                (_, false) => print("nothing was kept\n"),
            };
        }
        let untuned = self.device.untuned()?;
        let (start, mut printed) = (Instant::now(), Ok(()));
        let mut outcomes = Vec::new();
        let (any_dtype, within) = (self.device.dtype.is_none(), self.within);
        let tuning = measured(untuned, any_dtype, within, &mut |outcome| {
            if !self.json && printed.is_ok() {
                printed = print(&table(outcome));
            }
            outcomes.push(outcome.clone());
        });
        printed?;
        let seconds = start.elapsed().as_secs_f64();
        if !self.dry_run {
            store.keep(untuned, tuning)?;
        }
        if self.json {
            return print_json(&json!({
                "device": untuned.kind.to_string(),
                "precision": untuned.dtype,
                "seconds": seconds,
                "choices": outcomes,
                "tuning": tuning,
                "kept": (!self.dry_run).then(|| store.path().to_string_lossy()),
            }));
        }
        let kept = match self.dry_run {
            true => "not kept (--dry-run)".to_owned(),
            false => format!("kept in {}", store.path().shown()),
        };
        print(&format!(
            "\nchosen in {seconds:.0} s: {}\n{kept}\n",
            in_words(tuning)
        ))
    }
}

fn in_words(tuning: Tuning) -> String {
    match tuning {
        Tuning::NONE => "the usual way in everything".to_owned(),
        _ => tuning.to_string(),
    }
}

/// Tunes a GPU that has not been tuned yet before a run of so many `seconds`, if that is long: what was
/// chosen.
///
/// # Errors
/// When there is no such device.
pub(super) fn before_a_run(machine: &MachineArgs, seconds: Option<f64>) -> Result<Option<Tuning>> {
    let untuned = machine.device.untuned()?;
    // Without a place to keep it, it would be tuned each time; and in a process that goes on in another's
    // place, something is wrong with the GPU.
    let Some(store) = Store::usual().filter(|_| again().is_none()) else {
        return Ok(None);
    };
    let is_tuned = store.find(untuned).is_some();
    if machine.no_tune || !is_due(untuned.kind, is_tuned, seconds) {
        return Ok(None);
    }
    info!("tuning the GPU, once and in less than a minute (--no-tune leaves it out)");
    let any_dtype = machine.device.dtype.is_none();
    let tuning = measured(untuned, any_dtype, SECONDS, &mut |outcome| {
        stderr::detail(table(outcome).trim_end());
    });
    if let Err(error) = store.keep(untuned, tuning) {
        stderr::warning(&chain(&error));
    }
    info!("tuned: {}", in_words(tuning));
    Ok(Some(tuning))
}

fn is_due(kind: DeviceKind, is_tuned: bool, seconds: Option<f64>) -> bool {
    kind == DeviceKind::Gpu && !is_tuned && seconds.is_some_and(|seconds| seconds > LONG)
}

fn measured(
    untuned: Device,
    any_dtype: bool,
    seconds: f64,
    tell: &mut dyn FnMut(&Outcome),
) -> Tuning {
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64();
    let choices = choices(untuned, any_dtype);
    choose(untuned, &choices, seconds, &clock, tell)
}

/// A choice: what was tried, how long it took, and what came of it.
fn table(outcome: &Outcome) -> String {
    let usual = outcome.trials.first().and_then(|trial| trial.seconds);
    let rows = outcome.trials.iter().enumerate().map(|(at, trial)| {
        let times = trial
            .seconds
            .zip(usual)
            .map(|(seconds, usual)| usual / seconds);
        let came_of_it = match (&trial.verdict, at, times) {
            (Verdict::Failed(why), ..) => format!("cannot be computed: {why}"),
            (Verdict::NoTime, ..) => "no time left".to_owned(),
            (Verdict::Wrong, ..) => {
                format!("wrong by {:.1e}", trial.off.unwrap_or(f64::NAN))
            }
            (_, 0, _) => "the usual way".to_owned(),
            (Verdict::Chosen, _, Some(times)) => format!("{times:.2} x as fast, chosen"),
            (_, _, Some(times)) => format!("{times:.2} x as fast"),
            (_, _, None) => "no time left".to_owned(),
        };
        let name = if at == 0 { outcome.choice } else { "" };
        let time = trial
            .seconds
            .map(|seconds| format!("{:.1} ms", 1e3 * seconds));
        vec![
            format!("{name:<18}"),
            format!("{:<23}", trial.name),
            format!("{:>9}", time.unwrap_or_default()),
            came_of_it,
        ]
    });
    columns(&rows.collect::<Vec<_>>(), |at| at == 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tune::Trial;

    #[test]
    fn only_a_gpu_s_first_long_run_is_worth_it() {
        use DeviceKind::{Cpu, Gpu};
        for (kind, is_tuned, seconds, due) in [
            (Gpu, false, Some(7200.0), true),
            (Gpu, true, Some(7200.0), false),
            (Gpu, false, Some(599.0), false),
            (Gpu, false, None, false),
            (Cpu, false, Some(7200.0), false),
        ] {
            assert_eq!(is_due(kind, is_tuned, seconds), due, "{kind} {seconds:?}");
        }
    }

    #[test]
    fn a_choice_is_told_in_rows_that_line_up() {
        let trial = |name: &str, seconds, verdict| Trial {
            name: name.to_owned(),
            seconds,
            off: Some(0.25),
            verdict,
        };
        let text = table(&Outcome {
            choice: "attention",
            trials: vec![
                trial("calls of 2752 rows", Some(0.4), Verdict::NotFaster),
                trial("calls of 1408 rows", Some(0.32), Verdict::Chosen),
                trial("calls of 704 rows", Some(0.5), Verdict::NotFaster),
                trial("calls of 320 rows", None, Verdict::Wrong),
                trial("calls of 64 rows", None, Verdict::NoTime),
            ],
        });
        let expected = "\
attention           calls of 2752 rows        400.0 ms  the usual way
                    calls of 1408 rows        320.0 ms  1.25 x as fast, chosen
                    calls of 704 rows         500.0 ms  0.80 x as fast
                    calls of 320 rows                   wrong by 2.5e-1
                    calls of 64 rows                    no time left
";
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.len() <= 80));
    }
}
