//! Models that look at pictures by CLIP: Wan2.1 I2V and FLF2V, from the command line.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::running::{bytes, succeed};
use super::{Bench, run};
use crate::support::assert_holds;
use crate::support::isolated::program;

fn inspect(path: &Path) -> Value {
    let output = program().arg("inspect").arg(path).arg("--json").output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

/// Names of the parts that `inspect` lists.
fn parts(report: &Value) -> Vec<&str> {
    let parts = report["parts"].as_array().unwrap().iter();
    parts.map(|part| part["part"].as_str().unwrap()).collect()
}

#[test]
fn a_model_is_named_planned_run_and_shown() {
    let bench = Bench::new("family/i2v21");
    let report = inspect(bench.checkpoint.root());
    assert_eq!(report["model"], "Wan2.1 I2V-14B", "{report}");
    assert_eq!(report["runs"], true, "{report}");
    let all = ["transformer", "vae", "text-encoder", "image-encoder"];
    assert_eq!(parts(&report), all);
    assert_eq!(report["parts"][3]["layout"], "transformers");

    let mut plan = program();
    plan.args([
        "plan", "--json", "--device", "cpu", "--size", "32x32", "--frames", "5",
    ]);
    plan.arg("--model").arg(bench.checkpoint.root());
    plan.arg("--image").arg(bench.picture());
    let ran = succeed(plan.args(["--prompt", "a cat"]));
    let planned: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let phases = planned["forecast"]["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 4, "{planned}");

    let said = bench.small("clip.mp4", &["--progress", "json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let loaded: Vec<Value> = (said.stderr.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &Value| event["event"] == "load_end")
        .collect();
    let networks: Vec<&str> = loaded
        .iter()
        .map(|e| e["network"].as_str().unwrap())
        .collect();
    assert_eq!(networks[1..3], ["image encoder", "VAE's encoder"]);
    let shown = succeed(
        program()
            .current_dir(bench.work.path())
            .args(["show", "clip.mp4"]),
    );
    let shown = String::from_utf8(shown.stdout).unwrap();
    // Its own default, which a clip without another one has.
    assert_holds(&shown, &["镜头晃动"]);

    // The picture is looked at in its own shape: the same frames of it give another clip.
    let before = fs::read(bench.path("clip.mp4")).unwrap();
    let picture = image::open(bench.picture()).unwrap();
    let square = picture.resize_exact(36, 36, image::imageops::FilterType::Nearest);
    square.save(bench.picture()).unwrap();
    bench.small("clip.mp4", &[]).assert_wrote("clip.mp4");
    assert!(fs::read(bench.path("clip.mp4")).unwrap() != before);
}

#[test]
fn what_is_missing_is_asked_for() {
    let bench = Bench::new("family/i2v21");
    let mut command = program();
    command.current_dir(bench.work.path());
    command.args([
        "--prompt", "a cat", "--output", "clip.mp4", "--device", "cpu",
    ]);
    let ran = run(command.arg("--model").arg(bench.checkpoint.root()));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_holds(&ran.stderr, &["--image is missing: Wan2.1 I2V-14B"]);

    let (there, away) = (bench.checkpoint.path("image_encoder"), bench.path("clip"));
    fs::rename(there, &away).unwrap();
    let ran = bench.small("clip.mp4", &[]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_holds(
        &ran.stderr,
        &["the model has no image encoder", "--image-encoder PATH"],
    );
    let report = inspect(bench.checkpoint.root());
    assert_eq!(report["absent"], serde_json::json!(["image-encoder"]));
    let named = ["--image-encoder", away.to_str().unwrap()];
    bench.small("clip.mp4", &named).assert_wrote("clip.mp4");
    // A model that needs none takes none.
    let other = Bench::new("family/t2v");
    let mut command = program();
    command
        .current_dir(other.work.path())
        .args(["--prompt", "a cat"]);
    command.arg("--model").arg(other.checkpoint.root());
    let ran = run(command.arg("--image-encoder").arg(&away));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let said = "--image-encoder: the model's transformer attends to no features";
    assert_holds(&ran.stderr, &[said]);
    // What is no image encoder is called what it is.
    let vae = bench.checkpoint.path("vae");
    let ran = bench.small("clip.mp4", &["--image-encoder", vae.to_str().unwrap()]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_holds(&ran.stderr, &["this is a VAE; expected an image encoder"]);
}

#[test]
fn a_model_of_two_pictures_wants_both() {
    let bench = Bench::new("family/flf2v");
    assert_eq!(
        inspect(bench.checkpoint.root())["model"],
        "Wan2.1 FLF2V-14B"
    );
    let ran = bench.small("clip.mp4", &[]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_holds(&ran.stderr, &["--last-image is missing: Wan2.1 FLF2V-14B"]);
    let last = bench.path("last.png");
    image::open(bench.picture())
        .unwrap()
        .flipv()
        .save(&last)
        .unwrap();
    let both = ["--last-image", last.to_str().unwrap()];
    bench.small("clip.mp4", &both).assert_wrote("clip.mp4");

    // Killed after a step it goes on with the features that it has, to the same bytes.
    let flags = [&both[..], &["--frames", "5", "--steps", "4"]].concat();
    succeed(&mut bench.clip("whole.mp4", &flags));
    let steps = bench.killed_after(2, "again.mp4", &flags);
    let ran = succeed(bench.clip("again.mp4", &flags).args(["--progress", "json"]));
    assert!(
        !ran.stderr.contains("image encoder"),
        "{} steps: {}",
        steps,
        ran.stderr
    );
    assert!(bytes(&bench.path("again.mp4")) == bytes(&bench.path("whole.mp4")));
}

/// Clips that share a picture share its features, and each is that of a single run.
#[test]
fn a_batch_encodes_each_picture_once() {
    let bench = Bench::new("family/i2v21");
    let other = bench.path("other.png");
    image::open(bench.picture())
        .unwrap()
        .fliph()
        .save(&other)
        .unwrap();
    let jobs = [
        r#"{"name": "a", "prompt": "a cat", "seed": [1, 2]}"#,
        r#"{"name": "c", "prompt": "a dog", "seed": 1, "image": "other.png"}"#,
    ];
    // Their pictures have other names.
    let plain = ["--progress", "json", "--no-metadata"];
    let mut batch = bench.batch("jobs.jsonl", &jobs.join("\n"), &plain);
    let ran = succeed(&mut batch);
    let events = || {
        ran.stderr
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
    };
    let loads = events().filter(|e| e["event"] == "load_end" && e["network"] == "image encoder");
    assert_eq!(loads.count(), 1);
    // For each of two pictures its features, and two latent frames.
    let units = events().filter(|e| e["event"] == "unit" && e["phase"] == "image");
    assert_eq!(units.count(), 2 * 3);
    let clips = bench.clips();
    for (name, flags) in [
        ("a_2.mp4", ["--prompt", "a cat", "--seed", "2"]),
        ("c_1.mp4", ["--prompt", "a dog", "--seed", "1"]),
    ] {
        if name == "c_1.mp4" {
            fs::copy(&other, bench.picture()).unwrap();
        }
        let names: Vec<_> = clips.keys().collect();
        let made = clips.get(name).unwrap_or_else(|| panic!("{names:?}"));
        let flags = [&flags[..], &["--no-metadata"]].concat();
        assert!(made == &bench.single(&flags), "{name}");
    }
}

#[test]
fn a_converted_model_runs() {
    let bench = Bench::new("family/i2v21");
    let ours = bench.path("ours");
    let mut convert = program();
    convert
        .arg("convert")
        .arg(bench.checkpoint.root())
        .arg(&ours);
    succeed(&mut convert);
    let report = inspect(&ours);
    assert_eq!(report["runs"], true, "{report}");
    assert_eq!(report["layout"], "wan-i2v");
    assert_eq!(parts(&report).len(), 4);
    let config = fs::read(ours.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["wan_i2v"]["image_encoder"]["num_hidden_layers"], 3);
    bench.of_model(&ours, "clip.mp4").assert_wrote("clip.mp4");
}

/// Some published configurations claim an image branch that the weights do not have.
#[test]
fn tensors_decide_and_not_what_a_configuration_claims() {
    let bench = Bench::new("a");
    for expert in ["transformer", "transformer_2"] {
        bench
            .checkpoint
            .edit_json(&format!("{expert}/config.json"), |config| {
                config["image_dim"] = 1280.into();
                config["added_kv_proj_dim"] = 5120.into();
            });
    }
    let report = inspect(bench.checkpoint.root());
    assert_eq!(report["model"], "Wan2.2 I2V-A14B", "{report}");
    assert_eq!(report["runs"], true, "{report}");
    let bench = Bench::new("family/flf2v");
    // As early folders of Wan2.1 have it.
    bench
        .checkpoint
        .edit_json("transformer/config.json", |config| {
            for field in ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"] {
                config.as_object_mut().unwrap().remove(field);
            }
        });
    let report = inspect(bench.checkpoint.root());
    assert_eq!(report["model"], "Wan2.1 FLF2V-14B", "{report}");
    assert_eq!(report["runs"], true, "{report}");
}
