//! Layouts that round: the latents are those of the rounded values.

use tempfile::TempDir;
use wan_i2v::runtime::{Device, Precision};
use wan_i2v::weights::PartName;
use wan_i2v::weights::container::encoding::Encoding;

use crate::layouts::{
    Made, assert_identical, device, folder, open, reference, rms_error, run, run_folder,
    with_mlx_kernels,
};
use crate::support::forms::{is_linear, mlx_quantize};
use crate::support::layouts::{Form, Model, Patch, Tensor, decode};
use crate::support::mlx;

/// What comes out of `form`, of its values in the plainest layout, and of the unrounded model.
fn runs(form: Form) -> ([Made; 3], TempDir) {
    let model = Model::random();
    let (folder, meant) = folder(form, &model);
    let runs = [
        run_folder(folder.path()),
        reference(&meant),
        reference(&model),
    ];
    println!(
        "measured {form:?}: latents {:.2e} from those of its values, {:.2e} from the unrounded",
        rms_error(&runs[0].latents, &runs[1].latents),
        rms_error(&runs[0].latents, &runs[2].latents)
    );
    (runs, folder)
}

/// Fails unless `form` is exactly its values, and not the unrounded model.
fn check(form: Form, most: f64) {
    let _mlx = mlx();
    let ([ours, expected, unrounded], _) = runs(form);
    assert_identical(&ours, &expected, &format!("{form:?}"));
    let error = rms_error(&ours.latents, &unrounded.latents);
    assert!(error > 1e-4 && error < most, "{form:?}: {error:.2e}");
}

#[test]
fn fp8_scaled() {
    check(Form::Scaled { newer: false }, 0.1);
}

#[test]
fn fp8_scaled_with_the_newer_names() {
    check(Form::Scaled { newer: true }, 0.1);
}

/// Float8 without scales, everything in it.
#[test]
fn fp8() {
    check(Form::Comfy(Encoding::F8E4M3, "model.diffusion_model."), 0.2);
}

#[test]
fn gguf_q8_0() {
    check(Form::Gguf(Encoding::Q8_0, Patch::Whole), 0.05);
}

#[test]
fn gguf_q4_0() {
    check(Form::Gguf(Encoding::Q4_0, Patch::Folded), 0.5);
}

#[test]
fn gguf_q4_k() {
    check(Form::Gguf(Encoding::Q4K, Patch::Whole), 0.5);
}

#[test]
fn gguf_q5_k() {
    check(Form::Gguf(Encoding::Q5K, Patch::Whole), 0.3);
}

/// Its groups of 16 share 32 in eight bits.
#[test]
fn gguf_q6_k() {
    check_near(Form::Gguf(Encoding::Q6K, Patch::Dropped), 5e-3, 0.2);
}

/// Its levels are not even.
#[test]
fn gguf_iq4_nl() {
    check_near(Form::Gguf(Encoding::Iq4Nl, Patch::Dropped), 0.05, 0.5);
}

#[test]
fn gguf_mxfp4() {
    check(Form::Gguf(Encoding::Mxfp4, Patch::Whole), 0.5);
}

/// With a scale of each weight beside it.
#[test]
fn gguf_nvfp4() {
    check_near(Form::Gguf(Encoding::Nvfp4, Patch::Whole), 1e-5, 0.5);
}

/// Fails unless `form` is its values but for a share of what it lost before.
fn check_near(form: Form, near: f64, most: f64) {
    let _mlx = mlx();
    let ([ours, expected, unrounded], _) = runs(form);
    let error = rms_error(&ours.latents, &expected.latents);
    println!("measured {form:?}: {error:.2e} from its values");
    assert!(error < near, "{form:?}: {error:.2e}");
    let error = rms_error(&ours.latents, &unrounded.latents);
    assert!(error > 1e-4 && error < most, "{form:?}: {error:.2e}");
}

/// Multiplied as they are packed and unpacked first, by either set of kernels.
#[test]
fn packed_weights_are_their_values_in_every_way() {
    let _mlx = mlx();
    for form in [
        Form::Gguf(Encoding::Q4K, Patch::Whole),
        Form::Gguf(Encoding::Q5K, Patch::Whole),
        Form::Scaled { newer: true },
    ] {
        let (folder, meant) = folder(form, &Model::random());
        let expected = reference(&meant);
        let mlx = with_mlx_kernels();
        for (kernels, dense_above) in [(device(), i32::MAX), (mlx, 0), (mlx, i32::MAX)] {
            let device = Device {
                dense_above,
                ..kernels
            };
            let made = run(&open(folder.path()).unwrap(), device);
            let error = rms_error(&made.latents, &expected.latents);
            println!(
                "measured {form:?} {:?} {dense_above}: {error:.2e}",
                device.kernels
            );
            assert!(error < 1e-4, "{form:?}: {error:.2e}");
        }
    }
}

