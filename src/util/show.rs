//! Text that cannot command a terminal: names of files, tensors and jobs hold anything.

use std::fmt::{self, Display, Write as _};
use std::path::Path;

/// Whether a character moves the cursor, changes colours, turns the line's direction or takes no
/// room, so that it could make a terminal show something else than what is there.
pub(crate) fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0e}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e01ef}'
        )
}

/// The text with what is unseen escaped, but for line breaks, for which `line_break` stands.
pub(crate) fn visible(text: &str, line_break: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown += line_break,
            c if is_unseen(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// A name as messages show it: with what is unseen escaped, line breaks too, so that it begins no
/// line of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a>(&'a Path);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string_lossy().chars() {
            match is_unseen(character) {
                true => write!(f, "{}", character.escape_unicode())?,
                false => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// What comes from outside and is put into messages.
pub(crate) trait Show {
    /// It as messages show it.
    fn shown(&self) -> Shown<'_>;
}

impl Show for Path {
    fn shown(&self) -> Shown<'_> {
        Shown(self)
    }
}

impl Show for str {
    fn shown(&self) -> Shown<'_> {
        Shown(self.as_ref())
    }
}

/// What begins a line of advice at a message's end.
const HINT: &str = "\nhint: ";

/// An error and its causes in one sentence, and the advice of all of them in lines at the end.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let (mut sentence, mut hints) = (String::new(), Vec::new());
    for cause in error.chain() {
        let text = cause.to_string();
        let mut parts = text.split(HINT);
        if !sentence.is_empty() {
            sentence += ": ";
        }
        sentence += parts.next().unwrap_or_default();
        hints.extend(parts.map(str::to_owned));
    }
    hints.dedup();
    hints.iter().fold(sentence, |text, hint| text + HINT + hint)
}

/// [`chain`] in one line without lists, to be a part of another sentence.
pub(crate) fn gist(error: &anyhow::Error) -> String {
    let chain = chain(error);
    let mut parts = chain.split(HINT);
    let sentence = parts.next().unwrap_or_default();
    let line = sentence.lines().next().unwrap_or_default();
    let line = line.trim_end_matches(':').to_owned();
    parts.fold(line, |text, hint| text + " (" + hint + ")")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unseen_reaches_the_terminal() {
        assert_eq!(
            visible("a\u{1b}[2J\r\u{202e}", "\n"),
            "a\\u{1b}[2J\\u{d}\\u{202e}"
        );
        assert_eq!(visible("a\nb", "\n          "), "a\n          b");
        assert_eq!(
            Path::new("é\u{9b}\nerror: b").shown().to_string(),
            "é\\u{9b}\\u{a}error: b"
        );
    }

    #[test]
    fn advice_comes_last() {
        let error = anyhow::anyhow!("it is cut off\nhint: download it again");
        let error = error.context("a.pth: damaged\nhint: wan-i2v inspect says more");
        let error = error.context("--high");
        assert_eq!(
            chain(&error),
            "--high: a.pth: damaged: it is cut off\nhint: wan-i2v inspect says more\n\
             hint: download it again"
        );
    }
}
