//! Our own layout, written from the others, and quantization while loading.

use std::path::Path;

use tempfile::TempDir;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::convert::{self, Bits, LocalSource, Options};
use wan_i2v::weights::layout::Layout;
use wan_i2v::weights::naming::Kind;
use wan_i2v::weights::{Checkpoint, Loading, PartName, Sources, quantize};

use crate::layouts::{
    BF16, F16, F32, Made, assert_identical, device, folder, reference, rms_error, run, run_folder,
};
use crate::support::forms::is_linear;
use crate::support::layouts::{Form, Model, Patch};
use crate::support::mlx;

/// Bits for the high-noise expert, the low-noise expert and the text encoder; small files, so
/// that a part has several.
fn options(bits: [Option<Bits>; 3]) -> Options {
    let [high, low, text] = bits;
    Options {
        high,
        low,
        text,
        file_bytes: 1 << 20,
    }
}

/// A folder `ours` from another layout.
pub fn convert(source: &Path, bits: [Option<Bits>; 3]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::of_path(source, None).unwrap();
    let mut feed = LocalSource::new(&layout).unwrap();
    let target = folder.path().join("ours");
    convert::convert(&mut feed, &target, &options(bits), &mut |_| ()).unwrap();
    folder
}

fn ours(folder: &TempDir) -> Made {
    run_folder(&folder.path().join("ours"))
}

/// The forms' conversions to 16 bits lose nothing of values that have no more.
fn check_16_bits(forms: &[Form]) {
    let _mlx = mlx();
    let model = Model::random();
    let expected = reference(&model);
    for &form in forms {
        let (source, _) = folder(form, &model);
        for bits in [None, Some(Bits::Sixteen)] {
            let converted = convert(source.path(), [bits; 3]);
            let what = format!("{form:?} in {bits:?}");
            assert_identical(&ours(&converted), &expected, &what);
            let shards = std::fs::read_dir(converted.path().join("ours")).unwrap();
            assert!(shards.count() > 12, "{what}: not in shards");
        }
    }
}

#[test]
fn from_diffusers_and_the_original() {
    check_16_bits(&[Form::Diffusers(F32), Form::Original(BF16)]);
}

#[test]
fn from_comfy_and_mlx_video() {
    let prefix = "model.diffusion_model.";
    check_16_bits(&[Form::Comfy(F16, prefix), Form::MlxVideo(BF16)]);
}

#[test]
fn from_gguf() {
    check_16_bits(&[Form::Gguf(F16, Patch::Folded)]);
}

/// What is no plain type becomes bfloat16, which rounds; what MLX quantized stays as it is.
#[test]
fn from_quantized_layouts() {
    let _mlx = mlx();
    let model = Model::random();
    for (form, most) in [
        (Form::Scaled { newer: false }, 0.01),
        (Form::Gguf(Encoding::Q5K, Patch::Whole), 0.01),
        (Form::MlxQuantized { bits: 4, group: 32 }, 0.0),
    ] {
        let (source, _) = folder(form, &model);
        let before = run_folder(source.path());
        let after = ours(&convert(source.path(), [None; 3]));
        let error = rms_error(&after.latents, &before.latents);
        println!("measured conversion of {form:?}: {error:.2e}");
        assert!(error <= most, "{form:?}: {error:.2e}");
    }
}

/// Our quantization of the linear layers inside the blocks, as values.
fn quantized(model: &Model, bits: [Option<quantize::Bits>; 3]) -> Model {
    let mut model = model.clone();
    for (part, bits) in [(0, bits[0]), (1, bits[1]), (3, bits[2])] {
        let Some(bits) = bits else { continue };
        for tensor in &mut model.parts[part] {
            let block = match PartName::WITH_EXPERTS[part].kind() {
                Kind::TextEncoder => "encoder.block.",
                _ => "blocks.",
            };
            if tensor.name.starts_with(block) && is_linear(tensor) {
                let packed = quantize::quantize(&tensor.values, bits).unwrap();
                tensor.values = quantize::dequantize(&packed, bits).unwrap();
            }
        }
    }
    model
}

/// Converted and loaded with the same bits, a model makes the same clip: that of the values which
/// the bits stand for.
fn check_bits(bits: [Bits; 3], most: f64) {
    let _mlx = mlx();
    let model = Model::random();
    let (source, _) = folder(Form::Comfy(BF16, ""), &model);
    let converted = ours(&convert(source.path(), bits.map(Some)));
    let [high, low, text] = bits.map(Bits::quantized);
    let load = Loading {
        high,
        low,
        text,
        ..Loading::default()
    };
    let checkpoint = Checkpoint::open(&Sources::folder(source.path()), load).unwrap();
    let loaded = run(&checkpoint, device());
    assert_identical(&converted, &loaded, &format!("{bits:?}"));
    let meant = reference(&quantized(&model, [high, low, text]));
    let error = rms_error(&loaded.latents, &meant.latents);
    assert!(error < 1e-4, "{bits:?}: {error:.2e} from the values");
    let error = rms_error(&loaded.latents, &reference(&model).latents);
    println!("measured {bits:?}: latents {error:.2e} from the unquantized");
    assert!(error > 1e-4 && error < most, "{bits:?}: {error:.2e}");
}

#[test]
fn of_8_bits() {
    check_bits([Bits::Eight; 3], 0.02);
}

#[test]
fn of_4_bits() {
    check_bits([Bits::Four; 3], 0.3);
}

#[test]
fn of_mixed_bits() {
    check_bits([Bits::Four, Bits::Eight, Bits::Sixteen], 0.2);
}
