//! Numbers for people, stdout, and bytes on their way.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::stderr::{self, Style, say, style};

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

/// Rows in columns, each as wide as its widest cell; `right` says which are aligned to the right.
pub fn columns(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match right(column) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Whether a character moves the cursor, changes colours or turns the line's direction, so that
/// it could make a terminal show something else than what is there.
pub fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
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

/// Bytes on their way: a bar in a terminal, elsewhere a line or an event now and then.
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
        if style() == Style::Bar {
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
        match (&self.bar, style()) {
            (Some(bar), _) => bar.set_message(text.to_owned()),
            (None, Style::None) => {}
            (None, _) => say!("{}: {text}", self.what),
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
            match style() {
                Style::Json => return self.event(),
                Style::None => return,
                _ => {}
            }
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

    fn event(&self) {
        let fields = json!({ "what": self.what, "done": self.done, "bytes": self.total });
        stderr::event("transfer", fields);
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
            if style() == Style::Json {
                return self.event();
            }
            say!(
                "{}: {} in {}",
                self.what,
                human_bytes(self.total),
                human_time(start.elapsed())
            );
        }
    }
}
