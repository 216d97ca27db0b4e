//! Values of every encoding, against the gguf package, PyTorch and arithmetic.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::SafeTensors;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::container::gguf;

use crate::support::gguf::quantize;

/// A file that scripts/golden_gguf.py made.
pub fn golden(name: &str) -> Vec<u8> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    fs::read(tests.join("data/gguf").join(name)).unwrap()
}

/// The 32-bit words of a golden tensor.
fn golden_bits(name: &str) -> Vec<u32> {
    let file = golden("values.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let bytes = tensors.tensor(name).unwrap().data().to_vec();
    let words = bytes.chunks_exact(4);
    words
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .collect()
}

fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.len() / encoding.block_bytes();
    let mut out = vec![f32::NAN; blocks * encoding.block_elements()];
    encoding.decode(bytes, &mut out).unwrap();
    out
}

/// The bits, with one NaN for all.
fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |v: &f32| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
    values.iter().map(bits).collect()
}

#[test]
fn every_type_of_gguf_has_the_values_of_the_gguf_package() {
    let file = golden("types.gguf");
    let header = gguf::header(&file).unwrap();
    let floats = header.tensors.iter().filter(|t| t.encoding.is_float());
    let mut checked = Vec::new();
    for tensor in floats {
        let ours = decode(tensor.encoding, &file[tensor.start..tensor.end]);
        let ours: Vec<u32> = ours.iter().map(|v| v.to_bits()).collect();
        assert_eq!(ours, golden_bits(&tensor.name), "{}", tensor.name);
        checked.push(tensor.encoding);
    }
    checked.sort();
    checked.dedup();
    let float8 = [Encoding::F8E4M3, Encoding::F8E5M2];
    let expected = Encoding::ALL.into_iter().filter(|e| e.is_float());
    let expected: Vec<Encoding> = expected.filter(|e| !float8.contains(e)).collect();
    assert_eq!(checked, expected);
}

#[test]
fn float8_has_pytorchs_values() {
    let codes: Vec<u8> = (0..=255).collect();
    for encoding in [Encoding::F8E4M3, Encoding::F8E5M2] {
        let torch: Vec<f32> = golden_bits(encoding.name())
            .into_iter()
            .map(f32::from_bits)
            .collect();
        assert_eq!(
            bits(&decode(encoding, &codes)),
            bits(&torch),
            "{}",
            encoding.name()
        );
    }
}

#[test]
fn sixteen_bits_have_the_values_of_half_and_pytorch() {
    let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let halves: Vec<f32> = (0..=u16::MAX)
        .map(|c| f16::from_bits(c).to_f32_const())
        .collect();
    let brains: Vec<f32> = (0..=u16::MAX)
        .map(|c| bf16::from_bits(c).to_f32())
        .collect();
    for (encoding, half) in [(Encoding::F16, halves), (Encoding::Bf16, brains)] {
        let ours = bits(&decode(encoding, &codes));
        assert_eq!(ours, bits(&half), "{}", encoding.name());
        let hash = ours.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &word| {
            (hash ^ u64::from(word)).wrapping_mul(0x100_0000_01b3)
        });
        let torch = golden_bits(&format!("{}_hash", encoding.name()));
        assert_eq!(hash, u64::from(torch[0]) | u64::from(torch[1]) << 32);
    }
}

#[test]
fn lengths_around_the_runs_decode_alike() {
    for count in [0, 1, 511, 512, 513, 1025] {
        let bytes: Vec<u8> = (0..count)
            .flat_map(|i| f16::from_f32(i as f32).to_le_bytes())
            .collect();
        let expected: Vec<f32> = (0..count).map(|i| i as f32).collect();
        assert_eq!(decode(Encoding::F16, &bytes), expected);
    }
}

#[test]
fn float64_rounds_to_nearest() {
    let values = [0.1_f64, -1e300, 1e-60, f64::MIN_POSITIVE, 3.0];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(
        decode(Encoding::F64, &bytes),
        [0.1, f32::NEG_INFINITY, 0.0, 0.0, 3.0]
    );
    // What float32 cannot hold is as unusable as what is infinite in the file.
    assert_eq!(Encoding::F64.first_non_finite(&bytes), Some(1));
}

#[test]
fn wrong_lengths_and_integers_are_refused() {
    for encoding in Encoding::ALL {
        let (elements, size) = (encoding.block_elements(), encoding.block_bytes());
        let bytes = vec![0; 2 * size];
        let mut out = vec![1.0; 2 * elements];
        let result = encoding.decode(&bytes, &mut out);
        let has_values = encoding.is_float() || encoding == Encoding::I8;
        assert_eq!(result.is_ok(), has_values, "{}", encoding.name());
        assert!(encoding.decode(&bytes[1..], &mut out).is_err());
        assert!(encoding.decode(&bytes, &mut out[1..]).is_err());
        assert!(encoding.decode(&[], &mut out).is_err());
    }
    let error = Encoding::Q4K
        .decode(&[0; 143], &mut [0.0; 256])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "143 bytes do not hold 256 elements of q4_k (144 bytes for 256)"
    );
}

#[test]
fn byte_lengths_are_checked() {
    assert_eq!(Encoding::F32.byte_len(&[]), Some(4));
    assert_eq!(
        Encoding::Bf16.byte_len(&[5120, 36, 1, 2, 2]),
        Some(1_474_560)
    );
    assert_eq!(Encoding::Q6K.byte_len(&[3, 512]), Some(1260));
    assert_eq!(Encoding::Q6K.byte_len(&[512, 3]), None);
    assert_eq!(Encoding::Q8_0.byte_len(&[]), None);
    assert_eq!(Encoding::F32.byte_len(&[0, 7]), Some(0));
    assert_eq!(Encoding::U8.byte_len(&[usize::MAX]), Some(usize::MAX));
    assert_eq!(Encoding::F16.byte_len(&[usize::MAX]), None);
    assert_eq!(Encoding::U8.byte_len(&[1 << 32, 1 << 32]), None);
}

