//! What a machine was tuned to, in runs.

use std::fs;

use serde_json::{Value, json};
use wan_i2v::persist::SavedRun;

use crate::cli::running::{bytes, succeed};
use crate::cli::{Bench, program, run};

fn tune(bench: &Bench, more: &[&str]) -> Value {
    let mut command = program();
    command.env("XDG_CACHE_HOME", bench.path("cache"));
    command
        .args(["tune", "--device", "cpu", "--json"])
        .args(more);
    let ran = run(&mut command);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{more:?}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// However little time there is, it ends, with choices that may be none.
#[test]
fn a_machine_is_tuned_and_untuned_again() {
    let bench = Bench::new("a");
    let file = bench.path("cache/wan-i2v/tuning.json");
    let tried = tune(&bench, &["--within", "0.5", "--dry-run"]);
    assert!(tried["kept"].is_null() && !file.exists(), "{tried}");
    let tuned = tune(&bench, &["--within", "0.5"]);
    let choices = tuned["choices"].as_array().unwrap();
    let names: Vec<&str> = choices
        .iter()
        .filter_map(|c| c["choice"].as_str())
        .collect();
    let expected = ["blocks of attention", "quantized products", "convolutions"];
    assert_eq!(names, expected);
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept[0]["tuning"], tuned["tuning"]);
    assert_eq!(tune(&bench, &["--reset"]), json!({ "forgotten": true }));
    assert!(!file.exists());
    assert_eq!(tune(&bench, &["--reset"]), json!({ "forgotten": false }));
}

/// A run that began with a tuning ends with it, whatever is kept by then; without it, it is refused.
#[test]
fn a_saved_run_goes_on_with_the_tuning_that_it_began_with() {
    let bench = Bench::new("a");
    tune(&bench, &["--within", "0.1"]);
    let file = bench.path("cache/wan-i2v/tuning.json");
    let mut kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let tuning = json!({ "whole_convolutions": true, "block_divisor": 8 });
    kept[0]["tuning"] = tuning.clone();
    let tuned = |more: &[&str]| {
        let mut command = bench.clip("clip.mp4", more);
        command.env("XDG_CACHE_HOME", bench.path("cache"));
        command
    };
    fs::write(&file, kept.to_string()).unwrap();
    succeed(&mut tuned(&[]));
    let expected = bytes(&bench.path("clip.mp4"));
    fs::remove_file(bench.path("clip.mp4")).unwrap();
    bench.killed(2, || tuned(&[]));
    let began = SavedRun::read(&bench.state("clip.mp4")).unwrap().identity;
    assert_eq!(serde_json::to_value(began.tuning()).unwrap(), tuning);
    let ran = run(&mut tuned(&["--no-tune"]));
    ran.assert_refused(1, &["the tuning (wan-i2v tune): {", "then, nothing now"]);
    // Nothing is kept any more, and it goes on as it began.
    fs::remove_file(&file).unwrap();
    let ran = succeed(&mut tuned(&[]));
    assert!(ran.stderr.contains("resuming after step"), "{}", ran.stderr);
    assert!(bytes(&bench.path("clip.mp4")) == expected);
    fs::remove_file(bench.path("clip.mp4")).unwrap();

    // And the other way round: an untuned run that a tuned machine resumes.
    bench.killed(2, || tuned(&[]));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, kept.to_string()).unwrap();
    let ran = succeed(&mut tuned(&[]));
    assert!(ran.stderr.contains("resuming after step"), "{}", ran.stderr);
}
