use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, stack};
use wan_i2v::model::dit::{CrossKv, Dit, DitConfig, Rope, patchify, time_sinusoid, unpatchify};
use wan_i2v::model::layers::{Linear, Weight};
use wan_i2v::model::umt5::pad_rows;
use wan_i2v::model::{MemoryPlan, Role, TensorSource};
use wan_i2v::runtime::{Device, Precision, to_host};

use crate::support::golden::{BOTH, Case, F32, Golden, relative_error};

pub const EXPERTS: [(&str, &str); 2] = [("high", "transformer"), ("low", "transformer_2")];

pub fn load(case: &Case, part: &'static str, device: Device) -> Dit {
    let mut source = case.source(part, device.dtype);
    Dit::load(&case.config(part), &mut source, device).unwrap()
}

/// With each set of kernels.
fn on_both<T: Copy>(item: T) -> [(T, Device); 2] {
    BOTH.map(|device| (item, device))
}

/// The tables of the case's token grid.
pub fn rope(case: &Case, dit: &Dit) -> Rope {
    let [frames, height, width] = case.grid();
    Rope::new(
        [frames, height / 2, width / 2],
        dit.config().attention_head_dim,
    )
}

/// The text encoder's golden output, padded to 512 rows.
pub fn encoded_text(case: &Case) -> Array {
    pad_rows(&case.golden.array("umt5/out_medium"), 512).unwrap()
}

/// The input latents of the forward passes, `[36, frames, height, width]`.
pub fn hidden(case: &Case) -> Array {
    let [frames, height, width] = case.grid();
    case.input("dit.hidden", &[36, frames, height, width], 1.7)
}

/// Rows 0 to 23 of text, where row 23 is the first padding row, from all 512.
fn first_rows(x: &Array) -> Array {
    x.try_index(0..24).unwrap()
}

/// `[1, heads, tokens, head_dim]` to `[tokens, dim]`.
fn joined(x: &Array) -> Array {
    let (heads, tokens, head_dim) = (x.dim(1), x.dim(2), x.dim(3));
    x.transpose_axes(&[0, 2, 1, 3])
        .unwrap()
        .reshape(&[tokens, heads * head_dim])
        .unwrap()
}

#[test]
fn forward_pass() {
    for name in Case::ALL {
        let case = Case::load(name);
        let text = encoded_text(&case);
        for ((expert, part), device) in EXPERTS.into_iter().flat_map(on_both) {
            let dit = load(&case, part, device);
            let cross = dit.cross_kv(&text, 512).unwrap();
            let time = dit.embed_time(937).unwrap();
            let mut first_block = None;
            let velocity = dit
                .forward_observed(
                    &hidden(&case),
                    &time,
                    &rope(&case, &dit),
                    &cross,
                    &MemoryPlan::WHOLE,
                    &mut |i, x| {
                        if i == 0 {
                            first_block = Some(x.whole()?);
                        }
                        Ok(())
                    },
                )
                .unwrap();
            let tensor = format!("dit/{expert}/output");
            case.golden.check(name, &tensor, &velocity, 1e-4);
            if name == "a" {
                let tensor = format!("dit/{expert}/block0");
                case.golden
                    .check(name, &tensor, &first_block.unwrap(), 1e-5);
            }
        }
    }
}

#[test]
fn text_embedding_and_cross_attention_cache() {
    for name in Case::ALL {
        let case = Case::load(name);
        let text = encoded_text(&case);
        for ((expert, part), device) in EXPERTS.into_iter().flat_map(on_both) {
            let dit = load(&case, part, device);
            let embedded = first_rows(&dit.embed_text(&text).unwrap());
            let check = |what: &str, x: &Array| {
                case.golden
                    .check(name, &format!("dit/{expert}/{what}"), x, 1e-5)
            };
            check("text", &embedded);
            let CrossKv { keys, values, .. } = &dit.cross_kv(&text, 512).unwrap()[0];
            check("cross_k", &first_rows(&joined(keys)));
            check("cross_v", &first_rows(&joined(values)));
        }
    }
}

/// 512 text rows, most of them padding, and the real ones with one key for all padding give the
/// same velocity.
#[test]
fn padding_folds_into_one_key() {
    for name in Case::ALL {
        let case = Case::load(name);
        let real = case.golden.array("umt5/out_medium");
        assert!(real.dim(0) < 511);
        for ((_, part), device) in EXPERTS.into_iter().flat_map(on_both) {
            let dit = load(&case, part, device);
            let time = dit.embed_time(937).unwrap();
            let rope = rope(&case, &dit);
            let run = |text: &Array| {
                let cross = dit.cross_kv(text, 512).unwrap();
                let velocity = dit
                    .forward(&hidden(&case), &time, &rope, &cross, &MemoryPlan::WHOLE)
                    .unwrap();
                (cross[0].keys.dim(2), to_host(&velocity).unwrap())
            };
            let (all, expected) = run(&encoded_text(&case));
            let (few, folded) = run(&real);
            assert_eq!((all, few), (512, real.dim(0) + 1));
            let error = relative_error(&folded, &expected);
            println!("measured {name} {part} folded padding: {few} keys, error {error:.1e}");
            assert!(error < 1e-5, "{name} {part}: {error}");
        }
    }
}

