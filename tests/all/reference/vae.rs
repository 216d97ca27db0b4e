use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use wan_i2v::media::frames::to_rgb8;
use wan_i2v::model::vae::{Chunk, VaeConfig, VaeDecoder, VaeEncoder};
use wan_i2v::model::{MemoryPlan, TensorSource, TensorSpec};
use wan_i2v::runtime::{Device, Precision, to_host};
use wan_i2v::weights::config::{self, PartConfig};
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::naming::{Arrangement, Detected, Kind, Naming};
use wan_i2v::weights::part::{Loader, Part};
use wan_i2v::weights::store::Location;

use crate::support::containers::safetensors;
use crate::support::golden::{BOTH, Case, F32};
use crate::support::layouts::stored;
use crate::support::portable;

/// The input video `[3, frames, height, width]` as chunks `[1 or 4, height, width, 3]`.
fn chunks(case: &Case) -> Vec<Array> {
    let settings = &case.settings;
    let shape = [
        3,
        settings.frames as i32,
        settings.height as i32,
        settings.width as i32,
    ];
    let video = case
        .input("vae.video", &shape, 1.0)
        .transpose_axes(&[1, 2, 3, 0])
        .unwrap();
    let mut chunks = vec![video.try_index(0..1).unwrap()];
    for start in (1..shape[1]).step_by(4) {
        chunks.push(video.try_index(start..start + 4).unwrap());
    }
    chunks
}

/// The first `count` chunks to latents.
fn encode(case: &Case, device: Device, count: usize) -> Array {
    let config: VaeConfig = case.config("vae");
    let mut source = case.source("vae", Precision::F32);
    let encoder = VaeEncoder::load(&config, &mut source, device).unwrap();
    let chunks = chunks(case);
    let count = count.min(chunks.len()) as i32;
    let chunk = |i: i32| Ok(Chunk::Pixels(chunks[i as usize].clone()));
    let encoded = encoder.encode(count, &chunk, &MemoryPlan::WHOLE, &mut || Ok(()));
    encoded.unwrap()
}

/// Decodes normalised latents to `[frames, height, width, 3]`.
fn decode(case: &Case, device: Device) -> Array {
    decode_by(case, &mut case.source("vae", Precision::F32), device)
}

/// As [`decode`], with weights of another source.
fn decode_by(case: &Case, source: &mut dyn TensorSource, device: Device) -> Array {
    let config: VaeConfig = case.config("vae");
    let decoder = VaeDecoder::load(&config, source, device).unwrap();
    let [frames, height, width] = case.grid();
    let latents = case.input("vae.latents", &[config.z_dim, frames, height, width], 1.7);
    let latents = config.denormalize(&latents).unwrap();
    let mut stream = decoder.stream(&MemoryPlan::WHOLE);
    let pixels: Vec<Array> = (0..frames)
        .map(|i| {
            let frame = latents.try_index((.., i..i + 1)).unwrap();
            stream.push(&frame).unwrap()
        })
        .collect();
    concatenate(&pixels, 0).unwrap()
}

fn all() -> impl Iterator<Item = &'static str> {
    Case::ALL.into_iter().chain(Case::VAES)
}

#[test]
fn encoder_mean() {
    for name in all() {
        let case = Case::load(name);
        for device in BOTH {
            let mean = encode(&case, device, usize::MAX);
            case.golden.check(name, "vae/mean", &mean, 2e-4);
            let config: VaeConfig = case.config("vae");
            let normalised = config.normalize(&mean).unwrap();
            case.golden
                .check(name, "vae/mean_normalised", &normalised, 2e-4);
            if Case::VAES.contains(&name) {
                let first = encode(&case, device, 1);
                case.golden.check(name, "vae/mean_of_one", &first, 2e-4);
            }
        }
    }
}

