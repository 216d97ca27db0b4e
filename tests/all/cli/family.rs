//! Models that make clips from text alone, or from a picture in place of the first frame.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::running::{bytes, succeed};
use super::{Bench, run};
use crate::support::assert_holds;
use crate::support::isolated::program;

fn json(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn inspect(path: &Path) -> Value {
    json(program().arg("inspect").arg(path).arg("--json"))
}

/// A small clip from text alone.
fn text(bench: &Bench, output: &str, more: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(bench.work.path());
    command.arg("--model").arg(bench.checkpoint.root());
    command.args(["--prompt", "rain on a tin roof", "--output", output]);
    command.args(["--frames", "5", "--seed", "7", "--device", "cpu"]);
    for (flag, value) in [("--size", "64x32"), ("--steps", "2")] {
        if !more.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(more);
    command
}

#[test]
fn text_alone_makes_a_clip_that_says_so() {
    let bench = Bench::new("family/t2v");
    let report = inspect(bench.checkpoint.root());
    assert_eq!(report["model"], "Wan2.2 T2V-A14B", "{report}");
    assert_eq!(report["boundary"], 0.875);
    succeed(&mut text(&bench, "clip.mp4", &[]));
    let shown = json(
        program()
            .current_dir(bench.work.path())
            .args(["show", "clip.mp4", "--json"]),
    );
    let command = shown["command"].as_array().unwrap();
    assert!(!command.iter().any(|word| word == "--image"), "{shown}");
    assert!(command.iter().any(|word| word == "rain on a tin roof"));
    // The same clip again, from a job file and from a sweep over nothing but its seed.
    let jobs = r#"{"name": "again", "prompt": "rain on a tin roof", "seed": 7, "size": "64x32", "frames": 5, "steps": 2}"#;
    fs::write(bench.path("jobs.jsonl"), jobs).unwrap();
    let mut batch = program();
    batch.current_dir(bench.work.path());
    batch.args([
        "batch",
        "jobs.jsonl",
        "--output-dir",
        "out",
        "--device",
        "cpu",
    ]);
    succeed(batch.arg("--model").arg(bench.checkpoint.root()));
    assert!(bytes(&bench.path("out/again_7.mp4")) == bytes(&bench.path("clip.mp4")));
    // A picture has no place.
    let ran = bench.small("other.mp4", &[]);
    ran.assert_refused(
        1,
        &[
            "--image",
            "Wan2.2 T2V-A14B makes clips from text alone",
            "hint: ",
        ],
    );
}

#[test]
fn a_run_from_text_resumes_to_the_same_bytes() {
    let bench = Bench::new("family/t2v");
    succeed(&mut text(&bench, "whole.mp4", &["--steps", "6"]));
    let state = bench.path("again.mp4.wan-state");
    let mut child = text(&bench, "again.mp4", &["--steps", "6"])
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while !state.exists() && start.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(&mut text(&bench, "again.mp4", &["--steps", "6"]));
    assert!(bytes(&bench.path("again.mp4")) == bytes(&bench.path("whole.mp4")));
}

#[test]
fn a_picture_may_be_the_first_frame() {
    let bench = Bench::new("family/ti2v");
    let report = inspect(bench.checkpoint.root());
    assert_eq!(report["model"], "Wan2.2 TI2V-5B", "{report}");
    assert_eq!(
        (&report["runs"], &report["boundary"]),
        (&true.into(), &Value::Null)
    );
    succeed(&mut text(&bench, "text.mp4", &[]));
    let flags = ["--size", "64x32", "--preview", "preview.png"];
    bench
        .small("picture.mp4", &flags)
        .assert_wrote("picture.mp4");
    assert!(bench.path("preview.png").is_file());
    assert!(bytes(&bench.path("text.mp4")) != bytes(&bench.path("picture.mp4")));
    // Its frame's size is a multiple of 32 pixels, and its own clip of 121 frames.
    let refused = bench.small("no.mp4", &["--size", "48x32"]);
    refused.assert_refused(1, &["--size 48x32", "32"]);
    let mut plan = program();
    plan.args(["plan", "--json", "--machine", "32", "--model"]);
    let planned = json(plan.arg(bench.checkpoint.root()));
    assert_eq!(planned["frames"], 121, "{planned}");
    // What is for experts, and a last picture, has no place.
    let last = bench.picture();
    for (flags, parts) in [
        (
            &["--guide-scale", "2,3"][..],
            &["--guide-scale 2,3", "one transformer"][..],
        ),
        (
            &["--steps", "1,1"],
            &["--steps of each expert", "one transformer"],
        ),
        (
            &["--last-image", last.to_str().unwrap()],
            &["--last-image", "TI2V-5B"],
        ),
        (&["--high-bits", "4"], &["--high-bits", "--bits"]),
        (
            &["--high", last.to_str().unwrap()],
            &["--high: the model has one transformer"],
        ),
    ] {
        let flags = [flags, &["--size", "64x32"]].concat();
        bench.small("no.mp4", &flags).assert_refused(1, parts);
    }
}

#[test]
fn a_model_with_one_transformer_is_converted_and_runs() {
    let bench = Bench::new("family/ti2v");
    let ours = bench.path("ours");
    let mut convert = program();
    convert.args(["convert", "--bits", "8"]);
    succeed(convert.arg(bench.checkpoint.root()).arg(&ours));
    let report = inspect(&ours);
    assert_eq!(report["model"], "Wan2.2 TI2V-5B", "{report}");
    assert_eq!(report["runs"], true, "{report}");
    let config = fs::read(ours.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["model_type"], "ti2v");
    assert_eq!(config["dual_model"], false);
    assert_eq!(config["vae_stride"], serde_json::json!([4, 16, 16]));
    bench.of_model(&ours, "clip.mp4").assert_wrote("clip.mp4");
    // Of the transformer and the VAE alone, what else is needed is named.
    fs::remove_file(ours.join("t5_encoder.safetensors")).unwrap();
    let ran = bench.of_model(&ours, "other.mp4");
    ran.assert_refused(1, &["the model has no text encoder", "--text-encoder PATH"]);
}

/// Few steps with fresh noise, by a preset that the model's name asks for.
#[test]
fn a_few_step_model_gets_its_preset() {
    let bench = Bench::new("family/ti2v");
    let named = bench.path("FastWan2.2-TI2V-5B");
    std::os::unix::fs::symlink(bench.checkpoint.root(), &named).unwrap();
    let mut command = program();
    command.current_dir(bench.work.path());
    command.arg("--model").arg(&named);
    command.args([
        "--prompt", "rain", "--output", "clip.mp4", "--device", "cpu",
    ]);
    command.args(["--size", "64x32", "--frames", "5", "--progress", "json"]);
    let ran = run(&mut command);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let done: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(done["passes"]["computed"], 3, "{done}");
    assert_eq!(done["settings"]["solver"], "lcm", "{done}");
}

/// A transformer beside the VAE of another model.
#[test]
fn a_vae_that_does_not_fit_is_named() {
    let bench = Bench::new("family/t2v");
    let other = Bench::new("family/ti2v");
    let vae = other.checkpoint.path("vae");
    let ran = run(&mut text(
        &bench,
        "clip.mp4",
        &["--vae", vae.to_str().unwrap()],
    ));
    ran.assert_refused(
        1,
        &[
            "16 latent channels",
            "48",
            "do not belong together",
            "hint: ",
        ],
    );
    assert_holds(&ran.stderr, &["vae"]);
}