#[test]
fn time_embedding() {
    for name in Case::ALL {
        let case = Case::load(name);
        let timesteps = case.golden.ints("time/t").to_vec();
        for ((expert, part), device) in EXPERTS.into_iter().flat_map(on_both) {
            let dit = load(&case, part, device);
            let sinusoids: Vec<Array> = timesteps
                .iter()
                .map(|&t| time_sinusoid(f64::from(t), dit.config().freq_dim))
                .collect();
            let sinusoids = concatenate(&sinusoids, 0).unwrap();
            case.golden.check(name, "time/sinusoid", &sinusoids, 1e-6);
            let embedded: Vec<_> = timesteps
                .iter()
                .map(|&t| dit.embed_time(t).unwrap())
                .collect();
            let embeddings: Vec<&Array> = embedded.iter().map(|e| &e.embedding).collect();
            let embeddings = concatenate(&embeddings, 0).unwrap();
            let tensor = format!("time/{expert}/temb");
            case.golden.check(name, &tensor, &embeddings, 1e-5);
            let projections: Vec<Array> = embedded
                .iter()
                .map(|e| e.projection.flatten(None, None).unwrap())
                .collect();
            let projections = stack(&projections, 0).unwrap();
            let tensor = format!("time/{expert}/projection");
            case.golden.check(name, &tensor, &projections, 1e-5);
        }
    }
}

#[test]
fn patch_embedding_and_its_inverse() {
    for name in Case::ALL {
        let case = Case::load(name);
        let [frames, height, width] = case.grid();
        for (expert, part) in EXPERTS {
            let config: DitConfig = case.config(part);
            let dim = config.dim();
            let mut source = case.source(part, Precision::F32);
            let weight = source
                .tensor("patch_embedding.weight", &[dim, 36, 1, 2, 2], Role::Matmul)
                .unwrap()
                .reshape(&[dim, 36 * 4])
                .unwrap();
            let bias = source
                .tensor("patch_embedding.bias", &[dim], Role::Matmul)
                .unwrap();
            let linear = Linear::from_weight(Weight::Dense(weight), Some(bias)).unwrap();
            let patches = patchify(&hidden(&case), [1, 2, 2]).unwrap();
            let tensor = format!("dit/{expert}/patches");
            case.golden
                .check(name, &tensor, &linear.forward(&patches).unwrap(), 1e-5);
        }
        let tokens = frames * height * width / 4;
        let features = case.input("unpatchify.features", &[tokens, 64], 1.0);
        let latents = unpatchify(&features, [frames, height, width], [1, 2, 2]).unwrap();
        case.golden.check(name, "dit/unpatchified", &latents, 0.0);
    }
}

#[test]
fn rotary_embedding() {
    for name in Case::ALL {
        let case = Case::load(name);
        let config: DitConfig = case.config("transformer");
        let [frames, height, width] = case.grid();
        let grid = [frames, height / 2, width / 2];
        let tokens = grid.iter().product::<i32>();
        let rope = Rope::new(grid, config.attention_head_dim);
        let flat = |x: &Array| x.reshape(&[tokens, config.attention_head_dim / 2]).unwrap();
        case.golden.check(name, "rope/cos", &flat(rope.cos()), 1e-7);
        case.golden.check(name, "rope/sin", &flat(rope.sin()), 1e-7);
        let shape = [
            tokens,
            config.num_attention_heads,
            config.attention_head_dim,
        ];
        let q = case.input("rope.q", &shape, 1.0);
        let rotated = F32.rotate(&q, rope.cos(), rope.sin()).unwrap();
        case.golden.check(name, "rope/q_rotated", &rotated, 1e-6);
    }
}

/// The tables of the 14B at 1280x720x81, at sampled positions. Their rows depend on each axis's
/// position alone, so a row's tables are those of the smallest grid that holds it.
#[test]
fn rotary_tables_of_the_14b() {
    let _mlx = Case::load("d");
    let golden = Golden::load("common");
    let grid = [21, 45, 80];
    let rope = Rope::new(grid, 128);
    let rows: Vec<i32> = golden
        .ints("rope_14b/positions")
        .chunks_exact(3)
        .map(|p| (p[0] * grid[1] + p[1]) * grid[2] + p[2])
        .collect();
    let rows = Array::from_slice(&rows, &[rows.len() as i32]);
    for (table, name) in [(rope.cos(), "rope_14b/cos"), (rope.sin(), "rope_14b/sin")] {
        let table = table.reshape(&[grid.iter().product(), 64]).unwrap();
        let sampled = table.take_axis(&rows, 0).unwrap();
        golden.check("14B", name, &sampled, 1e-7);
    }
}
