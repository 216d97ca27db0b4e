use std::collections::BTreeMap;

use super::*;
use crate::model::TensorSpec;
use crate::weights::config::PartConfig;
use crate::weights::naming::golden::tensors;
use crate::weights::naming::{Detected, Kind, Naming};
use crate::weights::published;

type Shapes = BTreeMap<String, Vec<usize>>;

/// The shapes of the tiny model as a part in `naming` gives them.
fn shapes(kind: Kind, naming: Naming) -> Shapes {
    let part = Detected::plain(kind, naming);
    tensors(kind)
        .iter()
        .map(|t| {
            let (_, shape) = t.stored(naming);
            (
                t.canonical.clone(),
                part.canonical_shape(&t.canonical, shape),
            )
        })
        .collect()
}

fn expert(shapes: &Shapes, given: &OriginalConfig) -> Result<DitConfig> {
    infer_expert(&|name| shapes.get(name).cloned(), given)
}

fn vae(shapes: &Shapes) -> Result<VaeConfig> {
    infer_vae(&|name| shapes.get(name).cloned())
}

fn text(shapes: &Shapes) -> Result<Umt5Config> {
    infer_text(&|name| shapes.get(name).cloned())
}

fn parse(json: &str) -> Result<OriginalConfig> {
    OriginalConfig::read(&serde_json::from_str(json).unwrap())
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

fn two_heads() -> OriginalConfig {
    OriginalConfig {
        num_heads: Some(2),
        ..OriginalConfig::default()
    }
}

#[test]
fn an_expert_is_the_same_in_every_layout() {
    for naming in [Naming::Diffusers, Naming::Original, Naming::MlxVideo] {
        let config = expert(&shapes(Kind::Expert, naming), &two_heads()).unwrap();
        assert_eq!(
            config,
            DitConfig {
                patch_size: [1, 2, 2],
                num_attention_heads: 2,
                attention_head_dim: 12,
                in_channels: 10,
                out_channels: 3,
                text_dim: 20,
                freq_dim: 16,
                ffn_dim: 40,
                num_layers: 2,
                cross_attn_norm: true,
                eps: 1e-6,
                rope_max_seq_len: 1024,
                qk_norm: Some("rms_norm_across_heads".into()),
                image_dim: None,
                added_kv_proj_dim: None,
                pos_embed_seq_len: None,
            }
        );
    }
}

#[test]
fn the_published_expert_needs_no_configuration() {
    let mut shapes = shapes(Kind::Expert, Naming::Original);
    for (name, shape) in [
        ("patch_embedding.bias", vec![5120]),
        ("blocks.0.ffn.net.0.proj.bias", vec![13824]),
        ("proj_out.bias", vec![64]),
        (
            "condition_embedder.text_embedder.linear_1.weight",
            vec![5120, 4096],
        ),
        (
            "condition_embedder.time_embedder.linear_1.weight",
            vec![5120, 256],
        ),
        ("blocks.39.scale_shift_table", vec![1, 6, 5120]),
    ] {
        shapes.insert(name.into(), shape);
    }
    for folded in [
        vec![5120, 36, 1, 2, 2],
        vec![5120, 36, 2, 2],
        vec![184_320, 1, 2, 2],
        vec![5120, 144],
    ] {
        shapes.insert("patch_embedding.weight".into(), folded);
        let config = expert(&shapes, &OriginalConfig::default()).unwrap();
        assert_eq!(
            (config.num_attention_heads, config.attention_head_dim),
            (40, 128)
        );
        assert_eq!((config.in_channels, config.out_channels), (36, 16));
        assert_eq!((config.num_layers, config.ffn_dim), (40, 13824));
        assert_eq!((config.text_dim, config.freq_dim), (4096, 256));
        assert_eq!(config.patch_size, [1, 2, 2]);
    }
}

#[test]
fn what_an_expert_lacks_or_contradicts_is_named() {
    let tiny = shapes(Kind::Expert, Naming::Original);
    let with = |name: &str, shape: Option<Vec<usize>>| {
        let mut shapes = tiny.clone();
        match shape {
            Some(shape) => shapes.insert(name.into(), shape),
            None => shapes.remove(name),
        };
        message(expert(&shapes, &two_heads()))
    };
    assert!(message(expert(&tiny, &OriginalConfig::default())).contains("config.json"));
    for name in [
        "patch_embedding.bias",
        "patch_embedding.weight",
        "proj_out.bias",
    ] {
        assert!(with(name, None).contains(&format!("tensor {name} is missing")));
    }
    assert!(with("proj_out.bias", Some(vec![13])).contains("no multiple"));
    assert!(with("patch_embedding.bias", Some(vec![0])).contains("cannot have"));
    assert!(with("patch_embedding.bias", Some(vec![usize::MAX])).contains("cannot have"));
    for shape in [
        vec![],
        vec![24],
        vec![25, 10, 1, 2, 2],
        vec![usize::MAX, 1, 2, 2],
        vec![24, 10, 1, 2, 2, 1],
    ] {
        assert!(with("patch_embedding.weight", Some(shape)).contains("expected [24, channels"));
    }
    assert!(with("patch_embedding.weight", Some(vec![24, 41])).contains("no multiple"));
    let zero = with("patch_embedding.weight", Some(vec![24, 10, 1, 0, 2]));
    assert!(zero.contains("no multiple"), "{zero}");

    let odd = OriginalConfig {
        num_heads: Some(5),
        ..OriginalConfig::default()
    };
    assert!(message(expert(&tiny, &odd)).contains("num_heads is 5"));
    let none = OriginalConfig {
        num_heads: Some(0),
        ..OriginalConfig::default()
    };
    assert!(message(expert(&tiny, &none)).contains("num_heads is 0"));
    for field in [
        "dim",
        "ffn_dim",
        "freq_dim",
        "text_dim",
        "in_dim",
        "out_dim",
        "num_layers",
    ] {
        let json = format!(r#"{{"num_heads": 2, "{field}": 7}}"#);
        let given = parse(&json).unwrap();
        let error = message(expert(&tiny, &given));
        assert!(error.contains(&format!("{field} is 7")), "{error}");
    }
    for (json, part) in [
        (
            r#"{"num_heads": 2, "patch_size": [2, 2, 2]}"#,
            "patch_size is [2, 2, 2]",
        ),
        (
            r#"{"num_heads": 2, "cross_attn_norm": false}"#,
            "cross_attn_norm is false",
        ),
    ] {
        let error = message(expert(&tiny, &parse(json).unwrap()));
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_missing_block_in_between_stays_missing() {
    let mut shapes = shapes(Kind::Expert, Naming::Original);
    shapes.insert("blocks.5.scale_shift_table".into(), vec![1, 6, 24]);
    assert_eq!(expert(&shapes, &two_heads()).unwrap().num_layers, 6);
}

#[test]
fn an_image_model_of_wan2_1_is_recognised() {
    let mut shapes = shapes(Kind::Expert, Naming::Original);
    shapes.insert(
        "condition_embedder.image_embedder.norm1.weight".into(),
        vec![1280],
    );
    shapes.insert("blocks.0.attn2.add_k_proj.weight".into(), vec![24, 24]);
    let config = expert(&shapes, &two_heads()).unwrap();
    assert_eq!(
        (config.image_dim, config.added_kv_proj_dim),
        (Some(1280), Some(24))
    );
}

#[test]
fn a_vae_is_the_same_in_every_layout() {
    for naming in [Naming::Diffusers, Naming::Original, Naming::MlxVideo] {
        let mut shapes = shapes(Kind::Vae, naming);
        // Statistics are published for 16 channels only.
        shapes.insert("post_quant_conv.bias".into(), vec![16]);
        let config = vae(&shapes).unwrap();
        assert_eq!(
            config,
            VaeConfig {
                base_dim: 4,
                decoder_base_dim: None,
                z_dim: 16,
                dim_mult: vec![1, 2, 4, 4],
                num_res_blocks: 2,
                attn_scales: vec![],
                temperal_downsample: vec![false, true, true],
                latents_mean: LATENTS_MEAN.to_vec(),
                latents_std: LATENTS_STD.to_vec(),
                is_residual: false,
                patch_size: None,
                in_channels: 3,
                out_channels: 3,
                tiny: false,
            }
        );
        shapes.insert("decoder.norm_out.gamma".into(), vec![6, 1, 1, 1]);
        assert_eq!(vae(&shapes).unwrap().decoder_base_dim, Some(6));
    }
}

/// Of the published dimensions: Wan2.1's, Wan2.2's, LightX2V's `lightvaew2_1`, which has a quarter of the
/// channels everywhere (`pruning_rate` in `lightx2v/models/video_encoders/hf/wan/vae.py`), and
/// spacepxl's Wan2.1-VAE-upscale2x.
#[test]
fn published_vaes_are_told_from_their_shapes() {
    let published = published::vae();
    for expected in [
        published.clone(),
        published::wan22_vae(),
        VaeConfig {
            base_dim: 24,
            ..published.clone()
        },
        VaeConfig {
            out_channels: 12,
            ..published
        },
    ] {
        expected.validate().unwrap();
        let specs = PartConfig::Vae(expected.clone()).specs().unwrap();
        let shape = |spec: TensorSpec| spec.shape.iter().map(|&side| side as usize).collect();
        let shapes: Shapes = specs
            .into_iter()
            .map(|spec| (spec.name.clone(), shape(spec)))
            .collect();
        assert_eq!(vae(&shapes).unwrap(), expected);
    }
}

#[test]
fn other_vaes_are_refused_as_what_they_are() {
    let tiny = shapes(Kind::Vae, Naming::Original);
    assert!(message(vae(&tiny)).contains("6 latent channels"));
    let with = |changes: &[(&str, Option<usize>)]| {
        let mut shapes = tiny.clone();
        shapes.insert("post_quant_conv.bias".into(), vec![16]);
        for (name, width) in changes {
            match width {
                Some(width) => shapes.insert((*name).into(), vec![*width]),
                None => shapes.remove(*name),
            };
        }
        message(vae(&shapes))
    };
    assert!(with(&[("encoder.down_blocks.0.conv2.bias", None)]).contains("not a VAE of Wan"));
    assert!(with(&[("encoder.down_blocks.9.conv2.bias", None)]).contains("ends early"));
    assert!(with(&[("encoder.down_blocks.3.conv2.bias", Some(9))]).contains("9 channels"));
    assert!(with(&[("encoder.conv_in.bias", None)]).contains("encoder.conv_in.bias is missing"));
}

#[test]
fn a_text_encoder_is_the_same_in_every_layout() {
    for naming in [
        Naming::Diffusers,
        Naming::Original,
        Naming::MlxVideo,
        Naming::LlamaCpp,
    ] {
        let config = text(&shapes(Kind::TextEncoder, naming)).unwrap();
        assert_eq!(
            config,
            Umt5Config {
                d_model: 24,
                d_kv: 8,
                d_ff: 40,
                num_layers: 2,
                num_heads: 4,
                vocab_size: 50,
                relative_attention_num_buckets: 8,
                relative_attention_max_distance: 128,
                layer_norm_epsilon: 1e-6,
                feed_forward_proj: "gated-gelu".into(),
            }
        );
    }
}

#[test]
fn a_t5_is_refused_as_no_umt5() {
    let mut shapes = shapes(Kind::TextEncoder, Naming::Diffusers);
    let table = "layer.0.SelfAttention.relative_attention_bias.weight";
    shapes.remove(&format!("encoder.block.1.{table}"));
    assert!(message(text(&shapes)).contains("this is a T5"));
    shapes.insert(format!("encoder.block.0.{table}"), vec![8, 5]);
    assert!(message(text(&shapes)).contains("no multiple of the 5 heads"));
    shapes.remove(&format!("encoder.block.0.{table}"));
    assert!(message(text(&shapes)).contains("is missing"));
}
