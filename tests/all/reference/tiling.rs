//! The VAE in tiles against the VAE on whole frames, and what either takes of memory.

use std::collections::VecDeque;

use anyhow::Context;
use image::RgbImage;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{clip, concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype, memory};
use wan_i2v::clip::{Model, Settings};
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::vae::cost::{
    Footprint, choose_decode_tiling, choose_encode_tiling, decode_operations, decode_peak_bytes,
    decode_phases, encode_peak_bytes, encode_phases,
};
use wan_i2v::model::vae::{
    Chunk, Division, OVERLAP, Others, Tiling, VaeConfig, VaeDecoder, VaeEncoder,
};
use wan_i2v::pipeline::{Silent, decode_clip, encode_condition};
use wan_i2v::runtime::{Device, DeviceKind, Precision, all_finite, operations, to_host};
use wan_i2v::weights::{Checkpoint, published};

use crate::reference::run::plan;
use crate::support::golden::{BOTH, Case, F32, MLX};

/// What tiles have to reach against whole frames.
const DECIBELS: f64 = 45.0;

/// Frames in tiles both ways.
pub fn tiled(tiling: Option<Tiling>) -> MemoryPlan {
    MemoryPlan {
        encode_tiling: tiling,
        decode_tiling: tiling,
        ..MemoryPlan::WHOLE
    }
}

/// Both halves of a VAE.
struct Vae {
    decoder: VaeDecoder,
    encoder: VaeEncoder,
}

impl Vae {
    fn random(case: &Case, config: &VaeConfig, device: Device) -> Self {
        let source = || case.source("vae", Precision::F32);
        Self {
            decoder: VaeDecoder::load(config, &mut source(), device).unwrap(),
            encoder: VaeEncoder::load(config, &mut source(), device).unwrap(),
        }
    }

    fn embedded() -> (Checkpoint, Self) {
        let checkpoint = Model::Tiny.open(Default::default()).unwrap();
        let vae = Self {
            decoder: checkpoint.load_vae_decoder(F32).unwrap(),
            encoder: checkpoint.load_vae_encoder(F32).unwrap(),
        };
        (checkpoint, vae)
    }

    fn decode(&self, latents: &Array, tiling: Option<Tiling>) -> Vec<f32> {
        decode(&self.decoder, latents, tiling)
    }

    fn encode(&self, chunks: &[Array], tiling: Option<Tiling>) -> Array {
        let chunk = |i: i32| Ok(Chunk::Pixels(chunks[i as usize].clone()));
        let frames = chunks.len() as i32;
        let latents = self
            .encoder
            .encode(frames, &chunk, &tiled(tiling), &mut || Ok(()));
        latents.unwrap()
    }
}

/// Decoded and clipped frames.
fn decode(decoder: &VaeDecoder, latents: &Array, tiling: Option<Tiling>) -> Vec<f32> {
    let mut frames = Vec::new();
    let mut emit = |pixels: &Array| {
        frames.push(clip(pixels, (-1.0, 1.0))?);
        Ok(())
    };
    decoder
        .decode(latents, &tiled(tiling), None, &mut || Ok(()), &mut emit)
        .unwrap();
    to_host(&concatenate(&frames, 0).unwrap()).unwrap()
}

/// The same, of which all machines but the first have decoded their parts.
fn decode_divided(
    decoder: &VaeDecoder,
    latents: &Array,
    tiling: Option<Tiling>,
    division: &Division,
) -> Vec<f32> {
    let mut parts: Vec<_> = (0..division.machines())
        .map(|machine| {
            let mut parts = VecDeque::new();
            let mut emit = |values: &[f32]| {
                parts.push_back(values.to_vec());
                Ok(())
            };
            if machine > 0 {
                decoder
                    .decode_share(latents, &tiled(tiling), division, machine, &mut emit)
                    .unwrap();
            }
            parts
        })
        .collect();
    let mut take = |machine: usize| parts[machine].pop_front().context("it has no more");
    let others = Others {
        division,
        take: &mut take,
    };
    let mut frames = Vec::new();
    let mut emit = |pixels: &Array| {
        frames.push(clip(pixels, (-1.0, 1.0))?);
        Ok(())
    };
    decoder
        .decode(
            latents,
            &tiled(tiling),
            Some(others),
            &mut || Ok(()),
            &mut emit,
        )
        .unwrap();
    assert!(parts.iter().all(VecDeque::is_empty), "parts were left");
    to_host(&concatenate(&frames, 0).unwrap()).unwrap()
}

