//! What the system allows a process: memory and the size of its files.

use std::process::Command;

#[cfg(target_os = "linux")]
use serde_json::Value;

#[cfg(target_os = "linux")]
use crate::cli::program;
use crate::cli::{Bench, Ran, run};

/// A command under what `ulimit` is told.
fn limited(ulimit: &str, command: &Command) -> Ran {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        &format!("ulimit {ulimit} || exit 77; exec \"$0\" \"$@\""),
    ]);
    shell.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    run(&mut shell)
}

/// Address space that a small run takes and one that nothing fits into, and much between.
#[test]
#[cfg(target_os = "linux")]
fn refused_memory_is_an_error() {
    let bench = Bench::new("a");
    let mut command = bench.clip("clip.mp4", &["--size", "640x640", "--memory-budget", "60"]);
    // Each thread takes address space.
    command.envs([("RAYON_NUM_THREADS", "2"), ("OPENBLAS_NUM_THREADS", "2")]);
    let mut errors = 0;
    for megabytes in [250, 400, 550, 700, 900, 1200] {
        let ran = limited(&format!("-v {}", megabytes << 10), &command);
        if ran.code == Some(0) {
            continue;
        }
        // Neither a signal nor a panic, and a reason.
        assert_eq!(ran.code, Some(1), "{megabytes} MB: {}", ran.stderr);
        assert!(
            ran.stderr.contains("error: "),
            "{megabytes} MB: {}",
            ran.stderr
        );
        assert!(!ran.stderr.contains(".cpp"), "{}", ran.stderr);
        assert!(!bench.path("clip.mp4").exists());
        errors += 1;
    }
    assert!(errors > 2, "{errors} of the limits were too low");
}

#[test]
#[cfg(target_os = "linux")]
fn the_budget_follows_the_limit_on_memory() {
    let bench = Bench::new("a");
    let mut plan = program();
    plan.args(["plan", "--json", "--device", "cpu", "--model"]);
    plan.arg(bench.checkpoint.root());
    let ran = limited("-v 1500000", &plan);
    let json: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(
        json["memory_budget"],
        1_500_000 * 1024 / 4 * 3,
        "{}",
        ran.stderr
    );
}

/// SIGXFSZ would end the program with no word.
#[test]
fn a_file_that_may_not_grow_is_like_a_full_disk() {
    let bench = Bench::new("a");
    let ran = limited("-f 1", &bench.clip("clip.mp4", &["--no-checkpoint"]));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("File too large"), "{}", ran.stderr);
    assert!(ran.stderr.contains("\nhint: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("ulimit -f unlimited"), "{}", ran.stderr);
    assert!(!bench.path("clip.mp4").exists());
}
