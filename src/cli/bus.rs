//! A file that becomes shorter while it is read.
//!
//! A model's files are mapped: where one is truncated meanwhile, or its disk fails, the system
//! sends SIGBUS, which without a handler ends the program with no word.

use std::io;
use std::os::fd::AsFd;

use signal_hook::consts::SIGBUS;
use signal_hook::low_level;

use super::stderr::{self, Style};

const MESSAGE: &str = "a file of the model became shorter, or its disk failed, while it was read; \
                       see to it that the model is whole (wan-i2v inspect), then give the same \
                       command again";
const EXIT_CODE: u8 = 1;

/// Has the program say what has happened, and end with exit code 1.
///
/// # Errors
/// When the system refuses.
pub fn explain() -> io::Result<()> {
    // Now, since a handler may not allocate.
    let text = stderr::error_text(MESSAGE, EXIT_CODE);
    // Below the bar, if there is one.
    let line = match stderr::style() {
        Style::Bar => format!("\n{text}\n"),
        _ => text + "\n",
    };
    let say_and_end = move || {
        let error = io::stderr();
        let _ = rustix::io::write(error.as_fd(), line.as_bytes());
        low_level::exit(EXIT_CODE.into())
    };
    // SAFETY: write and _exit are all that the handler calls, which POSIX allows it; it takes no
    // lock and allocates nothing.
    unsafe { low_level::register(SIGBUS, say_and_end) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::{env, hint};

    use memmap2::Mmap;
    use tempfile::tempfile;

    use super::*;

    /// Runs in a process of its own, which it ends.
    #[test]
    #[ignore = "ends the process; the test below runs it"]
    fn a_mapped_file_is_truncated_and_read() {
        explain().unwrap();
        let file = tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        // SAFETY: that the file is truncated meanwhile is what is tested.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        file.set_len(0).unwrap();
        hint::black_box(map[1 << 19]);
    }

    #[test]
    fn what_is_read_from_a_truncated_file_is_told_of() {
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["a_mapped_file_is_truncated_and_read", "--ignored"]);
        let ended = test.arg("--nocapture").output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(i32::from(EXIT_CODE)), "{said}");
        assert!(said.contains(&format!("error: {MESSAGE}\n")), "{said}");
    }
}