fn random_config(case: &Case) -> VaeConfig {
    case.config("vae")
}

fn random_latents(case: &Case, config: &VaeConfig, [t, h, w]: [i32; 3]) -> Array {
    let latents = case.input("vae.latents", &[config.z_dim, t, h, w], 1.7);
    config.denormalize(&latents).unwrap()
}

fn random_chunks(case: &Case, [t, h, w]: [i32; 3]) -> Vec<Array> {
    let side = case.config::<VaeConfig>("vae").spatial_stride();
    (0..t)
        .map(|i| {
            let frames = if i == 0 { 1 } else { 4 };
            let name = format!("vae.chunk{i}");
            case.input(&name, &[frames, side * h, side * w, 3], 1.0)
        })
        .collect()
}

/// Circles and squares of the miniature's world on plain ground, that move apart.
fn scene(time: i32, height: i32, width: i32) -> Vec<f32> {
    const COLOURS: [[f32; 3]; 4] = [
        [0.72, -0.74, -0.74],
        [-0.74, -0.46, 0.7],
        [0.1, 0.6, -0.5],
        [0.9, 0.8, -0.6],
    ];
    let mut values = Vec::new();
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let mut pixel = [0.54, 0.46, 0.33];
        for index in 0..12 {
            let (column, row) = (index % 4, index / 4);
            let dx = x - (30 + 64 * column + time * (column - 1));
            let dy = y - (28 + 54 * row + time * (row - 1));
            let (dx, dy) = (dx as f32 + 0.5, dy as f32 + 0.5);
            let distance = if (column + row) % 2 == 0 {
                dx.hypot(dy)
            } else {
                dx.abs().max(dy.abs()) * 1.2
            };
            let cover = (12.5 - distance).clamp(0.0, 1.0);
            for (value, colour) in pixel.iter_mut().zip(COLOURS[column as usize]) {
                *value += cover * (colour - *value);
            }
        }
        values.extend(pixel);
    }
    values
}

fn scene_chunks([t, h, w]: [i32; 3]) -> Vec<Array> {
    let (height, width) = (8 * h, 8 * w);
    (0..t)
        .map(|i| {
            let times = if i == 0 { 0..1 } else { 4 * i - 3..4 * i + 1 };
            let frames = times.len() as i32;
            let values: Vec<f32> = times.flat_map(|at| scene(at, height, width)).collect();
            Array::from_slice(&values, &[frames, height, width, 3])
        })
        .collect()
}

/// PSNR in dB and the largest difference, relative to `range`.
fn compare(ours: &[f32], whole: &[f32], range: f64) -> (f64, f64) {
    assert_eq!(ours.len(), whole.len());
    let (mut squares, mut worst) = (0.0, 0.0_f64);
    for (ours, whole) in ours.iter().zip(whole) {
        let difference = (f64::from(*ours) - f64::from(*whole)) / range;
        squares += difference * difference;
        worst = worst.max(difference.abs());
    }
    (10.0 * (ours.len() as f64 / squares).log10(), worst)
}

/// As [`compare`], relative to the latents' range.
fn compare_latents(ours: &Array, whole: &Array) -> (f64, f64) {
    assert_eq!(ours.shape(), whole.shape());
    let (ours, whole) = (to_host(ours).unwrap(), to_host(whole).unwrap());
    let low = whole.iter().copied().fold(f32::MAX, f32::min);
    let high = whole.iter().copied().fold(f32::MIN, f32::max);
    compare(&ours, &whole, (high - low).into())
}

fn tiles(tile: [i32; 2]) -> Option<Tiling> {
    let overlap = OVERLAP;
    Some(Tiling { tile, overlap })
}

