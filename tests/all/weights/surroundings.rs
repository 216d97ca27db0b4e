//! What lies beside the networks: the folder itself, a model's settings, the tokenizer.

use std::fs;

use serde_json::{Value, json};
use wan_i2v::clip::{CacheSettings, Fit, GuideInterval, GuideScale, Resize, Settings};
use wan_i2v::pipeline::tokenize;
use wan_i2v::sampling::Solver;

use crate::support::assert_holds;
use crate::support::scratch::Scratch;
use crate::weights::{error, open};

#[test]
fn folders_of_other_kinds_are_recognised() {
    let scratch = Scratch::new("a");
    let root = scratch.root();
    let missing = root.join("nowhere");
    assert_holds(&error(&missing), &["--model", "nowhere", "no such folder"]);
    let file = root.join("model_index.json");
    assert_holds(&error(&file), &["--model", "not a folder"]);
    let part = root.join("transformer");
    assert_holds(
        &error(&part),
        &["--model", "no model_index.json", "folder above"],
    );
    let original = tempfile::tempdir().unwrap();
    let message = error(original.path());
    assert_holds(&message, &["--model", "no model_index.json"]);
    assert_holds(
        &message,
        &["no part of a Wan model", "Wan-AI/Wan2.2-I2V-A14B"],
    );
}

#[test]
fn a_model_s_settings_are_honoured_and_checked() {
    let scratch = Scratch::new("a");
    let defaults = open(scratch.root()).unwrap().settings;
    assert_eq!((defaults.frames, defaults.steps), (81, 40));
    assert_eq!((defaults.area, defaults.fps), (1280 * 720, 16.0));

    let file = scratch.path("wan_i2v.json");
    let read = |json: Value| {
        fs::write(&file, json.to_string()).unwrap();
        open(scratch.root()).map(|checkpoint| checkpoint.settings)
    };
    let settings = read(json!({
        "area": 4096, "frames": 5, "fps": 8.0, "steps": 3, "shift": 2.5,
        "guide_scale": [1.5, 2.5], "negative_prompt": "grey"
    }))
    .unwrap();
    assert_eq!((settings.area, settings.frames), (4096, 5));
    assert_eq!((settings.fps, settings.steps), (8.0, 3));
    assert_eq!((settings.shift, settings.guide_scale), (2.5, (1.5, 2.5)));
    assert_eq!(settings.negative_prompt, "grey");
    // What is not mentioned keeps its default.
    let settings = read(json!({"steps": 8})).unwrap();
    assert_eq!((settings.steps, settings.frames), (8, 81));

    for (json, expected) in [
        (json!({"stepps": 8}), "unknown field `stepps`"),
        (json!({"steps": 0}), "steps 0"),
        (json!({"steps": 4_000_000_000_u32}), "steps 4000000000"),
        (json!({"steps": -1}), "line"),
        (json!({"frames": 6}), "frames 6"),
        (json!({"frames": 4_294_967_293_u32}), "frames 4294967293"),
        (json!({"area": 0}), "area 0"),
        (json!({"area": u64::MAX}), "area 18446744073709551615"),
        (json!({"fps": 0}), "fps 0"),
        (json!({"fps": 1e6}), "fps 1000000"),
        (json!({"shift": -2}), "shift -2"),
        (json!({"guide_scale": [3.5]}), "line"),
        (json!({"guide_scale": [3.5, 1e9]}), "guide_scale 3.5,1"),
        (json!({"negative_prompt": 3}), "line"),
    ] {
        let message = format!("{:#}", read(json).unwrap_err());
        assert_holds(&message, &["wan_i2v.json", expected]);
    }
}

#[test]
fn a_tokenizer_must_be_there_and_belong_to_the_text_encoder() {
    let scratch = Scratch::new("a");
    let plan = Settings {
        width: 32,
        height: 32,
        frames: 1,
        fps: 16.0,
        steps: 1,
        switch: Default::default(),
        sigmas: Default::default(),
        solver: Solver::Euler,
        shift: 5.0,
        guide_scale: GuideScale {
            low: 1.0,
            high: 1.0,
        },
        guide_interval: GuideInterval::default(),
        cache: CacheSettings::default(),
        seed: 0,
        resize: Resize::Lanczos,
        fit: Fit::Crop,
        negative_prompt: String::new(),
    };
    let checkpoint = open(scratch.root()).unwrap();
    let ids = tokenize(&checkpoint, "a cat", &plan).unwrap();
    assert!(ids.negative.is_none() && ids.prompt.ids.len() > 1);

    const FILE: &str = "tokenizer/tokenizer.json";
    let message = || format!("{:#}", tokenize(&checkpoint, "a cat", &plan).unwrap_err());
    let surplus = scratch.with_damaged(
        FILE,
        |_| {
            scratch.edit_json(FILE, |json| {
                let added: Vec<Value> = (0..1100)
                    .map(|i| {
                        json!({
                            "id": 2000 + i, "content": format!("<surplus_{i}>"),
                            "single_word": false, "lstrip": false, "rstrip": false,
                            "normalized": false, "special": true
                        })
                    })
                    .collect();
                json["added_tokens"].as_array_mut().unwrap().extend(added);
            });
        },
        message,
    );
    assert_holds(
        &surplus,
        &[FILE, "vocabulary has 1024", "do not belong together"],
    );
    let broken = scratch.with_damaged(FILE, |path| fs::write(path, "{}").unwrap(), message);
    assert_holds(&broken, &[FILE, "not a usable tokenizer"]);
    fs::remove_file(scratch.path(FILE)).unwrap();
    assert_holds(&message(), &[FILE, "cannot read"]);
}
