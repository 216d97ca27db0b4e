//! One block of a transformer in a guided step, both passes, on few tokens.

use divan::Bencher;
use mlx_rs::Dtype;
use mlx_rs::transforms::eval;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::dit::{Dit, DitConfig, Rope};

use crate::source::{Constant, Storage, constant};
use crate::{bench_operations, device};

/// Real tokens of both prompts.
const TEXT_ROWS: i32 = 24;

/// How the conditional and the unconditional pass run.
#[derive(Clone, Copy, Debug)]
enum Passes {
    /// As one.
    Joint,
    /// One after the other.
    Separate,
}

const CASES: [(i32, Passes); 4] = [
    (64, Passes::Joint),
    (64, Passes::Separate),
    (256, Passes::Joint),
    (256, Passes::Separate),
];

#[divan::bench(args = CASES)]
fn a14b_dense(bencher: Bencher, (tokens, passes): (i32, Passes)) {
    guided(bencher, &config(40, 13_824), Storage::Dense, tokens, passes);
}

#[divan::bench(args = CASES)]
fn a14b_4_bits(bencher: Bencher, (tokens, passes): (i32, Passes)) {
    guided(
        bencher,
        &config(40, 13_824),
        Storage::FourBits,
        tokens,
        passes,
    );
}

/// Beside the others, the tokens of 9 frames of 320 x 192.
const SMALL_CASES: [(i32, Passes); 5] = {
    let [a, b, c, d] = CASES;
    [a, b, c, d, (720, Passes::Separate)]
};

#[divan::bench(args = SMALL_CASES)]
fn width_1536_dense(bencher: Bencher, (tokens, passes): (i32, Passes)) {
    guided(bencher, &config(12, 8960), Storage::Dense, tokens, passes);
}

#[divan::bench(args = SMALL_CASES)]
fn width_1536_4_bits(bencher: Bencher, (tokens, passes): (i32, Passes)) {
    guided(
        bencher,
        &config(12, 8960),
        Storage::FourBits,
        tokens,
        passes,
    );
}

fn config(num_attention_heads: i32, ffn_dim: i32) -> DitConfig {
    DitConfig {
        patch_size: [1, 2, 2],
        num_attention_heads,
        attention_head_dim: 128,
        in_channels: 36,
        out_channels: 16,
        text_dim: 4096,
        freq_dim: 256,
        ffn_dim,
        num_layers: 1,
        cross_attn_norm: true,
        eps: 1e-6,
        rope_max_seq_len: 1024,
        qk_norm: Some("rms_norm_across_heads".into()),
        image_dim: None,
        added_kv_proj_dim: None,
        pos_embed_seq_len: None,
    }
}

fn guided(bencher: Bencher, config: &DitConfig, storage: Storage, tokens: i32, passes: Passes) {
    let device = device();
    let dit = Dit::load(config, &mut Constant { device, storage }, device).unwrap();
    let rope = Rope::new([1, 8, tokens / 8], config.attention_head_dim);
    let text = constant(&[TEXT_ROWS, config.text_dim], Dtype::Float32).unwrap();
    let kv = [(); 2].map(|()| dit.cross_kv(&text, 512).unwrap());
    let both = [kv[0].as_slice(), kv[1].as_slice()];
    let time = dit.embed_time(500).unwrap();
    eval([&time.embedding, &time.projection]).unwrap();
    let memory = &MemoryPlan::WHOLE;
    let x = constant(&[tokens, config.dim()], Dtype::Float32).unwrap();
    bench_operations(bencher, || {
        let start = dit.start(x.clone().into(), &time, &rope, memory).unwrap();
        let observe = &mut |_, _: &_| Ok(());
        match passes {
            Passes::Joint => dit
                .finish_both(&start, &time, &rope, both, memory, observe)
                .unwrap(),
            Passes::Separate => both.map(|kv| {
                dit.finish(start.clone(), &time, &rope, kv, memory, observe)
                    .unwrap()
            }),
        }
    });
}
