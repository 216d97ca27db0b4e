//! Messages and events on stderr, in the chosen style. Nobody has to read them: a run continues when
//! they cannot be written.

use std::io::{IsTerminal, Write};
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use crate::pipeline::plan::shortage;
use crate::runtime::{self, Device, DeviceKind};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use super::escape::visible;

/// The version of the events' schema (`docs/progress.md`). A new one means that something was
/// removed or changed its meaning; what is added leaves it as it is.
const SCHEMA: u32 = 1;

/// How a run is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Style {
    /// Bars, for a terminal.
    Bar,
    /// Lines.
    Plain,
    /// A JSON object a line.
    Json,
    /// The clip before and after it is made, but nothing between.
    None,
    /// Warnings and errors alone.
    #[value(skip)]
    Quiet,
}

#[derive(Serialize)]
struct Event<'a> {
    schema: u32,
    event: &'a str,
    /// Seconds since the program started.
    elapsed: f64,
    /// An object.
    #[serde(flatten)]
    fields: Value,
}

static STYLE: OnceLock<Style> = OnceLock::new();
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Settles the style, once.
pub(crate) fn set_style(style: Style) {
    LazyLock::force(&START);
    // The first one stays.
    let _ = STYLE.set(style);
}

/// The style; by default what suits stderr.
pub(crate) fn style() -> Style {
    *STYLE.get_or_init(|| {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if std::io::stderr().is_terminal() && !is_dumb {
            Style::Bar
        } else {
            Style::Plain
        }
    })
}

/// Writes a line, in one piece.
pub(crate) fn line(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Writes an event with its fields.
pub(crate) fn event(name: &str, fields: Value) {
    line(&event_text(name, fields));
}

fn event_text(name: &str, fields: Value) -> String {
    let event = Event {
        schema: SCHEMA,
        event: name,
        elapsed: START.elapsed().as_secs_f64(),
        fields,
    };
    // Text keys and numbers always become JSON.
    serde_json::to_string(&event).unwrap_or_default()
}

/// Something worth knowing.
pub(crate) fn note(text: &str) {
    match style() {
        Style::Quiet => {}
        Style::Json => event("note", serde_json::json!({ "message": text })),
        _ => line(&visible(text, "\n")),
    }
}

/// Something that the user should know.
pub(crate) fn warning(text: &str) {
    match style() {
        Style::Json => event("warning", serde_json::json!({ "message": text })),
        _ => line(&format!("warning: {}", visible(text, "\n"))),
    }
}

/// Warns when less memory is free than a run of `peak_bytes` takes. What Metal recommends does not
/// depend on what is free.
pub(crate) fn warn_of_shortage(device: Device, peak_bytes: u64) {
    let on_cpu = device.kind == DeviceKind::Cpu;
    if let Some(text) = on_cpu
        .then(runtime::free_memory)
        .and_then(|free| shortage(peak_bytes, free))
    {
        warning(&text);
    }
}

/// Why the run ends with `exit_code`.
pub(crate) fn error(text: &str, exit_code: u8) {
    line(&error_text(text, exit_code));
}

/// The line that [`error`] writes.
pub(crate) fn error_text(text: &str, exit_code: u8) -> String {
    match style() {
        Style::Json => event_text(
            "error",
            serde_json::json!({ "message": text, "exit_code": exit_code }),
        ),
        _ => format!("error: {}", visible(text, "\n")),
    }
}

/// [`note`] with a format.
macro_rules! info {
    ($($part:tt)*) => {
        $crate::cli::ui::stderr::note(&format!($($part)*))
    };
}
pub(crate) use info;
