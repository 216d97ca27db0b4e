//! `wan-i2v inspect` on every layout.

use std::path::Path;

use serde_json::Value;
use wan_i2v::media::clip::{ClipSpec, ClipWriter};
use wan_i2v::weights::PartName;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::convert::{self, Bits, LocalSource, Options};
use wan_i2v::weights::inspect::Report;
use wan_i2v::weights::layout::Layout;

use crate::layouts::{BF16, F16, F32, damaged, folder};
use crate::support::isolated::program;
use crate::support::layouts::{Form, Model, Patch};
use crate::support::mlx;

/// The exit code and the report in JSON.
fn inspect(path: &Path, flags: &[&str]) -> (Option<i32>, Value) {
    let mut command = program();
    command.arg("inspect").arg(path).arg("--json").args(flags);
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json)
}

/// What is in every report of the whole random model.
fn check(root: &Path, model: &Model, layouts: [&str; 4], stored_as: [&str; 4]) {
    let report = Report::of(&Layout::of_path(root, None).unwrap());
    let parts: Vec<PartName> = report.parts.iter().map(|part| part.part).collect();
    assert_eq!(parts, PartName::WITH_EXPERTS);
    for (i, part) in report.parts.iter().enumerate() {
        assert_eq!(part.layout, layouts[i], "{}", part.path);
        let most = part.stored_as.iter().max_by_key(|(_, count)| **count);
        assert_eq!(most.unwrap().0, stored_as[i], "{}", part.path);
        let tensors = &model.parts[i];
        assert_eq!(part.tensors, tensors.len());
        let parameters: usize = tensors.iter().map(|tensor| tensor.values.len()).sum();
        assert_eq!(part.parameters, parameters as u64);
        assert_eq!(part.stored_as.values().sum::<u64>(), parameters as u64);
        let lists = [&part.missing, &part.wrong, &part.extra];
        assert!(lists.iter().all(|list| list.is_empty()), "{lists:?}");
        assert_eq!(part.error, None);
    }
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.runs && report.tokenizer.is_some());
    assert!(report.boundary.is_none_or(|boundary| boundary == 0.9));
    let (code, json) = inspect(root, &[]);
    assert_eq!(code, Some(0));
    let text = serde_json::to_string(&report).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert!(json == expected, "{json} is not {expected}");
}

fn check_form(form: Form, layouts: [&str; 4], stored_as: [&str; 4]) {
    let _mlx = mlx();
    let model = Model::random();
    let (folder, _) = folder(form, &model);
    let tokenizer = folder.path().join("tokenizer.json");
    if matches!(form, Form::MlxVideo(_) | Form::MlxQuantized { .. }) {
        // Such folders have none, and it is said.
        let report = Report::of(&Layout::of_path(folder.path(), None).unwrap());
        assert!(!report.runs);
        assert_eq!(report.problems, ["no tokenizer"]);
        assert_eq!(inspect(folder.path(), &[]).0, Some(1));
        std::fs::write(
            tokenizer,
            include_bytes!("../../data/tokenizer/tokenizer.json"),
        )
        .unwrap();
    }
    check(folder.path(), &model, layouts, stored_as);
}

#[test]
fn diffusers_and_the_original() {
    let diffusers = ["diffusers", "diffusers", "diffusers", "transformers"];
    check_form(Form::Diffusers(F32), diffusers, ["f32"; 4]);
    check_form(Form::Sharded(BF16), diffusers, ["bf16"; 4]);
    check_form(Form::Original(BF16), ["original"; 4], ["bf16"; 4]);
}

#[test]
fn comfy() {
    let layouts = ["ComfyUI", "ComfyUI", "original", "ComfyUI"];
    let prefix = "model.diffusion_model.";
    check_form(Form::Comfy(F16, prefix), layouts, ["f16"; 4]);
    let scaled = ["f8_e4m3", "f8_e4m3", "f16", "f8_e4m3"];
    check_form(Form::Scaled { newer: false }, layouts, scaled);
    check_form(Form::Scaled { newer: true }, layouts, scaled);
}

#[test]
fn mlx_video() {
    let layouts = ["mlx-video"; 4];
    let stored_as = ["bf16", "bf16", "f32", "bf16"];
    check_form(Form::MlxVideo(BF16), layouts, stored_as);
    let stored_as = ["4-bit", "4-bit", "f32", "bf16"];
    check_form(
        Form::MlxQuantized { bits: 4, group: 64 },
        layouts,
        stored_as,
    );
}

#[test]
fn gguf() {
    let layouts = ["GGUF", "GGUF", "original", "GGUF"];
    let stored_as = ["q4_k", "q4_k", "f32", "q4_k"];
    check_form(Form::Gguf(Encoding::Q4K, Patch::Whole), layouts, stored_as);
}

