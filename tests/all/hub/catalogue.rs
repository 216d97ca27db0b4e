//! Models by short names: a catalogue of the user's, and the server that has their files.

use std::fs;

use serde_json::Value;

use crate::hub::Bench;
use crate::hub::models::Model;
use crate::support::assert_holds;

/// The bench with the miniature's parts as a repository, and a catalogue that names them.
fn bench() -> Bench {
    let bench = Bench::new();
    for (path, content) in &Model::miniature().0 {
        bench.server.large(path, content);
    }
    let file =
        |path: &str, gb: f64| format!("{{ repo = 'owner/model', path = '{path}', gb = {gb} }}");
    let source = |bits: u32, gb: f64| {
        format!(
            "{{ bits = {bits}, form = 'f32', high = {}, low = {}, vae = {}, text-encoder = {}, tokenizer = {} }}",
            file("transformer", gb),
            file("transformer_2", gb),
            file("vae", 0.001),
            file("text_encoder", 0.001),
            file("tokenizer/tokenizer.json", 0.001)
        )
    };
    let config = format!(
        "[models.mine]\nabout = 'the miniature'\nfamily = 'Wan2.2 I2V-A14B'\nsources = [{}]\n\
         [models.huge]\nabout = 'no disk has room'\nfamily = 'Wan2.2 I2V-A14B'\nsources = [{}]\n",
        source(8, 0.003),
        source(8, 9000.0)
    );
    fs::write(bench.folder.path().join("config.toml"), config).unwrap();
    bench
}

const CONFIG: [&str; 2] = ["--config", "config.toml"];

#[test]
fn a_model_is_fetched_once_somebody_agrees_and_then_found() {
    let bench = bench();
    let run = |args: &[&str]| bench.run(&[args, &CONFIG].concat());
    // Nobody is there to be asked.
    let refused = run(&["pull", "mine"]);
    refused.assert_fails(&[
        "pull mine: Wan2.2 I2V-A14B (f32) is not on this machine",
        "--yes",
    ]);
    let listed = || -> Value {
        let ran = run(&["models", "mine", "--json", "--device", "cpu"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    assert_eq!(listed()[0]["sources"][0]["here"], false);
    let pulled = run(&["pull", "mine", "--yes"]);
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    assert!(
        pulled.stderr.contains("wan-i2v --model mine"),
        "{}",
        pulled.stderr
    );
    let all = listed();
    assert_eq!(all[0]["sources"][0]["here"], true);
    assert_eq!(all[0]["sources"][0]["costs"][0]["size"], "480p");
    // Without the network, and by its name alone.
    let args = ["plan", "--model", "mine", "--size", "64x64", "--json"];
    let planned = bench.offline(&[&args[..], &CONFIG].concat());
    assert_eq!(planned.code, Some(0), "{}", planned.stderr);
}

/// What a model that is not here costs on a Mac that is not here is known without a network.
#[test]
fn a_model_is_planned_by_its_dimensions() {
    let bench = bench();
    let args = [
        "plan",
        "--model",
        "a14b-lightning",
        "--bits",
        "4",
        "--machine",
        "16",
    ];
    let planned = bench.offline(&[&args[..], &["--area", "480p"], &CONFIG].concat());
    assert_eq!(planned.code, Some(0), "{}", planned.stderr);
    assert!(
        planned.stdout.starts_with("It fits: "),
        "{}",
        planned.stdout
    );
    let named = "Wan2.2 I2V-A14B: 832 x 480 pixels, 81 frames, 4 steps, 4 passes.";
    assert!(planned.stdout.contains(named), "{}", planned.stdout);
    // It has no tokenizer, which matters to nobody who gives no prompt.
    assert!(!planned.stderr.contains("note: "), "{}", planned.stderr);
    let planned = bench.offline(&[&args[..], &["--prompt", "rain"], &CONFIG].concat());
    assert!(planned.stderr.contains("note: "), "{}", planned.stderr);
}

/// Of a Mac that is not here nothing is timed; every line has room in 80 columns.
#[test]
fn models_are_listed_for_a_mac_that_is_not_here() {
    let bench = bench();
    let list = |more: &[&str]| bench.offline(&[&["models"][..], more, &CONFIG].concat());
    for memory in ["16", "128"] {
        let listed = list(&["--machine", memory]);
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        let text = &listed.stdout;
        let named = [
            "\na14b-lightning: the same in 4 passes instead of 80\n",
            "  Wan2.2 I2V-A14B, Apache-2.0; from Comfy-Org, QuantStack, city96\n",
            "\n   4 bits, GGUF Q4_K_M  ",
            &format!("on a Mac with {memory} GB"),
        ];
        assert_holds(text, &named);
        assert!(!text.contains('?') && !text.contains("time"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert_eq!(text.contains("  (30.8 GB)"), memory == "16", "{text}");
    }
    // On this one there are times.
    let here = list(&["a14b", "--device", "cpu"]).stdout;
    assert_holds(&here, &["Memory and time of", "on this machine"]);
    assert!(here.lines().all(|line| line.len() <= 80), "{here}");
    let refused = list(&["--machine", "32", "--device", "cpu"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[test]
fn a_model_that_the_disk_cannot_hold_is_refused_before_anything_is_fetched() {
    let bench = bench();
    let args = ["pull", "huge", "--yes"];
    let refused = bench.run(&[&args[..], &CONFIG].concat());
    refused.assert_fails(&["pull huge", "has room for", "hint: "]);
    assert!(!bench.repo_folder().join("snapshots").exists());
}

#[test]
fn a_name_that_nobody_knows_is_answered_with_those_that_are_like_it() {
    let bench = bench();
    let args = ["--image", "x.png", "--prompt", "x", "--model", "mien"];
    let refused = bench.run(&[&args[..], &CONFIG].concat());
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("mine"), "{}", refused.stderr);
    let refused = bench.run(&[&["models", "a14"][..], &CONFIG].concat());
    refused.assert_fails(&["a14: there is no such model", "a14b"]);
    let refused = bench.run(&[&["pull", "5bb"][..], &CONFIG].concat());
    refused.assert_fails(&["there is no model 5bb", "did you mean 5b"]);
}
