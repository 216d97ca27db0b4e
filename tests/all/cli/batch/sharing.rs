//! What clips share is loaded and encoded once, and changes none of them.

use std::fs;

use serde_json::Value;

use super::{SMALL, assert_same_file, count, paths, told};
use crate::cli::running::succeed;
use crate::cli::{Bench, names};
use crate::support::isolated::program;

const NETWORKS: [&str; 5] = [
    "text encoder",
    "VAE's encoder",
    "high-noise expert",
    "low-noise expert",
    "VAE's decoder",
];

fn loads(events: &[Value]) -> [usize; 5] {
    NETWORKS.map(|network| count(events, "load_end", "network", network))
}

/// Six clips of three prompts, two of them equal but for what cleaning removes, and two pictures.
fn jobs(bench: &Bench) -> String {
    let other = bench.path("other.png");
    let picture = image::open(bench.picture()).unwrap();
    picture.fliph().save(other).unwrap();
    [
        r#"{"name": "a", "prompt": "a cat", "seed": [1, 2]}"#,
        r#"{"name": "b", "prompt": " a  cat ", "seed": 3}"#,
        r#"{"name": "c", "prompt": "a dog", "seed": 1, "image": "other.png"}"#,
        r#"{"name": "d", "prompt": "a cat", "seed": 1, "image": "other.png", "steps": 4}"#,
        r#"{"name": "e", "prompt": "a cat", "seed": 1, "frames": 1, "solver": "euler"}"#,
    ]
    .join("\n")
}

#[test]
fn networks_are_loaded_and_equal_things_encoded_once() {
    let bench = Bench::new("a");
    let jobs = jobs(&bench);
    let (code, events) = told(&mut bench.batch("jobs.jsonl", &jobs, &[]));
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(loads(&events), [1; 5]);
    // Two prompts and a negative one; two pictures in two latent frames, and one in one.
    assert_eq!(count(&events, "unit", "phase", "text"), 3);
    assert_eq!(count(&events, "unit", "phase", "image"), 2 + 2 + 1);
    assert_eq!(count(&events, "clip_end", "status", "made"), 6);
    // All text, then all pictures, then the clips.
    let phases = events.iter().filter(|e| e["event"] == "phase_start");
    let phases: Vec<&str> = phases.map(|e| e["phase"].as_str().unwrap()).collect();
    assert_eq!(phases[..2], ["text", "image"]);
    assert!(!phases[2..].contains(&"text") && !phases[2..].contains(&"image"));
    // A clip is written before the others have taken their last steps.
    let at = |name: &str, from_end: bool| {
        let mut found = (0..events.len()).filter(|&i| events[i]["event"] == name);
        if from_end {
            found.next_back()
        } else {
            found.next()
        }
        .unwrap()
    };
    assert!(at("clip_end", false) < at("step", true));
    // Every step says whose it is.
    let steps = events.iter().filter(|e| e["event"] == "step");
    for step in steps {
        let clip = step["clip"].as_u64().unwrap();
        assert!((1..=6).contains(&clip), "{step}");
        assert!(step["name"].as_str().unwrap().ends_with(".mp4"));
    }
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["made"], &last["exit_code"]),
        (&"batch_end".into(), &6.into(), &0.into())
    );

    // Fewer at once go in passes; only the experts are loaded again.
    fs::remove_dir_all(bench.path("out")).unwrap();
    let command = &mut bench.batch("jobs.jsonl", &jobs, &["--jobs-at-once", "4"]);
    let (code, events) = told(command);
    assert_eq!(code, Some(0));
    assert_eq!(loads(&events), [1, 1, 2, 2, 1]);
    // The first pass is written before the second begins.
    let ends = |upto: usize| count(&events[..upto], "clip_end", "status", "made");
    let second = (0..events.len())
        .filter(|&i| events[i]["event"] == "load_end")
        .filter(|&i| events[i]["network"] == "high-noise expert")
        .nth(1)
        .unwrap();
    assert_eq!(ends(second), 4);
}

#[test]
fn the_runs_of_a_sweep_share_as_the_clips_of_a_batch_do() {
    let bench = Bench::new("a");
    let vary = ["--vary", "steps=3,4", "--vary", "seed=1,2"];
    let (code, events) = told(bench.sweep(&vary).args(["--size", "32x32"]));
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(loads(&events), [1; 5]);
    assert_eq!(count(&events, "unit", "phase", "text"), 2);
    assert_eq!(count(&events, "unit", "phase", "image"), 2);
    assert_eq!(count(&events, "clip_end", "status", "made"), 4);
}