/// Random weights reach as far as a network can; the smallest tiles that are ever chosen are
/// blended at nearly every pixel.
#[test]
fn tiles_of_random_models_agree_with_whole_frames() {
    for (name, grid, device) in [
        ("a", [3, 18, 24], F32),
        ("b", [1, 21, 12], F32),
        ("c", [2, 18, 17], F32),
        ("c", [2, 18, 17], MLX),
        ("vae22", [3, 18, 14], F32),
        ("vae22_odd", [2, 14, 18], MLX),
        ("vae_upscale", [2, 18, 13], F32),
        ("taew", [3, 18, 13], F32),
        ("taew22", [2, 14, 18], MLX),
    ] {
        let case = Case::load(name);
        let config = random_config(&case);
        let vae = Vae::random(&case, &config, device);
        let tiling = tiles([12, 12]);
        let latents = random_latents(&case, &config, grid);
        let whole = vae.decode(&latents, None);
        let (decoded, _) = compare(&vae.decode(&latents, tiling), &whole, 2.0);
        let chunks = random_chunks(&case, grid);
        let whole = vae.encode(&chunks, None);
        let (encoded, _) = compare_latents(&vae.encode(&chunks, tiling), &whole);
        println!("measured {name} {grid:?}: decoded {decoded:.1} dB, encoded {encoded:.1} dB");
        assert!(decoded >= DECIBELS, "{name}: decoded {decoded:.1} dB");
        assert!(encoded >= DECIBELS, "{name}: encoded {encoded:.1} dB");
    }
}

/// Bands are those of the whole frame but for rounding, whatever their number; a row too few of what they see
/// shows a thousand times as much. Tiles are the same tiles.
#[test]
fn what_several_machines_decode_is_what_one_does() {
    for (name, [rows, columns], device) in [
        ("a", [40, 6], F32),
        ("b", [4, 47], F32),
        ("c", [43, 4], MLX),
        ("vae22", [5, 44], F32),
        ("vae22_odd", [44, 5], MLX),
        ("vae_upscale", [46, 4], F32),
    ] {
        let case = Case::load(name);
        let config = random_config(&case);
        let mut source = case.source("vae", Precision::F32);
        let decoder = VaeDecoder::load(&config, &mut source, device).unwrap();
        let grid = [3, rows, columns];
        let latents = random_latents(&case, &config, grid);
        let whole = decode(&decoder, &latents, None);
        for machines in [2, 4] {
            let division = Division::of(&config, None, grid, machines).unwrap();
            assert!(matches!(&division, Division::Bands(bands) if bands.len() == machines));
            let divided = decode_divided(&decoder, &latents, None, &division);
            let (decibels, worst) = compare(&divided, &whole, 2.0);
            let worst_at = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) >= 2.0 * worst;
            let at = divided
                .iter()
                .zip(&whole)
                .position(worst_at)
                .unwrap_or_default();
            println!(
                "measured {name} on {machines}: {decibels:.1} dB, at worst {worst:.1e}, at value {at} of {}",
                whole.len()
            );
            assert!(worst <= 1e-5, "{name} on {machines}: {worst:.1e}");
        }
    }
    let case = Case::load("a");
    let config = random_config(&case);
    let mut source = case.source("vae", Precision::F32);
    let decoder = VaeDecoder::load(&config, &mut source, F32).unwrap();
    let (grid, tiling) = ([2, 18, 24], tiles([12, 12]));
    let latents = random_latents(&case, &config, grid);
    let alone = decode(&decoder, &latents, tiling);
    for machines in 2..5 {
        let division = Division::of(&config, tiling, grid, machines).unwrap();
        assert_eq!(division, Division::Tiles(machines));
        assert!(decode_divided(&decoder, &latents, tiling, &division) == alone);
    }
}

