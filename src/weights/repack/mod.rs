//! Quantized tensors of other programs in the packing in which MLX multiplies them: without a second
//! rounding where MLX has one that holds their values, else in the nearest.

mod float8;
mod gguf;

use crate::runtime::Packing;
use crate::weights::container::encoding::Encoding;

pub use float8::{float8, from_e5m2, int8, power, split};
pub use gguf::{Sides, blocks};

/// How a weight that is stored in few bits is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The packing.
    pub packing: Packing,
    /// Bits of a value where it is stored: fewer of them are a further rounding.
    pub bits: usize,
}

/// How a weight with rows of `inputs` values is held that is stored like this; nothing where that is no
/// quantization, or where groups of the packing do not fill the rows.
///
/// MLX's affine groups of 32 hold exactly what GGUF's blocks of 32 hold, and what those of 256 hold but for
/// the rounding of a product of two scales. Groups of 16 share 32 in more bits: 8 for Q6_K, 6 for Q3_K, 5 for
/// Q2_K. The uneven levels of IQ4 are met by 6 even bits within a fifth of a level's distance to the next.
pub fn kept(encoding: Encoding, inputs: usize) -> Option<Kept> {
    use Encoding as E;
    let of = |packing, bits| Kept { packing, bits };
    let affine = |packed, bits| of(Packing::affine(packed, 32), bits);
    let kept = match encoding {
        E::Q4_0 | E::Q4_1 | E::Q4K => affine(4, 4),
        E::Q5_0 | E::Q5_1 | E::Q5K => affine(5, 5),
        E::Q8_0 => affine(8, 8),
        E::Q6K => affine(8, 6),
        E::Q3K => affine(6, 3),
        E::Q2K => affine(5, 2),
        E::Iq4Nl | E::Iq4Xs => affine(6, 4),
        E::Mxfp4 => of(Packing::MXFP4, 4),
        E::Nvfp4 => of(Packing::NVFP4, 4),
        E::F8E4M3 | E::F8E5M2 => of(Packing::MXFP8, 8),
        E::I8 => {
            let group = [128, 64, 32]
                .into_iter()
                .find(|&group| inputs.is_multiple_of(group));
            of(Packing::affine(8, group? as i32), 8)
        }
        _ => return None,
    };
    let group = kept.packing.group_size as usize;
    (inputs > 0 && inputs.is_multiple_of(group)).then_some(kept)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use mlx_rs::{Array, Dtype};

    use super::*;
    use crate::runtime::{Device, DeviceKind, Mode, to_host};

    /// Bytes without a pattern.
    fn noise() -> impl FnMut() -> u8 {
        let mut state = 7_u32;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }
    }

    /// Random blocks, each with a finite scale at each of `places`.
    fn random(encoding: Encoding, places: &[usize]) -> Vec<u8> {
        let mut byte = noise();
        let mut bytes: Vec<u8> = (0..64 * encoding.block_bytes()).map(|_| byte()).collect();
        for block in bytes.chunks_mut(encoding.block_bytes()) {
            for &place in places {
                let scale = f16::from_f32(f32::from(byte()) / 5000.0 - 0.02);
                block[place..place + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }

    fn decoded(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
        let values = bytes.len() / encoding.block_bytes() * encoding.block_elements();
        let mut out = vec![0.0; values];
        encoding.decode(bytes, &mut out).unwrap();
        out
    }

    /// What products have of blocks that were repacked for scales that `round` makes.
    fn repacked(encoding: Encoding, bytes: &[u8], round: fn(f32) -> f32) -> Vec<f32> {
        let values = bytes.len() / encoding.block_bytes() * encoding.block_elements();
        let packing = kept(encoding, values).unwrap().packing;
        let groups = packing.groups(values);
        let mut words = vec![0; packing.words(values)];
        let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
        let out = Sides {
            words: &mut words,
            scales: &mut scales,
            biases: &mut biases,
        };
        blocks(encoding, bytes, out, round);
        let side = |side: &[f32]| {
            let side: Vec<f32> = side.iter().map(|&value| round(value)).collect();
            Array::from_slice(&side, &[1, groups as i32])
        };
        let (scales, biases) = match packing.mode {
            Mode::Affine => (side(&scales), Some(side(&biases))),
            _ => {
                let codes: Vec<u8> = scales.iter().map(|&code| code as u8).collect();
                (Array::from_slice(&codes, &[1, groups as i32]), None)
            }
        };
        let words = Array::from_slice(&words, &[1, words.len() as i32]);
        let weight = Device::new(DeviceKind::Cpu, None)
            .dequantize(
                [&words, &scales],
                biases.as_ref(),
                packing,
                None,
                Dtype::Float32,
            )
            .unwrap();
        to_host(&weight).unwrap()
    }

    #[test]
    fn what_mlx_has_a_packing_for_is_kept_to_the_bit() {
        for (encoding, places) in [
            (Encoding::Q4_0, &[0][..]),
            (Encoding::Q4_1, &[0, 2]),
            (Encoding::Q5_0, &[0]),
            (Encoding::Q5_1, &[0, 2]),
            (Encoding::Q8_0, &[0]),
            (Encoding::Q4K, &[0, 2]),
            (Encoding::Q5K, &[0, 2]),
            (Encoding::Mxfp4, &[]),
            (Encoding::Nvfp4, &[]),
        ] {
            let mut bytes = random(encoding, places);
            for block in bytes.chunks_mut(encoding.block_bytes()) {
                match encoding {
                    Encoding::Mxfp4 => block[0] = 100 + block[0] % 40,
                    // Of both signs, and numbers.
                    Encoding::Nvfp4 => block[..4].iter_mut().for_each(|scale| {
                        *scale -= u8::from(*scale & 0x7f == 0x7f);
                    }),
                    _ => {}
                }
            }
            let expected = decoded(encoding, &bytes);
            assert_eq!(repacked(encoding, &bytes, |v| v), expected, "{encoding:?}");
            if [Encoding::Mxfp4, Encoding::Nvfp4].contains(&encoding) {
                continue;
            }
            // With scales in 16 bits: one rounding of each, of 8 or 11 significant bits.
            for (round, share) in [
                (
                    (|v| bf16::from_f32(v).to_f32()) as fn(f32) -> f32,
                    0.5_f32.powi(8),
                ),
                (|v| f16::from_f32(v).to_f32(), 0.5_f32.powi(11)),
            ] {
                let rounded = repacked(encoding, &bytes, round);
                for (group, expected) in expected.chunks(32).enumerate() {
                    let rounded = &rounded[32 * group..][..32];
                    let bounds = expected.iter().fold((0.0_f32, 0.0_f32), |(low, high), &v| {
                        (low.min(v), high.max(v))
                    });
                    // Numbers reach as far as the scale times their largest, the bias as far again.
                    let most = 3.0 * share * (bounds.1 - bounds.0).max(1e-4);
                    for (a, b) in rounded.iter().zip(expected) {
                        assert!((a - b).abs() <= most, "{encoding:?}: {a} {b}, {most}");
                    }
                }
            }
        }
    }

    /// Where the smaller of two steps that share a group is at least a quarter of the larger.
    #[test]
    fn other_levels_are_met_within_half_of_their_own_step() {
        for (encoding, place, levels) in [
            (Encoding::Q2K, 80, 16),
            (Encoding::Q3K, 108, 16),
            (Encoding::Q6K, 208, 16),
            (Encoding::Iq4Nl, 0, 32),
            (Encoding::Iq4Xs, 0, 32),
        ] {
            let mut bytes = random(encoding, &[place]);
            for block in bytes.chunks_mut(encoding.block_bytes()) {
                match encoding {
                    // Scale and minimum of 4 bits; one scale for both.
                    Encoding::Q2K => {
                        block[..16].iter_mut().for_each(|b| *b = *b & 0x33 | 0x44);
                        block.copy_within(80..82, 82);
                    }
                    // Upper bits of a scale, of which 32 is zero: 16 to 31 below that.
                    Encoding::Q3K => block[104..108].fill(0),
                    Encoding::Q6K => block[192..208].iter_mut().for_each(|b| *b = 24 + *b % 72),
                    _ => {}
                }
            }
            let (before, after) = (decoded(encoding, &bytes), repacked(encoding, &bytes, |v| v));
            let mut worst = 0.0_f32;
            for (before, after) in before.chunks(levels).zip(after.chunks(levels)) {
                let mut sorted = before.to_vec();
                sorted.sort_by(f32::total_cmp);
                let step = (sorted.windows(2).map(|pair| pair[1] - pair[0]))
                    .filter(|&step| step > 1e-9)
                    .fold(f32::INFINITY, f32::min);
                for (a, b) in before.iter().zip(after) {
                    worst = worst.max((a - b).abs() / step);
                }
            }
            println!("measured {encoding:?}: off by {worst:.2} steps at most");
            assert!(worst <= 0.5, "{encoding:?}: {worst}");
        }
    }
}
