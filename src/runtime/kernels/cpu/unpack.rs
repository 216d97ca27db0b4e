//! Quantized weights.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use rayon::prelude::*;

use super::{new_array, parcel_rows, vector};

/// Whether [`dequantize`] knows weights of so many bits in groups of so many.
pub fn unpacks(bits: i32, group_size: i32) -> bool {
    [4, 8].contains(&bits) && group_size > 0 && group_size % 32 == 0
}

/// MLX's affine quantization undone, float32: `packed` `[outputs, inputs * bits / 32]`, uint32, the
/// lowest bits first, `scales` and `biases` `[outputs, inputs / group_size]`, float32, to
/// `[outputs, inputs]`.
///
/// # Errors
/// When shapes do not belong together, or [`unpacks`] says no.
pub fn dequantize(
    packed: &Array,
    [scales, biases]: [&Array; 2],
    group_size: i32,
    bits: i32,
) -> Result<Array> {
    let groups = scales.dim(1);
    let words_of_group = group_size * bits / 32;
    if !unpacks(bits, group_size) || packed.dim(1) != groups * words_of_group {
        return Err(Exception::custom(format!(
            "cannot unpack {:?} of {bits} bits in groups of {group_size} with scales {:?}",
            packed.shape(),
            scales.shape()
        )));
    }
    let words = packed
        .try_as_slice::<u32>()
        .map_err(|e| Exception::custom(e.to_string()))?;
    let [scales, biases] = [
        vector(scales, scales.size())?,
        vector(biases, scales.size())?,
    ];
    let [group_values, group_words] = [group_size, words_of_group].map(|side| side as usize);
    let many = parcel_rows(group_values);
    let unpack = match bits {
        4 => unpack_4_bits,
        _ => unpack_8_bits,
    };
    new_array(&[packed.dim(0), groups * group_size], |out| {
        out.par_chunks_mut(many * group_values)
            .zip(words.par_chunks(many * group_words))
            .zip(scales.par_chunks(many).zip(biases.par_chunks(many)))
            .for_each(|((out, words), (scales, biases))| unpack(words, scales, biases, out));
    })
}

vectorised! {
    /// Groups one after the other.
    fn unpack_4_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        unpack::<4, 8>(words, scales, biases, out);
    }
}

vectorised! {
    /// As [`unpack_4_bits`].
    fn unpack_8_bits(words: &[u32], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        unpack::<8, 4>(words, scales, biases, out);
    }
}

#[inline(always)]
fn unpack<const BITS: u32, const IN_A_WORD: usize>(
    words: &[u32],
    scales: &[f32],
    biases: &[f32],
    out: &mut [f32],
) {
    let groups = scales.len().max(1);
    let group = out.chunks_exact_mut(out.len() / groups);
    let words = words.chunks_exact(words.len() / groups);
    for ((out, words), (scale, bias)) in group.zip(words).zip(scales.iter().zip(biases)) {
        let (out, _) = out.as_chunks_mut::<IN_A_WORD>();
        for (out, word) in out.iter_mut().zip(words) {
            for (i, out) in (0..).zip(out) {
                let value = (word >> (BITS * i)) & ((1 << BITS) - 1);
                // A signed conversion is one instruction, an unsigned one several.
                *out = (value as i32) as f32 * scale + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, Dtype, ops};

    use super::*;

    #[test]
    fn weights_are_unpacked_as_mlx_does() {
        Device::set_default(&Device::cpu());
        for (rows, columns) in [(1, 64), (37, 1920), (3, 64 * 300)] {
            let values: Vec<f32> = (0..rows * columns)
                .map(|i| ((i * 37 % 1009) as f32 - 500.0) / 313.0)
                .collect();
            let weight = Array::from_slice(&values, &[rows, columns]);
            for (bits, group_size) in [(4, 64), (8, 64), (4, 32), (8, 128)] {
                if columns % group_size != 0 {
                    continue;
                }
                let (packed, scales, biases) = ops::quantize(&weight, group_size, bits).unwrap();
                assert_eq!(packed.dtype(), Dtype::Uint32);
                let ours = dequantize(&packed, [&scales, &biases], group_size, bits).unwrap();
                let mlx =
                    ops::dequantize(&packed, &scales, Some(&biases), group_size, bits).unwrap();
                assert_eq!(ours.shape(), mlx.shape());
                let off = ours.subtract(&mlx).unwrap().abs().unwrap();
                let off = off.max(None).unwrap().item_exact::<f32>();
                assert!(off <= 1e-6, "{rows} x {columns}, {bits} bits: {off}");
                assert!(dequantize(&packed, [&scales, &biases], group_size, 12 - bits).is_err());
            }
        }
        assert!(!unpacks(3, 64) && !unpacks(4, 0) && !unpacks(6, 64));
    }
}
