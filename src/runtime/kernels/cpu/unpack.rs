//! Quantized weights.

use std::borrow::Cow;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use super::{new_array, parcel_rows, vector};
use crate::runtime::{Mode, Packing};

/// Whether [`dequantize`] knows weights that are packed like this.
pub fn unpacks(packing: Packing) -> bool {
    let Packing {
        mode,
        group_size,
        bits,
    } = packing;
    match mode {
        Mode::Affine => {
            [2, 3, 4, 5, 6, 8].contains(&bits) && group_size > 0 && group_size % 32 == 0
        }
        Mode::Mxfp8 | Mode::Mxfp4 | Mode::Nvfp4 => true,
    }
}

/// MLX's quantization undone, float32: `packed` `[outputs, inputs * bits / 32]`, uint32, `scales` `[outputs,
/// inputs / group_size]` and `biases` alike, float32 for the affine mode and uint8 for the others, which
/// have no biases, to `[outputs, inputs]`; times `factor`, float32 `[outputs]` or `[1]`.
///
/// # Errors
/// When shapes do not belong together, or [`unpacks`] says no.
pub fn dequantize(
    [packed, scales]: [&Array; 2],
    biases: Option<&Array>,
    packing: Packing,
    factor: Option<&Array>,
) -> Result<Array> {
    let (rows, groups) = (packed.dim(0), scales.dim(1));
    let [group_size, words_of_group] =
        [packing.group_size, packing.group_size * packing.bits / 32].map(|side| side as usize);
    if !unpacks(packing) || packed.dim(1) as usize != groups as usize * words_of_group {
        return Err(Exception::custom(format!(
            "cannot unpack {:?} as {packing} with scales {:?}",
            packed.shape(),
            scales.shape()
        )));
    }
    let words = slice::<u32>(packed)?;
    let factor = match factor {
        Some(factor) => Some(vector(factor, factor.size())?),
        None => None,
    };
    let scales = beside(scales, packing.mode, factor)?;
    let biases = match biases {
        Some(biases) => beside(biases, Mode::Affine, factor)?,
        None => Cow::Owned(vec![0.0; scales.len()]),
    };
    if biases.len() != scales.len() {
        return Err(Exception::custom("biases of another shape than the scales"));
    }
    let many = parcel_rows(group_size);
    let unpack = match (packing.mode, packing.bits) {
        (Mode::Affine, 2) => unpack_2_bits,
        (Mode::Affine, 3) => unpack_3_bits,
        (Mode::Affine, 4) => unpack_4_bits,
        (Mode::Affine, 5) => unpack_5_bits,
        (Mode::Affine, 6) => unpack_6_bits,
        (Mode::Affine, _) => unpack_8_bits,
        (Mode::Mxfp8, _) => unpack_float8,
        (Mode::Mxfp4 | Mode::Nvfp4, _) => unpack_float4,
    };
    new_array(&[rows, groups * packing.group_size], |out| {
        out.par_chunks_mut(many * group_size)
            .zip(words.par_chunks(many * words_of_group))
            .zip(scales.par_chunks(many).zip(biases.par_chunks(many)))
            .for_each(|((out, words), (scales, biases))| unpack(words, scales, biases, out));
    })
}

fn slice<T: mlx_rs::ArrayElement>(array: &Array) -> Result<&[T]> {
    array
        .try_as_slice::<T>()
        .map_err(|e| Exception::custom(e.to_string()))
}

/// The numbers `[outputs, groups]` that stand beside groups, times the factor of their row.
fn beside<'a>(numbers: &'a Array, mode: Mode, factor: Option<&[f32]>) -> Result<Cow<'a, [f32]>> {
    let mut numbers: Cow<[f32]> = match (mode, numbers.dtype()) {
        (Mode::Affine, Dtype::Float32) => Cow::Borrowed(slice::<f32>(numbers)?),
        (Mode::Mxfp8 | Mode::Mxfp4, Dtype::Uint8) => {
            let codes = slice::<u8>(numbers)?.iter();
            Cow::Owned(codes.map(|&code| power_of_two(code)).collect())
        }
        (Mode::Nvfp4, Dtype::Uint8) => {
            let codes = slice::<u8>(numbers)?.iter();
            Cow::Owned(codes.map(|&code| float8(u32::from(code))).collect())
        }
        (_, dtype) => {
            return Err(Exception::custom(format!("scales of {dtype:?}")));
        }
    };
    if let Some(factor) = factor {
        let of_row = numbers.len().div_ceil(factor.len().max(1)).max(1);
        let rows = numbers.to_mut().chunks_mut(of_row);
        for (row, factor) in rows.zip(factor) {
            row.iter_mut().for_each(|number| *number *= factor);
        }
    }
    Ok(numbers)
}