/// On real content also: no pixel is off by more than a level or two of 255, and the picture does
/// not jump where a tile begins or ends.
#[test]
fn tiles_of_the_embedded_model_show_no_seam() {
    let _case = Case::load("a");
    let (_, vae) = Vae::embedded();
    let grid = [2, 19, 12];
    let tiling = tiles([13, 12]);
    let chunks = scene_chunks(grid);
    let latents = vae.encode(&chunks, None);
    let (encoded, _) = compare_latents(&vae.encode(&chunks, tiling), &latents);
    let whole = vae.decode(&latents, None);
    let ours = vae.decode(&latents, tiling);
    let (decoded, worst) = compare(&ours, &whole, 2.0);
    println!(
        "measured: decoded {decoded:.1} dB, worst {:.2} levels, encoded {encoded:.1} dB",
        255.0 * worst
    );
    assert!(decoded >= DECIBELS && encoded >= DECIBELS);
    assert!(255.0 * worst <= 2.0, "{:.2} levels", 255.0 * worst);

    // Tiles from latent row 0 to 13 and 6 to 19.
    let row = 8 * 12 * 3;
    let difference: Vec<f32> = ours.iter().zip(&whole).map(|(a, b)| a - b).collect();
    let jump = |y: usize| {
        let rows = difference.chunks_exact(row).collect::<Vec<_>>();
        let frames = rows.len() / (8 * 19);
        let jumps = (0..frames).flat_map(|frame| {
            let at = frame * 8 * 19 + y;
            rows[at]
                .iter()
                .zip(rows[at - 1])
                .map(|(a, b)| (a - b).abs())
        });
        jumps.fold(0.0, f32::max)
    };
    let seams = [8 * 6, 8 * 13].map(jump);
    let inside = (8 * 6 + 1..8 * 13).map(jump).fold(0.0, f32::max);
    println!("measured: largest jump at a tile's edge {seams:?}, between edges {inside:.2e}");
    assert!(inside > 0.0, "nothing was tiled");
    assert!(inside <= 2.0 / 255.0, "neighbouring rows part by {inside}");
    assert!(seams.iter().all(|&seam| seam <= inside), "{seams:?}");
}

#[test]
fn a_tile_that_covers_the_frame_changes_no_bit() {
    ["c", "vae22", "vae_upscale", "taew", "taew22"]
        .into_iter()
        .for_each(covering_tile);
}

fn covering_tile(name: &'static str) {
    let case = Case::load(name);
    let config = random_config(&case);
    let vae = Vae::random(&case, &config, F32);
    let latents = random_latents(&case, &config, [2, 7, 9]);
    let chunks = random_chunks(&case, [2, 7, 9]);
    let whole = vae.decode(&latents, None);
    let mut stream = vae.decoder.stream(&MemoryPlan::WHOLE);
    let streamed: Vec<Array> = (0..2)
        .map(|i| latents.try_index((.., i..i + 1)).unwrap())
        .map(|frame| clip(stream.push(&frame).unwrap(), (-1.0, 1.0)).unwrap())
        .collect();
    assert!(to_host(&concatenate(&streamed, 0).unwrap()).unwrap() == whole);
    let latents_whole = to_host(&vae.encode(&chunks, None)).unwrap();
    for tile in [[7, 9], [12, 30]] {
        assert!(vae.decode(&latents, tiles(tile)) == whole, "{tile:?}");
        let encoded = to_host(&vae.encode(&chunks, tiles(tile))).unwrap();
        assert!(encoded == latents_whole, "{tile:?}");
    }
}

/// MLX's peak beyond what was there before.
fn peak(run: impl FnOnce()) -> u64 {
    memory::clear_cache().unwrap();
    let before = memory::active_memory().unwrap();
    memory::reset_peak_memory().unwrap();
    run();
    (memory::peak_memory().unwrap() - before) as u64
}

/// The largest forecast for MLX, with and without weights.
fn forecast(phases: &[Footprint]) -> [u64; 2] {
    let most = |bytes: &dyn Fn(&Footprint) -> u64| phases.iter().map(bytes).max().unwrap();
    [
        most(&Footprint::mlx),
        most(&|phase| phase.mlx() - phase.weights),
    ]
}

#[test]
fn memory_is_what_the_formulas_say_and_less_in_tiles() {
    // Of taew22, which is narrow, what becomes of the pixels later takes most.
    ["a", "vae22", "vae22_odd", "vae_upscale", "taew"]
        .into_iter()
        .for_each(memory_of);
}

