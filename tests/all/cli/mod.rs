//! The program itself, run as a user runs it, on checkpoints with random weights.

mod adapters;
mod after;
mod analyze;
mod attended;
mod batch;
mod completions;
mod endless;
mod ends;
mod existing;
mod family;
mod faults;
mod features;
mod foreign;
mod gpu;
mod help;
mod hostile;
mod limits;
mod machines;
mod metadata;
mod plan;
mod previews;
mod progress;
mod prompts;
mod questions;
mod refusals;
mod resume;
mod running;
mod runs;
mod settings;
mod small_vae;
mod stopping;
mod strips;
mod surroundings;
mod sweep;
mod tiny;
mod tune;
mod typed;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::RgbImage;
use tempfile::TempDir;

use crate::support::isolated::program;
use crate::support::names;
use crate::support::scratch::Scratch;

/// A checkpoint, a picture, and an empty folder for what the program writes.
struct Bench {
    checkpoint: Scratch,
    work: TempDir,
}

/// What a run left on its streams.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Bench {
    fn new(case: &str) -> Self {
        let checkpoint = Scratch::new(case);
        let picture = RgbImage::from_fn(40, 36, |x, y| {
            image::Rgb([(x * 6) as u8, (y * 7) as u8, (x * y % 251) as u8])
        });
        picture.save(checkpoint.path("start.png")).unwrap();
        Self {
            checkpoint,
            work: tempfile::tempdir().unwrap(),
        }
    }

    /// The start picture.
    fn picture(&self) -> PathBuf {
        self.checkpoint.path("start.png")
    }

    /// A path in the folder that starts empty.
    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// The command with the flags that every run needs, but for the output.
    fn command(&self) -> Command {
        let mut command = program();
        command.current_dir(self.work.path());
        command.arg("--model").arg(self.checkpoint.root());
        command.arg("--image").arg(self.picture());
        command
    }

    /// A small run of another model to `output`.
    fn of_model(&self, model: &Path, output: &str) -> Ran {
        let mut command = program();
        command.current_dir(self.work.path());
        command.arg("--model").arg(model);
        command.arg("--image").arg(self.picture());
        command.args(["--prompt", "a cat", "--output", output, "--device", "cpu"]);
        run(command.args(["--size", "64x32", "--frames", "5", "--steps", "2"]))
    }

    /// A small run to `output`, with more flags, whatever is there.
    fn small(&self, output: &str, more: &[&str]) -> Ran {
        self.careful(output, &[more, &["--overwrite"]].concat())
    }

    /// A small run to `output`, with more flags.
    fn careful(&self, output: &str, more: &[&str]) -> Ran {
        let mut command = self.command();
        command.args(["--prompt", "a cat in the rain", "--output", output]);
        for (flag, value) in [
            ("--size", "32x32"),
            ("--frames", "5"),
            ("--steps", "2"),
            ("--seed", "7"),
            ("--device", "cpu"),
        ] {
            let given = |flag| more.contains(&flag);
            if !(given(flag) || flag == "--size" && given("--area")) {
                command.args([flag, value]);
            }
        }
        run(command.args(more))
    }

    /// Everything in the folder that starts empty.
    fn written(&self) -> BTreeSet<String> {
        names(self.work.path())
    }
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ran {
    /// Fails unless the run succeeded and wrote exactly `output` to stdout.
    fn assert_wrote(&self, output: impl AsRef<OsStr>) {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let line = [output.as_ref().as_encoded_bytes(), b"\n"].concat();
        assert_eq!(
            self.stdout,
            line,
            "{}",
            String::from_utf8_lossy(&self.stdout)
        );
        assert!(self.stderr.contains("done in "), "{}", self.stderr);
    }

    /// Fails unless the run was refused with `code`, silent on stdout, in one message that holds
    /// every part, before anything was computed.
    fn assert_refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{parts:?}: {}", self.stderr);
        assert!(self.stdout.is_empty());
        let errors = self.stderr.lines().filter(|l| l.starts_with("error: "));
        assert_eq!(errors.count(), 1, "{}", self.stderr);
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "expected {part:?} in: {}",
                self.stderr
            );
        }
        // Phases report at the start of a line.
        for started in ["text: ", "image: ", "denoising: ", "thread "] {
            let mut lines = self.stderr.lines();
            assert!(!lines.any(|l| l.starts_with(started)), "{}", self.stderr);
        }
    }
}
