//! CLIP's vision encoder against transformers', under every layout's names.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array3;
use wan_i2v::media::Resize;
use wan_i2v::media::picture::Picture;
use wan_i2v::model::clip_vision::{ClipVision, ClipVisionConfig, normalised};
use wan_i2v::runtime::{Device, to_host};
use wan_i2v::weights::PartName;
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::naming::{Kind, Naming};
use wan_i2v::weights::part::{Loader, Part};
use wan_i2v::weights::store::Location;

use crate::support::golden::{BOTH, Golden, golden_dir};
use crate::support::layouts::{Content, Stored, stored};
use crate::support::{assert_holds, containers, mlx, portable};

const CASE: &str = "family/clip";

/// The picture as the encoder takes it: stretched from its own size.
fn picture(side: usize) -> Array3<f32> {
    let picture = Picture::open(&golden_dir(CASE).join("start.png")).unwrap();
    picture.resized(side, side, Resize::Bicubic).unwrap()
}

/// Every tensor that transformers saves, by the published names.
fn published() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let json = std::fs::read(golden_dir(CASE).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(manifest["image_encoder"].clone()).unwrap();
    let values = |(name, shape): (String, Vec<usize>)| {
        let values = portable::weights(CASE, "image_encoder", &name, &shape);
        (name, (shape, values))
    };
    shapes.into_iter().map(values).collect()
}

fn f32s(shape: &[usize], values: &[f32]) -> Stored {
    stored(Encoding::F32, shape, values)
}

