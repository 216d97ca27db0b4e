//! What is done once a clip is complete: `--exec`, `--open` and `--notify`.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::GoOn;
use crate::cli::flags::{AfterArgs, ExecCommand};
use crate::cli::ui::report::Many;
use crate::cli::ui::{desktop, stderr, terminal};
use crate::util::show::{Show, chain, gist};

/// What opens files.
const OPENER: &str = if cfg!(target_os = "macos") {
    "open"
} else {
    "xdg-open"
};

impl AfterArgs {
    /// Refuses a command that is not there, before anything is computed.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn check(&self) -> Result<()> {
        let Some(command) = &self.exec else {
            return Ok(());
        };
        let program = Path::new(command.program());
        let is_path = program.components().count() > 1;
        let folders = env::var_os("PATH").unwrap_or_default();
        let is_there = is_path && program.is_file()
            || !is_path && env::split_paths(&folders).any(|folder| folder.join(program).is_file());
        ensure!(
            is_there,
            "--exec {}: no such program{}",
            program.shown(),
            if is_path {
                ""
            } else {
                " in any folder of PATH"
            }
        );
        Ok(())
    }

    /// Runs the command on a clip.
    ///
    /// # Errors
    /// When it cannot be run or fails: names it, and how it ended.
    pub(super) fn exec(&self, clip: &Path) -> Result<()> {
        self.exec
            .as_ref()
            .map_or(Ok(()), |command| run(command, clip))
    }

    /// Opens a clip, or the folder of several.
    pub(super) fn open(&self, path: &Path) {
        if !self.open {
            return;
        }
        let mut command = Command::new(OPENER);
        command.arg(no_option(path)).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(error) = command.spawn() {
            let text = format!("--open: cannot run {OPENER}: {error}");
            stderr::warning(&text);
        }
    }

    /// Notifies of the end.
    pub(super) fn notify(&self, text: &str) {
        if self.notify {
            desktop::notify(text);
        }
    }

    /// All of it for one clip that is complete, whose path was printed; a command that fails is
    /// reported.
    pub(super) fn finished(&self, clip: &Path, text: &str) -> ExitCode {
        let ran = self.exec(clip);
        self.open(clip);
        match ran {
            Ok(()) => {
                self.notify(text);
                ExitCode::SUCCESS
            }
            Err(error) => {
                stderr::error(&chain(&error), 1);
                self.notify(&format!("{text}; --exec failed"));
                ExitCode::FAILURE
            }
        }
    }
}

/// How a command on many clips ended: its exit code and what is to be said of it, which is nothing
/// where it has made none.
pub(super) type Ended = (ExitCode, Option<String>);

impl AfterArgs {
    /// Runs the command on one of many clips; a failure is reported, and false.
    pub(super) fn exec_one(&self, many: &Many, number: usize, clip: &Path) -> bool {
        let ran = many.console.suspend(|| self.exec(clip));
        if let Err(error) = &ran {
            let text = format!("{}{}", many.label(number), chain(error));
            many.console.suspend(|| stderr::warning(&text));
        }
        ran.is_ok()
    }

    /// What is done once many clips are made in `folder`.
    ///
    /// # Errors
    /// That of `ran`.
    pub(super) fn all_ended(&self, ran: Result<Ended>, folder: &Path) -> Result<ExitCode> {
        match &ran {
            Ok((_, None)) => {}
            Ok((_, Some(text))) => {
                self.open(folder);
                self.notify(text);
            }
            // It has not ended.
            Err(error) if error.is::<GoOn>() => {}
            Err(error) => self.notify(&format!("no clips: {}", gist(error))),
        }
        ran.map(|(code, _)| code)
    }
}

/// A path that no command takes for an option.
fn no_option(path: &Path) -> PathBuf {
    match path.as_os_str().as_encoded_bytes().starts_with(b"-") {
        true => Path::new(".").join(path),
        false => path.to_owned(),
    }
}

fn run(command: &ExecCommand, clip: &Path) -> Result<()> {
    let arguments = command.arguments(no_option(clip).as_os_str());
    let said = || {
        let words = [OsStr::new(command.program())].into_iter();
        let words = words.chain(arguments.iter().map(AsRef::as_ref));
        let words: Vec<String> = words
            .map(|word| word.to_string_lossy().shown().to_string())
            .collect();
        format!("--exec: {}", words.join(" "))
    };
    // Stdout has paths of clips alone.
    let stdout = Stdio::from(terminal::raw_stderr());
    let ended = Command::new(command.program())
        .args(&arguments)
        // What it starts is no rank.
        .env_remove("MLX_RANK")
        .stdout(stdout)
        .status();
    let status = ended.with_context(said)?;
    if !status.success() {
        bail!(
            "{}: {}\nhint: the clip is complete: {}",
            said(),
            how(status),
            clip.shown()
        );
    }
    Ok(())
}

fn how(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("it failed with exit code {code}"),
        None => format!("it was ended by a signal ({status})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clip_is_an_option() {
        assert_eq!(no_option(Path::new("-rf.mp4")), Path::new("./-rf.mp4"));
        assert_eq!(no_option(Path::new("a/-b")), Path::new("a/-b"));
    }
}
