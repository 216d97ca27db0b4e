//! MLX's affine quantization, computed here so that every machine writes the same bytes.
//!
//! A weight `[outputs, inputs]` is cut into groups of inputs; each group keeps a bfloat16 scale and
//! bias, and each weight an unsigned number `q` of 4 or 8 bits: `scale * q + bias`. The numbers of
//! a row lie in 32-bit words, the first input in the lowest bits, as `mlx.core.dequantize` reads
//! them (ml-explore/mlx, `mlx/backend/cpu/quantized.cpp`).

use anyhow::{Result, ensure};
use half::bf16;

pub use crate::model::layers::GROUP_SIZE;

/// Bits per weight that this program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 16 levels.
    Four,
    /// 256 levels.
    Eight,
}

impl std::fmt::Display for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl Bits {
    /// Their number.
    pub fn number(self) -> usize {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// Weights per 32-bit word.
    fn per_word(self) -> usize {
        32 / self.number()
    }

    fn largest(self) -> u32 {
        (1 << self.number()) - 1
    }

    /// Bytes of packed numbers for `weights` weights, a multiple of the group.
    pub fn packed_bytes(self, weights: usize) -> usize {
        weights / self.per_word() * 4
    }
}

/// Some rows of a quantized weight, as little-endian bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// uint32 words.
    pub words: Vec<u8>,
    /// bfloat16, one per group.
    pub scales: Vec<u8>,
    /// As `scales`.
    pub biases: Vec<u8>,
}

impl Packed {
    /// Appends further rows.
    pub fn extend(&mut self, more: Self) {
        self.words.extend(more.words);
        self.scales.extend(more.scales);
        self.biases.extend(more.biases);
    }

    /// The bytes of words, scales and biases.
    pub fn fields(&self) -> [&[u8]; 3] {
        [&self.words, &self.scales, &self.biases]
    }
}

/// Quantizes whole groups of weights.
///
/// The bias is a group's smallest value and the scale spans to its largest, both rounded outwards
/// to bfloat16 before the numbers are chosen, so that no weight is off by more than half a step.
///
/// # Errors
/// When a group spans more than bfloat16 can hold.
pub fn quantize(weights: &[f32], bits: Bits) -> Result<Packed> {
    ensure!(
        weights.len().is_multiple_of(GROUP_SIZE),
        "{} weights are not whole groups of {GROUP_SIZE}",
        weights.len()
    );
    let groups = weights.len() / GROUP_SIZE;
    let mut packed = Packed {
        words: Vec::with_capacity(bits.packed_bytes(weights.len())),
        scales: Vec::with_capacity(2 * groups),
        biases: Vec::with_capacity(2 * groups),
    };
    let (levels, per_word) = (bits.largest() as f32, bits.per_word());
    for group in weights.chunks_exact(GROUP_SIZE) {
        let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(low, high), &w| {
            (low.min(w), high.max(w))
        });
        let bias = round_down(low);
        let scale = round_up((high - bias.to_f32()) / levels);
        ensure!(
            scale.is_finite() && bias.is_finite(),
            "weights from {low} to {high} are too large to quantize"
        );
        packed.scales.extend(scale.to_le_bytes());
        packed.biases.extend(bias.to_le_bytes());
        let bias = bias.to_f32();
        // A group of equal weights has no scale; its numbers are all zero.
        let inverse = match scale.to_f32() {
            0.0 => 0.0,
            scale => scale.recip(),
        };
        for word in group.chunks_exact(per_word) {
            let mut bits_of_word = 0;
            for (i, &weight) in word.iter().enumerate() {
                let number = ((weight - bias) * inverse + 0.5).min(levels) as u32;
                bits_of_word |= number << (i * bits.number());
            }
            packed.words.extend(bits_of_word.to_le_bytes());
        }
    }
    Ok(packed)
}