/// Where the float16 scales of a block are, or the first value of a plain float.
fn special_places(encoding: Encoding) -> &'static [usize] {
    match encoding {
        Encoding::Q2K => &[80, 82],
        Encoding::Q3K => &[108],
        Encoding::Q6K => &[208],
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K => &[0, 2],
        _ => &[0],
    }
}

#[test]
fn the_first_non_finite_element_is_found() {
    let specials = |encoding: Encoding| -> Vec<Vec<u8>> {
        match encoding {
            Encoding::F64 => [f64::NAN, f64::INFINITY]
                .map(|v| v.to_le_bytes().to_vec())
                .into(),
            Encoding::F32 => [f32::NAN, f32::NEG_INFINITY]
                .map(|v| v.to_le_bytes().to_vec())
                .into(),
            Encoding::Bf16 => [bf16::NAN, bf16::INFINITY]
                .map(|v| v.to_le_bytes().to_vec())
                .into(),
            Encoding::F8E4M3 => vec![vec![0x7f], vec![0xff]],
            Encoding::F8E5M2 => vec![vec![0x7c], vec![0xfd]],
            Encoding::Mxfp4 => vec![vec![0xff]],
            // Each of a block's scales, whatever their signs.
            Encoding::Nvfp4 => vec![vec![0x7f; 4], vec![0xff; 4]],
            _ => [f16::NAN, f16::NEG_INFINITY]
                .map(|v| v.to_le_bytes().to_vec())
                .into(),
        }
    };
    for encoding in Encoding::ALL.into_iter().filter(|e| e.is_float()) {
        let (elements, size) = (encoding.block_elements(), encoding.block_bytes());
        // Bytes of one exponent bit too few to be special, in more than a run.
        let clean = vec![0x3b; 5000 * size];
        assert_eq!(
            encoding.first_non_finite(&clean),
            None,
            "{}",
            encoding.name()
        );
        for block in [0, 1, 2047, 2048, 4999] {
            for special in specials(encoding) {
                for &place in special_places(encoding) {
                    let mut bytes = clean.clone();
                    bytes[block * size + place..][..special.len()].copy_from_slice(&special);
                    bytes[4999 * size + place..][..special.len()].copy_from_slice(&special);
                    let found = encoding.first_non_finite(&bytes);
                    assert_eq!(found, Some(block * elements), "{}", encoding.name());
                    let values = decode(encoding, &bytes[block * size..][..size]);
                    assert!(values.iter().all(|v| !v.is_finite()), "{}", encoding.name());
                }
            }
        }
    }
}

#[test]
fn the_scan_agrees_with_the_values() {
    let mut state = 7_u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for encoding in Encoding::ALL.into_iter().filter(|e| e.is_float()) {
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..3 * encoding.block_bytes()).map(|_| byte()).collect();
            let first = decode(encoding, &bytes).iter().position(|v| !v.is_finite());
            assert_eq!(
                encoding.first_non_finite(&bytes),
                first,
                "{}",
                encoding.name()
            );
        }
    }
    for encoding in Encoding::ALL.into_iter().filter(|e| !e.is_float()) {
        assert_eq!(encoding.first_non_finite(&[0xff; 64]), None);
    }
}

/// Values as weights have them: a bell curve, one in a hundred four times as large.
pub fn weights(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let value = |i| {
        let bell = (0..12).map(|_| uniform()).sum::<f32>();
        0.03 * bell * if i % 100 == 0 { 4.0 } else { 1.0 }
    };
    (0..count).map(value).collect()
}

/// The writer for tests against the reader: a misplaced bit shows as an error of the order of 1.
#[test]
fn the_test_writers_blocks_come_back_within_their_precision() {
    let values = weights(256 * 64);
    for (encoding, low, high) in [
        (Encoding::F32, 0.0, 0.0),
        (Encoding::F16, 1e-5, 3e-4),
        (Encoding::Bf16, 1e-4, 3e-3),
        (Encoding::Q8_0, 1e-3, 1e-2),
        (Encoding::Q6K, 5e-3, 3e-2),
        (Encoding::Q5K, 1e-2, 6e-2),
        (Encoding::Q4K, 3e-2, 1.2e-1),
        (Encoding::Q4_0, 3e-2, 1.5e-1),
        (Encoding::Iq4Nl, 3e-2, 1.5e-1),
    ] {
        let decoded = decode(encoding, &quantize(encoding, &values));
        let square = |v: f32| f64::from(v).powi(2);
        let error: f64 = decoded
            .iter()
            .zip(&values)
            .map(|(a, b)| square(a - b))
            .sum();
        let error = (error / values.iter().map(|v| square(*v)).sum::<f64>()).sqrt();
        println!("measured {}: {error:.1e}", encoding.name());
        assert!(
            (low..=high).contains(&error),
            "{}: {error:.2e}",
            encoding.name()
        );
    }
}

#[test]
fn the_test_writer_takes_zeros() {
    for encoding in [
        Encoding::Q8_0,
        Encoding::Q4_0,
        Encoding::Q4K,
        Encoding::Q5K,
        Encoding::Q6K,
    ] {
        assert_eq!(
            decode(encoding, &quantize(encoding, &[0.0; 256])),
            [0.0; 256]
        );
    }
}
