//! A dense layer alone; items are operations.

use divan::Bencher;
use mlx_rs::Dtype;
use wan_i2v::model::layers::{Linear, Weight};

use crate::source::constant;
use crate::{bench_operations, device};

/// Rows, outputs and inputs: the miniature's, the VAE's and those of width 1536 on 720 tokens.
const SIDES: [[i32; 3]; 5] = [
    [80, 384, 96],
    [112, 384, 384],
    [720, 1536, 1536],
    [720, 8960, 1536],
    [720, 1536, 8960],
];

#[divan::bench(args = SIDES)]
fn layer(bencher: Bencher, [rows, outputs, inputs]: [i32; 3]) {
    let device = device();
    let dtype = device.dtype.matmul_dtype();
    let weight = Weight::Dense(constant(&[outputs, inputs], dtype).unwrap());
    let layer = Linear::from_weight(weight, None).unwrap();
    let layer = layer.on(device).unwrap();
    let x = constant(&[rows, inputs], Dtype::Float32).unwrap();
    bench_operations(bencher, || layer.forward(&x).unwrap().eval().unwrap());
}
