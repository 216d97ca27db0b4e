//! Runs under way, and what they leave.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;
use wan_i2v::persist::SavedRun;

use crate::cli::{Bench, Ran, run};

/// A run under way, told of in events; killed when dropped.
pub struct Running {
    pub child: Child,
    pub events: Lines<BufReader<ChildStderr>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        command.args(["--progress", "json"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let events = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, events }
    }

    pub fn next(&mut self) -> Option<Value> {
        let line = self.events.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}")))
    }

    /// Waits for an event.
    pub fn wait_for(&mut self, name: &str) -> Value {
        let mut told = Vec::new();
        while let Some(event) = self.next() {
            if event["event"] == name {
                return event;
            }
            told.push(event.to_string());
        }
        panic!("no {name} in {told:#?}");
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(kill.success());
    }

    /// The exit code, and the events that were still to come.
    pub fn end(mut self) -> (Option<i32>, Vec<Value>) {
        let events = std::iter::from_fn(|| self.next()).collect();
        (self.child.wait().unwrap().code(), events)
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub const FLAGS: [&str; 12] = [
    "--prompt",
    "a cat in the rain",
    "--size",
    "32x32",
    "--frames",
    "9",
    "--steps",
    "5",
    "--seed",
    "7",
    "--device",
    "cpu",
];

impl Bench {
    pub fn clip(&self, output: &str, more: &[&str]) -> Command {
        let mut command = self.command();
        for flag in FLAGS.chunks(2) {
            if !more.contains(&flag[0]) {
                command.args(flag);
            }
        }
        command.args(["--output", output]).args(more);
        command
    }

    /// A shell script run as root of a process of its own, whose mounts nobody else sees; its
    /// arguments are a command's.
    #[cfg(target_os = "linux")]
    pub fn unshared(&self, script: &str, inner: &Command) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .args([script, "sh"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .current_dir(self.work.path());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    pub fn state(&self, output: &str) -> PathBuf {
        self.path(&format!("{}.wan-state", output.trim_end_matches('/')))
    }

    /// A run's clip, and that nothing else is left in the folder but `others`.
    pub fn assert_only(&self, others: &[&str]) {
        let others = others.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(self.written(), others);
    }

    /// As [`Self::killed`], of a run to the file `output`; returns how many steps its state has.
    pub fn killed_after(&self, steps: usize, output: &str, more: &[&str]) -> usize {
        self.killed(steps, || self.clip(output, more)).1
    }

    /// Leaves a run that was killed after so many steps or, since it goes on until the signal
    /// comes, a few more. Returns what it said first, and how many steps its state has.
    pub fn killed(&self, steps: usize, command: impl Fn() -> Command) -> (Value, usize) {
        loop {
            let mut running = Running::start(&mut command());
            let start = running.wait_for("start");
            while running.wait_for("saved")["step"] != steps {}
            running.kill();
            let output = start["output"].as_str().unwrap();
            let state = self.state(output);
            if state.is_file() {
                let saved = SavedRun::read(&state).unwrap().state.count("step").unwrap();
                assert!(saved >= steps, "{saved}");
                return (start, saved);
            }
            // It was quicker than the signal.
            fs::remove_file(self.path(output)).unwrap();
        }
    }
}

/// The content of a file, or of every file in a folder.
pub fn bytes(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if path.is_file() {
        return vec![(PathBuf::new(), fs::read(path).unwrap())];
    }
    let mut files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

pub fn succeed(command: &mut Command) -> Ran {
    let ran = run(command);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran
}
