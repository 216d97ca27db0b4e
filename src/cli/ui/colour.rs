//! Whether what is written has colours, and which.

use std::ffi::OsString;

use clap::{ColorChoice, ValueEnum};

/// Whether there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colours {
    /// In a terminal that wants them.
    #[default]
    Auto,
    Always,
    Never,
}

impl Colours {
    /// Those that a command line asks for, before it is read: its errors have colours too.
    pub(crate) fn asked(arguments: &[OsString]) -> Self {
        let words = arguments.iter().map(|word| word.to_string_lossy());
        let words: Vec<_> = words.take_while(|word| word != "--").collect();
        let value = words.iter().enumerate().rev().find_map(|(at, word)| {
            let value = match word.strip_prefix("--color")? {
                "" => words.get(at + 1)?.to_string(),
                rest => rest.strip_prefix('=')?.to_owned(),
            };
            Some(value)
        });
        let value = value.and_then(|value| Self::from_str(&value, false).ok());
        value.unwrap_or_default()
    }

    /// Whether a stream has them, by the environment's variables: <https://no-color.org>,
    /// <https://bixense.com/clicolors>.
    pub(crate) fn are_wanted(
        self,
        is_terminal: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> bool {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is = |name: &str, expected: &str| value(name).as_deref() == Some(expected);
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto if value("NO_COLOR").is_some() => false,
            Self::Auto if value("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
            Self::Auto => is_terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb"),
        }
    }
}

impl From<Colours> for ColorChoice {
    fn from(colours: Colours) -> Self {
        match colours {
            Colours::Auto => Self::Auto,
            Colours::Always => Self::Always,
            Colours::Never => Self::Never,
        }
    }
}

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// By the message that it begins.
    Plain,
    /// What went well.
    Good,
    /// What only some want to know.
    Faint,
}

/// The text in colours: kinds of messages at the beginnings of lines, or all of it.
pub(crate) fn painted(text: &str, ink: Ink) -> String {
    let paint = |line: &str, code: &str| format!("\x1b[{code}m{line}\x1b[0m");
    let lines = text.split('\n').map(|line| match ink {
        Ink::Good => paint(line, "1;32"),
        Ink::Faint => paint(line, "2"),
        Ink::Plain => {
            let kinds = [("error:", "1;31"), ("warning:", "1;33"), ("hint:", "36")];
            let kind = kinds.iter().find(|(kind, _)| line.starts_with(kind));
            kind.map_or(line.to_owned(), |(kind, code)| {
                paint(kind, code) + &line[kind.len()..]
            })
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_colours_unless_somebody_says_otherwise() {
        let auto = |is_terminal, variables: &[(&str, &str)]| {
            Colours::Auto.are_wanted(is_terminal, |name| {
                let found = variables.iter().find(|variable| variable.0 == name);
                found.map(|variable| variable.1.to_owned())
            })
        };
        assert!(auto(true, &[("TERM", "xterm"), ("NO_COLOR", "")]));
        for off in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
            assert!(!auto(true, &[off]), "{off:?}");
        }
        assert!(!auto(false, &[]));
        assert!(auto(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!auto(false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!auto(true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(Colours::Always.are_wanted(false, |_| Some("1".into())));
        assert!(!Colours::Never.are_wanted(true, |_| None));
    }

    #[test]
    fn a_command_line_s_choice_is_known_before_it_is_read() {
        let asked = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
            Colours::asked(&words)
        };
        assert_eq!(asked("wan-i2v plan --color never"), Colours::Never);
        assert_eq!(asked("wan-i2v --color=always --x"), Colours::Always);
        assert_eq!(asked("wan-i2v --color --x"), Colours::Auto);
        assert_eq!(asked("wan-i2v -- --color=never"), Colours::Auto);
    }

    #[test]
    fn kinds_of_messages_have_colours() {
        assert_eq!(
            painted("error: a\n  hint: b\nhint: c", Ink::Plain),
            "\x1b[1;31merror:\x1b[0m a\n  hint: b\n\x1b[36mhint:\x1b[0m c"
        );
        assert_eq!(painted("done", Ink::Good), "\x1b[1;32mdone\x1b[0m");
    }
}
