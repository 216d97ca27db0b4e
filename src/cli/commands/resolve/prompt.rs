//! Prompts from the command line, standard input or a file.

use std::io::{IsTerminal, Read};
use std::path::Path;

use crate::util::show::Show;
use crate::util::suggest;
use anyhow::{Context, Result, anyhow, ensure};

use crate::cli::commands::again::keep_input;
use crate::cli::commands::launch;
use crate::cli::config::at_home;
use crate::cli::flags::PromptSource;
use crate::cli::ui::info;

/// The most that is read, in bytes. A prompt counts to 512 tokens.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the prompt and the negative one. Line breaks at their ends are no part of them.
///
/// # Errors
/// When one cannot be read, is too long or not UTF-8, or both are to come from standard input: names
/// the flag and the file.
pub(crate) fn read_both(
    prompt: PromptSource,
    negative: Option<PromptSource>,
) -> Result<(String, Option<String>)> {
    ensure!(
        prompt != PromptSource::Stdin || negative != Some(PromptSource::Stdin),
        "--prompt - and --negative-prompt -: standard input can only be one of them\nhint: give a file, \
         such as --negative-prompt @negative.txt"
    );
    let negative = negative.map(|negative| read("--negative-prompt", negative));
    Ok((read("--prompt", prompt)?, negative.transpose()?))
}

fn read(flag: &str, prompt: PromptSource) -> Result<String> {
    match prompt {
        PromptSource::Text(text) => Ok(text),
        PromptSource::Stdin => {
            launch::has_input(flag)?;
            let input = std::io::stdin();
            if input.is_terminal() {
                info!("{flag}: type it, and end it with Ctrl-D on a line of its own");
            }
            let text = text(input.lock());
            let text = text.with_context(|| format!("{flag} -: standard input"))?;
            keep_input(text.as_bytes());
            Ok(text)
        }
        PromptSource::File(path) => file(&at_home(&path).unwrap_or_else(|| path.clone().into()))
            .with_context(|| format!("{flag} @{}", path.shown())),
    }
}

fn file(path: &Path) -> Result<String> {
    let file = suggest::open(path)?;
    ensure!(
        !file.metadata()?.is_dir(),
        "it is a folder\nhint: give a file"
    );
    text(file)
}

fn text(input: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    input.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= MAX_BYTES,
        "it is longer than 1 MiB\nhint: a prompt counts to 512 tokens, some 2000 characters"
    );
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow!("it is not UTF-8 text, from byte {at} on\nhint: save it as UTF-8")
    })?;
    // Some editors on Windows begin a file with a mark.
    let text = text.trim_start_matches('\u{feff}');
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_taken_as_it_is_but_for_its_end() {
        let read = |bytes: &[u8]| text(bytes).unwrap();
        assert_eq!(read("\u{feff}a\r\nb é\r\n\n".as_bytes()), "a\r\nb é");
        assert_eq!(read(b" a "), " a ");
        assert_eq!(read(b""), "");
        let refused = text(&b"abc\xff"[..]).unwrap_err().to_string();
        assert!(refused.contains("from byte 3 on"), "{refused}");
        assert!(text(std::io::repeat(b'a')).is_err());
    }
}
