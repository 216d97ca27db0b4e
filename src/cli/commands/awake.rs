//! Keeps a Mac from falling asleep while clips are computed.

use std::env::consts::OS;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio, id};

use crate::runtime::again;

/// Keeps the machine awake until this process ends, unless it is allowed to sleep.
pub(super) fn keep(allow_sleep: bool) {
    // In whose place this process is has started it; it watches the number that they share.
    if let Some(words) = watcher(OS, allow_sleep || again().is_some(), id()) {
        start(&words);
    }
}

/// The command that does it. The display may sleep: macOS lets the GPU work for longer then.
fn watcher(system: &str, allow_sleep: bool, pid: u32) -> Option<[String; 4]> {
    let words = ["caffeinate", "-i", "-w", &pid.to_string()];
    (system == "macos" && !allow_sleep).then(|| words.map(str::to_owned))
}

fn start([program, arguments @ ..]: &[String; 4]) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // Ctrl-C is for the program, which still has a step to finish. Where there is no such command, the
    // machine sleeps when it likes.
    let _ = command.process_group(0).spawn();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_kept_awake_as_long_as_the_program_runs() {
        let words = watcher("macos", false, 71).unwrap();
        assert_eq!(words, ["caffeinate", "-i", "-w", "71"]);
        assert_eq!(watcher("macos", true, 71), None);
        assert_eq!(watcher("linux", false, 71), None);
        // Its absence is no error.
        start(&["nowhere-to-be-found", "-i", "-w", "71"].map(str::to_owned));
    }
}