fn memory_of(name: &'static str) {
    let case = Case::load(name);
    let config = random_config(&case);
    let t = |side: i32| {
        Some(Tiling {
            tile: [side, side],
            overlap: 4,
        })
    };
    for device in BOTH {
        let mut peaks = Vec::new();
        // The last one is all attention.
        for (grid, tiling) in [
            ([3, 16, 15], None),
            ([3, 16, 15], t(10)),
            ([1, 16, 15], None),
            ([2, 16, 15], None),
            ([1, 40, 30], t(22)),
        ] {
            if device == MLX && grid[0] < 3 {
                continue;
            }
            let tile = tiling.map(|tiling| tiling.tile);
            let label = format!("{name} {:?} {grid:?} {tile:?}", device.kernels);
            let latents = random_latents(&case, &config, grid);
            latents.eval().unwrap();
            let mut source = case.source("vae", Precision::F32);
            let decoder = VaeDecoder::load(&config, &mut source, device).unwrap();
            let decoding = peak(|| decode_frames(&decoder, &latents, tiling));
            drop(decoder);
            let chunks = random_chunks(&case, grid);
            chunks.iter().for_each(|chunk| chunk.eval().unwrap());
            let mut source = case.source("vae", Precision::F32);
            let encoder = VaeEncoder::load(&config, &mut source, device).unwrap();
            let chunk = |i: i32| Ok(Chunk::Pixels(chunks[i as usize].clone()));
            let encoding = peak(|| {
                encoder
                    .encode(grid[0], &chunk, &tiled(tiling), &mut || Ok(()))
                    .unwrap();
            });
            // Latents and pixels were there before, in the forecasts they are counted.
            let [_, decode] = forecast(&decode_phases(&config, device, &tiled(tiling), grid));
            let [_, encode] = forecast(&encode_phases(&config, device, &tiled(tiling), grid));
            let side = config.spatial_stride();
            let pixels = 4 * 3 * (side * side * grid[1] * grid[2]) as u64;
            for (what, measured, forecast) in [
                ("decoding", decoding, decode),
                ("encoding", encoding, encode - pixels.min(encode)),
            ] {
                let ratio = forecast as f64 / measured as f64;
                println!("measured {what} {label}: {measured} bytes, forecast {ratio:.3} of it");
                assert!((ratio - 1.0).abs() <= 0.15, "{what} {label}: {ratio:.3}");
            }
            peaks.push([decoding, encoding]);
        }
        for (whole, tiled) in peaks[0].iter().zip(peaks[1]) {
            assert!(tiled < whole * 3 / 5, "{tiled} in tiles, {whole} whole");
        }
    }
}

/// Encoding's are compared where chunks are blank, too.
#[test]
fn operations_of_decoding_are_exact() {
    for (name, device) in ["a", "vae22", "vae22_odd", "vae_upscale", "taew", "taew22"]
        .into_iter()
        .flat_map(|name| BOTH.map(|device| (name, device)))
    {
        let case = Case::load(name);
        let config = random_config(&case);
        let mut source = case.source("vae", Precision::F32);
        let decoder = VaeDecoder::load(&config, &mut source, device).unwrap();
        for (grid, tiling) in [
            ([6, 3, 2], None),
            ([1, 2, 3], None),
            ([3, 14, 2], tiles([12; 2])),
        ] {
            let latents = random_latents(&case, &config, grid);
            let before = operations();
            decode_frames(&decoder, &latents, tiling);
            assert_eq!(
                operations() - before,
                decode_operations(&config, grid, tiling).total(),
                "{name} {grid:?}"
            );
        }
    }
}

/// With what a run does to its pixels.
fn decode_frames(decoder: &VaeDecoder, latents: &Array, tiling: Option<Tiling>) {
    let mut finish = |pixels: &Array| {
        assert!(all_finite(pixels)?);
        to_host(&clip(pixels, (-1.0, 1.0))?)?;
        Ok(())
    };
    decoder
        .decode(latents, &tiled(tiling), None, &mut || Ok(()), &mut finish)
        .unwrap();
}

