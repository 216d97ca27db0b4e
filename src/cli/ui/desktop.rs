//! What a terminal shows beside its text: progress in the taskbar or tab, a title, notifications.
//!
//! Progress is ConEmu's OSC 9;4 (<https://conemu.github.io/en/AnsiEscapeCodes.html>), the title
//! xterm's OSC 2 with its stack. Notifications are OSC 9 (iTerm2), OSC 777 (urxvt) or OSC 99
//! (<https://sw.kovidgoyal.net/kitty/desktop-notifications/>).

use std::env;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use super::stderr::{Style, style};
use super::terminal::{draw, is_seen, raw_stderr};
use crate::pipeline::{Event, EventKind, Phase, Progress};
use crate::util::show::visible;

/// What a terminal takes, by the environment's variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    progress: bool,
    title: bool,
    notice: Notice,
}

/// How it is told to notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    Osc9,
    Osc777,
    Osc99,
    Bell,
}

impl Terminal {
    /// Of the terminal that the variables speak of.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let has = |name: &str| value(name).is_some();
        let (term, program) = (
            value("TERM").unwrap_or_default(),
            value("TERM_PROGRAM").unwrap_or_default(),
        );
        let starts = |names: &[&str]| names.iter().any(|name| term.starts_with(name));
        // They stand between, and pass a title and the bell on.
        if has("TMUX") || has("STY") || starts(&["tmux", "screen"]) {
            return Self {
                progress: false,
                title: true,
                notice: Notice::Bell,
            };
        }
        let is_kitty = has("KITTY_WINDOW_ID") || term == "xterm-kitty";
        let is_ghostty = program == "ghostty" || term == "xterm-ghostty";
        let is_wezterm = program == "WezTerm";
        let is_iterm = program == "iTerm.app";
        // Older ones of iTerm2 and kitty take OSC 9 for a notification.
        let features = value("TERM_FEATURES").unwrap_or_default();
        let number = |name: &str| value(name)?.split('.').next()?.parse::<u32>().ok();
        let titled = [
            "xterm",
            "alacritty",
            "foot",
            "rxvt",
            "wezterm",
            "ghostty",
            "konsole",
            "st-",
        ];
        Self {
            progress: !is_kitty
                && (has("WT_SESSION")
                    || value("ConEmuANSI").as_deref() == Some("ON")
                    || is_ghostty
                    || is_wezterm
                    || is_iterm && has_progress(&features)
                    || number("PTYXIS_VERSION").is_some_and(|version| version >= 48)),
            title: starts(&titled),
            notice: match () {
                () if is_kitty => Notice::Osc99,
                () if is_iterm || is_ghostty || is_wezterm => Notice::Osc9,
                () if starts(&["foot", "rxvt"]) || number("VTE_VERSION") >= Some(5000) => {
                    Notice::Osc777
                }
                () => Notice::Bell,
            },
        }
    }

    /// Of the one that stderr is.
    fn here() -> Self {
        Self::of(|name| env::var(name).ok())
    }
}

/// Whether iTerm2 says that it takes progress: a feature is a capital letter and what follows it.
fn has_progress(features: &str) -> bool {
    let mut letters = features.chars().peekable();
    while let Some(letter) = letters.next() {
        let is_whole = letters.peek().is_none_or(|next| !next.is_ascii_lowercase());
        if letter == 'P' && is_whole {
            return true;
        }
    }
    false
}

/// What the terminal shows and has to be taken away again: bits.
static SHOWN: AtomicU8 = AtomicU8::new(0);
const PROGRESS: u8 = 1;
const TITLE: u8 = 2;

/// Takes away what the terminal shows beside its text. Allocates nothing and takes no lock, so that
/// signal handlers may do it.
pub(crate) fn clear() {
    let shown = SHOWN.swap(0, Ordering::Relaxed);
    // The title of before, where it was kept, else none.
    let parts: [(u8, &[u8]); 2] = [
        (PROGRESS, b"\x1b]9;4;0;\x07"),
        (TITLE, b"\x1b]2;\x07\x1b[23;2t"),
    ];
    for (part, bytes) in parts {
        if shown & part != 0 {
            // Nobody has to see it.
            let _ = rustix::io::write(raw_stderr().as_fd(), bytes);
        }
    }
}

/// Progress whose share of the whole the terminal shows beside its text, until this is dropped.
pub(crate) struct Signs<'a> {
    /// Receives the events of the run.
    inner: &'a mut dyn Progress,
    terminal: Terminal,
    /// What is made.
    name: String,
    share: Share,
    last: Option<u8>,
}