#[test]
fn our_own() {
    let _mlx = mlx();
    let model = Model::random();
    let (source, _) = folder(Form::Diffusers(F32), &model);
    let layout = Layout::of_path(source.path(), None).unwrap();
    let target = source.path().join("ours");
    let options = Options {
        high: Some(Bits::Four),
        low: Some(Bits::Eight),
        file_bytes: 1 << 20,
        ..Options::default()
    };
    convert::convert(
        &mut LocalSource::new(&layout).unwrap(),
        &target,
        &options,
        &mut |_| (),
    )
    .unwrap();
    check(
        &target,
        &model,
        ["wan-i2v"; 4],
        ["4-bit", "8-bit", "f32", "bf16"],
    );
}

#[test]
fn what_is_wrong_is_listed() {
    let _mlx = mlx();
    let model = Model::random();
    let folder = damaged(Form::Comfy(F16, ""), &model, |contents| {
        let tensor = contents[0].remove("blocks.1.self_attn.k.weight").unwrap();
        contents[0].insert("blocks.1.self_attn.key.weight".into(), tensor);
        contents[1].get_mut("blocks.1.norm3.bias").unwrap().shape = vec![128, 2];
    });
    let (code, json) = inspect(folder.path(), &[]);
    assert_eq!(code, Some(1));
    assert_eq!(json["runs"], false);
    let high = &json["parts"][0];
    assert_eq!(high["missing"][0], "blocks.1.self_attn.k.weight [256, 256]");
    assert_eq!(high["extra"][0], "blocks.1.self_attn.key.weight [256, 256]");
    let wrong = json["parts"][1]["wrong"][0].as_str().unwrap();
    assert!(
        wrong.starts_with("blocks.1.norm3.bias has shape [128, 2]"),
        "{wrong}"
    );
    assert_eq!(json["problems"].as_array().unwrap().len(), 3);
}

/// One part's file is no whole model, and is described all the same.
#[test]
fn one_part() {
    let _mlx = mlx();
    let form = Form::Comfy(F16, "");
    let (folder, _) = folder(form, &Model::random());
    for part in PartName::WITH_EXPERTS {
        let (code, json) = inspect(&folder.path().join(form.place(part)), &[]);
        assert_eq!(code, Some(1));
        assert_eq!(json["parts"][0]["part"], serde_json::json!(part));
        assert_eq!(json["absent"].as_array().unwrap().len(), 3);
        assert_eq!(json["parts"].as_array().unwrap().len(), 1);
    }
    // One part of a whole model.
    for whole in [Path::new("tiny"), folder.path()] {
        let (code, json) = inspect(whole, &["--part", "high"]);
        let parts = json["parts"].as_array().unwrap();
        assert_eq!((code, parts.len()), (Some(1), 1), "{json}");
        assert_eq!(parts[0]["part"], "high-noise");
    }
    let plain = folder.path().join("expert.safetensors");
    std::fs::rename(folder.path().join(form.place(PartName::HighNoise)), &plain).unwrap();
    assert_eq!(inspect(&plain, &[]).0, Some(1));
    let (_, json) = inspect(&plain, &["--part", "low"]);
    assert_eq!(json["parts"][0]["part"], "low-noise");
}

/// Nothing that a second download would mend.
#[test]
fn what_is_no_model_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::from_pixel(16, 16, image::Rgb([90, 120, 30]));
    for name in ["clip.gif", "picture.png", "picture.jpg", "picture.webp"] {
        picture.save(folder.path().join(name)).unwrap();
    }
    let spec = ClipSpec {
        width: 16,
        height: 16,
        fps: 16.0,
    };
    let mut clip = ClipWriter::create(&folder.path().join("clip.mp4"), &spec, None).unwrap();
    clip.push(&picture).unwrap();
    clip.finish().unwrap();
    std::fs::write(folder.path().join("latents.npy"), b"\x93NUMPY\x01\0\x76\0{").unwrap();
    std::fs::write(folder.path().join("cut.safetensors"), [1; 64]).unwrap();
    for (name, expected) in [
        ("clip.mp4", "a clip or a picture, not a model"),
        ("clip.gif", "a clip or a picture, not a model"),
        ("picture.png", "a clip or a picture, not a model"),
        ("picture.jpg", "a clip or a picture, not a model"),
        ("picture.webp", "a clip or a picture, not a model"),
        ("latents.npy", "such as --dump writes, not a model"),
        ("cut.safetensors", "not a whole safetensors file"),
    ] {
        for arguments in [&["inspect", name][..], &["convert", name, "converted"]] {
            let mut command = program();
            command.current_dir(folder.path()).args(arguments);
            let output = command.output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(
                stderr.contains(expected) && stderr.contains(name),
                "{stderr}"
            );
        }
    }
    assert!(!folder.path().join("converted").exists());
}