/// The published VAEs, and clips of the usual sizes.
#[test]
fn the_tiling_with_the_least_work_that_fits_is_chosen() {
    let _case = Case::load("a");
    let (wan21, wan22) = (published::vae(), published::wan22_vae());
    let gpu = Device::new(DeviceKind::Gpu, None);
    for (config, grid, device) in [
        (&wan21, [21, 60, 104], F32),
        (&wan21, [21, 90, 160], F32),
        (&wan21, [1, 13, 40], F32),
        (&wan21, [21, 104, 60], F32),
        (&wan21, [21, 60, 104], gpu),
        (&wan21, [21, 90, 160], gpu),
        (&wan22, [31, 44, 80], F32),
        (&wan22, [31, 80, 44], gpu),
    ] {
        type Peak = fn(&VaeConfig, Device, &MemoryPlan, [i32; 3]) -> u64;
        type Choose = fn(&VaeConfig, Device, &MemoryPlan, [i32; 3], u64) -> Option<Tiling>;
        let both: [(Peak, Choose); 2] = [
            (decode_peak_bytes, choose_decode_tiling),
            (encode_peak_bytes, choose_encode_tiling),
        ];
        for (bytes, choose) in both {
            let whole = bytes(config, device, &MemoryPlan::WHOLE, grid);
            println!("measured {grid:?} whole: {whole} bytes");
            let within = |budget| choose(config, device, &MemoryPlan::WHOLE, grid, budget);
            assert_eq!(within(whole), None);
            let least = bytes(config, device, &tiled(within(1)), grid);
            let mut last = u64::MAX;
            for part in [1, 2, 3, 5, 1000] {
                let budget = (whole - 1) / part;
                let tiling = within(budget).unwrap();
                tiling.validate().unwrap();
                assert_eq!(tiling.overlap, OVERLAP);
                let needed = bytes(config, device, &tiled(Some(tiling)), grid);
                println!(
                    "measured {grid:?} in {budget}: {:?}, {needed} bytes, {} tiles",
                    tiling.tile,
                    tiling.tiles(grid[1], grid[2]).len()
                );
                assert!(needed < whole && needed <= last);
                last = needed;
                assert!(needed <= budget.max(least));
                // No tile of a row or column fewer per frame would have done.
                let [rows, columns] = tiling.tile;
                let larger = Tiling {
                    tile: [grid[1], columns],
                    ..tiling
                };
                if rows < grid[1] && columns < grid[2] && needed <= budget {
                    assert!(
                        bytes(config, device, &tiled(Some(larger)), grid) > budget
                            || larger.tiles(grid[1], grid[2]).len() as i32 * grid[1] * columns
                                >= tiling.tiles(grid[1], grid[2]).len() as i32 * rows * columns
                    );
                }
            }
        }
    }
}

/// A budget reaches both ends of a clip.
#[test]
fn a_budget_puts_a_clip_into_tiles() {
    let case = Case::load("a");
    let (checkpoint, vae) = Vae::embedded();
    drop(vae);
    let plan = Settings {
        width: 96,
        height: 144,
        frames: 5,
        ..plan(&case)
    };
    let in_tiles =
        MemoryPlan::WHOLE.in_tiles(&checkpoint.vae, F32, plan.latent_grid(&checkpoint.vae), 1);
    let picture = ndarray::Array3::from_shape_vec((144, 96, 3), scene(0, 144, 96)).unwrap();
    let run = |memory: &MemoryPlan| {
        let mut condition = None;
        let encoding = peak(|| {
            condition = Some(
                encode_condition(
                    &checkpoint,
                    F32,
                    memory,
                    picture.view(),
                    &plan,
                    None,
                    &mut Silent,
                )
                .unwrap(),
            );
        });
        let condition = condition.unwrap().beside.unwrap();
        let latents = condition.try_index(4..).unwrap();
        let mut frames = Vec::new();
        let mut emit = |frame: &RgbImage| {
            assert_eq!(frame.dimensions(), (96, 144));
            frames.extend(frame.iter().map(|&v| f32::from(v)));
            Ok(())
        };
        let decoding = peak(|| {
            decode_clip(
                &checkpoint,
                F32,
                memory,
                &latents,
                None,
                &mut Silent,
                &mut emit,
            )
            .unwrap();
        });
        (condition, frames, [encoding, decoding])
    };
    let (condition, frames, whole) = run(&MemoryPlan::WHOLE);
    let (ours, tiled_frames, tiled) = run(&in_tiles);
    let (encoded, _) = compare_latents(&ours, &condition);
    let (decoded, worst) = compare(&tiled_frames, &frames, 255.0);
    println!("measured: {encoded:.1} dB, {decoded:.1} dB, peaks {whole:?} and {tiled:?}");
    assert_eq!(frames.len(), 5 * 144 * 96 * 3);
    assert!(encoded >= DECIBELS && decoded >= DECIBELS);
    assert!(worst > 0.0, "nothing was tiled");
    assert!(tiled[0] < whole[0] && tiled[1] < whole[1]);
}