/// The weights that [`quantize`] stands for, as `mlx.core.dequantize` computes them in float32.
///
/// # Errors
/// When the three lengths do not belong together.
pub fn dequantize(packed: &Packed, bits: Bits) -> Result<Vec<f32>> {
    let [words, scales, biases] = packed.fields();
    let groups = scales.len() / 2;
    ensure!(
        scales.len() == biases.len() && words.len() == bits.packed_bytes(groups * GROUP_SIZE),
        "{} bytes of numbers, {} of scales and {} of biases do not belong together",
        words.len(),
        scales.len(),
        biases.len()
    );
    let mut weights = Vec::with_capacity(groups * GROUP_SIZE);
    let group_bytes = bits.packed_bytes(GROUP_SIZE);
    let number = |pair: &[u8]| bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
    for ((words, scale), bias) in words
        .chunks_exact(group_bytes)
        .zip(scales.chunks_exact(2))
        .zip(biases.chunks_exact(2))
    {
        let (scale, bias) = (number(scale), number(bias));
        match bits {
            Bits::Eight => weights.extend(words.iter().map(|&q| f32::from(q) * scale + bias)),
            Bits::Four => weights.extend(words.iter().flat_map(|&q| {
                [
                    f32::from(q & 15) * scale + bias,
                    f32::from(q >> 4) * scale + bias,
                ]
            })),
        }
    }
    Ok(weights)
}

/// The largest bfloat16 that is not above `value`.
fn round_down(value: f32) -> bf16 {
    -round_up(-value)
}

/// The smallest bfloat16 that is not below `value`.
fn round_up(value: f32) -> bf16 {
    let cut = bf16::from_bits((value.to_bits() >> 16) as u16);
    if cut.to_f32() < value {
        // Only positive values are cut downwards; their next bit pattern is the next number.
        bf16::from_bits(cut.to_bits() + 1)
    } else {
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(count: usize) -> Vec<f32> {
        // A fixed, uneven mixture of magnitudes and signs.
        (0..count)
            .map(|i| {
                let x = (i as f32 * 12.9898).sin() * 43_758.547;
                (x - x.floor() - 0.5) * 0.01 * (1 + i % 7) as f32
            })
            .collect()
    }

    #[test]
    fn no_weight_is_off_by_more_than_half_a_step() {
        for bits in [Bits::Four, Bits::Eight] {
            let weights = weights(64 * 50);
            let packed = quantize(&weights, bits).unwrap();
            let back = dequantize(&packed, bits).unwrap();
            for (group, (w, b)) in weights.chunks(64).zip(back.chunks(64)).enumerate() {
                let pair = [packed.scales[2 * group], packed.scales[2 * group + 1]];
                let half = bf16::from_le_bytes(pair).to_f32() * 0.5 * 1.0001;
                for (w, b) in w.iter().zip(b) {
                    assert!(
                        (w - b).abs() <= half,
                        "{bits:?}: {w} became {b}, step {half}"
                    );
                }
            }
        }
    }

    #[test]
    fn equal_and_zero_groups_stay() {
        let weights = [[0.0; 64], [0.25; 64], [-1.5; 64]].concat();
        let packed = quantize(&weights, Bits::Four).unwrap();
        let back = dequantize(&packed, Bits::Four).unwrap();
        assert_eq!(back, weights);
    }

    #[test]
    fn rounding_is_outward() {
        for value in [0.0, 1.0, 1.001, -1.001, 1e-39, -1e-39, 3.0e38, -7.77e-5] {
            assert!(round_up(value).to_f32() >= value, "{value}");
            assert!(round_down(value).to_f32() <= value, "{value}");
            assert!((round_up(value).to_f32() - value).abs() <= value.abs() / 127.0 + 1e-38);
        }
    }

    #[test]
    fn what_cannot_be_held_is_refused() {
        let mut weights = vec![0.0; 64];
        weights[3] = f32::MAX;
        weights[4] = f32::MIN;
        assert!(quantize(&weights, Bits::Eight).is_err());
        assert!(quantize(&weights[..63], Bits::Eight).is_err());
    }
}
