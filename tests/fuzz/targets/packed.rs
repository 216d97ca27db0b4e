//! Quantized blocks: their values, and the groups that MLX gets instead.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/weights"]
mod weights {
    pub mod container {
        pub mod encoding;
    }
    #[path = "repack/float8.rs"]
    pub mod float8;
    #[path = "repack/gguf.rs"]
    pub mod gguf;
}

#[allow(dead_code)]
#[path = "../../../src/runtime/packing.rs"]
mod packing;
#[path = "../../../src/util"]
mod util {
    pub mod float;
}

use packing::{Mode, Packing};
use weights::container::encoding::Encoding;
use weights::{float8, gguf};

/// Encodings, MLX's packing, and whether its numbers are the stored ones.
const FORMS: [(Encoding, Packing, bool); 15] = [
    (Encoding::Q4_0, Packing::affine(4, 32), true),
    (Encoding::Q4_1, Packing::affine(4, 32), true),
    (Encoding::Q5_0, Packing::affine(5, 32), true),
    (Encoding::Q5_1, Packing::affine(5, 32), true),
    (Encoding::Q8_0, Packing::affine(8, 32), true),
    (Encoding::Q4K, Packing::affine(4, 32), true),
    (Encoding::Q5K, Packing::affine(5, 32), true),
    (Encoding::Q2K, Packing::affine(5, 32), false),
    (Encoding::Q3K, Packing::affine(6, 32), false),
    (Encoding::Q6K, Packing::affine(8, 32), false),
    (Encoding::Iq4Nl, Packing::affine(6, 32), false),
    (Encoding::Iq4Xs, Packing::affine(6, 32), false),
    (Encoding::Mxfp4, Packing::MXFP4, true),
    (Encoding::Nvfp4, Packing::NVFP4, true),
    (Encoding::F8E5M2, Packing::MXFP8, false),
];

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Some((&first, rest)) = file.split_first() else {
        return;
    };
    let (encoding, packing, exact) = FORMS[usize::from(first) % FORMS.len()];
    if encoding == Encoding::F8E5M2 {
        return float8_groups(rest);
    }
    let blocks = rest.len() / encoding.block_bytes();
    let rest = &rest[..blocks * encoding.block_bytes()];
    let mut values = vec![0.0; blocks * encoding.block_elements()];
    encoding.decode(rest, &mut values).expect("whole blocks");
    let finite = encoding.first_non_finite(rest).is_none();
    assert_eq!(finite, values.iter().all(|value| value.is_finite()));
    let (bits, groups) = (packing.bits as usize, packing.groups(values.len()));
    let mut words = vec![0_u32; packing.words(values.len())];
    let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
    let sides = gguf::Sides {
        words: &mut words,
        scales: &mut scales,
        biases: &mut biases,
    };
    gguf::blocks(encoding, rest, sides, |value| value);
    if !finite {
        return;
    }
    for (at, &value) in values.iter().enumerate() {
        let bit = at * bits;
        let word = |index: usize| u64::from(words.get(index).copied().unwrap_or(0));
        let both = (word(bit / 32) | word(bit / 32 + 1) << 32) >> (bit % 32);
        let number = packing.mode.level((both & ((1 << bits) - 1)) as u32) as f32;
        let group = at / packing.group_size as usize;
        let (scale, bias) = match packing.mode {
            Mode::Affine => (scales[group], biases[group]),
            mode => (mode.scale(scales[group] as u8) as f32, 0.0),
        };
        let ours = number * scale + bias;
        // A step is the most that choosing anew may take; huge ranges lose bits of float32 as well.
        let most = if exact { 0.0 } else { scale.abs() + 1e-5 * bias.abs() };
        assert!((ours - value).abs() <= most, "{encoding:?}: {value} {ours}");
    }
});

fn float8_groups(bytes: &[u8]) {
    if Encoding::F8E5M2.first_non_finite(bytes).is_some() {
        return;
    }
    for group in bytes.as_chunks::<32>().0 {
        let (mut before, mut after, mut out) = ([0.0; 32], [0.0; 32], [0; 32]);
        let code = float8::from_e5m2(group, 0, &mut out);
        Encoding::F8E5M2.decode(group, &mut before).expect("bytes");
        Encoding::F8E4M3.decode(&out, &mut after).expect("bytes");
        let largest = before.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        for (before, after) in before.iter().zip(after) {
            let after = after * float8::power(i32::from(code) - 127);
            assert!((before - after).abs() <= largest / 131_072.0, "{before} {after}");
        }
    }
}
