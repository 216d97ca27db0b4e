//! Bytes on their way.

use std::time::Instant;

use crate::weights::convert::Event;
use indicatif::ProgressStyle;
use serde_json::json;

use super::report::LINES;
use super::stderr::{self, Style, info, style};
use super::terminal::{Bar, stderr_size};
use super::units::{human_bytes, human_time};

/// Bytes on their way: a bar in a terminal, elsewhere a line or an event now and then.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    bar: Option<Bar>,
    what: String,
    total: u64,
    done: u64,
    /// Bytes of those that a former run has done; they say nothing of this one's speed.
    skipped: u64,
    /// When the phase began and when the last line was written.
    times: Option<(Instant, Instant)>,
    /// The files are fetched, which takes longer than to convert them.
    fetches: bool,
}

impl Transfer {
    /// Of a conversion whose files are fetched.
    pub(crate) fn of_pull() -> Self {
        Self {
            fetches: true,
            ..Self::default()
        }
    }

    /// Begins a phase of `total` bytes.
    pub(crate) fn start(&mut self, what: &str, total: u64) {
        self.finish();
        what.clone_into(&mut self.what);
        (self.total, self.done, self.skipped) = (total, 0, 0);
        self.times = Some((Instant::now(), Instant::now()));
        if style() == Style::Bar {
            let (columns, _) = stderr_size();
            let bar = columns.saturating_sub(70).clamp(8, 30);
            let speed = match columns < 76 {
                true => "",
                false => "{decimal_bytes_per_sec}, ",
            };
            let template = format!(
                "{{prefix:>10}} [{{bar:{bar}}}] {{decimal_bytes}}/{{decimal_total_bytes}}  \
                 {speed}{{eta}} left  {{wide_msg}}"
            );
            // Were the template wrong, the default style would do.
            let style = ProgressStyle::with_template(&template).ok();
            let bar = Bar::new(total, what, style, |bar| bar);
            bar.tick();
            self.bar = Some(bar);
        }
    }

    /// Names what is on its way.
    pub(crate) fn detail(&mut self, text: &str) {
        match (&self.bar, style()) {
            (Some(bar), _) => bar.set_message(text),
            (None, Style::None) => {}
            (None, _) => info!("{}: {text}", self.what),
        }
    }

    /// So many further bytes are done.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(bar) = &self.bar {
            bar.advance(bytes);
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
            info!(
                "{}: {} of {}, {} left",
                self.what,
                human_bytes(self.done),
                human_bytes(self.total),
                human_time(start.elapsed().as_secs_f64() * left)
            );
        }
    }

    fn event(&self) {
        let fields = json!({ "what": self.what, "done": self.done, "bytes": self.total });
        stderr::event("transfer", fields);
    }

    /// So many further bytes have been done by a former run.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.done += bytes;
        self.skipped += bytes;
        if let Some(bar) = &self.bar {
            bar.advance(bytes);
            bar.reset_eta();
        }
    }

    /// Ends the phase.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.clear();
        }
        if let Some((start, _)) = self.times.take()
            && !self.what.is_empty()
        {
            if style() == Style::Json {
                return self.event();
            }
            info!(
                "{}: {} in {}",
                self.what,
                human_bytes(self.total),
                human_time(start.elapsed().as_secs_f64())
            );
        }
    }

    /// Shows an event of a conversion. Where the files are fetched, their arrival is what counts.
    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::Resumed => info!("going on where the last run stopped"),
            Event::Measuring(bytes) => self.start("measuring", *bytes),
            Event::Total(bytes) => {
                let what = if self.fetches {
                    "pulling"
                } else {
                    "converting"
                };
                self.start(what, *bytes);
            }
            Event::Fetching(path, bytes) => {
                self.detail(&format!("fetching {path} ({})", human_bytes(*bytes)));
            }
            Event::Fetched(bytes) => self.advance(*bytes),
            Event::File(part, _) if self.fetches => self.detail(&format!("converting the {part}")),
            Event::File(part, path) => self.detail(&format!("{part}: {path}")),
            Event::Skipped(bytes) => self.skip(*bytes),
            Event::Read(_) | Event::Known(_) if self.fetches => {}
            Event::Read(bytes) => self.advance(*bytes),
            Event::Known(bytes) => self.skip(*bytes),
            Event::Verifying(bytes) => {
                self.fetches = false;
                self.start("verifying", *bytes);
            }
        }
    }
}