impl<'a> Signs<'a> {
    /// Of one clip whose phases take so many seconds, or of `clips` together.
    pub(crate) fn new(inner: &'a mut dyn Progress, name: &str, share: Share) -> Self {
        let mut terminal = Terminal::here();
        if !is_seen() || !matches!(style(), Style::Bar | Style::Plain) {
            (terminal.progress, terminal.title) = (false, false);
        }
        let mut signs = Self {
            inner,
            terminal,
            name: visible(name, " "),
            share,
            last: None,
        };
        if signs.terminal.title {
            SHOWN.fetch_or(TITLE, Ordering::Relaxed);
            write("\x1b[22;2t");
        }
        signs.show();
        signs
    }

    fn show(&mut self) {
        let percent = (self.share.now() * 100.0).clamp(0.0, 100.0) as u8;
        if self.last.replace(percent) == Some(percent) {
            return;
        }
        if self.terminal.progress {
            SHOWN.fetch_or(PROGRESS, Ordering::Relaxed);
            write(&format!("\x1b]9;4;1;{percent}\x07"));
        }
        if self.terminal.title {
            write(&format!("\x1b]2;{percent}% {} - wan-i2v\x07", self.name));
        }
    }
}

impl Progress for Signs<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        self.inner.on_event(event);
        self.share.after(&event.kind);
        self.show();
    }

    fn stops(&self) -> bool {
        self.inner.stops()
    }
}

/// At the end, after an error and when a panic unwinds.
impl Drop for Signs<'_> {
    fn drop(&mut self) {
        clear();
    }
}

/// The share of a run that is done.
#[derive(Clone, Debug)]
pub(crate) enum Share {
    /// Of a clip: what its phases weigh, those that are done, and the one under way with its share.
    Clip {
        weights: Vec<(Phase, f64)>,
        now: Option<(Phase, f64)>,
    },
    /// Of clips: how many there are, and how many have ended.
    Clips { all: usize, ended: usize },
}

impl Share {
    /// Of a clip, by the forecast of its phases.
    pub(crate) fn of_clip(weights: &[(Phase, f64)]) -> Self {
        // Where nothing is forecast: most of the time goes here.
        let usual = [
            (Phase::Text, 0.02),
            (Phase::Image, 0.03),
            (Phase::Denoising, 0.8),
            (Phase::Decoding, 0.15),
        ];
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let weights = if sum > 0.0 { weights } else { &usual };
        Self::Clip {
            weights: weights.to_vec(),
            now: None,
        }
    }

    fn now(&self) -> f64 {
        match self {
            Self::Clips { all, ended } => *ended as f64 / (*all).max(1) as f64,
            Self::Clip { weights, now } => {
                let Some((phase, share)) = now else {
                    return 0.0;
                };
                let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
                let done = weights.iter().map(|(of, weight)| match of.cmp(phase) {
                    std::cmp::Ordering::Less => *weight,
                    std::cmp::Ordering::Equal => weight * share,
                    std::cmp::Ordering::Greater => 0.0,
                });
                done.sum::<f64>() / sum.max(f64::MIN_POSITIVE)
            }
        }
    }

    fn after(&mut self, event: &EventKind<'_>) {
        match (self, event) {
            (Self::Clips { ended, .. }, EventKind::Made(_) | EventKind::Failed(_)) => *ended += 1,
            (Self::Clip { now, .. }, event) => {
                let (phase, done, units) = match *event {
                    EventKind::PhaseStarted { phase, units, done }
                    | EventKind::Unit { phase, done, units } => (phase, done, units),
                    EventKind::Step(step) => (Phase::Denoising, step.step, step.steps),
                    EventKind::PhaseFinished(report) => (report.phase, 1, 1),
                    _ => return,
                };
                *now = Some((phase, done as f64 / units.max(1) as f64));
            }
            _ => {}
        }
    }
}

/// Notifies whoever started a run of its end.
pub(crate) fn notify(text: &str) {
    let terminal = Terminal::here();
    let is_seen = is_seen();
    if cfg!(target_os = "macos") && (terminal.notice == Notice::Bell || !is_seen) {
        let script = [
            "on run words",
            "display notification (item 1 of words) with title \"wan-i2v\"",
            "end run",
        ];
        let mut command = Command::new("osascript");
        for line in script {
            command.args(["-e", line]);
        }
        command.arg(visible(text, " ")).stdin(Stdio::null());
        let told = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if told.is_ok_and(|status| status.success()) {
            return;
        }
    }
    if is_seen && style() != Style::Json {
        write(&notification(terminal.notice, text));
    }
}

fn notification(notice: Notice, text: &str) -> String {
    let text = visible(text, " ");
    match notice {
        Notice::Osc9 => format!("\x1b]9;{text}\x07"),
        // A semicolon ends a field.
        Notice::Osc777 => format!("\x1b]777;notify;wan-i2v;{}\x07", text.replace(';', ",")),
        Notice::Osc99 => format!("\x1b]99;;{text}\x1b\\"),
        Notice::Bell => "\x07".to_owned(),
    }
}

