//! Weights as they are handed out: finite, in any float dtype, from any layout of files.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use wan_i2v::model::{Role, TensorSource};
use wan_i2v::runtime::{Device, DeviceKind, Precision, to_host};
use wan_i2v::weights::part::{Loader, Part};
use wan_i2v::weights::store::Location;
use wan_i2v::weights::{Checkpoint, Expert, Loading, Sources};

use crate::support::assert_holds;
use crate::support::checkpoint::kind;
use crate::support::mlx;
use crate::support::scratch::{Scratch, Tensor, Tensors, read_tensors, write_tensors};
use crate::weights::{HIGH, LOW, TEXT, VAE, open};

fn device() -> Device {
    Device::select(Some(DeviceKind::Cpu), Some(Precision::F32)).unwrap()
}

/// The message of loading every part in turn.
fn load_error(root: &Path) -> String {
    let _mlx = mlx();
    let load = || {
        let checkpoint = Checkpoint::open(&Sources::folder(root), Loading::default())?;
        checkpoint.load_text_encoder(device())?;
        checkpoint.load_expert(Expert::HighNoise, device())?;
        checkpoint.load_expert(Expert::LowNoise, device())?;
        checkpoint.load_vae_encoder(device())?;
        checkpoint.load_vae_decoder(device()).map(drop)
    };
    format!("{:#}", load().unwrap_err())
}

/// Every tensor of a part, in float32, as the networks get it.
fn handed_out(root: &Path, part: &str, expected: &Tensors) -> Vec<Vec<f32>> {
    let _mlx = mlx();
    let location = Location::at(&root.join(part)).unwrap();
    let part = Part::open(&location, kind(part)).unwrap();
    let mut component = Loader {
        part: &part,
        device: device(),
        bits: None,
        adapters: &[],
        merges: false,
    };
    let mut values = |(name, tensor): (&String, &Tensor)| {
        let shape: Vec<i32> = tensor.shape.iter().map(|&d| d as i32).collect();
        let array = component.tensor(name, &shape, Role::Exact).unwrap();
        assert_eq!(array.shape(), shape);
        to_host(&array).unwrap()
    };
    expected.iter().map(&mut values).collect()
}

/// The upper bits of float32 values: bfloat16, cut off.
fn to_bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// float16, cut off, for values below 65504; those too small for a normal one become zero.
fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    match (bits >> 23 & 0xff) as i32 - 112 {
        ..=0 => sign,
        exponent => sign | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16,
    }
}

fn convert(tensor: &mut Tensor, dtype: Dtype, convert: fn(f32) -> u16) {
    let values = tensor.values();
    tensor.dtype = dtype;
    tensor.bytes = values
        .into_iter()
        .flat_map(|v| convert(v).to_le_bytes())
        .collect();
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let scratch = Scratch::new("a");
    let halves: [(Dtype, &[u16]); 2] = [
        (Dtype::F16, &[0x7c00, 0xfc00, 0x7e01]),
        (Dtype::BF16, &[0x7f80, 0xff80, 0x7fc1]),
    ];
    let check = |file: &str, name: &str, bad: Tensor| {
        let message = scratch.with_damaged(
            file,
            |_| scratch.edit_tensors(file, |t| drop(t.insert(name.into(), bad))),
            || load_error(scratch.root()),
        );
        assert_holds(&message, &[name, "not finite", "download it again"]);
        let folder = file.split('/').next().unwrap();
        assert_holds(&message, &[folder]);
    };
    for (file, name) in [
        (HIGH, "proj_out.bias"),
        (LOW, "blocks.1.scale_shift_table"),
        (VAE, "decoder.conv_in.bias"),
        (VAE, "encoder.conv_out.bias"),
        (TEXT, "encoder.final_layer_norm.weight"),
    ] {
        let whole = read_tensors(&scratch.path(file))[name].clone();
        let mut values = whole.values();
        *values.last_mut().unwrap() = f32::NAN;
        check(file, name, Tensor::f32(&whole.shape, &values));
    }
    let name = "condition_embedder.time_proj.bias";
    let whole = read_tensors(&scratch.path(LOW))[name].clone();
    for bad in [f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = whole.values();
        values[3] = bad;
        check(LOW, name, Tensor::f32(&whole.shape, &values));
    }
    for (dtype, bits) in halves {
        for bad in bits {
            let mut tensor = whole.clone();
            convert(&mut tensor, dtype, |_| 0);
            tensor.bytes[6..8].copy_from_slice(&bad.to_le_bytes());
            check(LOW, name, tensor);
        }
    }
}

#[test]
fn half_precision_copies_agree_within_rounding() {
    let scratch = Scratch::new("b");
    for (dtype, to_bits, relative) in [
        (Dtype::F16, to_f16 as fn(f32) -> u16, 2f32.powi(-10)),
        (Dtype::BF16, to_bf16, 2f32.powi(-7)),
    ] {
        for (part, file) in [("transformer", HIGH), ("vae", VAE), ("text_encoder", TEXT)] {
            let whole = read_tensors(&scratch.path(file));
            let values = scratch.with_damaged(
                file,
                |_| {
                    scratch.edit_tensors(file, |tensors| {
                        for tensor in tensors.values_mut() {
                            convert(tensor, dtype, to_bits);
                        }
                    });
                },
                || {
                    open(scratch.root()).unwrap();
                    handed_out(scratch.root(), part, &whole)
                },
            );
            for ((name, expected), found) in whole.iter().zip(values) {
                for (expected, found) in expected.values().iter().zip(found) {
                    let bound = expected.abs() * relative + 6.2e-5;
                    assert!(
                        (expected - found).abs() <= bound,
                        "{name}: {found} as {dtype:?}, {expected} as F32"
                    );
                }
            }
        }
    }
}

#[test]
fn shards_equal_one_file() {
    let sharded = Scratch::new("d");
    let whole = Scratch::new("d");
    for (part, file) in [("transformer", HIGH), ("transformer_2", LOW)] {
        let folder = whole.path(part);
        let mut tensors = Tensors::new();
        let mut files = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.to_string_lossy().into_owned();
            if name.ends_with(".safetensors") {
                files += 1;
                tensors.extend(read_tensors(&path));
            }
            if name.contains(".safetensors") {
                fs::remove_file(&path).unwrap();
            }
        }
        assert!(files > 1, "{part} is not sharded and tests nothing");
        write_tensors(&whole.path(file), &tensors);
        let one = handed_out(whole.root(), part, &tensors);
        assert_eq!(one, handed_out(sharded.root(), part, &tensors));
        let stored: Vec<_> = tensors.values().map(Tensor::values).collect();
        assert_eq!(one, stored);
    }
    open(whole.root()).unwrap();
}

#[test]
fn data_may_start_at_any_byte() {
    let scratch = Scratch::new("a");
    let whole = read_tensors(&scratch.path(VAE));
    let file = fs::read(scratch.path(VAE)).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for padding in [1, 2, 3, 5] {
        let mut shifted = ((length + padding) as u64).to_le_bytes().to_vec();
        shifted.extend_from_slice(&file[8..8 + length]);
        shifted.extend(vec![b' '; padding]);
        shifted.extend_from_slice(&file[8 + length..]);
        fs::write(scratch.path(VAE), shifted).unwrap();
        open(scratch.root()).unwrap();
        let stored: Vec<_> = whole.values().map(Tensor::values).collect();
        assert_eq!(handed_out(scratch.root(), "vae", &whole), stored);
    }
}
