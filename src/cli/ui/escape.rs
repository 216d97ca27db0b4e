//! Text that cannot command a terminal: names of files and prompts hold anything.

/// Whether a character moves the cursor, changes colours or turns the line's direction, so that
/// it could make a terminal show something else than what is there.
pub(crate) fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
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
    }
}
