//! What goes to stderr, in the style that was asked for. Nobody has to read it: a run goes on when
//! it cannot be written.

use std::io::{IsTerminal, Write};
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

/// The version of the events' schema (`docs/progress.md`). A new one means that something was
/// removed or changed its meaning; what is added leaves it as it is.
const SCHEMA: u32 = 1;

/// How a run is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Bars, for a terminal.
    Bar,
    /// Lines.
    Plain,
    /// A JSON object a line.
    Json,
    /// What is made and what was made, but nothing between.
    None,
    /// Warnings and errors alone.
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
pub fn set_style(style: Style) {
    LazyLock::force(&START);
    // The first one stays.
    let _ = STYLE.set(style);
}

/// The style; by default what suits stderr.
pub fn style() -> Style {
    *STYLE.get_or_init(|| {
        if std::io::stderr().is_terminal() {
            Style::Bar
        } else {
            Style::Plain
        }
    })
}

/// Writes a line, in one piece.
pub fn line(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Writes an event with its fields.
pub fn event(name: &str, fields: Value) {
    let event = Event {
        schema: SCHEMA,
        event: name,
        elapsed: START.elapsed().as_secs_f64(),
        fields,
    };
    // Text keys and numbers always become JSON.
    if let Ok(json) = serde_json::to_string(&event) {
        line(&json);
    }
}

/// Something worth knowing.
pub fn note(text: &str) {
    match style() {
        Style::Quiet => {}
        Style::Json => event("note", serde_json::json!({ "message": text })),
        _ => line(text),
    }
}

/// Something that the user should know.
pub fn warning(text: &str) {
    match style() {
        Style::Json => event("warning", serde_json::json!({ "message": text })),
        _ => line(&format!("warning: {text}")),
    }
}

/// Why the run ends with `exit_code`.
pub fn error(text: &str, exit_code: u8) {
    match style() {
        Style::Json => event(
            "error",
            serde_json::json!({ "message": text, "exit_code": exit_code }),
        ),
        _ => line(&format!("error: {text}")),
    }
}

/// [`note`] with a format.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::cli::stderr::note(&format!($($part)*))
    };
}
pub(super) use say;
