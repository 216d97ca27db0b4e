//! Attention alone, with the published model's 40 heads of 128 channels.

use divan::Bencher;
use mlx_rs::Dtype;
use wan_i2v::model::MemoryPlan;

use crate::source::constant;
use crate::{bench_operations, device};

const HEADS: i32 = 40;
const HEAD_DIM: i32 = 128;

/// Every token attends to every token.
#[divan::bench(args = [256, 1024, 2048])]
fn own(bencher: Bencher, tokens: i32) {
    run(bencher, tokens, tokens, false);
}

/// To a prompt of 24 tokens, and the one key that stands for its padding.
#[divan::bench(args = [256, 1024, 2048])]
fn text(bencher: Bencher, tokens: i32) {
    run(bencher, tokens, 25, true);
}

/// To a prompt of 24 tokens and every one of its 488 rows of padding, as the reference does.
#[divan::bench(args = [256, 1024, 2048])]
fn padded_text(bencher: Bencher, tokens: i32) {
    run(bencher, tokens, 512, false);
}

fn run(bencher: Bencher, queries: i32, keys: i32, weighted: bool) {
    let device = device();
    let dtype = device.dtype.matmul_dtype();
    let rows = |rows| constant(&[1, HEADS, rows, HEAD_DIM], dtype).unwrap();
    let (q, k, v) = (rows(queries), rows(keys), rows(keys));
    let weights = weighted.then(|| constant(&[1, 1, 1, keys], Dtype::Float32).unwrap());
    let scale = (HEAD_DIM as f32).powf(-0.5);
    bench_operations(bencher, || {
        let scores = MemoryPlan::WHOLE.score_bytes;
        let out = device.attention([&q, &k, &v], scale, weights.as_ref(), scores);
        let out = out.unwrap();
        out.eval().unwrap();
        out
    });
}