/// mlx-video's quantized folders, with weights that MLX itself packed: through the product that
/// unpacks on the fly and through the one that unpacks first.
fn check_mlx(bits: i32, group: i32, most: f64) {
    let _mlx = mlx();
    let form = Form::MlxQuantized { bits, group };
    let ([ours, expected, unrounded], folder) = runs(form);
    let always = Device {
        dense_above: i32::MAX,
        ..device()
    };
    let packed = run(&open(folder.path()).unwrap(), always);
    for made in [&ours, &packed] {
        let error = rms_error(&made.latents, &expected.latents);
        println!("measured {form:?}: {error:.2e} from its values");
        assert!(error < 1e-4, "{form:?}: {error:.2e}");
        let error = rms_error(&made.latents, &unrounded.latents);
        assert!(error > 1e-4 && error < most, "{form:?}: {error:.2e}");
    }
}

#[test]
fn mlx_of_4_bits() {
    check_mlx(4, 64, 0.5);
}

#[test]
fn mlx_of_8_bits() {
    check_mlx(8, 64, 0.05);
}

#[test]
fn mlx_in_other_groups() {
    check_mlx(4, 32, 0.5);
    check_mlx(8, 128, 0.05);
}

/// With MLX's kernels every kind of layout is its values, and near what this program's make of them.
#[test]
fn layouts_with_mlx_s_kernels() {
    let _mlx = mlx();
    let device = with_mlx_kernels();
    for form in [
        Form::Comfy(Encoding::F16, ""),
        Form::MlxVideo(Encoding::Bf16),
        Form::Scaled { newer: false },
        Form::Gguf(Encoding::Q4K, Patch::Whole),
        Form::MlxQuantized { bits: 4, group: 64 },
        Form::MlxQuantized {
            bits: 8,
            group: 128,
        },
    ] {
        let (stored, meant) = folder(form, &Model::random());
        let (plain, _) = folder(Form::Diffusers(Encoding::F32), &meant);
        let [made, expected] =
            [&stored, &plain].map(|folder| run(&open(folder.path()).unwrap(), device));
        if matches!(form, Form::Comfy(..) | Form::MlxVideo(_)) {
            assert_identical(&made, &expected, &format!("{form:?}"));
        }
        // Weights of more rows than one unpack on the fly.
        let ours = run_folder(stored.path());
        for other in [&expected, &ours] {
            let error = rms_error(&made.latents, &other.latents);
            println!("measured {form:?} with MLX's kernels: {error:.2e}");
            assert!(error < 1e-4, "{form:?}: {error:.2e}");
        }
    }
}

/// In bfloat16, the GPU's precision, float8 is exact and its scale multiplies the products: no further
/// from the float32 than weights that are rounded to bfloat16.
#[test]
fn fp8_scaled_in_bf16() {
    let _mlx = mlx();
    let bf16 = Device {
        dtype: Precision::Bf16,
        ..device()
    };
    let model = Model::random();
    let (ours, meant) = folder(Form::Scaled { newer: false }, &model);
    let (plain, _) = folder(Form::Diffusers(Encoding::F32), &meant);
    let exact = run_folder(plain.path());
    let [ours, plain] = [&ours, &plain]
        .map(|folder| run(&open(folder.path()).unwrap(), bf16))
        .map(|made| rms_error(&made.latents, &exact.latents));
    println!("measured fp8 in bf16: {ours:.2e} from float32, rounded weights {plain:.2e}");
    assert!(ours > 1e-4 && ours < 1.1 * plain, "{ours:.2e} {plain:.2e}");
}

/// MLX's dequantization, by the formula: so that the comparisons above do not rest on MLX alone.
#[test]
fn mlx_means_what_it_says() {
    let _mlx = mlx();
    let model = Model::random();
    let weights = model.parts[PartName::HighNoise as usize].iter();
    let weight: &Tensor = weights
        .clone()
        .find(|tensor| tensor.name.starts_with("blocks.") && is_linear(tensor))
        .unwrap();
    let ([words, scales, biases], values) = mlx_quantize(weight, 4, 64);
    let numbers = |i: usize| {
        let word: [u8; 4] = words.bytes[i / 8 * 4..][..4].try_into().unwrap();
        u32::from_le_bytes(word) >> (i % 8 * 4) & 15
    };
    let scales = decode(Encoding::Bf16, &scales.bytes);
    let biases = decode(Encoding::Bf16, &biases.bytes);
    for (i, value) in values.iter().enumerate() {
        let expected = numbers(i) as f32 * scales[i / 64] + biases[i / 64];
        assert!((value - expected).abs() <= 1e-6, "{i}: {value} {expected}");
    }
}
