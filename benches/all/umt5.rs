//! One layer of UMT5-XXL, with a small vocabulary.

use divan::Bencher;
use wan_i2v::model::umt5::{Umt5, Umt5Config};

use crate::source::{Constant, Storage};
use crate::{bench_operations, device};

const VOCABULARY: u32 = 1000;

#[divan::bench(args = [24, 128])]
fn layer_dense(bencher: Bencher, tokens: u32) {
    layer(bencher, Storage::Dense, tokens);
}

#[divan::bench(args = [24, 128])]
fn layer_4_bits(bencher: Bencher, tokens: u32) {
    layer(bencher, Storage::FourBits, tokens);
}

fn layer(bencher: Bencher, storage: Storage, tokens: u32) {
    let config = Umt5Config {
        d_model: 4096,
        d_kv: 64,
        d_ff: 10_240,
        num_layers: 1,
        num_heads: 64,
        vocab_size: VOCABULARY as i32,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: 1e-6,
        feed_forward_proj: "gated-gelu".into(),
    };
    let device = device();
    let encoder = Umt5::load(&config, &mut Constant { device, storage }, device).unwrap();
    let ids: Vec<u32> = (0..tokens).map(|i| i * 7 % VOCABULARY).collect();
    bench_operations(bencher, || encoder.encode(&ids).unwrap());
}
