//! Chunks that are not computed because nothing in them is new.

use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::vae::cost::encode_operations;
use wan_i2v::model::vae::{Chunk, OVERLAP, Tiling, VaeConfig, VaeEncoder, static_chunks};
use wan_i2v::runtime::{Precision, operations, to_host};

use crate::reference::tiling::tiled;
use crate::support::golden::{Case, F32, MLX};

/// Latents of a clip in which `pictures` are chunks of random pixels, the others blank: called so,
/// or zeros like any other pixels. And the operations that they took.
fn encode(
    case: &Case,
    encoder: &VaeEncoder,
    [frames, rows, columns]: [i32; 3],
    pictures: &[i32],
    tiling: Option<Tiling>,
    called_blank: bool,
) -> (Vec<f32>, u64) {
    let config: VaeConfig = case.config("vae");
    let [_, height, width] = config.pixel_grid([frames, rows, columns]);
    let zeros = |frames| zeros_dtype(&[frames, height, width, 3], Dtype::Float32).unwrap();
    let chunk = |i: i32| {
        let picture = case.input(&format!("picture{i}"), &[1, height, width, 3], 1.0);
        Ok(match (pictures.contains(&i), i) {
            (true, 0) => Chunk::Pixels(picture),
            (true, _) => Chunk::Pixels(concatenate(&[zeros(3), picture], 0)?),
            (false, _) if called_blank => Chunk::Blank,
            (false, _) => Chunk::Pixels(zeros(4)),
        })
    };
    let before = operations();
    let latents: Array = encoder
        .encode(frames, &chunk, &tiled(tiling), &mut || Ok(()))
        .unwrap();
    (to_host(&latents).unwrap(), operations() - before)
}

/// Bit by bit the latents of the full computation, whatever the length, for less.
#[test]
fn blank_chunks_are_reused_to_the_bit() {
    let tiles = Some(Tiling {
        tile: [2, 2],
        overlap: 1,
    });
    for (name, device, grid, pictures, tiling) in [
        ("a", F32, [5, 2, 2], &[0][..], None),
        ("a", F32, [21, 2, 3], &[0], None),
        ("a", F32, [21, 2, 3], &[0], tiles),
        ("b", F32, [21, 2, 2], &[0, 20], None),
        ("c", F32, [16, 2, 3], &[0, 15], tiles),
        ("a", MLX, [21, 2, 2], &[0], None),
        ("a", MLX, [21, 3, 2], &[0, 20], tiles),
        ("c", MLX, [9, 2, 2], &[0, 8], None),
        ("vae22", F32, [21, 2, 3], &[0, 20], tiles),
        ("vae22", MLX, [9, 2, 1], &[0], None),
        ("vae22_odd", F32, [16, 1, 2], &[0, 15], None),
        ("taew", F32, [21, 2, 3], &[0], None),
        ("taew", MLX, [14, 2, 3], &[0, 13], None),
        ("taew22", F32, [21, 2, 3], &[0, 20], tiles),
        ("taew", F32, [14, 2, 2], &[0, 3], None),
        // A picture amid blank ones; longer than the latents take to settle.
        ("a", F32, [14, 2, 2], &[0, 3], None),
        ("a", F32, [38, 1, 1], &[0, 36], None),
        ("c", F32, [38, 2, 2], &[0, 36], tiles),
    ] {
        let label = format!("{name} {:?} {grid:?} {pictures:?}", device.kernels);
        let case = Case::load(name);
        let config: VaeConfig = case.config("vae");
        let mut source = case.source("vae", Precision::F32);
        let encoder = VaeEncoder::load(&config, &mut source, device).unwrap();
        let (full, all) = encode(&case, &encoder, grid, pictures, tiling, false);
        let (ours, fewer) = encode(&case, &encoder, grid, pictures, tiling, true);
        assert!(ours == full, "{label}");
        let every: Vec<i32> = (0..grid[0]).collect();
        let expected = |pictures| encode_operations(&config, grid, tiling, pictures).total();
        assert_eq!(
            (all, fewer),
            (expected(&every), expected(pictures)),
            "{label}"
        );
        println!(
            "measured {label}: {:.3} of the work",
            fewer as f64 / all as f64
        );
        assert!(fewer < all || grid[0] <= 5, "{label}");
    }
}

/// The published encoder: two blocks a level.
#[test]
fn stages_of_the_published_encoder_settle_one_after_another() {
    let case = Case::load("a");
    let config = VaeConfig {
        num_res_blocks: 2,
        temperal_downsample: vec![false, true, true],
        ..case.config("vae")
    };
    assert_eq!(static_chunks(&config), [4, 7, 11, 29]);
}

#[test]
fn a_clip_cannot_begin_blank() {
    let case = Case::load("a");
    let mut source = case.source("vae", Precision::F32);
    let encoder = VaeEncoder::load(&case.config("vae"), &mut source, F32).unwrap();
    let error = encoder
        .stream(&MemoryPlan::WHOLE)
        .push(&Chunk::Blank)
        .unwrap_err();
    assert!(error.to_string().contains("cannot be blank"), "{error}");
    let chunk = |_| Ok(Chunk::Blank);
    let tiling = Tiling {
        tile: [OVERLAP + 1; 2],
        overlap: OVERLAP,
    };
    for tiling in [None, Some(tiling)] {
        let error = encoder.encode(2, &chunk, &tiled(tiling), &mut || Ok(()));
        assert!(error.is_err());
    }
}
