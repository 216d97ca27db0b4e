//! The one way to stdout and stderr. Text that is printed may hold names from outside: what is
//! unseen in it is escaped, and no line of it looks like a message of another kind. JSON escapes
//! the same. What is to command the terminal, or is for other programs, has functions of its own.
//! In a terminal lines break between words where it is narrower, and messages have colours; elsewhere
//! lines are as long as they are.

#![expect(clippy::disallowed_methods, reason = "this is the way out")]

use std::env;
use std::io::{self, IsTerminal, Stderr, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::colour::{Colours, Ink, painted};
use super::wrap::wrapped;
use crate::util::show::{is_unseen, visible};

/// What begins lines that are messages.
const KINDS: [&str; 3] = ["error:", "warning:", "hint:"];

/// Bytes of the longest message that is shown whole: names and values from outside may be longer.
const LONGEST: usize = 8192;

/// Columns and lines of a terminal that does not say how many it has.
const USUAL: (usize, usize) = (80, 24);

static COLOURS: OnceLock<Colours> = OnceLock::new();

/// Settles whether there are colours, once.
pub(crate) fn set_colours(colours: Colours) {
    // The first one stays.
    let _ = COLOURS.set(colours);
}

/// Columns and lines of the terminal that a stream is; `None` where it is none.
fn size(stream: impl AsFd + IsTerminal) -> Option<(usize, usize)> {
    if !stream.is_terminal() {
        return None;
    }
    let size = tcgetwinsize(stream).ok().filter(|size| size.ws_col > 0);
    Some(size.map_or(USUAL, |size| match size.ws_row {
        0 => (size.ws_col.into(), USUAL.1),
        rows => (size.ws_col.into(), rows.into()),
    }))
}

/// Columns of the terminal that stdout is; `None` where it is none, and nothing is wrapped.
pub(crate) fn stdout_width() -> Option<usize> {
    Some(size(io::stdout())?.0)
}

/// As [`stdout_width`], of stderr.
pub(crate) fn stderr_width() -> Option<usize> {
    Some(size(io::stderr())?.0)
}

/// Columns and lines of the terminal that stderr is.
pub(crate) fn stderr_size() -> (usize, usize) {
    size(io::stderr()).unwrap_or(USUAL)
}

fn fitted(text: &str, width: Option<usize>) -> String {
    width.map_or(text.to_owned(), |width| wrapped(text, width))
}

/// Prints text to stdout.
///
/// # Errors
/// When nobody reads it any more.
pub(crate) fn print(text: &str) -> Result<()> {
    print_raw(fitted(&plain(text, ""), stdout_width()).as_bytes())
}

/// Prints a value to stdout, as JSON for people too.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print_raw(json(value)?.as_bytes())
}

/// A value as JSON for people too.
///
/// # Errors
/// When it holds what JSON does not have.
pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    Ok(escaped(&serde_json::to_string_pretty(value)?) + "\n")
}

/// Prints the path of a result to stdout: to a program its own bytes, whether or not they are valid
/// text, and to a terminal what can be seen of them.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_path(path: &Path) -> Result<()> {
    print_raw(&path_line(path, io::stdout().is_terminal()))
}

fn path_line(path: &Path, to_terminal: bool) -> Vec<u8> {
    let mut line = match to_terminal {
        true => visible(&path.to_string_lossy(), "\\u{a}").into_bytes(),
        false => path.as_os_str().as_encoded_bytes().to_vec(),
    };
    line.push(b'\n');
    line
}

/// Prints bytes of this program's own to stdout as they are.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_raw(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.context("cannot write to stdout")
}

/// Writes text to stderr in one piece. Nobody has to read it.
pub(crate) fn tell(text: &str) {
    tell_in(Ink::Plain, text);
}

/// As [`tell`], all in one colour.
pub(crate) fn tell_in(ink: Ink, text: &str) {
    say(&laid_out(&plain(text, ""), ink));
}

/// Writes a question to stderr, with the cursor behind it.
pub(crate) fn ask(text: &str) {
    let text = laid_out(&plain(text, ""), Ink::Plain) + " ";
    // Nobody has to read it.
    let _ = draw(text.as_bytes());
}

/// Writes a message of a kind to stderr.
pub(crate) fn tell_kind(kind: &str, text: &str) {
    say(&laid_out(&message(kind, text), Ink::Plain));
}

/// Writes a value to stderr, as JSON on one line.
pub(crate) fn tell_json(value: &impl Serialize) {
    say(&json_line(value));
}

/// Writes a line of JSON to stderr.
pub(crate) fn tell_line(line: &str) {
    say(&escaped(line));
}

/// A text as stderr has it.
fn laid_out(text: &str, ink: Ink) -> String {
    let text = fitted(text, stderr_width());
    let colours = COLOURS.get().copied().unwrap_or_default();
    match colours.are_wanted(is_seen(), |name| env::var(name).ok()) {
        true => painted(&text, ink),
        false => text,
    }
}

