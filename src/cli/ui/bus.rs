//! A file that becomes shorter while it is read.
//!
//! A model's files are mapped: where one is truncated meanwhile, or its disk fails, the system
//! sends SIGBUS, which without a handler ends the program with no word.

use std::io;
use std::os::fd::AsFd;

use crate::weights::mapped_at;
use signal_hook::consts::SIGBUS;
use signal_hook::low_level::exit;

use super::stderr::{self, Style};
use super::terminal::raw_stderr;
use crate::util::show::is_unseen;

/// A stand-in for the file's name in the message.
const NAME: &str = "{file}";
const MESSAGE: &str = "{file}: it became shorter, or its disk failed, while it was read; see to it \
                       that the model is whole (wan-i2v inspect), then give the same command again";
const EXIT_CODE: u8 = 1;

/// Has the program say what has happened, and end with exit code 1.
///
/// # Errors
/// When the system refuses.
pub(crate) fn explain() -> io::Result<()> {
    // Now, since a handler may not allocate.
    let text = stderr::error_text(MESSAGE, EXIT_CODE);
    // Below the bar, if there is one.
    let line = match stderr::style() {
        Style::Bar => format!("\n{text}\n"),
        _ => text + "\n",
    };
    let (before, after) = line.split_once(NAME).unwrap_or((&line, ""));
    let (before, after) = (before.to_owned(), after.to_owned());
    let say_and_end = move |address: usize| {
        let mut name = [0; 1024];
        let length = plain(mapped_at(address).unwrap_or("a file"), &mut name);
        for part in [before.as_bytes(), &name[..length], after.as_bytes()] {
            let _ = rustix::io::write(raw_stderr().as_fd(), part);
        }
        exit(EXIT_CODE.into())
    };
    // SAFETY: write and _exit are all that the handler calls of the system, which POSIX allows it;
    // it takes no lock and allocates nothing. SIGBUS comes with an address.
    unsafe {
        signal_hook_registry::register_sigaction(SIGBUS, move |info| {
            say_and_end(info.si_addr() as usize);
        })
    }?;
    Ok(())
}

/// Copies a name as far as there is room, with a question mark for what would have to be escaped
/// in JSON or commands a terminal.
fn plain(name: &str, into: &mut [u8]) -> usize {
    let mut length = 0;
    for character in name.chars() {
        let character = match character {
            '"' | '\\' => '?',
            c if is_unseen(c) => '?',
            c => c,
        };
        let Some(place) = into.get_mut(length..length + character.len_utf8()) else {
            break;
        };
        character.encode_utf8(place);
        length += place.len();
    }
    length
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::{env, fs, hint};

    use crate::weights::Files;

    use super::*;

    /// Runs in a process of its own, which it ends.
    #[test]
    #[ignore = "ends the process; the test below runs it"]
    fn a_mapped_file_is_truncated_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bin");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        let bytes = Files::from(folder.path()).map("model.bin").unwrap();
        fs::write(&path, "").unwrap();
        explain().unwrap();
        hint::black_box(bytes[1 << 19]);
    }

    #[test]
    fn what_is_read_from_a_truncated_file_is_told_of() {
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["a_mapped_file_is_truncated_and_read", "--ignored"]);
        let ended = test.arg("--nocapture").output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(i32::from(EXIT_CODE)), "{said}");
        let line = said
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap();
        assert!(line.ends_with(MESSAGE.trim_start_matches(NAME)), "{said}");
        assert!(line.contains("model.bin: it became shorter"), "{said}");
    }

    #[test]
    fn names_are_plain_and_not_too_long() {
        let mut room = [0; 8];
        assert_eq!(plain("a\"\u{9b}\n\u{202e}é/b/c", &mut room), 8);
        assert_eq!(room, *b"a????\xc3\xa9/");
        assert_eq!(plain("ab", &mut room), 2);
    }
}
