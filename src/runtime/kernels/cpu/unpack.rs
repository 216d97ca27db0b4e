//! Quantized weights.

use std::array;
use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
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
        Mode::Mxfp8 | Mode::Mxfp4 | Mode::Nvfp4 => {
            [Packing::MXFP8, Packing::MXFP4, Packing::NVFP4].contains(&packing)
        }
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
    let sides = Sides::new(scales, biases, packing.mode)?;
    let mut beside = [Some(scales), biases].into_iter().flatten();
    if beside.any(|side| side.shape() != [rows, groups])
        || factor.is_some_and(|factor| ![1, rows as usize].contains(&factor.len()))
    {
        return Err(Exception::custom(format!(
            "scales, biases or factors of another shape than {:?} asks for",
            packed.shape()
        )));
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
            .enumerate()
            .for_each(|(parcel, (out, words))| {
                let first = parcel * many;
                let mut sides = sides.of(first..first + out.len() / group_size);
                for side in &mut sides {
                    for (group, number) in (first..).zip(side) {
                        *number *= match factor {
                            None => break,
                            Some([one]) => one,
                            Some(factor) => &factor[group / groups as usize],
                        };
                    }
                }
                unpack(words, &sides[0], &sides[1], out);
            });
    })
}

fn slice<T: mlx_rs::ArrayElement>(array: &Array) -> Result<&[T]> {
    array
        .try_as_slice::<T>()
        .map_err(|e| Exception::custom(e.to_string()))
}

/// What stands beside groups.
enum Sides<'a> {
    /// Scales and biases.
    Floats([&'a [f32]; 2]),
    /// Scales, and what each code of them is.
    Codes(&'a [u8], Box<[f32; 256]>),
}

impl<'a> Sides<'a> {
    fn new(scales: &'a Array, biases: Option<&'a Array>, mode: Mode) -> Result<Self> {
        Ok(match (mode, biases) {
            (Mode::Affine, Some(biases)) => Self::Floats([slice(scales)?, slice(biases)?]),
            (Mode::Affine, None) => return Err(Exception::custom("no biases")),
            _ => {
                let value = |code| mode.scale(code as u8) as f32;
                Self::Codes(slice(scales)?, Box::new(array::from_fn(value)))
            }
        })
    }

    /// The scales and the biases of some groups, without biases where there are none.
    fn of(&self, groups: Range<usize>) -> [Vec<f32>; 2] {
        match self {
            Self::Floats(sides) => sides.map(|side| side[groups.clone()].to_vec()),
            Self::Codes(codes, values) => {
                let codes = codes[groups].iter();
                let scales = codes.map(|&code| values[usize::from(code)]).collect();
                [scales, Vec::new()]
            }
        }
    }
}

/// An e4m3 without infinities that is a number.
#[inline(always)]
fn float8(code: u8) -> f32 {
    // The sign where a float32 has it.
    let wide = i32::from(code.cast_signed());
    let magnitude = wide & 0x7f;
    // Without a branch, so that the loop vectorises; a subnormal float32 on the way would be slow.
    let normal = f32::from_bits((magnitude << 20) as u32 + (120 << 23));
    let small = magnitude as f32 * (1.0 / 512.0);
    let value = if magnitude < 8 { small } else { normal };
    f32::from_bits(value.to_bits() | (wide as u32) & 0x8000_0000)
}

/// An e2m1, of which no more than the lowest four bits count.
#[inline(always)]
fn float4(code: u32) -> f32 {
    /// Twice the magnitudes, in four bits each: looked up by a shift, which is a vector's too.
    const DOUBLED: u32 = 0xc864_3210;
    let doubled = DOUBLED >> (4 * (code & 7)) & 15;
    let value = integer(doubled) * 0.5;
    f32::from_bits(value.to_bits() | (code & 8) << 28)
}

/// The words and the place of each of so many groups.
#[inline(always)]
fn each_group<'a>(
    words: &'a [u32],
    groups: usize,
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u32], &'a mut [f32])> {
    let groups = groups.max(1);
    let [values, words_each] = [out.len() / groups, words.len() / groups];
    words
        .chunks_exact(words_each)
        .zip(out.chunks_exact_mut(values))
}

/// Numbers of which a word holds several whole ones.
#[inline(always)]
fn whole<const BITS: u32, const IN_A_WORD: usize>(
    words: &[u32],
    scales: &[f32],
    biases: &[f32],
    out: &mut [f32],
) {
    let groups = each_group(words, scales.len(), out);
    for ((words, out), (&scale, &bias)) in groups.zip(scales.iter().zip(biases)) {
        let (out, _) = out.as_chunks_mut::<IN_A_WORD>();
        for (out, word) in out.iter_mut().zip(words) {
            for (i, out) in (0..).zip(out) {
                let number = (word >> (BITS * i)) & ((1 << BITS) - 1);
                *out = integer(number) * scale + bias;
            }
        }
    }
}

/// Numbers that lie across words: 32 in `BITS` of these.
#[inline(always)]
fn across<const BITS: usize>(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
    let groups = each_group(words, scales.len(), out);
    for ((words, out), (&scale, &bias)) in groups.zip(scales.iter().zip(biases)) {
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
    }
}

/// A signed conversion is one instruction, an unsigned one several.
#[inline(always)]
fn integer(number: u32) -> f32 {
    (number as i32) as f32
}

vectorised! {
    fn unpack_2_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<2, 16>(words, scales, biases, out);
    }
}

vectorised! {
    fn unpack_3_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        across::<3>(words, scales, biases, out);
    }
}

vectorised! {
    fn unpack_4_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        whole::<4, 8>(words, scales, biases, out);
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
        whole::<8, 4>(words, scales, biases, out);
    }
}

vectorised! {
    fn unpack_float8(words: &[u32], scales: &[f32], _biases: &[f32], out: &mut [f32]) {
        for ((words, out), scale) in each_group(words, scales.len(), out).zip(scales) {
            // The first lies in a word's lowest byte, which is its first: MLX runs where that is so.
            let (codes, _) = bytemuck::cast_slice::<_, u8>(words).as_chunks::<32>();
            for (out, codes) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes) {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = float8(*code) * scale;
                }
            }
        }
    }
}

vectorised! {
    fn unpack_float4(words: &[u32], scales: &[f32], _biases: &[f32], out: &mut [f32]) {
        for ((words, out), scale) in each_group(words, scales.len(), out).zip(scales) {
            for (out, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                for (i, out) in (0..).zip(out) {
                    *out = float4(word >> (4 * i)) * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, Dtype, ops};

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
            let groups = columns / packing.group_size;
            let short = Array::from_slice(&vec![0_u8; groups as usize], &[1, groups]);
            assert!(dequantize([&packed, &short], None, packing, None).is_err());
            let factor = Array::from_slice(&[1.0_f32; 3], &[3]);
            assert!(dequantize([&packed, &scales], None, packing, Some(&factor)).is_err());
        }
    }
}