/// The name in Wan's own file, and the tensor's shape there.
fn original(name: &str, shape: &[usize]) -> (String, Vec<usize>) {
    let bare = name.strip_prefix("vision_model.").unwrap();
    let padded = std::iter::repeat_n(1, 3usize.saturating_sub(shape.len()));
    let padded = padded.chain(shape.iter().copied()).collect();
    match bare {
        "embeddings.class_embedding" => return ("visual.cls_embedding".into(), padded),
        "embeddings.position_embedding.weight" => return ("visual.pos_embedding".into(), padded),
        _ => {}
    }
    let mut name = bare.to_owned();
    for (theirs, ours) in [
        ("embeddings.patch_embedding", "patch_embedding"),
        ("pre_layrnorm", "pre_norm"),
        ("post_layernorm", "post_norm"),
        ("encoder.layers.", "transformer."),
        ("layer_norm", "norm"),
        ("self_attn.out_proj", "attn.proj"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"),
    ] {
        name = name.replace(theirs, ours);
    }
    (format!("visual.{name}"), shape.to_vec())
}

/// Wan's own file: three projections in one, and the rest of CLIP.
pub fn original_content() -> Content {
    let mut content = Content::new();
    let all = published();
    for (name, (shape, values)) in &all {
        if name.contains(".k_proj.") || name.contains(".v_proj.") {
            continue;
        }
        let (mut stored, mut shape) = original(name, shape);
        let mut values = values.clone();
        if name.contains(".q_proj.") {
            for other in [".k_proj.", ".v_proj."] {
                values.extend(&all[&name.replace(".q_proj.", other)].1);
            }
            shape[0] *= 3;
            stored = stored.replace("self_attn.q_proj", "attn.to_qkv");
        }
        content.insert(stored, f32s(&shape, &values));
    }
    for name in ["weight", "bias"] {
        content.insert(
            format!("textual.blocks.0.ffn.0.{name}"),
            f32s(&[2], &[1.0; 2]),
        );
        content.insert(
            format!("textual.blocks.0.ffn.2.{name}"),
            f32s(&[2], &[1.0; 2]),
        );
    }
    content.insert("textual.head.0.weight".into(), f32s(&[1, 2], &[1.0; 2]));
    content.insert("visual.head".into(), f32s(&[160, 2], &[1.0; 320]));
    content.insert("log_scale".into(), f32s(&[], &[1.0]));
    content
}

/// transformers' file, with and without what is in front of its names.
fn transformers(prefix: &str) -> Content {
    let named = published().into_iter().map(|(name, (shape, values))| {
        let bare = name.strip_prefix("vision_model.").unwrap();
        (format!("{prefix}{bare}"), f32s(&shape, &values))
    });
    named.collect()
}

fn load(path: &Path, device: Device) -> (Part, ClipVisionConfig, ClipVision) {
    let part = Part::open(&Location::at(path).unwrap(), Kind::ImageEncoder).unwrap();
    let found = PartConfig::of(&part, PartName::ImageEncoder).unwrap();
    part.check(&found.specs().unwrap()).unwrap();
    let PartConfig::ImageEncoder(config) = found else {
        panic!("{found:?}");
    };
    let mut loader = Loader {
        part: &part,
        device,
        bits: None,
        adapters: &[],
        merges: false,
    };
    let encoder = ClipVision::load(&config, &mut loader, device).unwrap();
    (part, config, encoder)
}

/// The pixels alone: what the picture becomes before any weight has seen it.
#[test]
fn pixels() {
    let golden = Golden::load(CASE);
    let picture = picture(56);
    let expected = golden.floats("pixels");
    let mut worst = 0.0_f32;
    for ((row, column, colour), value) in picture.indexed_iter() {
        let ours = normalised(*value, colour);
        worst = worst.max((ours - expected[(colour * 56 + row) * 56 + column]).abs());
    }
    println!("measured {CASE} pixels: {worst:.2e}");
    assert!(worst < 1e-5, "{worst}");
}

/// Its tokens, from files of every layout: equal to the last bit, and the reference's.
#[test]
fn tokens_under_every_name() {
    let _mlx = mlx();
    let golden = Golden::load(CASE);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config = std::fs::read(golden_dir(CASE).join("image_encoder/config.json")).unwrap();
    let config: ClipVisionConfig = serde_json::from_slice(&config).unwrap();

    containers::safetensors(&at("bare.safetensors"), &transformers(""));
    let mut comfy = transformers("vision_model.");
    let ids: Vec<f32> = (0..17u8).map(f32::from).collect();
    comfy.insert(
        "vision_model.embeddings.position_ids".into(),
        f32s(&[1, 17], &ids),
    );
    comfy.insert(
        "visual_projection.weight".into(),
        f32s(&[2, 160], &[1.0; 320]),
    );
    containers::safetensors(&at("clip_vision_h.safetensors"), &comfy);
    containers::safetensors(&at("visual.safetensors"), &original_content());
    containers::torch(&at("models_clip.pth"), &original_content());

    let square = picture(config.image_size as usize);
    for device in BOTH {
        let mut first: Option<Vec<f32>> = None;
        for (name, naming) in [
            ("bare.safetensors", Naming::Diffusers),
            ("clip_vision_h.safetensors", Naming::Diffusers),
            ("visual.safetensors", Naming::Original),
            ("models_clip.pth", Naming::Original),
        ] {
            let (part, found, encoder) = load(&at(name), device);
            assert_eq!(part.names().naming, naming, "{name}");
            // None has a configuration beside it.
            assert_eq!(found, config, "{name}");
            let tokens = encoder.encode(square.view()).unwrap();
            golden.check(name, "tokens", &tokens, 1e-5);
            let tokens = to_host(&tokens).unwrap();
            assert_eq!(
                first.get_or_insert_with(|| tokens.clone()),
                &tokens,
                "{name}"
            );
        }
    }
}

/// A tensor that is missing, even of the layer that is not computed, and one too many are refused by their
/// stored names.
#[test]
fn strictly() {
    let _mlx = mlx();
    let folder = tempfile::tempdir().unwrap();
    let refused = |content: &Content, parts: &[&str]| {
        let path = folder.path().join("clip.safetensors");
        containers::safetensors(&path, content);
        let part = Part::open(&Location::at(&path).unwrap(), Kind::ImageEncoder).unwrap();
        let specs = PartConfig::of(&part, PartName::ImageEncoder)
            .unwrap()
            .specs()
            .unwrap();
        assert_holds(&part.check(&specs).unwrap_err().to_string(), parts);
    };
    let mut content = transformers("vision_model.");
    content
        .remove("vision_model.encoder.layers.2.layer_norm1.bias")
        .unwrap();
    refused(
        &content,
        &["missing: vision_model.encoder.layers.2.layer_norm1.bias [160]"],
    );
    let mut content = original_content();
    content
        .remove("visual.transformer.1.attn.to_qkv.bias")
        .unwrap();
    refused(
        &content,
        &["missing: visual.transformer.1.attn.to_k.bias [160]"],
    );
    let mut content = transformers("");
    content.insert("adapter.weight".into(), f32s(&[2], &[1.0; 2]));
    refused(&content, &["unexpected: adapter.weight [2]"]);
}
