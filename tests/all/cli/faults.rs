//! Runs that fail in the middle: the message says where, and nothing is left behind.

use std::fs;

use crate::cli::{Bench, Ran};
use crate::support::scratch::{Tensor, Tensors};

const HIGH: &str = "transformer/diffusion_pytorch_model.safetensors";
const LOW: &str = "transformer_2/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

/// Makes every value of a tensor the same.
fn fill(tensors: &mut Tensors, name: &str, value: f32) {
    let tensor = tensors.get_mut(name).unwrap();
    let count = tensor.shape.iter().product();
    *tensor = Tensor::f32(&tensor.shape, &vec![value; count]);
}

/// A run over an old clip with a checkpoint of which one file was edited.
fn fail(file: &str, edit: impl FnOnce(&mut Tensors)) -> Ran {
    let bench = Bench::new("a");
    bench.checkpoint.edit_tensors(file, edit);
    fs::write(bench.path("clip.mp4"), "old").unwrap();
    let ran = bench.small("clip.mp4", &["--frames", "5"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stdout.is_empty());
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
    let mut written = bench.written();
    // What was computed before the failure.
    written.remove("clip.mp4.wan-state");
    assert_eq!(written, ["clip.mp4".to_owned()].into());
    assert_eq!(fs::read(bench.path("clip.mp4")).unwrap(), b"old");
    ran
}

fn assert_error(ran: &Ran, parts: &[&str]) {
    let error = &ran.stderr[ran.stderr.find("error: ").unwrap()..];
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

#[test]
fn an_overflow_names_step_timestep_expert_and_block() {
    let ran = fail(HIGH, |tensors| {
        fill(tensors, "blocks.1.ffn.net.0.proj.weight", 1e30);
        fill(tensors, "blocks.1.ffn.net.2.weight", 1e30);
    });
    let place = "step 1 of 2 (t = 999, high-noise expert)";
    assert_error(&ran, &[place, "not finite", "first in block 1"]);

    let ran = fail(LOW, |tensors| {
        fill(tensors, "blocks.0.ffn.net.2.weight", 3e38);
    });
    let place = "step 2 of 2 (t = 833, low-noise expert)";
    assert_error(&ran, &[place, "not finite", "first in block 0"]);

    let ran = fail(LOW, |tensors| {
        fill(tensors, "proj_out.weight", 3e38);
    });
    assert_error(&ran, &[place, "not finite", "the output head"]);
}

#[test]
fn a_collapsed_prediction_is_named() {
    let ran = fail(LOW, |tensors| {
        // Not 0, which is what a download that has not come leaves.
        fill(tensors, "proj_out.weight", 1e-30);
        fill(tensors, "proj_out.bias", 0.0);
    });
    let place = "step 2 of 2 (t = 833, low-noise expert)";
    assert_error(&ran, &[place, "collapsed to "]);
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let ran = fail(HIGH, |tensors| {
        fill(tensors, "blocks.1.attn1.to_k.bias", f32::NAN);
    });
    assert_error(
        &ran,
        &[
            "transformer",
            "blocks.1.attn1.to_k.bias",
            "not finite",
            "download",
        ],
    );
    assert!(!ran.stderr.contains("step 1"), "{}", ran.stderr);
}

#[test]
fn overflows_beside_the_experts_say_where() {
    let ran = fail(TEXT, |tensors| {
        fill(tensors, "encoder.final_layer_norm.weight", 3e38);
    });
    assert_error(&ran, &["the text encoder's output is not finite"]);
    let ran = fail(VAE, |tensors| {
        fill(tensors, "quant_conv.weight", 3e38);
    });
    assert_error(&ran, &["the VAE's encoding of the picture is not finite"]);
    let ran = fail(VAE, |tensors| {
        fill(tensors, "decoder.conv_out.weight", 3e38);
    });
    assert_error(&ran, &["decoding latent frame 0 of 2", "not finite"]);
}
