//! Quantization of weights on one core; items are weights.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use wan_i2v::weights::quantize::{Bits, Scheme, Search, quantize};

/// Weights of one layer's rows.
const COUNT: usize = 1 << 20;

#[divan::bench(args = [Search::MinMax, Search::LeastSquares], consts = [32, 64])]
fn to_4_bits<const GROUP: usize>(bencher: Bencher, search: Search) {
    let weights: Vec<f32> = (0..COUNT)
        .map(|i| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5).powi(3))
        .collect();
    let scheme = Scheme {
        bits: Bits::Four,
        group_size: GROUP,
    };
    bencher
        .counter(ItemsCount::new(COUNT))
        .bench(|| quantize(black_box(&weights), scheme, search).unwrap());
}
