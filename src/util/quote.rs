//! Words as a shell reads them.

use std::fmt::Write as _;

use crate::util::show::is_unseen;

/// A word as a shell reads it: bare, in single quotes, or in `$'...'` when it holds what is unseen
/// (bash, zsh and ksh).
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if !word.chars().any(is_unseen) {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    let mut text = String::from("$'");
    for character in word.chars() {
        match character {
            '\'' | '\\' => text.extend(['\\', character]),
            '\n' => text += "\\n",
            // Octal, always three digits: what follows cannot become part of it.
            c if is_unseen(c) => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(text, "\\{byte:03o}");
                }
            }
            c => text.push(c),
        }
    }
    text + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expected) in [
            ("start.png", "start.png"),
            ("", "''"),
            ("a cat", "'a cat'"),
            ("it's $HOME `x` \\ !", r"'it'\''s $HOME `x` \ !'"),
            ("~", "'~'"),
            ("一只猫", "'一只猫'"),
            ("a'\n\\\u{1b}1\u{202e}", r"$'a\'\n\\\0331\342\200\256'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }

    /// What the shell makes of it is the word again.
    #[test]
    fn a_shell_reads_the_words_back() {
        let words = [
            "a b",
            "it's",
            "$(false)",
            "\u{1b}[31m1",
            "a\nb",
            "\\n",
            "-x",
            "\u{202e}x",
            "*",
            "é\u{1}7",
        ];
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let script = format!("printf '%s\\0' {}", line.join(" "));
        let mut bash = std::process::Command::new("bash");
        let output = bash.args(["-c", &script]).output().unwrap();
        let read = String::from_utf8(output.stdout).unwrap();
        assert_eq!(read.split_terminator('\0').collect::<Vec<_>>(), words);
    }
}
