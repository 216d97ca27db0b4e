//! Signals that would end the program with no word.
//!
//! A model's files are mapped: where one is truncated while it is read, or its disk fails, the system
//! sends SIGBUS. Rust's allocator and MLX's library abort where they are refused memory. A file that
//! grows beyond `ulimit -f` brings SIGXFSZ.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::weights::mapped_at;
use signal_hook::consts::{SIGABRT, SIGBUS, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::exit;

use super::desktop;
use super::stderr::{self, Style};
use super::terminal::raw_stderr;
use crate::util::show::is_unseen;

/// A stand-in for the file's name in the message.
const NAME: &str = "{file}";
const MESSAGE: &str = "{file}: it became shorter, or its disk failed, while it was read; see to it \
                       that the model is whole (wan-i2v inspect), then give the same command again";
const ABORTED: &str = "the run had to be given up, most likely because the system refuses it memory; \
                       the lines above say more\nhint: raise the limit (ulimit -v), or give the \
                       program less to do at once with --memory-budget";
const EXIT_CODE: u8 = 1;

/// Has the program say what has happened, and end with exit code 1; but for a file that may not
/// grow, which is then an error like any other.
///
/// # Errors
/// When the system refuses.
pub(crate) fn install_handlers() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default())?;
    let (before, after) = around_name(MESSAGE);
    let cut_short = move |address: usize| {
        let mut name = [0; 1024];
        let length = plain(mapped_at(address).unwrap_or("a file"), &mut name);
        say_and_end([before.as_bytes(), &name[..length], after.as_bytes()]);
    };
    let (aborted, _) = around_name(ABORTED);
    // SAFETY: write and _exit are all that the handlers call of the system, which POSIX allows them;
    // they take no lock and allocate nothing. SIGBUS comes with an address.
    unsafe {
        signal_hook_registry::register_sigaction(SIGBUS, move |info| {
            cut_short(info.si_addr() as usize);
        })?;
        signal_hook_registry::register(SIGABRT, move || {
            say_and_end([aborted.as_bytes(), b"", b""]);
        })?;
    }
    Ok(())
}

/// The line of an error, before and after the file's name in it. Made beforehand, since a handler
/// may not allocate.
fn around_name(message: &str) -> (String, String) {
    let text = stderr::error_text(message, EXIT_CODE);
    // Below the bar, if there is one.
    let line = match stderr::style() {
        Style::Bar => format!("\n{text}\n"),
        _ => text + "\n",
    };
    let (before, after) = line.split_once(NAME).unwrap_or((&line, ""));
    (before.to_owned(), after.to_owned())
}

fn say_and_end(parts: [&[u8]; 3]) {
    desktop::clear();
    for part in parts {
        let _ = rustix::io::write(raw_stderr().as_fd(), part);
    }
    exit(EXIT_CODE.into())
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
        install_handlers().unwrap();
        hint::black_box(bytes[1 << 19]);
    }

    /// Runs in a process of its own, which it ends.
    #[test]
    #[ignore = "ends the process; the test below runs it"]
    fn memory_is_refused() {
        install_handlers().unwrap();
        std::process::abort();
    }

    #[test]
    fn who_gives_up_says_so() {
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["tests::memory_is_refused", "--ignored", "--nocapture"]);
        let ended = test.output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(i32::from(EXIT_CODE)), "{said}");
        assert!(said.contains(&format!("error: {ABORTED}\n")), "{said}");
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
