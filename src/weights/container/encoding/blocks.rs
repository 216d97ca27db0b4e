//! Values of GGUF's quantized blocks.
//!
//! Layouts: ggml-org/ggml, src/ggml-common.h; order of the float32 operations: ggml-org/llama.cpp,
//! gguf-py/gguf/quants.py. The loops run over 16 or 32 elements with the scales outside of them,
//! so that the compiler vectorises them.

use half::f16;

use super::E4M3;
use crate::util::float::e8m0;

/// Decodes block by block: `B` bytes become `E` values.
pub(super) fn each<const B: usize, const E: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; E]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (i, &byte) in bytes.iter().take(16).enumerate() {
        out[i] = byte & 15;
        out[i + 16] = byte >> 4;
    }
    out
}

/// As [`nibbles`], with the bits of `high` as fifth bits.
fn nibbles5(bytes: &[u8], high: &[u8]) -> [u8; 32] {
    let mut out = nibbles(bytes);
    for (i, value) in out.iter_mut().enumerate() {
        *value |= (high[i / 8] >> (i % 8) & 1) << 4;
    }
    out
}

/// Scale; 32 4-bit numbers, 8 meaning zero.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (out, q) in out.iter_mut().zip(nibbles(&block[2..])) {
        *out = scale * (f32::from(q) - 8.0);
    }
}

/// Scale, minimum; 32 4-bit numbers.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, min) = (half(block, 0), half(block, 2));
    for (out, q) in out.iter_mut().zip(nibbles(&block[4..])) {
        *out = scale * f32::from(q) + min;
    }
}

/// Scale; 32 fifth bits; 32 4-bit numbers, 16 meaning zero.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (out, q) in out.iter_mut().zip(nibbles5(&block[6..], &block[2..6])) {
        *out = scale * (f32::from(q) - 16.0);
    }
}

/// Scale, minimum; 32 fifth bits; 32 4-bit numbers.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, min) = (half(block, 0), half(block, 2));
    for (out, q) in out.iter_mut().zip(nibbles5(&block[8..], &block[4..8])) {
        *out = scale * f32::from(q) + min;
    }
}

/// Scale; 32 signed bytes.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (out, q) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(q.cast_signed());
    }
}

/// 16 pairs of a 4-bit scale and minimum; 256 2-bit numbers; their scale and minimum's scale.
///
/// A half of 128 elements lies in 32 bytes: the lowest two bits of each hold the first 32
/// elements, the next two bits the next.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, min) = (half(block, 80), half(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (at, shift) = crumbs(group);
        let scale = scale * f32::from(block[group] & 15);
        let min = min * f32::from(block[group] >> 4);
        for (out, byte) in out.iter_mut().zip(&block[16 + at..]) {
            *out = scale * f32::from(byte >> shift & 3) - min;
        }
    }
}

/// 256 third bits; 256 2-bit numbers, 4 meaning zero; 16 6-bit scales, 32 meaning zero; their
/// scale.
///
/// The numbers lie as in [`q2_k`]; bit `i` of 32 bytes holds the third bits of elements 32 `i` to
/// 32 `i` + 31.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half(block, 108);
    let packed = &block[96..108];
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (at, shift) = crumbs(group);
        let low = packed[group % 8] >> (4 * (group / 8)) & 15;
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        let thirds = &block[16 * (group % 2)..][..16];
        let bytes = &block[32 + at..][..16];
        for ((out, byte), third) in out.iter_mut().zip(bytes).zip(thirds) {
            let q = byte >> shift & 3 | (third >> (group / 2) & 1) << 2;
            *out = scale * (f32::from(q) - 4.0);
        }
    }
}

/// Where the 2-bit numbers of the `group`th 16 elements lie: the first byte and the shift.
fn crumbs(group: usize) -> (usize, usize) {
    (32 * (group / 8) + 16 * (group % 2), 2 * (group / 2 % 4))
}

