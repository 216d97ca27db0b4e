//! Layouts that keep every value: the latents are the same to the last bit.

use wan_i2v::weights::store::{Container, Location, TensorStore};

use crate::layouts::{BF16, F16, F32, assert_identical, folder, reference, run_folder};
use crate::support::layouts::{Form, Model, Patch};
use crate::support::mlx;

/// Fails unless every form of `model` gives the latents of the plainest.
fn check(model: &Model, forms: &[Form]) {
    let _mlx = mlx();
    let expected = reference(model);
    for &form in forms {
        let (folder, _) = folder(form, model);
        assert_identical(&run_folder(folder.path()), &expected, &format!("{form:?}"));
    }
}

#[test]
fn diffusers() {
    let forms = [F16, BF16].map(Form::Diffusers);
    check(&Model::random(), &forms);
    check(&Model::random(), &[F32, BF16].map(Form::Sharded));
}

#[test]
fn original() {
    check(&Model::random(), &[F16, BF16].map(Form::Original));
}

#[test]
fn comfy() {
    check(
        &Model::random(),
        &[
            Form::Comfy(F16, ""),
            Form::Comfy(BF16, "model.diffusion_model."),
            Form::Comfy(F32, "model."),
        ],
    );
}

#[test]
fn mlx_video() {
    check(&Model::random(), &[F16, BF16].map(Form::MlxVideo));
}

#[test]
fn gguf_of_16_bits() {
    check(
        &Model::random(),
        &[
            Form::Gguf(F16, Patch::Whole),
            Form::Gguf(BF16, Patch::Folded),
            Form::Gguf(F16, Patch::Dropped),
        ],
    );
}

/// Values that no 16-bit type holds pass through the containers that have float32.
#[test]
fn float32() {
    let forms = [
        Form::Sharded(F32),
        Form::Original(F32),
        Form::MlxVideo(F32),
        Form::Comfy(F32, ""),
        Form::Gguf(F32, Patch::Folded),
    ];
    check(&Model::precise(), &forms);
}

/// What the comparisons rest on: another weight is another result.
#[test]
fn one_weight_of_each_part_shows() {
    let _mlx = mlx();
    let model = Model::random();
    let expected = reference(&model);
    for (part, name) in [
        (0, "blocks.1.ffn.net.2.weight"),
        (1, "blocks.0.attn2.to_k.weight"),
        (2, "encoder.mid_block.resnets.1.conv2.weight"),
        (2, "decoder.up_blocks.2.resnets.0.conv1.weight"),
        (3, "encoder.block.1.layer.1.DenseReluDense.wi_1.weight"),
    ] {
        let mut other = model.clone();
        let tensor = other.parts[part]
            .iter_mut()
            .find(|t| t.name == name)
            .unwrap();
        tensor.values[1000] += 0.25;
        let ours = reference(&other);
        assert!(ours != expected, "{name}");
    }
}

/// A safetensors file begins with the length of its header; as bytes some lengths look like the
/// start of a pickle.
#[test]
fn no_header_length_is_taken_for_another_container() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vae.safetensors");
    for length in [0x80, 0x0280, 0x0480, 0x0780, 0x0480_u64 + 0x1_0000] {
        let mut header = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned();
        header.push_str(&" ".repeat(length as usize - header.len()));
        let bytes = [&length.to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        std::fs::write(&path, bytes).unwrap();
        let store = TensorStore::open(&Location::at(&path).unwrap()).unwrap();
        assert_eq!(store.container(), Container::Safetensors, "{length:#x}");
        assert!(store.entries().contains_key("x"));
    }
}
