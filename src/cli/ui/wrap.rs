//! Text in the width of a terminal.

use textwrap::core::display_width;
use textwrap::{Options, WordSplitter};

/// The text, with lines that are too wide broken between words. What comes after a break is
/// indented: as the second column of a line in columns, else by two blanks more than the line.
/// Words that are wider by themselves stay whole, and so do command lines: they are there to be copied.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let lines =
        text.split('\n').map(
            |line| match display_width(line) > width && !is_command(line) {
                true => broken(line, width),
                false => line.to_owned(),
            },
        );
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a line, or the hint in it, is a command of this program with flags.
fn is_command(line: &str) -> bool {
    let line = line.trim_start();
    let line = line.strip_prefix("hint: ").unwrap_or(line);
    line.contains(" -") && (line.starts_with("wan-i2v ") || line.starts_with("cd "))
}

fn broken(line: &str, width: usize) -> String {
    let body = line.len() - line.trim_start_matches(' ').len();
    let mut column = line.char_indices().map(|(at, _)| at).filter(|&at| {
        let is_start = line[..at].ends_with("  ") && !line[at..].starts_with(' ');
        is_start && at > body && display_width(&line[..at]) <= width / 2
    });
    let (start, indent) = match column.next_back() {
        Some(column) => (column, display_width(&line[..column])),
        None => (body, body + 2),
    };
    let indent = " ".repeat(indent);
    let options = Options::new(width)
        .initial_indent(&line[..start])
        .subsequent_indent(&indent)
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation);
    textwrap::fill(&line[start..], options)
}

/// A text in at most so many columns, short of its middle where it is longer: what tells names
/// apart stands at their ends.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let most = width.saturating_sub(1);
    let take = |characters: &mut dyn Iterator<Item = char>, most: usize| -> Vec<char> {
        let mut taken = 0;
        let fits = |c: &char| {
            taken += display_width(c.encode_utf8(&mut [0; 4]));
            taken <= most
        };
        characters.take_while(fits).collect()
    };
    let head = take(&mut text.chars(), most - most * 2 / 3);
    let tail = take(&mut text.chars().rev(), most * 2 / 3);
    (head.into_iter().chain(['…']))
        .chain(tail.into_iter().rev())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_alone() {
        let text = "error: --image: cannot read the picture a/very/long/path/of/a/picture.png: No such file";
        let narrow = wrapped(text, 30);
        assert_eq!(
            narrow,
            "error: --image: cannot read\n  the picture\n  a/very/long/path/of/a/picture.png:\n  No such file"
        );
        assert_eq!(wrapped(text, 100), text);
        assert_eq!(
            wrapped("a\n\n  - b c d e f\n", 9),
            "a\n\n  - b c d\n    e f\n"
        );
        for command in [
            "wan-i2v --image start.png --prompt 'what happens'",
            "hint: cd clips && wan-i2v --resume auto",
        ] {
            assert_eq!(wrapped(command, 20), command);
        }
        assert_eq!(wrapped("wan-i2v can run it", 12), "wan-i2v can\n  run it");
        // At any width the words are the same.
        for width in 0..100 {
            let words = wrapped(text, width);
            let again: Vec<&str> = words.split_whitespace().collect();
            assert_eq!(
                again,
                text.split_whitespace().collect::<Vec<_>>(),
                "{width}"
            );
        }
    }

    #[test]
    fn columns_stay_columns() {
        assert_eq!(
            wrapped("clip      64 x 64 pixels, 17 frames", 26),
            "clip      64 x 64 pixels,\n          17 frames"
        );
        assert_eq!(wrapped("last   a b c d e", 14), "last   a b c d\n       e");
        assert_eq!(wrapped("一只 猫猫猫 x", 8), "一只\n  猫猫猫\n  x");
    }

    #[test]
    fn the_middle_of_a_name_goes_first() {
        assert_eq!(shortened("blocks.12.attn.weight", 12), "bloc….weight");
        assert_eq!(shortened("weight", 6), "weight");
        assert_eq!(shortened("一只猫一只猫", 7), "一…只猫");
        assert_eq!(shortened("ab", 0), "…");
    }
}
