//! The VAE at full width (base 96), one latent frame of 64 x 48 pixels at a time.

use divan::Bencher;
use mlx_rs::Dtype;
use mlx_rs::transforms::eval;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::vae::{Chunk, VaeConfig, VaeDecoder, VaeEncoder};

use crate::source::{Constant, Storage, constant};
use crate::{bench_operations, device};

const WIDTH: i32 = 64;
const HEIGHT: i32 = 48;
const Z_DIM: i32 = 16;

fn config() -> VaeConfig {
    VaeConfig {
        base_dim: 96,
        decoder_base_dim: None,
        z_dim: Z_DIM,
        dim_mult: vec![1, 2, 4, 4],
        num_res_blocks: 2,
        attn_scales: Vec::new(),
        temperal_downsample: vec![false, true, true],
        latents_mean: vec![0.0; Z_DIM as usize],
        latents_std: vec![1.0; Z_DIM as usize],
        is_residual: false,
        patch_size: None,
        in_channels: 3,
        out_channels: 3,
        tiny: false,
    }
}

fn source() -> Constant {
    Constant {
        device: device(),
        storage: Storage::Dense,
    }
}

/// The clip's first frame, alone.
#[divan::bench]
fn encode_first_chunk(bencher: Bencher) {
    let encoder = VaeEncoder::load(&config(), &mut source(), device()).unwrap();
    let pixels = Chunk::Pixels(constant(&[1, HEIGHT, WIDTH, 3], Dtype::Float32).unwrap());
    bench_operations(bencher, || {
        encoder.stream(&MemoryPlan::WHOLE).push(&pixels).unwrap()
    });
}

/// Four frames, after two chunks that filled the caches.
#[divan::bench]
fn encode_later_chunk(bencher: Bencher) {
    let encoder = VaeEncoder::load(&config(), &mut source(), device()).unwrap();
    let chunk =
        |frames| Chunk::Pixels(constant(&[frames, HEIGHT, WIDTH, 3], Dtype::Float32).unwrap());
    let (first, later) = (chunk(1), chunk(4));
    let mut stream = encoder.stream(&MemoryPlan::WHOLE);
    stream.push(&first).unwrap();
    stream.push(&later).unwrap();
    bench_operations(bencher, || stream.push(&later).unwrap());
}

/// The clip's first latent frame: one frame of pixels.
#[divan::bench]
fn decode_first_chunk(bencher: Bencher) {
    let decoder = VaeDecoder::load(&config(), &mut source(), device()).unwrap();
    let latents = constant(&[Z_DIM, 1, HEIGHT / 8, WIDTH / 8], Dtype::Float32).unwrap();
    bench_operations(bencher, || {
        let pixels = decoder.stream(&MemoryPlan::WHOLE).push(&latents).unwrap();
        eval([&pixels]).unwrap();
        pixels
    });
}

/// Four frames of pixels, after two chunks that filled the caches.
#[divan::bench]
fn decode_later_chunk(bencher: Bencher) {
    let decoder = VaeDecoder::load(&config(), &mut source(), device()).unwrap();
    let latents = constant(&[Z_DIM, 1, HEIGHT / 8, WIDTH / 8], Dtype::Float32).unwrap();
    let mut stream = decoder.stream(&MemoryPlan::WHOLE);
    for _ in 0..2 {
        eval([&stream.push(&latents).unwrap()]).unwrap();
    }
    bench_operations(bencher, || {
        let pixels = stream.push(&latents).unwrap();
        eval([&pixels]).unwrap();
        pixels
    });
}