fn write(bytes: &str) {
    // Nobody has to see it.
    let _ = draw(bytes.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Memory, PhaseReport};

    fn of(variables: &[(&str, &str)]) -> Terminal {
        Terminal::of(|name| {
            let found = variables.iter().find(|variable| variable.0 == name);
            found.map(|variable| variable.1.to_owned())
        })
    }

    #[test]
    fn terminals_get_what_they_take() {
        let xterm = ("TERM", "xterm-256color");
        let program = |name| [xterm, ("TERM_PROGRAM", name)];
        let (yes, no) = (true, false);
        for (variables, progress, title, notice) in [
            (&[xterm][..], no, yes, Notice::Bell),
            (&program("ghostty"), yes, yes, Notice::Osc9),
            (&program("WezTerm"), yes, yes, Notice::Osc9),
            (&program("Apple_Terminal"), no, yes, Notice::Bell),
            (&program("iTerm.app"), no, yes, Notice::Osc9),
            (
                &[
                    xterm,
                    ("TERM_PROGRAM", "iTerm.app"),
                    ("TERM_FEATURES", "T3CwLrMSc7UUwTs3BfGsSyHNoSxFP"),
                ],
                yes,
                yes,
                Notice::Osc9,
            ),
            (&[xterm, ("WT_SESSION", "x")], yes, yes, Notice::Bell),
            (&[xterm, ("ConEmuANSI", "ON")], yes, yes, Notice::Bell),
            (&[xterm, ("ConEmuANSI", "OFF")], no, yes, Notice::Bell),
            (
                &[xterm, ("PTYXIS_VERSION", "48.1"), ("VTE_VERSION", "8000")],
                yes,
                yes,
                Notice::Osc777,
            ),
            (&[xterm, ("PTYXIS_VERSION", "47.9")], no, yes, Notice::Bell),
            (&[("TERM", "xterm-kitty")], no, yes, Notice::Osc99),
            (&[("TERM", "foot")], no, yes, Notice::Osc777),
            (
                &[("TERM", "tmux-256color"), ("WT_SESSION", "x")],
                no,
                yes,
                Notice::Bell,
            ),
            (
                &[xterm, ("TMUX", "x"), ("TERM_PROGRAM", "ghostty")],
                no,
                yes,
                Notice::Bell,
            ),
            (&[("TERM", "dumb")], no, no, Notice::Bell),
            (&[("TERM", "linux")], no, no, Notice::Bell),
            (&[], no, no, Notice::Bell),
        ] {
            let expected = Terminal {
                progress,
                title,
                notice,
            };
            assert_eq!(of(variables), expected, "{variables:?}");
        }
        assert!(!has_progress("PaF") && has_progress("PF") && !has_progress(""));
    }

    #[test]
    fn notifications_hold_no_commands() {
        let evil = "a;b\u{7}\u{1b}]2;x\n";
        let plain = "a;b\\u{7}\\u{1b}]2;x ";
        assert_eq!(
            notification(Notice::Osc9, evil),
            format!("\x1b]9;{plain}\x07")
        );
        let parted = plain.replace(';', ",");
        let expected = format!("\x1b]777;notify;wan-i2v;{parted}\x07");
        assert_eq!(notification(Notice::Osc777, evil), expected);
        assert_eq!(
            notification(Notice::Osc99, evil),
            format!("\x1b]99;;{plain}\x1b\\")
        );
        assert_eq!(notification(Notice::Bell, evil), "\x07");
    }

    #[test]
    fn the_share_grows_by_what_phases_take() {
        let mut share = Share::of_clip(&[
            (Phase::Text, 10.0),
            (Phase::Denoising, 50.0),
            (Phase::Denoising, 20.0),
            (Phase::Decoding, 20.0),
        ]);
        assert_eq!(share.now(), 0.0);
        let mut after = |event: EventKind<'_>| {
            share.after(&event);
            (share.now() * 100.0).round()
        };
        let finished = |phase| {
            EventKind::PhaseFinished(PhaseReport {
                phase,
                seconds: 1.0,
                memory: Memory::default(),
            })
        };
        assert_eq!(after(finished(Phase::Text)), 10.0);
        assert_eq!(after(finished(Phase::Image)), 10.0);
        let (phase, units) = (Phase::Denoising, 10);
        assert_eq!(
            after(EventKind::PhaseStarted {
                phase,
                units,
                done: 5
            }),
            45.0
        );
        assert_eq!(after(finished(phase)), 80.0);
        assert_eq!(
            after(EventKind::Saved {
                step: 1,
                path: "x".as_ref(),
                bytes: 1
            }),
            80.0
        );
        assert_eq!(after(finished(Phase::Decoding)), 100.0);
        // Nothing is forecast.
        let mut share = Share::of_clip(&[]);
        share.after(&finished(Phase::Denoising));
        assert!((0.8..0.9).contains(&share.now()));
        let mut clips = Share::Clips { all: 4, ended: 1 };
        clips.after(&EventKind::Failed("x"));
        assert_eq!(clips.now(), 0.5);
    }
}
