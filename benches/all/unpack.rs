//! Packed weights made dense, in float32; items are weights.

use divan::Bencher;
use divan::counter::ItemsCount;
use mlx_rs::{Array, Dtype};
use wan_i2v::runtime::{Mode, Packing};

use crate::device;

/// Rows and columns of a square weight of A14B's width.
const SIDE: i32 = 5120;

const PACKINGS: [Packing; 9] = [
    Packing::affine(3, 64),
    Packing::affine(4, 64),
    Packing::affine(4, 32),
    Packing::affine(5, 32),
    Packing::affine(6, 32),
    Packing::affine(8, 32),
    Packing::MXFP8,
    Packing::MXFP4,
    Packing::NVFP4,
];

#[divan::bench(args = PACKINGS)]
fn to_float32(bencher: Bencher, packing: Packing) {
    let device = device();
    let [words, groups] =
        [packing.words(SIDE as usize), packing.groups(SIDE as usize)].map(|side| side as i32);
    let filled = |columns: i32, value: u32| {
        let values = vec![value; (SIDE * columns) as usize];
        Array::from_slice(&values, &[SIDE, columns])
    };
    let packed = filled(words, 0x1234_5678);
    let (scales, biases) = match packing.mode {
        Mode::Affine => {
            let side = filled(groups, 1).as_dtype(Dtype::Float32).unwrap();
            (side.clone(), Some(side))
        }
        _ => (filled(groups, 120).as_dtype(Dtype::Uint8).unwrap(), None),
    };
    for array in [&packed, &scales] {
        array.eval().unwrap();
    }
    let parts = [&packed, &scales];
    bencher
        .counter(ItemsCount::new((SIDE * SIDE) as usize))
        .bench_local(|| {
            let dense = device.dequantize(parts, biases.as_ref(), packing, None, Dtype::Float32);
            dense.unwrap().eval().unwrap();
        });
}