/// An e8m0: an exponent alone.
fn power_of_two(code: u8) -> f32 {
    match code {
        // The smallest is below what a float32 holds in full.
        0 => f32::from_bits(1 << 22),
        code => f32::from_bits(u32::from(code) << 23),
    }
}

/// An e4m3 without infinities that is a number.
#[inline(always)]
fn float8(code: u32) -> f32 {
    let magnitude = code & 0x7f;
    // Without a branch, so that the loop vectorises; a subnormal float32 on the way would be slow.
    let normal = f32::from_bits((magnitude << 20) + (120 << 23));
    let small = (magnitude as i32) as f32 * (1.0 / 512.0);
    let value = if magnitude < 8 { small } else { normal };
    f32::from_bits(value.to_bits() | (code & 0x80) << 24)
}

/// An e2m1.
#[inline(always)]
fn float4(code: u32) -> f32 {
    let magnitude = code & 7;
    let normal = f32::from_bits((magnitude << 22) + (126 << 23));
    let small = (magnitude as i32) as f32 * 0.5;
    let value = if magnitude < 2 { small } else { normal };
    f32::from_bits(value.to_bits() | (code & 8) << 28)
}

/// Calls `each` with the words, the scale, the bias and the place of each group.
#[inline(always)]
fn each_group(
    words: &[u32],
    scales: &[f32],
    biases: &[f32],
    out: &mut [f32],
    mut each: impl FnMut(&[u32], f32, f32, &mut [f32]),
) {
    let groups = scales.len().max(1);
    let group = out.chunks_exact_mut(out.len() / groups);
    let words = words.chunks_exact(words.len() / groups);
    for ((out, words), (&scale, &bias)) in group.zip(words).zip(scales.iter().zip(biases)) {
        each(words, scale, bias, out);
    }
}

/// Numbers of which a word holds several whole ones.
#[inline(always)]
fn whole<const BITS: u32, const IN_A_WORD: usize>(
    words: &[u32],
    scales: &[f32],
    biases: &[f32],
    out: &mut [f32],
    value: impl Fn(u32) -> f32,
) {
    each_group(words, scales, biases, out, |words, scale, bias, out| {
        let (out, _) = out.as_chunks_mut::<IN_A_WORD>();
        for (out, word) in out.iter_mut().zip(words) {
            for (i, out) in (0..).zip(out) {
                *out = value((word >> (BITS * i)) & ((1 << BITS) - 1)) * scale + bias;
            }
        }
    });
}

/// Numbers that lie across words: 32 in `BITS` of these.
#[inline(always)]
fn across<const BITS: usize>(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
    each_group(words, scales, biases, out, |words, scale, bias, out| {
        let (words, _) = words.as_chunks::<BITS>();
        for (out, words) in out.as_chunks_mut::<32>().0.iter_mut().zip(words) {
            for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                // Eight numbers are whole bytes, and within two words.
                let bit = 8 * BITS * i;
                let low = u64::from(words[bit / 32]);
                let high = u64::from(words[(bit / 32 + 1).min(BITS - 1)]);
                let both = (low | high << 32) >> (bit % 32);
                for (i, out) in (0..).zip(out) {
                    let number = (both >> (BITS * i)) & ((1 << BITS) - 1);
                    *out = integer(number as u32) * scale + bias;
                }
            }
        }
    });
}

/// A signed conversion is one instruction, an unsigned one several.
#[inline(always)]
fn integer(number: u32) -> f32 {
    (number as i32) as f32
}

vectorised! {
    fn unpack_2_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<2, 16>(words, scales, biases, out, integer);
    }
}

vectorised! {
    fn unpack_3_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        across::<3>(words, scales, biases, out);
    }
}

vectorised! {
    fn unpack_4_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<4, 8>(words, scales, biases, out, integer);
    }
}

vectorised! {
    fn unpack_5_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        across::<5>(words, scales, biases, out);
    }
}

vectorised! {
    fn unpack_6_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        across::<6>(words, scales, biases, out);
    }
}

