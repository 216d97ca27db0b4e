//! Progress on stderr: bars in a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
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
#[derive(Debug)]
pub struct Bars {
    console: MultiProgress,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars on `console`, whose [`MultiProgress::suspend`] lets others write between.
    pub fn on(console: MultiProgress) -> Self {
        Self { console, bar: None }
    }
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
        let bar = self.console.add(bar);
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

/// Bytes for people: `253.8 MB`, `28.6 GB`.
pub fn human_bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let bytes = bytes as f64;
    match bytes {
        0.0..1e6 => format!("{:.1} kB", bytes / 1e3),
        1e6..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} GB", bytes / 1e9),
    }
}

/// A count for people: `14.29 billion`, `2.8 million`.
pub fn human_count(count: u64) -> String {
    let number = count as f64;
    match number {
        0.0..1e6 => count.to_string(),
        1e6..1e9 => format!("{:.1} million", number / 1e6),
        _ => format!("{:.2} billion", number / 1e9),
    }
}

/// Writes to stdout.
///
/// # Errors
/// When nobody reads it any more.
pub fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")
}

/// Bytes on their way: a bar in a terminal, a line now and then elsewhere.
#[derive(Debug, Default)]
pub struct Transfer {
    bar: Option<ProgressBar>,
    what: String,
    total: u64,
    done: u64,
    /// Bytes of those that a former run has done; they say nothing of this one's speed.
    skipped: u64,
    /// When the phase began and when the last line was written.
    times: Option<(Instant, Instant)>,
    /// Whether the files are fetched, which takes longer than to convert them.
    pub(super) fetches: bool,
}

impl Transfer {
    /// Of a conversion whose files are fetched.
    pub fn of_pull() -> Self {
        Self {
            fetches: true,
            ..Self::default()
        }
    }

    /// Begins a phase of so many bytes.
    pub fn start(&mut self, what: &str, total: u64) {
        self.finish();
        what.clone_into(&mut self.what);
        (self.total, self.done, self.skipped) = (total, 0, 0);
        self.times = Some((Instant::now(), Instant::now()));
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total).with_prefix(what.to_owned());
            let template = "{prefix:>11} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}  \
                            {decimal_bytes_per_sec}, {eta} left  {wide_msg}";
            // The template is a constant; were it wrong, the default style would do.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            self.bar = Some(bar);
        }
    }

    /// Says what is on its way.
    pub fn detail(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => say!("{}: {text}", self.what),
        }
    }

    /// So many further bytes are done.
    pub fn advance(&mut self, bytes: u64) {
        const LINES: Duration = Duration::from_secs(30);
        self.done += bytes;
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        } else if let Some((start, last)) = &mut self.times
            && last.elapsed() >= LINES
        {
            *last = Instant::now();
            let now = self.done.saturating_sub(self.skipped).max(1);
            let left = self.total.saturating_sub(self.done) as f64 / now as f64;
            say!(
                "{}: {} of {}, {} left",
                self.what,
                human_bytes(self.done),
                human_bytes(self.total),
                human_time(start.elapsed().mul_f64(left))
            );
        }
    }

    /// So many further bytes have been done by a former run.
    pub fn skip(&mut self, bytes: u64) {
        self.done += bytes;
        self.skipped += bytes;
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
            bar.reset_eta();
        }
    }

    /// Ends the phase.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some((start, _)) = self.times.take()
            && !self.what.is_empty()
        {
            say!(
                "{}: {} in {}",
                self.what,
                human_bytes(self.total),
                human_time(start.elapsed())
            );
        }
    }
}