#[test]
fn decoded_frames() {
    for (name, device) in all().flat_map(|name| BOTH.map(|device| (name, device))) {
        let case = Case::load(name);
        let pixels = decode(&case, device);
        let kept: Vec<Array> = case
            .settings
            .float_frames
            .iter()
            .map(|&i| pixels.try_index(i..i + 1).unwrap())
            .collect();
        let kept = concatenate(&kept, 0)
            .unwrap()
            .transpose_axes(&[3, 0, 1, 2])
            .unwrap();
        case.golden.check(name, "vae/decoded", &kept, 2e-4);

        let [height, width] = [1, 2].map(|axis| pixels.dim(axis) as usize);
        let values = to_host(&pixels).unwrap();
        let expected = case.golden.bytes("vae/decoded_u8");
        assert_eq!(values.len(), expected.len());
        let frame_values = height * width * 3;
        for (frame, expected) in values
            .chunks_exact(frame_values)
            .zip(expected.chunks_exact(frame_values))
        {
            let view = ndarray::ArrayView3::from_shape((height, width, 3), frame).unwrap();
            let image = to_rgb8(view).unwrap();
            let worst = image
                .as_raw()
                .iter()
                .zip(expected)
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            assert!(worst <= Some(1), "{name}: 8-bit frames differ by {worst:?}");
        }
    }
}

/// The two sets of kernels are nearer to each other than either is held to the reference.
#[test]
fn mlx_s_kernels_agree_with_this_program_s() {
    for name in ["a", "b", "vae22"] {
        let case = Case::load(name);
        let [ours, theirs] = BOTH.map(|device| to_host(&decode(&case, device)).unwrap());
        let error = crate::support::golden::relative_error(&ours, &theirs);
        println!("measured {name} decoded by MLX's kernels and by ours: {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:.2e}");
        assert!(error > 0.0, "{name}: the same kernels");
    }
}

/// The number of slots the reference counts for the published topology.
#[test]
fn the_encoder_has_24_cache_slots() {
    let case = Case::load("a");
    let config: VaeConfig = case.config("vae");
    let mut source = case.source("vae", Precision::F32);
    let encoder = VaeEncoder::load(&config, &mut source, F32).unwrap();
    assert_eq!(
        encoder
            .stream(&MemoryPlan::WHOLE)
            .cache_mut()
            .slots_mut()
            .len(),
        24
    );
}

/// From a file with each layout's names and arrangement, dimensions from its shapes: to the same bits.
#[test]
fn the_vae_of_wan2_2_is_read_from_every_layout() {
    let case = Case::load("vae22");
    let config: VaeConfig = case.config("vae");
    let expected = to_host(&decode(&case, F32)).unwrap();
    let specs = PartConfig::Vae(config.clone()).specs().unwrap();
    for naming in [Naming::Diffusers, Naming::Original, Naming::MlxVideo] {
        let names = Detected {
            residual: true,
            ..Detected::plain(Kind::Vae, naming)
        };
        let tensor = |spec: &TensorSpec| {
            let shape: Vec<usize> = spec.shape.iter().map(|&side| side as usize).collect();
            let values = portable::weights("vae22", "vae", &spec.name, &shape);
            let found = names.stored(&spec.name, &shape).unwrap();
            let values = match found.arrangement {
                Arrangement::Permuted(axes) => {
                    let at = |axis| axes.iter().position(|&stored| stored == axis).unwrap() as i32;
                    let order: Vec<i32> = (0..axes.len()).map(at).collect();
                    let values = Array::from_slice(&values, &spec.shape);
                    to_host(&values.transpose_axes(&order).unwrap()).unwrap()
                }
                Arrangement::AsIs | Arrangement::Reshaped => values,
            };
            (found.name, stored(Encoding::F32, &found.shape, &values))
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wan2.2_vae.safetensors");
        safetensors(&path, &specs.iter().map(tensor).collect());
        let part = Part::open(&Location::at(&path).unwrap(), Kind::Vae).unwrap();
        assert_eq!(part.names(), &names);
        assert_eq!(config::vae(&part).unwrap(), config, "{naming}");
        part.check(&specs).unwrap();
        let mut loader = Loader {
            part: &part,
            device: F32,
            bits: None,
            adapters: &[],
            merges: false,
        };
        let ours = to_host(&decode_by(&case, &mut loader, F32)).unwrap();
        assert!(ours == expected, "{naming}");
    }
}
