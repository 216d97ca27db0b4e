//! The program itself against the server.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::hub::Bench;
use crate::support::isolated::program;

/// What a run left on its streams.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Fails unless the run failed with one message that holds every part, silent on stdout.
    pub fn assert_fails(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{parts:?}: {}", self.stderr);
        assert_eq!(self.stdout, "");
        let errors = self.stderr.lines().filter(|l| l.starts_with("error: "));
        assert_eq!(errors.count(), 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} in {}", self.stderr);
        }
    }

    /// The path that a successful run printed.
    pub fn path(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let path = self.stdout.strip_suffix('\n').unwrap();
        assert!(!path.contains('\n'), "{path}");
        path
    }
}

impl Bench {
    /// The program with arguments, its hub the server and its cache the bench's.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in inherited.filter(|n| n.contains("HF_") || n.contains("HUGGING")) {
            command.env_remove(name);
        }
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("HF_ENDPOINT", self.server.url())
            .env("HF_HOME", self.folder.path())
            .env_remove("TRANSFORMERS_OFFLINE");
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    /// As [`Self::run`], without a network.
    pub fn offline(&self, args: &[&str]) -> Ran {
        finish(self.command(args).env("HF_HUB_OFFLINE", "1"))
    }

    /// Starts the program.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A run under way; killed when dropped.
pub struct Running(Child);

impl Running {
    /// Waits for a line on stderr that begins like this.
    pub fn wait_for_line(&mut self, start: &str) {
        let stderr = BufReader::new(self.0.stderr.take().unwrap());
        let mut lines = stderr.lines().map(Result::unwrap);
        let mut said = Vec::new();
        loop {
            let line = lines.next();
            let line = line.unwrap_or_else(|| panic!("no {start:?} in {said:?}"));
            if line.starts_with(start) {
                return;
            }
            said.push(line);
        }
    }

    /// Waits until something is so.
    pub fn wait_until(&mut self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            if let Some(status) = self.0.try_wait().unwrap() {
                let mut said = String::new();
                let stderr = self.0.stderr.take().unwrap();
                BufReader::new(stderr).read_to_string(&mut said).unwrap();
                panic!("{what}: {status}: {said}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Presses Ctrl-C; its exit code and what it has said.
    pub fn interrupt(mut self) -> (Option<i32>, String) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        let mut said = String::new();
        let stderr = self.0.stderr.take().unwrap();
        BufReader::new(stderr).read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }

    /// Ends it as a loss of power would; whether it was still running.
    pub fn kill(mut self) -> bool {
        let running = self.0.try_wait().unwrap().is_none();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
