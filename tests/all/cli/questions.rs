//! What is asked before it is done.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::{Bench, program, run};

const CLIP: &str = "-i start.png -p x --frames 1 --steps 6 --seed 1 --device cpu -o clip.mp4";

/// Runs the program in a terminal and types `answer`; the exit code and what the terminal shows.
fn in_terminal(bench: &Bench, more: &str, answer: &str) -> Option<(Option<i32>, String)> {
    let line = format!("{} {CLIP} {more}", env!("CARGO_BIN_EXE_wan-i2v"));
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(bench.work.path())
        .env("XDG_CACHE_HOME", bench.path("cache"))
        .env("XDG_CONFIG_HOME", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(answer.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    Some((output.status.code(), shown))
}

#[test]
fn a_run_of_more_than_an_hour_is_asked_about() {
    let bench = Bench::new("a");
    fs::copy(bench.picture(), bench.path("start.png")).unwrap();
    // A machine so slow that everything takes hours.
    let rates = bench.path("cache/wan-i2v/rates.json");
    let mut plan = program();
    plan.args(["plan", "--device", "cpu"]);
    run(plan.env("XDG_CACHE_HOME", bench.path("cache")));
    let mut slow: Value = serde_json::from_slice(&fs::read(&rates).unwrap()).unwrap();
    slow[0]["products"] = json!(2000.0);
    slow[0]["parts"] = json!([]);
    fs::write(&rates, slow.to_string()).unwrap();
    let Some((code, shown)) = in_terminal(&bench, "", "n\n") else {
        eprintln!("skipped: this system has no script(1)");
        return;
    };
    assert_eq!(code, Some(1), "{shown}");
    for part in [
        "forecast  about ",
        " passes; 4-step models take ",
        "this takes about ",
        "Go on? [y/N]",
        "not agreed to",
        "--yes",
    ] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    assert!(!bench.path("clip.mp4").exists());
    let (code, shown) = in_terminal(&bench, "", "y\n").unwrap();
    assert_eq!(code, Some(0), "{shown}");
    // From the first phase on it is told how long the rest takes.
    assert!(shown.contains(" left"), "{shown}");
    let (code, shown) = in_terminal(&bench, "--yes --overwrite", "").unwrap();
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("Go on?"), "{shown}");
}
