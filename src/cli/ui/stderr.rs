//! Messages and events on stderr, in the chosen style. Nobody has to read them: a run continues when
//! they cannot be written.

use std::io::IsTerminal;
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use crate::pipeline::plan::shortage;
use crate::runtime::{self, Device, DeviceKind};
use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use super::colour::Ink;
use super::terminal::{self, tell, tell_in, tell_json, tell_kind};

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
static VERBOSE: OnceLock<()> = OnceLock::new();
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
        if terminal::is_seen() && !is_dumb {
            Style::Bar
        } else {
            Style::Plain
        }
    })
}

/// Has details told, from now on.
pub(crate) fn set_verbose() {
    let _ = VERBOSE.set(());
}

/// Whether details are told.
pub(crate) fn is_verbose() -> bool {
    VERBOSE.get().is_some()
}

/// Writes an event with its fields.
pub(crate) fn event(name: &str, fields: Value) {
    tell_json(&event_of(name, fields));
}

fn event_of(name: &str, fields: Value) -> Event<'_> {
    Event {
        schema: SCHEMA,
        event: name,
        elapsed: START.elapsed().as_secs_f64(),
        fields,
    }
}

/// Writes an event that another process of this program's has made.
pub(crate) fn pass_on(event: &str) {
    terminal::tell_line(event);
}

/// What another process says that says no more than it has to.
pub(crate) fn repeat(text: &str) {
    match style() {
        Style::Json => note(text),
        _ => tell(text),
    }
}

/// Something worth knowing.
pub(crate) fn note(text: &str) {
    match style() {
        Style::Quiet => {}
        Style::Json => event("note", serde_json::json!({ "message": text })),
        _ => tell(text),
    }
}

/// Something that only some want to know. Events have it anyway.
pub(crate) fn detail(text: &str) {
    match style() {
        Style::Quiet => {}
        Style::Json => note(text),
        _ if is_verbose() => tell_in(Ink::Faint, text),
        _ => {}
    }
}

/// What a rank that rank 0 reports for says about itself, quiet as it is otherwise.
pub(crate) fn detail_of_rank(text: &str) {
    if is_verbose() {
        tell(text);
    }
}

/// What went well in the end.
pub(crate) fn success(text: &str) {
    match style() {
        Style::Quiet | Style::Json => note(text),
        _ => tell_in(Ink::Good, text),
    }
}

/// What to do next.
pub(crate) fn hint(text: &str) {
    match style() {
        Style::Quiet | Style::Json => note(&format!("hint: {text}")),
        _ => tell_kind("hint", text),
    }
}

/// Something that the user should know.
pub(crate) fn warning(text: &str) {
    match style() {
        Style::Json => event("warning", serde_json::json!({ "message": text })),
        _ => tell_kind("warning", text),
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

/// Asks whether to go on with what takes long or much. `hint` says how to agree beforehand.
///
/// # Errors
/// When the answer is no, or there is nobody to ask.
pub(crate) fn confirm(what: &str, hint: &str) -> Result<()> {
    ensure!(
        is_attended(),
        "{what}, and nobody can be asked\nhint: {hint}"
    );
    terminal::ask(&format!("{what}. Go on? [y/N]"));
    let mut answer = String::new();
    // An end of the input is a no.
    let _ = std::io::stdin().read_line(&mut answer);
    let agreed = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    ensure!(agreed, "{what}, which was not agreed to\nhint: {hint}");
    Ok(())
}

/// Whether somebody sees questions and can answer them.
pub(crate) fn is_attended() -> bool {
    std::io::stdin().is_terminal() && terminal::is_seen() && style() != Style::Json
}

/// Why the run ends with `exit_code`.
pub(crate) fn error(text: &str, exit_code: u8) {
    match style() {
        Style::Json => event("error", error_fields(text, exit_code)),
        _ => tell_kind("error", text),
    }
}

/// The line that [`error`] writes.
pub(crate) fn error_text(text: &str, exit_code: u8) -> String {
    match style() {
        Style::Json => terminal::json_line(&event_of("error", error_fields(text, exit_code))),
        _ => terminal::message("error", text),
    }
}

fn error_fields(text: &str, exit_code: u8) -> Value {
    serde_json::json!({ "message": text, "exit_code": exit_code })
}

/// [`note`] with a format.
macro_rules! info {
    ($($part:tt)*) => {
        $crate::cli::ui::stderr::note(&format!($($part)*))
    };
}
pub(crate) use info;