/// A value as JSON on one line.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    // Text keys and numbers always become JSON.
    escaped(&serde_json::to_string(value).unwrap_or_default())
}

/// A message that [`tell_kind`] writes: it may end in hints.
pub(crate) fn message(kind: &str, text: &str) -> String {
    if text.len() > LONGEST {
        let head: String = text.chars().take(LONGEST / 4).collect();
        let tail: Vec<char> = text.chars().rev().take(LONGEST / 8).collect();
        let tail: String = tail.into_iter().rev().collect();
        return message(kind, &format!("{head} [...] {tail}"));
    }
    match text.rsplit_once('\n') {
        Some((text, hint)) if hint.starts_with("hint: ") => {
            format!("{}\n{}", message(kind, text), visible(hint, ""))
        }
        _ => plain(text, &format!("{kind}: ")),
    }
}

/// Bytes that command the terminal, to stderr.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn draw(bytes: &[u8]) -> io::Result<()> {
    io::stderr().write_all(bytes)
}

/// Stderr, for what runs where nothing may be allocated.
pub(crate) fn raw_stderr() -> Stderr {
    io::stderr()
}

/// Whether a person sees stderr.
pub(crate) fn is_seen() -> bool {
    io::stderr().is_terminal()
}

/// Shows help or a version on stdout, as clap has it.
///
/// # Errors
/// As [`print`].
pub(crate) fn show_help(help: &clap::Error) -> Result<()> {
    help.print().context("cannot write to stdout")
}

fn say(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The text after `start`, with what is unseen escaped, and lines indented that would look like
/// messages.
fn plain(text: &str, start: &str) -> String {
    let looks_like_a_message = |line: &str| KINDS.iter().any(|kind| line.starts_with(kind));
    let text = visible(&format!("{start}{text}"), "\n");
    let lines = text.split('\n').enumerate().map(|(number, line)| {
        let is_ours = number == 0 && !start.is_empty();
        match !is_ours && looks_like_a_message(line) {
            true => format!("  {line}"),
            false => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The same JSON, with what is unseen in its texts escaped.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            // Between values.
            '\n' => text.push('\n'),
            c if is_unseen(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    text += &format!("\\u{unit:04x}");
                }
            }
            c => text.push(c),
        }
    }
    text
}

/// A bar of indicatif's.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar that is drawn after `place` has put it among others.
    pub(crate) fn new(
        units: u64,
        prefix: &str,
        style: Option<ProgressStyle>,
        place: impl FnOnce(ProgressBar) -> ProgressBar,
    ) -> Self {
        let bar = place(ProgressBar::new(units).with_prefix(visible(prefix, " ")));
        if let Some(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// Has the bar drawn again five times a second, where the system allows a further thread; the
    /// library does not expect to be refused one.
    pub(crate) fn tick(&self) {
        if thread::Builder::new()
            .spawn(|| {})
            .is_ok_and(|probe| probe.join().is_ok())
        {
            self.0.enable_steady_tick(Duration::from_millis(200));
        }
    }

    /// Says what is done now.
    pub(crate) fn set_message(&self, text: &str) {
        self.0.set_message(visible(text, " "));
    }

    /// So many units are done.
    pub(crate) fn set_position(&self, done: u64) {
        self.0.set_position(done);
    }

    /// So many more are done.
    pub(crate) fn advance(&self, units: u64) {
        self.0.inc(units);
    }

    /// What was done so far says nothing of the speed.
    pub(crate) fn reset_eta(&self) {
        self.0.reset_eta();
    }

    /// Takes it away.
    pub(crate) fn clear(self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_looks_like_another_message() {
        assert_eq!(
            plain("error: a\nb\nhint: c", ""),
            "  error: a\nb\n  hint: c"
        );
        assert_eq!(
            message("error", "a\nerror: b\nhint: c\nd\nhint: e\nhint: f"),
            "error: a\n  error: b\n  hint: c\nd\nhint: e\nhint: f"
        );
        assert_eq!(message("error", "a\u{9b}"), "error: a\\u{9b}");
    }

    #[test]
    fn json_is_the_same_without_what_is_unseen() {
        let value = serde_json::json!({ "\u{202e}a": "\u{1b}\u{9b}\u{7f}\n\"\u{e0041}é\u{1f600}" });
        let line = json_line(&value);
        assert!(!line.chars().any(is_unseen), "{line}");
        assert!(line.contains("\\u009b\\u007f") && line.contains("é\u{1f600}"));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line).unwrap(),
            value
        );
    }

    #[test]
    fn a_path_is_its_own_bytes_for_programs_and_plain_on_a_terminal() {
        let path = Path::new("a\u{1b}]0;b\u{7}\n");
        assert_eq!(path_line(path, false), b"a\x1b]0;b\x07\n\n");
        assert_eq!(path_line(path, true), b"a\\u{1b}]0;b\\u{7}\\u{a}\n");
    }
}