/// Prints docs/performance.md's table; takes minutes.
#[test]
#[ignore = "a measurement, not a check"]
fn table_of_overlaps() {
    println!("| model | overlap | decoded dB | worst | encoded dB | worst | all in tiles, dB |");
    println!("|---|---|---|---|---|---|---|");
    let grid = [3, 20, 28];
    for name in ["a", "b", "c"] {
        let case = Case::load(name);
        let config = random_config(&case);
        let vae = Vae::random(&case, &config, F32);
        let latents = random_latents(&case, &config, grid);
        for overlap in [2, 4, 6, 8, 12] {
            table_row(name, &vae, &latents, &random_chunks(&case, grid), overlap);
        }
    }
    let case = Case::load("a");
    let (_, vae) = Vae::embedded();
    let chunks = scene_chunks(grid);
    let latents = vae.encode(&chunks, None);
    let blank = zeros_dtype(&[4, 160, 224, 3], Dtype::Float32).unwrap();
    let condition = [chunks[0].clone(), blank.clone(), blank];
    for overlap in [2, 4, 6, 8, 12] {
        table_row("embedded, scenes", &vae, &latents, &chunks, overlap);
        table_row("embedded, a picture", &vae, &latents, &condition, overlap);
    }
    let mut config = random_config(&case);
    config.base_dim = 96;
    let vae = Vae::random(&case, &config, F32);
    let grid = [2, 12, 12];
    let latents = random_latents(&case, &config, grid);
    for overlap in [4, 6] {
        table_row(
            "base 96",
            &vae,
            &latents,
            &random_chunks(&case, grid),
            overlap,
        );
    }
}

fn table_row(name: &str, vae: &Vae, latents: &Array, chunks: &[Array], overlap: i32) {
    let (rows, columns) = (latents.dim(2), latents.dim(3));
    // Two by two tiles that share exactly `overlap`.
    let tile = [(rows + overlap) / 2, (columns + overlap) / 2];
    let tiling = Tiling { tile, overlap };
    let whole = vae.decode(latents, None);
    let (decoded, worst) = compare(&vae.decode(latents, Some(tiling)), &whole, 2.0);
    let whole_latents = vae.encode(chunks, None);
    let (encoded, encoded_worst) =
        compare_latents(&vae.encode(chunks, Some(tiling)), &whole_latents);
    let (naive, _) = compare(&all_in_tiles(vae, latents, tiling), &whole, 2.0);
    println!(
        "| {name} | {overlap} | {decoded:.1} | {worst:.4} | {encoded:.1} | {encoded_worst:.4} | \
         {naive:.1} |"
    );
}

/// The design that was not taken: every layer sees its tile only, attention too. Two by two tiles.
fn all_in_tiles(vae: &Vae, latents: &Array, tiling: Tiling) -> Vec<f32> {
    let (rows, columns) = (latents.dim(2), latents.dim(3));
    let (height, width) = (8 * rows as usize, 8 * columns as usize);
    let frames = 4 * latents.dim(1) as usize - 3;
    let mut out = vec![0.0_f32; frames * height * width * 3];
    let weight = |at: usize, range: &std::ops::Range<i32>, extent: i32| {
        let ramp = |distance: f64| {
            let u = (distance / f64::from(8 * tiling.overlap)).min(1.0);
            (u * std::f64::consts::FRAC_PI_2).sin().powi(2)
        };
        let at = at as f64 + 0.5;
        let mut weight = 1.0;
        if range.start > 0 {
            weight *= ramp(at - f64::from(8 * range.start));
        }
        if range.end < extent {
            weight *= ramp(f64::from(8 * range.end) - at);
        }
        weight as f32
    };
    for tile in tiling.tiles(rows, columns) {
        let part = (.., .., tile.rows.clone(), tile.columns.clone());
        let values = vae.decode(&latents.try_index(part).unwrap(), None);
        let inside = [&tile.rows, &tile.columns].map(|r| 8 * r.start as usize..8 * r.end as usize);
        let mut values = values.into_iter();
        for frame in 0..frames {
            for y in inside[0].clone() {
                for x in inside[1].clone() {
                    let weight = weight(y, &tile.rows, rows) * weight(x, &tile.columns, columns);
                    for channel in 0..3 {
                        let at = ((frame * height + y) * width + x) * 3 + channel;
                        out[at] += weight * values.next().unwrap();
                    }
                }
            }
        }
    }
    out
}