#[test]
fn each_clip_is_that_of_a_single_run() {
    let bench = Bench::new("a");
    let jobs = jobs(&bench);
    let ran = succeed(&mut bench.batch("jobs.jsonl", &jobs, &["--jobs-at-once", "5"]));
    let told = ["e_1", "a_1", "a_2", "b_3", "c_1", "d_1"];
    let mut expected: Vec<String> = told.iter().map(|n| format!("out/{n}.mp4")).collect();
    let mut paths = paths(&ran);
    paths.sort();
    expected.sort();
    assert_eq!(paths, expected);
    assert_eq!(
        names(&bench.path("out")).len(),
        8,
        "{:?}",
        names(&bench.path("out"))
    );
    let other = bench.path("other.png");
    let other = other.to_str().unwrap();
    for (name, flags) in [
        ("a_1", &["--prompt", "a cat", "--seed", "1"][..]),
        ("a_2", &["--prompt", "a cat", "--seed", "2"]),
        ("b_3", &["--prompt", " a  cat ", "--seed", "3"]),
        (
            "e_1",
            &[
                "--prompt", "a cat", "--seed", "1", "--frames", "1", "--solver", "euler",
            ],
        ),
    ] {
        assert_same_file(&bench, &format!("out/{name}.mp4"), &bench.single(flags));
    }
    // Another picture, which the single run's own flag names first.
    fs::copy(other, bench.checkpoint.path("start.png")).unwrap();
    fs::rename(other, bench.path("start.png")).unwrap();
    let clip = bench.single(&["--prompt", "a cat", "--seed", "1", "--steps", "4"]);
    // But for the picture's name in the clip's record.
    let record = |clip: &[u8]| String::from_utf8_lossy(clip).replace("start.png", "other.png");
    let made = fs::read(bench.path("out/d_1.mp4")).unwrap();
    assert!(record(&clip) == record(&made));
}

#[test]
fn many_clips_take_no_more_memory_than_few() {
    let bench = Bench::new("a");
    // Every one with a prompt of its own.
    let job = |i: usize| format!(r#"{{"name": "n{i}", "prompt": "cat {i}", "seed": {i}}}"#);
    let jobs: Vec<String> = (0..200).map(job).collect();
    let tiny = ["--size", "16x16", "--frames", "1", "--steps", "1"];
    let (code, events) = told(&mut bench.batch("jobs.jsonl", &jobs.join("\n"), &tiny));
    assert_eq!(code, Some(0));
    let ends: Vec<&Value> = events.iter().filter(|e| e["event"] == "clip_end").collect();
    assert_eq!(ends.len(), 200);
    let memory = |i: usize, key: &str| ends[i]["memory"][key].as_u64().unwrap() as f64;
    // At the end of the third pass of eight clips, and of the last.
    let (early, late) = (memory(23, "active"), memory(199, "active"));
    let (early_peak, late_peak) = (memory(23, "process_peak"), memory(199, "process_peak"));
    println!("measured: {early} and {late} bytes of MLX, {early_peak} and {late_peak} in all");
    assert!(late < early + 1e5);
    assert!(late_peak < early_peak + 1.5e7);
    assert_eq!(loads(&events), [1, 1, 25, 0, 1]);
}

#[test]
fn where_memory_is_short_clips_are_decoded_when_the_expert_is_gone() {
    let bench = Bench::new("a");
    let jobs = jobs(&bench);
    succeed(&mut bench.batch("jobs.jsonl", &jobs, &[]));
    let clips = bench.clips();
    fs::remove_dir_all(bench.path("out")).unwrap();
    // What the largest clip takes by itself, and a little for those that wait.
    let mut plan = program();
    plan.args(["plan", "--json", "--prompt", "a cat"])
        .args(SMALL);
    plan.arg("--model").arg(bench.checkpoint.root());
    let plan: Value = serde_json::from_slice(&succeed(&mut plan).stdout).unwrap();
    let peak = plan["forecast"]["peak_bytes"].as_f64().unwrap();
    let budget = ((1e8 + peak + 3e5) / 1e9).to_string();
    let flags = ["--memory-budget", &budget, "--jobs-at-once", "3"];
    let (code, events) = told(&mut bench.batch("jobs.jsonl", &jobs, &flags));
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(loads(&events), [1, 1, 2, 2, 2]);
    assert!(bench.clips() == clips);
}
