use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use wan_i2v::media::frames::to_rgb8;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::vae::{Chunk, VaeConfig, VaeDecoder, VaeEncoder};
use wan_i2v::runtime::{Device, Kernels, Precision, to_host};

use crate::support::golden::{Case, F32};

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

fn encode(case: &Case, device: Device) -> Array {
    let config: VaeConfig = case.config("vae");
    let mut source = case.source("vae", Precision::F32);
    let encoder = VaeEncoder::load(&config, &mut source, device).unwrap();
    let mut stream = encoder.stream(&MemoryPlan::WHOLE);
    let latents: Vec<Array> = chunks(case)
        .iter()
        .map(|chunk| stream.push(&Chunk::Pixels(chunk.clone())).unwrap())
        .collect();
    concatenate(&latents, 1).unwrap()
}

/// Decodes normalised latents to `[frames, height, width, 3]`.
fn decode(case: &Case, device: Device) -> Array {
    let config: VaeConfig = case.config("vae");
    let mut source = case.source("vae", Precision::F32);
    let decoder = VaeDecoder::load(&config, &mut source, device).unwrap();
    let [frames, height, width] = case.grid();
    let latents = case.input("vae.latents", &[16, frames, height, width], 1.7);
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

#[test]
fn encoder_mean() {
    for name in Case::ALL {
        let case = Case::load(name);
        let mean = encode(&case, F32);
        case.golden.check(name, "vae/mean", &mean, 2e-4);
        let config: VaeConfig = case.config("vae");
        let normalised = config.normalize(&mean).unwrap();
        case.golden
            .check(name, "vae/mean_normalised", &normalised, 2e-4);
    }
}

#[test]
fn decoded_frames() {
    for name in Case::ALL {
        let case = Case::load(name);
        let pixels = decode(&case, F32);
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

        let (height, width) = (case.settings.height as usize, case.settings.width as usize);
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

/// Metal uses MLX's own convolutions, which must agree with the CPU's tap products.
#[test]
fn native_convolutions_agree_with_tap_products() {
    let native = Device {
        kernels: Kernels::Mlx,
        ..F32
    };
    for name in ["a", "b"] {
        let case = Case::load(name);
        case.golden
            .check("native", "vae/mean", &encode(&case, native), 2e-4);
        let ours = to_host(&decode(&case, F32)).unwrap();
        let theirs = to_host(&decode(&case, native)).unwrap();
        let error = crate::support::golden::relative_error(&ours, &theirs);
        assert!(error < 1e-5, "{name}: {error:.2e}");
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
