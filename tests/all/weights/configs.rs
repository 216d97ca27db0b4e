//! Configurations that are missing, broken, absurd, or of another model.

use std::fs;

use serde_json::{Value, json};

use crate::support::assert_holds;
use crate::support::scratch::Scratch;
use crate::weights::error;

/// The message of opening with one field of a JSON file changed; `null` removes it.
fn error_with(scratch: &Scratch, file: &str, field: &str, value: Value) -> String {
    let edit = |json: &mut Value| {
        let fields = json.as_object_mut().unwrap();
        if value.is_null() {
            fields.remove(field);
        } else {
            fields.insert(field.into(), value);
        }
    };
    scratch.with_damaged(
        file,
        |_| scratch.edit_json(file, edit),
        || error(scratch.root()),
    )
}

#[test]
fn missing_and_broken_files_are_named() {
    let scratch = Scratch::new("a");
    for file in [
        "model_index.json",
        "transformer/config.json",
        "transformer_2/config.json",
        "vae/config.json",
        "text_encoder/config.json",
    ] {
        let damaged = |content: Option<&[u8]>| {
            scratch.with_damaged(
                file,
                |path| match content {
                    Some(content) => fs::write(path, content).unwrap(),
                    None => fs::remove_file(path).unwrap(),
                },
                || error(scratch.root()),
            )
        };
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        // Without the index the parts are found by their tensors.
        if file != "model_index.json" {
            assert_holds(&damaged(None), &[folder, name, "diffusers layout"]);
        }
        for broken in [
            &b""[..],
            b"{",
            b"[1, 2]",
            b"null",
            b"{\"d_model\": }",
            b"\xff\xfe{}",
        ] {
            assert_holds(&damaged(Some(broken)), &[folder, name]);
        }
    }
}

#[test]
fn absurd_dimensions_are_refused_by_name() {
    let scratch = Scratch::new("a");
    for (file, fields) in [
        (
            "transformer/config.json",
            &[
                "num_attention_heads",
                "attention_head_dim",
                "in_channels",
                "out_channels",
                "text_dim",
                "freq_dim",
                "ffn_dim",
                "num_layers",
                "rope_max_seq_len",
            ][..],
        ),
        (
            "text_encoder/config.json",
            &[
                "d_model",
                "d_kv",
                "d_ff",
                "num_layers",
                "num_heads",
                "vocab_size",
                "relative_attention_num_buckets",
                "relative_attention_max_distance",
            ],
        ),
        (
            "vae/config.json",
            &["base_dim", "z_dim", "num_res_blocks", "decoder_base_dim"],
        ),
    ] {
        for field in fields {
            for absurd in [0, -1, i64::from(i32::MIN), i64::from(i32::MAX)] {
                let message = error_with(&scratch, file, field, absurd.into());
                assert_holds(
                    &message,
                    &[file, field, &absurd.to_string(), "expected 1 to"],
                );
            }
            for wrong in [
                json!(1_i64 << 40),
                json!(1.5),
                json!("many"),
                json!([3]),
                json!(true),
            ] {
                let message = error_with(&scratch, file, field, wrong);
                assert_holds(&message, &[file, "does not hold what is expected", "line"]);
            }
            if *field != "decoder_base_dim" {
                let message = error_with(&scratch, file, field, Value::Null);
                assert_holds(&message, &[file, "missing field", field]);
            }
        }
    }
}

/// Each of these is within bounds by itself.
#[test]
fn products_of_dimensions_cannot_overflow() {
    let scratch = Scratch::new("a");
    let wide = 1 << 20;
    for (file, fields, named) in [
        (
            "transformer/config.json",
            &["num_attention_heads", "attention_head_dim"][..],
            "num_attention_heads * attention_head_dim is 1099511627776",
        ),
        (
            "transformer_2/config.json",
            &["in_channels"],
            "in_channels * patch_size is",
        ),
        (
            "text_encoder/config.json",
            &["num_heads", "d_kv"],
            "num_heads * d_kv is",
        ),
        ("vae/config.json", &["base_dim"], "base_dim * dim_mult is"),
    ] {
        let message = scratch.with_damaged(
            file,
            |_| {
                scratch.edit_json(file, |json| {
                    for field in fields {
                        json[*field] = wide.into();
                    }
                });
            },
            || error(scratch.root()),
        );
        assert_holds(&message, &[file, named]);
    }
    // Wide, but not too wide: the tensors show the mistake.
    let message = error_with(&scratch, "vae/config.json", "base_dim", (1 << 16).into());
    assert_holds(&message, &["vae", "expected [65536, 3, 3, 3, 3]"]);
}

