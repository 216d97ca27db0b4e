//! Batches that are told to stop, get in each other's way, or lose their disk.

use std::fs;

use super::{count, told};
use crate::cli::running::{Running, succeed};
use crate::cli::{Bench, names, run};
use crate::support::scratch::Tensor;

const JOBS: &str = r#"{"name": "a", "prompt": "a cat", "seed": [1, 2]}
{"name": "b", "prompt": "a dog", "seed": 3}"#;

/// What the clips must be.
fn expected(bench: &Bench, more: &[&str]) -> std::collections::BTreeMap<String, Vec<u8>> {
    succeed(&mut bench.batch("jobs.jsonl", JOBS, more));
    let clips = bench.clips();
    assert_eq!(clips.len(), 3);
    fs::remove_dir_all(bench.path("out")).unwrap();
    clips
}

#[test]
fn a_signal_stops_it_and_the_same_command_goes_on() {
    let bench = Bench::new("a");
    let flags = ["--steps", "60"];
    let clips = expected(&bench, &flags);
    for (signal, code, after) in [("-INT", 130, "step"), ("-TERM", 143, "clip_end")] {
        let mut running = Running::start(&mut bench.batch("jobs.jsonl", JOBS, &flags));
        running.wait_for(after);
        running.signal(signal);
        let (ended, events) = running.end();
        assert_eq!(ended, Some(code), "{events:#?}");
        let last = events.last().unwrap();
        assert_eq!(
            (&last["event"], &last["exit_code"]),
            (&"error".into(), &code.into())
        );
        let message = last["message"].as_str().unwrap();
        assert!(
            message.contains("the same command makes the others"),
            "{message}"
        );
        assert!(bench.clips().len() < 3);
        let states = names(&bench.path("out"));
        assert!(
            states.iter().any(|name| name.ends_with(".wan-state")),
            "{states:?}"
        );

        let (ended, events) = told(&mut bench.batch("jobs.jsonl", JOBS, &flags));
        assert_eq!(ended, Some(0), "{events:#?}");
        // Nothing that was saved is computed again.
        let steps = events.iter().filter(|event| event["event"] == "step");
        assert!(steps.count() < 3 * 60);
        assert!(bench.clips() == clips);
        assert_eq!(names(&bench.path("out")).len(), 5);
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn two_never_write_one_thing() {
    let bench = Bench::new("a");
    let flags = ["--steps", "200"];
    let mut first = Running::start(&mut bench.batch("jobs.jsonl", JOBS, &flags));
    first.wait_for("step");
    let ran = run(&mut bench.batch("jobs.jsonl", JOBS, &flags));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .contains("--output-dir out: another wan-i2v is writing"),
        "{}",
        ran.stderr
    );
    // Nor a single run what the batch is at.
    let single = run(&mut bench.clip("out/a_1.mp4", &[]));
    assert!(
        single
            .stderr
            .contains("another wan-i2v is writing out/a_1.mp4")
    );
    first.kill();

    // And a batch leaves out what another run is at.
    fs::remove_dir_all(bench.path("out")).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    let mut single = Running::start(&mut bench.clip("out/a_2.mp4", &["--steps", "250"]));
    single.wait_for("saved");
    let (code, events) = told(&mut bench.batch("jobs.jsonl", JOBS, &["--steps", "2"]));
    assert_eq!(code, Some(1));
    assert_eq!(count(&events, "clip_end", "status", "made"), 2);
    assert_eq!(count(&events, "clip_end", "status", "failed"), 1);
    single.kill();
}

#[test]
fn a_folder_that_vanishes_loses_no_step() {
    let bench = Bench::new("a");
    let flags = ["--steps", "60"];
    let clips = expected(&bench, &flags);
    fs::create_dir(bench.path("tmp")).unwrap();
    let mut command = bench.batch("jobs.jsonl", JOBS, &flags);
    let mut running = Running::start(command.env("TMPDIR", bench.path("tmp")));
    running.wait_for("step");
    fs::rename(bench.path("out"), bench.path("gone")).unwrap();
    let (code, events) = running.end();
    assert_eq!(code, Some(1));
    let failed: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "clip_end")
        .map(|event| event["error"].as_str().unwrap())
        .collect();
    assert_eq!(failed.len(), 3, "{events:#?}");
    assert_eq!(events.last().unwrap()["event"], "batch_end");
    // As each message says, what was computed can be put back.
    fs::create_dir(bench.path("out")).unwrap();
    for message in failed {
        let (_, rest) = message
            .split_once("the state after step 60 is in ")
            .unwrap();
        let (from, rest) = rest.split_once(": put it back as ").unwrap();
        let (to, _) = rest.split_once(" to go on").unwrap();
        fs::rename(from, bench.path(to)).unwrap();
    }
    let (code, events) = told(&mut bench.batch("jobs.jsonl", JOBS, &flags));
    assert_eq!(code, Some(0));
    assert!(!events.iter().any(|event| event["event"] == "step"));
    assert!(bench.clips() == clips);
}

#[test]
fn a_part_that_is_damaged_fails_what_needs_it_and_no_more() {
    let bench = Bench::new("a");
    bench.checkpoint.edit_tensors(
        "transformer_2/diffusion_pytorch_model.safetensors",
        |tensors| {
            let tensor = tensors.get_mut("blocks.1.attn1.to_k.bias").unwrap();
            let count = tensor.shape.iter().product();
            *tensor = Tensor::f32(&tensor.shape, &vec![f32::NAN; count]);
        },
    );
    // A single step is the other expert's.
    let jobs = format!("{JOBS}\n{{\"name\": \"c\", \"prompt\": \"a cat\", \"steps\": 1}}");
    let (code, events) = told(&mut bench.batch("jobs.jsonl", &jobs, &[]));
    assert_eq!(code, Some(1));
    assert_eq!(count(&events, "clip_end", "status", "made"), 1);
    assert_eq!(count(&events, "clip_end", "status", "failed"), 3);
    // It is tried once.
    assert_eq!(
        count(&events, "load_start", "network", "low-noise expert"),
        1
    );
    let failed = events.iter().filter(|event| event["status"] == "failed");
    for event in failed {
        let error = event["error"].as_str().unwrap();
        assert!(error.contains("blocks.1.attn1.to_k.bias"), "{error}");
    }
}

/// A small file system in memory, where only a process of its own sees it.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_no_clip() {
    let bench = Bench::new("a");
    let clips = expected(&bench, &[]);
    for name in ["out", "tmp"] {
        fs::create_dir(bench.path(name)).unwrap();
    }
    let mut batch = bench.batch("jobs.jsonl", JOBS, &[]);
    // Room for the clips and the report, but for no state.
    let script = "mount -t tmpfs -o size=44k none out || exit 77; \"$@\"; code=$?; \
                  mkdir -p kept; cp out/* kept; exit $code";
    let ran = run(bench
        .unshared(script, &batch)
        .args(["--progress", "json"])
        .env("TMPDIR", bench.path("tmp")));
    if ran.code == Some(77) || ran.stderr.starts_with("unshare") {
        eprintln!("skipped: this system lets no small file system be mounted");
        return;
    }
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("stays in memory"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("cannot be saved as out/"),
        "{}",
        ran.stderr
    );
    fs::remove_dir(bench.path("out")).unwrap();
    fs::rename(bench.path("kept"), bench.path("out")).unwrap();
    assert!(bench.clips() == clips);
    assert_eq!(fs::read_dir(bench.path("tmp")).unwrap().count(), 0);
    // And nothing is left to do.
    let ran = succeed(&mut batch);
    assert!(ran.stdout.is_empty(), "{}", ran.stderr);
}
