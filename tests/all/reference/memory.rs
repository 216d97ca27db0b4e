//! Peak memory of the stream of decoded frames does not grow with the clip's length.

use mlx_rs::memory;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::vae::{VaeConfig, VaeDecoder};
use wan_i2v::runtime::{Precision, rows};

use crate::support::golden::{Case, F32};

/// MLX's peak while `latent_frames` frames are decoded and dropped one after another.
fn decoding_peak(case: &Case, latent_frames: i32) -> usize {
    let config: VaeConfig = case.config("vae");
    let decoder = VaeDecoder::load(&config, &mut case.source("vae", Precision::F32), F32).unwrap();
    let frame = case.input("vae.latents", &[1, 16, 1, 8, 8], 1.0);
    let frame = rows(&frame, 0, 1).unwrap().squeeze_axes(&[0]).unwrap();
    memory::clear_cache().unwrap();
    memory::reset_peak_memory().unwrap();
    let mut stream = decoder.stream(&MemoryPlan::WHOLE);
    for _ in 0..latent_frames {
        stream.push(&frame).unwrap();
    }
    memory::peak_memory().unwrap()
}

#[test]
fn decoding_a_longer_clip_takes_no_more_memory() {
    let case = Case::load("b");
    // Caches and buffers are at their largest from the fourth latent frame on.
    let short = decoding_peak(&case, 6);
    let long = decoding_peak(&case, 24);
    assert!(short > 1 << 20, "{short} bytes: nothing was measured");
    println!("measured decoding peak: {short} bytes for 6 latent frames, {long} for 24");
    assert!(
        long as f64 <= 1.05 * short as f64,
        "{long} bytes for 24 latent frames, {short} for 6"
    );
}