#[test]
fn unsupported_models_are_refused_by_name() {
    let scratch = Scratch::new("a");
    for (file, field, value, expected) in [
        (
            "transformer/config.json",
            "qk_norm",
            json!("layer_norm"),
            "qk_norm",
        ),
        (
            "transformer/config.json",
            "attention_head_dim",
            json!(43),
            "even",
        ),
        (
            "transformer/config.json",
            "freq_dim",
            json!(63),
            "even number",
        ),
        ("transformer/config.json", "eps", json!(0.0), "eps is 0"),
        ("transformer/config.json", "eps", json!(-1e-6), "eps is -"),
        (
            "transformer/config.json",
            "in_channels",
            json!(16),
            "another model's expert",
        ),
        (
            "transformer/config.json",
            "text_dim",
            json!(47),
            "text encoder's d_model",
        ),
        (
            "transformer/config.json",
            "patch_size",
            json!([1, 2]),
            "line",
        ),
        (
            "transformer/config.json",
            "patch_size",
            json!([1, 2, 3]),
            "patch_size",
        ),
        (
            "transformer/config.json",
            "patch_size",
            json!([2, 2, 2]),
            "patch_size",
        ),
        (
            "transformer/config.json",
            "patch_size",
            json!([1, 0, 2]),
            "patch_size is 0",
        ),
        (
            "text_encoder/config.json",
            "feed_forward_proj",
            json!("relu"),
            "gated-gelu",
        ),
        (
            "text_encoder/config.json",
            "relative_attention_num_buckets",
            json!(30),
            "multiple of 4",
        ),
        (
            "text_encoder/config.json",
            "layer_norm_epsilon",
            json!(-1),
            "layer_norm_epsilon",
        ),
        (
            "vae/config.json",
            "is_residual",
            json!(true),
            "encoder.down_blocks.0.resnets.0",
        ),
        ("vae/config.json", "patch_size", json!(2), "expected 12"),
        ("vae/config.json", "patch_size", json!(0), "patch_size is 0"),
        (
            "vae/config.json",
            "attn_scales",
            json!([1.0]),
            "attn_scales",
        ),
        ("vae/config.json", "dim_mult", json!([]), "dim_mult"),
        ("vae/config.json", "dim_mult", json!([1, 2, 4]), "3 levels"),
        (
            "vae/config.json",
            "dim_mult",
            json!(vec![1; 70]),
            "70 levels",
        ),
        (
            "vae/config.json",
            "dim_mult",
            json!([1, 2, 0, 4]),
            "dim_mult is 0",
        ),
        (
            "vae/config.json",
            "temperal_downsample",
            json!([true, true, true]),
            "two of them true",
        ),
        (
            "vae/config.json",
            "temperal_downsample",
            json!(vec![true; 70]),
            "two of them true",
        ),
        (
            "vae/config.json",
            "latents_mean",
            json!([0.5]),
            "latents_mean has 1 values",
        ),
        (
            "vae/config.json",
            "latents_std",
            json!(vec![0; 16]),
            "not positive",
        ),
        (
            "vae/config.json",
            "in_channels",
            json!(4),
            "expected 3 (RGB)",
        ),
        (
            "model_index.json",
            "boundary_ratio",
            json!(1.5),
            "is 1.5; expected 0 to 1",
        ),
        (
            "model_index.json",
            "boundary_ratio",
            json!(-0.1),
            "is -0.1; expected 0 to 1",
        ),
        ("model_index.json", "boundary_ratio", json!("0.9"), "line"),
        (
            "model_index.json",
            "_class_name",
            json!("WanVACEPipeline"),
            "\"WanVACEPipeline\"; expected \"WanImageToVideoPipeline\"",
        ),
        (
            "model_index.json",
            "_class_name",
            Value::Null,
            "expected \"WanImageToVideoPipeline\"",
        ),
    ] {
        let message = error_with(&scratch, file, field, value);
        let folder = file.split_once('/').map_or(file, |(folder, _)| folder);
        let whole_root = expected == "patch_size";
        assert_holds(&message, &[if whole_root { "" } else { folder }, expected]);
    }
}
