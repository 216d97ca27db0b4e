//! What quantization costs: the error of one forward pass of an expert.

use std::fs;

use mlx_rs::Array;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::dit::{Dit, DitConfig, Rope};
use wan_i2v::runtime::{Device, Precision, to_host};
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::convert::{self, LocalSource, Options};
use wan_i2v::weights::layout::Layout;
use wan_i2v::weights::part::{Loader, Part};
use wan_i2v::weights::store::Location;
use wan_i2v::weights::{Bits, PartName};

use crate::layouts::{F32, device, rms_error};
use crate::support::layouts::{Form, content, expert_config, random_part};
use crate::support::mlx;
use crate::support::portable;

const GRID: [i32; 3] = [3, 8, 12];

fn input(name: &str, shape: &[i32], scale: f32) -> Array {
    let dims: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
    Array::from_slice(&portable::input("layouts", name, &dims, scale), shape)
}

/// The velocity that an expert predicts for random latents and a prompt of 40 tokens.
fn forward(part: &Part, config: &DitConfig, device: Device, bits: Option<Bits>) -> Vec<f32> {
    let mut loader = Loader {
        part,
        device,
        bits: bits.map(Into::into),
        adapters: &[],
        merges: false,
    };
    let dit = Dit::load(config, &mut loader, device).unwrap();
    let [frames, rows, columns] = GRID;
    let latents = input("latents", &[36, frames, rows, columns], 1.7);
    let text = input("text", &[40, config.text_dim], 0.3);
    let rope = Rope::new([frames, rows / 2, columns / 2], config.attention_head_dim);
    let time = dit.embed_time(833).unwrap();
    let cross = dit.cross_kv(&text, 512).unwrap();
    to_host(
        &dit.forward(&latents, &time, &rope, &cross, &MemoryPlan::WHOLE)
            .unwrap(),
    )
    .unwrap()
}

#[test]
fn a_forward_pass_of_512_channels() {
    let _mlx = mlx();
    let config = expert_config(4, 1024, 256);
    let part = PartConfig::Expert(config.clone());
    let mut tensors = random_part("forward", &part);
    let form = Form::Diffusers(F32);
    let content = content(form, PartName::HighNoise, &mut tensors);
    let folder = tempfile::tempdir().unwrap();
    form.write_part(&part, &content, PartName::HighNoise, folder.path());
    let place = Location::at(&folder.path().join(form.place(PartName::HighNoise))).unwrap();
    let part = Part::open(&place, PartName::HighNoise.kind()).unwrap();
    let f32 = device();
    let bf16 = Device {
        dtype: Precision::Bf16,
        ..f32
    };
    let exact = forward(&part, &config, f32, None);
    let converted = |options: Options, name: &str| {
        let target = folder.path().join(name);
        let path = folder.path().join(form.place(PartName::HighNoise));
        let layout = Layout::of_path(&path, Some(PartName::HighNoise)).unwrap();
        let mut feed = LocalSource::new(&layout).unwrap();
        convert::convert(&mut feed, &target, &options, &mut |_| ()).unwrap();
        let bytes: u64 = fs::read_dir(&target)
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        let place = Location::at(&target.join("high_noise_model.safetensors")).unwrap();
        let part = Part::open(&place, PartName::HighNoise.kind()).unwrap();
        (
            rms_error(&forward(&part, &config, f32, None), &exact),
            bytes,
        )
    };
    let four = |group_size| Options {
        high: Some(convert::Bits::Four),
        group_size,
        ..Options::default()
    };
    let quick = rms_error(&forward(&part, &config, f32, Some(Bits::Four)), &exact);
    let (searched, bytes) = converted(four(64), "four");
    let (smaller, smaller_bytes) = converted(four(32), "groups");
    // Nearly as large as the first, no larger than the second, and a quarter of a bit more a weight.
    let sizes = [
        ("within", bytes + bytes / 50),
        ("wider", smaller_bytes),
        ("widest", smaller_bytes + smaller_bytes / 50),
    ];
    let [within, wider, widest] = sizes.map(|(name, size)| {
        let within = Options {
            size: Some(size),
            ..Options::default()
        };
        converted(within, name)
    });
    println!(
        "measured conversions to 4 bits: {quick:.3e} without a search, {searched:.3e} with it, in {bytes} bytes, {smaller:.3e} \
         in groups of 32, in {smaller_bytes}; by errors {within:?}, {wider:?}, {widest:?}"
    );
    assert!(searched < 0.9 * quick && smaller < 0.98 * searched && within.0 < 1.05 * searched);
    assert!(wider.1 <= smaller_bytes && wider.0 < 0.98 * smaller && widest.0 < 0.02);
    let rounded = forward(&part, &config, bf16, None);
    println!(
        "measured bf16 without quantization: {:.3e}",
        rms_error(&rounded, &exact)
    );
    for (bits, most) in [(Bits::Eight, 0.01), (Bits::Four, 0.2)] {
        for (precision, device, plain) in [("f32", f32, &exact), ("bf16", bf16, &rounded)] {
            let ours = forward(&part, &config, device, Some(bits));
            let error = rms_error(&ours, plain);
            println!(
                "measured {bits:?} bits in {precision}: {error:.3e} from the unquantized in \
                 {precision}, {:.3e} from f32",
                rms_error(&ours, &exact)
            );
            assert!(
                error > 1e-5 && error < most,
                "{bits:?} {precision}: {error:.3e}"
            );
        }
    }
}
