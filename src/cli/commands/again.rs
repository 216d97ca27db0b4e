//! A run that an error of the GPU ends goes on in a fresh process: this one cannot compute any more
//! (after a lost context every piece of work fails).
//!
//! The program is executed anew in place of itself, so process, streams and arguments stay the same. That
//! is asked for by an error, [`GoOn`], which `cli::main` meets when everything that the run held is gone: locks,
//! temporary files, what the terminal showed.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;
use mlx_rs::error::Exception;

use crate::cli::ui::stderr;
use crate::pipeline::plan::Budget;
use crate::runtime::{Again, GpuError, again};
use crate::util::show::gist;

/// How often a run goes on without getting any further.
const TRIES: usize = 3;

/// What was read from standard input, which a fresh process has to read again.
static INPUT: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// Keeps what was read from standard input.
pub(super) fn keep_input(content: &[u8]) {
    *INPUT.lock().unwrap_or_else(PoisonError::into_inner) = Some(content.to_vec());
}

/// A run that has ended early.
pub(super) struct Early<'a> {
    /// Why it is not to go on by itself, if it is not.
    pub(super) against: Option<&'a str>,
    /// Whether there is more on disk than when this process began.
    pub(super) advanced: bool,
    /// What the run takes.
    pub(super) peak_bytes: u64,
    /// The steps that are saved, where it is of one clip.
    pub(super) step: Option<usize>,
    /// The saved run, where it is not a batch's.
    pub(super) state: Option<PathBuf>,
    /// The clip.
    pub(super) output: Option<PathBuf>,
}

impl Early<'_> {
    /// What follows from the error: [`GoOn`], or the error with what it means.
    pub(super) fn because_of(self, error: anyhow::Error) -> anyhow::Error {
        let Some(kind) = GpuError::of(&error) else {
            return error;
        };
        let before = again().cloned().unwrap_or_default();
        let tries = match self.advanced {
            true => 1,
            false => before.tries + 1,
        };
        let (what, said, hint) = (what(kind), said(&error), hint(kind));
        if let Some(against) = self.against {
            return anyhow!("{what}; {against}: {said}{hint}");
        }
        if tries > TRIES {
            return anyhow!("{what}, {tries} times without a step in between: {said}{hint}");
        }
        let from = match self.step {
            Some(0) => "starting over".to_owned(),
            Some(step) => format!("resuming after step {step}"),
            None => "the batch goes on".to_owned(),
        };
        let runs_out = kind == GpuError::OutOfMemory;
        let parts = if runs_out { ", in smaller parts" } else { "" };
        let text =
            format!("{what} ({said}); {from} in a fresh process{parts}, try {tries} of {TRIES}");
        let budget = match runs_out {
            true => Some(Budget::below(self.peak_bytes)),
            false => before.budget,
        };
        GoOn {
            text,
            again: Again {
                tries,
                ran_out: runs_out,
                budget,
                state: self.state,
                output: self.output,
            },
        }
        .into()
    }
}

/// The error in one line, without the places in sources where it was noticed.
fn said(error: &anyhow::Error) -> String {
    let gist = gist(error);
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Exception>());
    let Some(exception) = causes.next() else {
        return gist;
    };
    let what = exception.what().split(" at ").next().unwrap_or_default();
    gist.replace(&exception.to_string(), what)
}

/// What happened.
fn what(kind: GpuError) -> &'static str {
    match kind {
        GpuError::Timeout => "the GPU took too long and was interrupted",
        GpuError::LostContext => "the GPU refuses work after an error",
        GpuError::OutOfMemory => "the GPU has no memory left",
    }
}

/// What helps.
fn hint(kind: GpuError) -> &'static str {
    match kind {
        GpuError::Timeout | GpuError::LostContext => {
            "\nhint: macOS interrupts long work of the GPU while the display is lit \
             (https://github.com/ml-explore/mlx/issues/3267): let the display sleep, or set \
             AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"
        }
        GpuError::OutOfMemory => {
            "\nhint: close other programs, or give a smaller --memory-budget, --size or --frames"
        }
    }
}

/// Asks for a fresh process in place of this one.
#[derive(Debug)]
pub(crate) struct GoOn {
    text: String,
    again: Again,
}

impl fmt::Display for GoOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for GoOn {}

impl GoOn {
    /// Executes the program anew; returns where that is impossible.
    pub(crate) fn execute(self) -> ExitCode {
        stderr::warning(&self.text);
        let error = self.replace();
        let text =
            format!("no fresh process can be started: {error}\nhint: the same command resumes");
        stderr::error(&text, 1);
        ExitCode::FAILURE
    }

    fn replace(&self) -> std::io::Error {
        let prepared = || {
            let mut arguments = env::args_os();
            let name = arguments.next().unwrap_or_default();
            let mut command = Command::new(env::current_exe()?);
            command.arg0(name).args(arguments);
            for (name, value) in self.again.variables(process::id()) {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            if let Some(content) = INPUT.lock().unwrap_or_else(PoisonError::into_inner).take() {
                let mut input: File = tempfile::tempfile()?;
                input.write_all(&content)?;
                input.rewind()?;
                command.stdin(input);
            }
            Ok(command)
        };
        match prepared() {
            Ok(mut command) => command.exec(),
            Err(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::show::chain;

    fn after(text: &str, early: Early<'_>) -> Result<GoOn, String> {
        let error = anyhow::Error::from(Exception::custom(text)).context("step 3 of 4");
        let error = early.because_of(error);
        error.downcast().map_err(|error| chain(&error))
    }

    fn early(against: Option<&str>) -> Early<'_> {
        Early {
            against,
            advanced: false,
            peak_bytes: 3_000_000_000,
            step: Some(2),
            state: Some("clip.mp4.wan-state".into()),
            output: Some("clip.mp4".into()),
        }
    }

    const TIMEOUT: &str = "[METAL] Command buffer execution failed: Caused GPU Timeout Error \
                           (00000002:kIOGPUCommandBufferCallbackErrorTimeout).";

    #[test]
    fn an_error_of_the_gpu_goes_on_or_says_what_helps() {
        let on = after(&format!("{TIMEOUT} at a/b.cpp:73"), early(None)).unwrap();
        assert!(on.text.starts_with("the GPU took too long"), "{}", on.text);
        assert!(
            on.text
                .ends_with("; resuming after step 2 in a fresh process, try 1 of 3"),
            "{}",
            on.text
        );
        assert_eq!((on.again.tries, on.again.budget), (1, None));
        assert_eq!(on.again.state, Some("clip.mp4.wan-state".into()));
        assert!(
            on.text.contains(&format!("(step 3 of 4: {TIMEOUT})")),
            "{}",
            on.text
        );
        let on = after("[malloc] Unable to allocate 7 bytes.", early(None)).unwrap();
        assert!(on.text.contains("in smaller parts"), "{}", on.text);
        assert!(on.again.budget > Some(3_000_000_000));
        let text = after(TIMEOUT, early(Some("nothing was saved"))).unwrap_err();
        assert!(
            text.contains("interrupted; nothing was saved: step 3 of 4: "),
            "{text}"
        );
        assert!(
            text.contains("\nhint: ") && text.contains("AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"),
            "{text}"
        );
        let other = after("[add] shapes", early(None)).unwrap_err();
        assert!(other.starts_with("step 3 of 4: "), "{other}");
    }
}