/// Scale, minimum's scale; 8 pairs of a 6-bit scale and minimum; 256 4-bit numbers.
///
/// The low halves of 32 bytes hold 32 elements, the high halves the next 32.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(block, group);
        let shift = 4 * (group % 2);
        for (out, byte) in out.iter_mut().zip(&block[16 + 32 * (group / 2)..]) {
            *out = scale * f32::from(byte >> shift & 15) - min;
        }
    }
}

/// As [`q4_k`], with 256 fifth bits before the numbers: bit `i` of 32 bytes holds those of
/// elements 32 `i` to 32 `i` + 31.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(block, group);
        let shift = 4 * (group % 2);
        let bytes = &block[48 + 32 * (group / 2)..][..32];
        for ((out, byte), fifth) in out.iter_mut().zip(bytes).zip(&block[16..48]) {
            let q = byte >> shift & 15 | (fifth >> group & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// The scale and minimum of the `group`th 32 elements of a `Q4K` or `Q5K` block, from bytes 4 to
/// 15: six bits each, the later four groups' upper two in the earlier ones' bytes.
pub(super) fn scale_min(block: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = (half(block, 0), half(block, 2));
    let packed = &block[4..16];
    let (s, m) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let both = packed[group + 4];
        (
            both & 15 | packed[group - 4] >> 6 << 4,
            both >> 4 | packed[group] >> 6 << 4,
        )
    };
    (scale * f32::from(s), min * f32::from(m))
}

/// 256 lower 4 bits; 256 upper 2 bits, 32 meaning zero; 16 signed scales; their scale.
///
/// A half of 128 elements has 64 bytes of lower bits, whose low halves hold the first 64 elements
/// and whose high halves the others, and 32 bytes of upper bits as in [`q2_k`].
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (at, high) = crumbs(group);
        let low = 4 * (group / 4 % 2);
        let lower = &block[64 * (group / 8) + 16 * (group % 4)..][..16];
        let upper = &block[128 + at..][..16];
        let scale = scale * f32::from(block[192 + group].cast_signed());
        for ((out, lower), upper) in out.iter_mut().zip(lower).zip(upper) {
            let q = lower >> low & 15 | (upper >> high & 3) << 4;
            *out = scale * (f32::from(q) - 32.0);
        }
    }
}

/// The uneven levels of IQ4 (ggml-org/ggml, src/ggml-common.h, `kvalues_iq4nl`).
const LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

fn levels(scale: f32, numbers: [u8; 32], out: &mut [f32]) {
    for (out, number) in out.iter_mut().zip(numbers) {
        *out = scale * f32::from(LEVELS[usize::from(number)]);
    }
}

/// Scale; 32 numbers of levels.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    levels(half(block, 0), nibbles(&block[2..]), out);
}

/// Scale; 16 bits with the upper two bits of 8 scales, 4 bytes with their lower four bits, 32 meaning zero;
/// 256 numbers of levels.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
        let high = (upper >> (2 * group) & 3) as u8;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        levels(scale, nibbles(&block[8 + 16 * group..]), out);
    }
}

/// An exponent; 32 float4.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let scale = e8m0(block[0]);
    for (out, number) in out.iter_mut().zip(nibbles(&block[1..])) {
        *out = scaled_float4(scale, number);
    }
}

/// Four float8, whose signs count for nothing; 64 float4, of which each 16 lie in 8 bytes.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, numbers) = block.split_at(4);
    let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(scales);
    for ((out, scale), bytes) in groups.zip(numbers.chunks(8)) {
        let scale = E4M3[usize::from(scale & 0x7f)];
        let (low, high) = out.split_at_mut(8);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = scaled_float4(scale, byte & 15);
            *high = scaled_float4(scale, byte >> 4);
        }
    }
}

fn scaled_float4(scale: f32, number: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = scale * MAGNITUDES[usize::from(number & 7)];
    // Zero has one sign there.
    if number > 8 { -magnitude } else { magnitude }
}
