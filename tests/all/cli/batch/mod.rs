//! `wan-i2v batch`.

mod faults;
mod gallery;
mod jobs;
pub mod kills;
mod settings;
mod sharing;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::cli::running::{Running, bytes};
use crate::cli::{Bench, Ran, names, program};

/// Settings of every clip that says nothing else.
const SMALL: [&str; 8] = [
    "--size", "32x32", "--frames", "5", "--steps", "3", "--device", "cpu",
];

impl Bench {
    /// A batch of `jobs`, written to the file `name`, into the folder `out`.
    pub fn batch(&self, name: &str, jobs: &str, more: &[&str]) -> Command {
        fs::write(self.path(name), jobs).unwrap();
        let mut command = program();
        command.current_dir(self.work.path());
        command.args(["batch", name, "--output-dir", "out"]);
        command.arg("--model").arg(self.checkpoint.root());
        command.arg("--image").arg(self.picture());
        for flag in SMALL.chunks(2) {
            if !more.contains(&flag[0]) {
                command.args(flag);
            }
        }
        command.args(more);
        command
    }

    /// The clip that a single run makes with these flags.
    pub fn single(&self, flags: &[&str]) -> Vec<u8> {
        let mut command = self.command();
        let small = SMALL.chunks(2).filter(|flag| !flags.contains(&flag[0]));
        command.args(small.flatten());
        command
            .args(["--output", "single.mp4", "--quiet"])
            .args(flags);
        let ran = crate::cli::run(&mut command);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let clip = fs::read(self.path("single.mp4")).unwrap();
        fs::remove_file(self.path("single.mp4")).unwrap();
        clip
    }

    /// The clips in `out`, by name.
    pub fn clips(&self) -> BTreeMap<String, Vec<u8>> {
        let clips = names(&self.path("out")).into_iter();
        clips
            .filter(|name| name.ends_with(".mp4"))
            .map(|name| {
                let clip = fs::read(self.path("out").join(&name)).unwrap();
                (name, clip)
            })
            .collect()
    }

    /// Status by place of every clip of the report.
    fn report(&self) -> Vec<(String, String)> {
        let report = fs::read(self.path("out/wan-batch.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["schema"], 1);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let clips = report["clips"].as_array().unwrap().iter();
        clips
            .map(|clip| (text(&clip["place"]), text(&clip["status"])))
            .collect()
    }
}

/// A batch that is told of in events.
fn told(command: &mut Command) -> (Option<i32>, Vec<Value>) {
    Running::start(command).end()
}

/// How often an event came.
fn count(events: &[Value], name: &str, key: &str, value: &str) -> usize {
    let events = events.iter();
    events
        .filter(|event| event["event"] == name && event[key] == value)
        .count()
}

fn paths(ran: &Ran) -> Vec<String> {
    let text = String::from_utf8(ran.stdout.clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn assert_same_file(bench: &Bench, clip: &str, expected: &[u8]) {
    let clip = bytes(&bench.path(clip));
    assert!(clip[0].1 == expected);
}
