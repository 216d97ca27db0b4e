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

use weights::container::encoding::Encoding;
use weights::{float8, gguf};

/// Encodings, the bits of MLX's numbers, and whether these are the stored ones.
const FORMS: [(Encoding, usize, bool); 13] = [
    (Encoding::Q4_0, 4, true),
    (Encoding::Q4_1, 4, true),
    (Encoding::Q5_0, 5, true),
    (Encoding::Q5_1, 5, true),
    (Encoding::Q8_0, 8, true),
    (Encoding::Q4K, 4, true),
    (Encoding::Q5K, 5, true),
    (Encoding::Q2K, 5, false),
    (Encoding::Q3K, 6, false),
    (Encoding::Q6K, 8, false),
    (Encoding::Iq4Nl, 6, false),
    (Encoding::Iq4Xs, 6, false),
    (Encoding::F8E5M2, 8, false),
];

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Some((&first, rest)) = file.split_first() else {
        return;
    };
    let (encoding, bits, exact) = FORMS[usize::from(first) % FORMS.len()];
    if encoding == Encoding::F8E5M2 {
        return float8_groups(rest);
    }
    let blocks = rest.len() / encoding.block_bytes();
    let rest = &rest[..blocks * encoding.block_bytes()];
    let mut values = vec![0.0; blocks * encoding.block_elements()];
    encoding.decode(rest, &mut values).expect("whole blocks");
    let finite = encoding.first_non_finite(rest).is_none();
    assert_eq!(finite, values.iter().all(|value| value.is_finite()));
    let groups = values.len() / 32;
    let mut words = vec![0_u32; groups * bits];
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
        let number = (both & ((1 << bits) - 1)) as f32;
        let (scale, bias) = (scales[at / 32], biases[at / 32]);
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
