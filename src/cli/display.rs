//! Progress on stderr: bars in a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use wan_i2v::pipeline::{Phase, Progress};

/// Writes a line to stderr. Unlike with `eprintln!` the run goes on when nobody reads it any more.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}
pub(super) use say;

/// A bar per phase.
#[derive(Debug, Default)]
pub struct Bars {
    bar: Option<ProgressBar>,
}

impl Progress for Bars {
    fn start(&mut self, phase: Phase, units: usize) {
        let template = match phase {
            Phase::Denoising => {
                "{prefix:>9} [{bar:30}] {pos}/{len}  {elapsed} elapsed, {eta} left  {msg}"
            }
            _ => "{prefix:>9} [{bar:30}] {pos}/{len}  {elapsed}  {msg}",
        };
        let bar = ProgressBar::new(units as u64).with_prefix(phase.to_string());
        // The templates are constants; were one wrong, the default style would do.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    fn detail(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    fn advance(&mut self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_with_message("");
        }
    }
}

/// A line when a phase ends, and one for every denoising step.
#[derive(Debug, Default)]
pub struct PlainLines {
    phase: Option<(Phase, usize, Instant)>,
    done: usize,
    detail: String,
}

impl Progress for PlainLines {
    fn start(&mut self, phase: Phase, units: usize) {
        self.phase = Some((phase, units, Instant::now()));
        self.done = 0;
        self.detail.clear();
    }

    fn detail(&mut self, text: &str) {
        text.clone_into(&mut self.detail);
    }

    fn advance(&mut self) {
        self.done += 1;
        if let Some((phase @ Phase::Denoising, units, start)) = self.phase {
            let per_step = start.elapsed() / self.done.max(1) as u32;
            let left = per_step * (units - self.done.min(units)) as u32;
            say!(
                "{phase}: step {}/{units}, {}, {} a step, {} left",
                self.done,
                self.detail,
                human_time(per_step),
                human_time(left)
            );
        }
    }

    fn finish(&mut self) {
        if let Some((phase, _, start)) = self.phase.take() {
            say!("{phase}: {}", human_time(start.elapsed()));
        }
    }
}

/// A duration for people: `0.43 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`.
pub fn human_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = seconds.round() as u64;
    match whole {
        0..=9 => format!("{seconds:.2} s"),
        10..=59 => format!("{seconds:.1} s"),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}