vectorised! {
    fn unpack_8_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<8, 4>(words, scales, biases, out, integer);
    }
}

vectorised! {
    fn unpack_float8(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<8, 4>(words, scales, biases, out, float8);
    }
}

vectorised! {
    fn unpack_float4(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<4, 8>(words, scales, biases, out, float4);
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops};

    use super::*;
    use crate::runtime::ffi;

    fn noise(rows: i32, columns: i32) -> Array {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * 37 % 1009) as f32 - 500.0) / 313.0)
            .collect();
        Array::from_slice(&values, &[rows, columns])
    }

    fn check(parts: [&Array; 2], biases: Option<&Array>, packing: Packing) {
        let ours = dequantize(parts, biases, packing, None).unwrap();
        let mlx = ffi::dequantize(parts, biases, packing, Dtype::Float32).unwrap();
        assert_eq!(ours.shape(), mlx.shape());
        let off = ours.subtract(&mlx).unwrap().abs().unwrap();
        let off = off.max(None).unwrap().item_exact::<f32>();
        assert!(off <= 1e-6, "{:?} as {packing}: {off}", ours.shape());
        let factor = Array::from_slice(&vec![1.5_f32; ours.dim(0) as usize], &[ours.dim(0)]);
        for factor in [factor, Array::from_slice(&[1.5_f32], &[1])] {
            let scaled = dequantize(parts, biases, packing, Some(&factor)).unwrap();
            let expected = mlx.multiply(Array::from_f32(1.5)).unwrap();
            let off = scaled.subtract(&expected).unwrap().abs().unwrap();
            let off = off.max(None).unwrap().item_exact::<f32>();
            assert!(off <= 2e-6, "{packing} with a factor: {off}");
        }
        let other = Packing::affine(packing.bits, 2 * packing.group_size);
        assert!(dequantize(parts, biases, other, None).is_err());
    }

    #[test]
    fn weights_are_unpacked_as_mlx_does() {
        Device::set_default(&Device::cpu());
        for (rows, columns) in [(1, 64), (37, 1920), (3, 64 * 300)] {
            let weight = noise(rows, columns);
            for bits in [2, 3, 4, 5, 6, 8] {
                for group_size in [32, 64, 128] {
                    if columns % group_size != 0 {
                        continue;
                    }
                    let (packed, scales, biases) =
                        ops::quantize(&weight, group_size, bits).unwrap();
                    assert_eq!(packed.dtype(), Dtype::Uint32);
                    let packing = Packing::affine(bits, group_size);
                    check([&packed, &scales], Some(&biases), packing);
                }
            }
        }
        assert!(!unpacks(Packing::affine(7, 64)) && !unpacks(Packing::affine(4, 0)));
        assert!(!unpacks(Packing::affine(4, 16)));
    }

    /// Every code of every kind of small float, with every scale that keeps the product a float32.
    #[test]
    fn small_floats_are_unpacked_as_mlx_does() {
        Device::set_default(&Device::cpu());
        let bytes = |count: i32| (0..count).map(|i| (i % 256) as u8);
        for (packing, scale) in [
            (Packing::MXFP8, 60..180_u8),
            (Packing::MXFP4, 60..180),
            (Packing::NVFP4, 0..126),
        ] {
            // e4m3's two codes that are no numbers.
            let is_nan = |code: u8| packing == Packing::MXFP8 && code & 0x7f == 0x7f;
            let codes: Vec<u8> = bytes(64 * 256)
                .map(|code| if is_nan(code) { 0 } else { code })
                .collect();
            let words: Vec<u32> = codes
                .as_chunks()
                .0
                .iter()
                .map(|b| u32::from_le_bytes(*b))
                .collect();
            let columns = words.len() as i32 * 32 / packing.bits / 64;
            let packed = Array::from_slice(&words, &[64, words.len() as i32 / 64]);
            let scales: Vec<u8> = scale
                .cycle()
                .take((64 * columns / packing.group_size) as usize)
                .collect();
            let scales = Array::from_slice(&scales, &[64, columns / packing.group_size]);
            let ours = dequantize([&packed, &scales], None, packing, None).unwrap();
            let mlx = ffi::dequantize([&packed, &scales], None, packing, Dtype::Float32).unwrap();
            mlx.eval().unwrap();
            assert_eq!(ours.as_slice::<f32>(), mlx.as_slice::<f32>(), "{packing}");
        }
    }
}
