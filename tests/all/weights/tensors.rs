//! Tensors that are missing, surplus, renamed, of another shape or dtype.

use safetensors::tensor::Dtype;

use crate::support::assert_holds;
use crate::support::scratch::{Scratch, Tensor, Tensors};
use crate::weights::{HIGH, LOW, TEXT, VAE, error, open};

/// The message of opening a checkpoint whose `file` was edited.
fn error_of(scratch: &Scratch, file: &str, edit: impl FnOnce(&mut Tensors)) -> String {
    scratch.with_damaged(
        file,
        |_| scratch.edit_tensors(file, edit),
        || error(scratch.root()),
    )
}

fn rename(tensors: &mut Tensors, from: &str, to: &str) {
    let tensor = tensors.remove(from).unwrap();
    tensors.insert(to.into(), tensor);
}

#[test]
fn opens_what_is_whole() {
    for case in ["a", "b", "c", "d"] {
        let scratch = Scratch::new(case);
        let checkpoint = open(scratch.root()).unwrap();
        assert_eq!(checkpoint.boundary_timestep, 900.0);
    }
}

#[test]
fn missing_tensors_are_named() {
    let scratch = Scratch::new("a");
    for (file, folder, name) in [
        (HIGH, "transformer/", "blocks.1.attn2.norm_k.weight"),
        (
            LOW,
            "transformer_2/",
            "condition_embedder.text_embedder.linear_2.bias",
        ),
        (VAE, "vae/", "encoder.mid_block.attentions.0.to_qkv.weight"),
        (VAE, "vae/", "quant_conv.bias"),
        (
            TEXT,
            "text_encoder/",
            "encoder.block.1.layer.0.SelfAttention.o.weight",
        ),
    ] {
        let message = error_of(&scratch, file, |t| drop(t.remove(name).unwrap()));
        assert_holds(&message, &[folder, &format!("missing: {name} ["), "found"]);
        assert!(!message.contains("unexpected:"), "{message}");
    }
}

#[test]
fn surplus_and_renamed_tensors_are_named() {
    let scratch = Scratch::new("a");
    let message = error_of(&scratch, LOW, |t| {
        t.insert("blocks.2.surplus".into(), Tensor::f32(&[2, 3], &[0.0; 6]));
    });
    assert_holds(&message, &["unexpected: blocks.2.surplus [2, 3]"]);
    let message = error_of(&scratch, HIGH, |t| {
        rename(t, "blocks.0.attn1.to_q.weight", "blocks.0.attn1.q.weight");
    });
    assert_holds(
        &message,
        &[
            "missing: blocks.0.attn1.to_q.weight [132, 132] (nearest name in the file: \
             blocks.0.attn1.q.weight [132, 132])",
            "unexpected: blocks.0.attn1.q.weight",
        ],
    );
    // The tied embedding under its second name is no surplus.
    scratch.edit_tensors(TEXT, |t| {
        let shared = t["shared.weight"].clone();
        t.insert("encoder.embed_tokens.weight".into(), shared);
    });
    open(scratch.root()).unwrap();
}

#[test]
fn a_file_of_other_tensors_gives_a_short_list() {
    let scratch = Scratch::new("a");
    let message = error_of(&scratch, HIGH, |t| {
        for name in t.keys().cloned().collect::<Vec<_>>() {
            rename(t, &name, &format!("unet/{name}"));
        }
    });
    assert_eq!(message.lines().count(), 10, "{message}");
    assert!(
        message.lines().last().unwrap().ends_with(" more"),
        "{message}"
    );
}

#[test]
fn wrong_shapes_and_dtypes_are_named() {
    let scratch = Scratch::new("a");
    let name = "blocks.0.attn2.to_v.weight";
    for (shape, found) in [
        (vec![132, 131], "[132, 131]"),
        (vec![132 * 132], "[17424]"),
        (vec![132, 132, 1], "[132, 132, 1]"),
        (vec![], "[]"),
        (vec![132, 0], "[132, 0]"),
    ] {
        let values = vec![0.0; shape.iter().product()];
        let message = error_of(&scratch, LOW, |t| {
            *t.get_mut(name).unwrap() = Tensor::f32(&shape, &values);
        });
        let expected = format!("{name} has shape {found}; expected [132, 132]");
        assert_holds(&message, &["transformer_2", &expected]);
    }
    for (dtype, size) in [(Dtype::I64, 8), (Dtype::I32, 4), (Dtype::I8, 1)] {
        let message = error_of(&scratch, LOW, |t| {
            let tensor = t.get_mut(name).unwrap();
            tensor.dtype = dtype;
            tensor.bytes = vec![0; 132 * 132 * size];
        });
        let dtype = dtype.to_string().to_lowercase();
        let expected = match dtype.as_str() {
            "i8" => "stored as i8 without a scale; expected real numbers".to_owned(),
            _ => format!("{name} is stored as {dtype}; expected real numbers"),
        };
        assert_holds(&message, &[&expected]);
    }
}
