//! GGUF's blocks as groups of 32 that MLX knows.

use half::f16;

use crate::weights::container::encoding::Encoding;

/// Numbers, scales and biases of some groups, to be filled.
pub struct Sides<'a> {
    /// `bits` words for each group.
    pub words: &'a mut [u32],
    /// One for each group.
    pub scales: &'a mut [f32],
    /// As the scales; without use where the packing has none.
    pub biases: &'a mut [f32],
}

/// 32 numbers and what they mean: `scale * number + bias`.
#[derive(Clone, Copy)]
struct Group {
    numbers: [u8; 32],
    scale: f32,
    bias: f32,
}

const NONE: Group = Group {
    numbers: [0; 32],
    scale: 0.0,
    bias: 0.0,
};

/// Repacks whole blocks. Scales and biases are float32; where numbers are chosen anew, for scales and
/// biases that `round` makes of them.
pub fn blocks(encoding: Encoding, bytes: &[u8], out: Sides, round: fn(f32) -> f32) {
    use Encoding as E;
    match encoding {
        E::Q4_0 => each::<18, 1, 4>(bytes, out, |block, [group]| {
            nibbles(&block[2..], &mut group.numbers);
            centred(group, half(block, 0), 8.0);
        }),
        E::Q4_1 => each::<20, 1, 4>(bytes, out, |block, [group]| {
            nibbles(&block[4..], &mut group.numbers);
            (group.scale, group.bias) = (half(block, 0), half(block, 2));
        }),
        E::Q5_0 => each::<22, 1, 5>(bytes, out, |block, [group]| {
            nibbles(&block[6..], &mut group.numbers);
            fifths(&block[2..6], &mut group.numbers);
            centred(group, half(block, 0), 16.0);
        }),
        E::Q5_1 => each::<24, 1, 5>(bytes, out, |block, [group]| {
            nibbles(&block[8..], &mut group.numbers);
            fifths(&block[4..8], &mut group.numbers);
            (group.scale, group.bias) = (half(block, 0), half(block, 2));
        }),
        E::Q8_0 => each::<34, 1, 8>(bytes, out, |block, [group]| {
            for (number, byte) in group.numbers.iter_mut().zip(&block[2..]) {
                *number = byte ^ 0x80;
            }
            centred(group, half(block, 0), 128.0);
        }),
        E::Q4K => each::<144, 8, 4>(bytes, out, |block, groups| {
            for (index, group) in groups.iter_mut().enumerate() {
                of_superblock(block, index, group);
                let shift = 4 * (index % 2);
                let bytes = &block[16 + 32 * (index / 2)..];
                for (number, byte) in group.numbers.iter_mut().zip(bytes) {
                    *number = byte >> shift & 15;
                }
            }
        }),
        E::Q5K => each::<176, 8, 5>(bytes, out, |block, groups| {
            for (index, group) in groups.iter_mut().enumerate() {
                of_superblock(block, index, group);
                let shift = 4 * (index % 2);
                let bytes = block[48 + 32 * (index / 2)..].iter().zip(&block[16..48]);
                for (number, (byte, fifth)) in group.numbers.iter_mut().zip(bytes) {
                    *number = byte >> shift & 15 | (fifth >> index & 1) << 4;
                }
            }
        }),
        E::Mxfp4 => each::<17, 1, 4>(bytes, out, |block, [group]| {
            nibbles(&block[1..], &mut group.numbers);
            group.scale = f32::from(block[0]);
        }),
        E::Nvfp4 => nvfp4(bytes, out),
        E::Q2K => fitted::<84, 256, 8, 5>(encoding, bytes, out, round),
        E::Q3K => fitted::<110, 256, 8, 6>(encoding, bytes, out, round),
        E::Q6K => fitted::<210, 256, 8, 8>(encoding, bytes, out, round),
        E::Iq4Nl => fitted::<18, 32, 1, 6>(encoding, bytes, out, round),
        E::Iq4Xs => fitted::<136, 256, 8, 6>(encoding, bytes, out, round),
        _ => {}
    }
}

/// Blocks of `B` bytes as `G` groups of `BITS` bits.
fn each<const B: usize, const G: usize, const BITS: usize>(
    bytes: &[u8],
    out: Sides,
    block: impl Fn(&[u8; B], &mut [Group; G]),
) {
    let words = out.words.as_chunks_mut::<BITS>().0.chunks_mut(G);
    let sides = out.scales.chunks_mut(G).zip(out.biases.chunks_mut(G));
    for ((bytes, words), (scales, biases)) in bytes.as_chunks().0.iter().zip(words).zip(sides) {
        let mut groups = [NONE; G];
        block(bytes, &mut groups);
        let sides = scales.iter_mut().zip(biases);
        for ((group, words), (scale, bias)) in groups.iter().zip(words).zip(sides) {
            pack(&group.numbers, words);
            (*scale, *bias) = (group.scale, group.bias);
        }
    }
}

/// As [`each`], of blocks with `E` values whose levels MLX has no packing for.
fn fitted<const B: usize, const E: usize, const G: usize, const BITS: usize>(
    encoding: Encoding,
    bytes: &[u8],
    out: Sides,
    round: fn(f32) -> f32,
) {
    each::<B, G, BITS>(bytes, out, |block, groups| {
        let mut values = [0.0; E];
        // Whole blocks of numbers: nothing can be wrong with them.
        let _ = encoding.decode(block, &mut values);
        for (values, group) in values.as_chunks().0.iter().zip(groups) {
            *group = fit(values, ((1 << BITS) - 1) as f32, round);
        }
    });
}

/// Values as numbers up to `levels`, from the smallest value to the largest.
fn fit(values: &[f32; 32], levels: f32, round: fn(f32) -> f32) -> Group {
    let low = values.iter().copied().fold(f32::MAX, f32::min);
    let high = values.iter().copied().fold(f32::MIN, f32::max);
    let bias = round(low);
    let wanted = (high - bias) / levels;
    let mut scale = round(wanted);
    if scale < wanted {
        // The next that `round` knows, so that the largest value is not cut off: in bfloat16 it is within
        // a 128th.
        scale = round(wanted * (1.0 + 1.0 / 128.0));
    }
    let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
    let number = |value: f32| ((value - bias) * inverse).round().clamp(0.0, levels) as u8;
    Group {
        numbers: values.map(number),
        scale,
        bias,
    }
}

/// Blocks of 36 bytes: four scales, without their signs, and 8 bytes for each 16 numbers, of which the low halves
/// come first.
fn nvfp4(bytes: &[u8], out: Sides) {
    let blocks = bytes.as_chunks::<36>().0.iter();
    let sides = (out.words.as_chunks_mut::<8>().0.iter_mut()).zip(out.scales.chunks_mut(4));
    for (block, (words, scales)) in blocks.zip(sides) {
        let (codes, numbers) = block.split_at(4);
        for (scale, code) in scales.iter_mut().zip(codes) {
            *scale = f32::from(code & 0x7f);
        }
        let groups = words.as_chunks_mut::<2>().0.iter_mut();
        for ([low, high], bytes) in groups.zip(numbers.chunks(8)) {
            for byte in bytes.iter().rev().copied().map(u32::from) {
                *low = *low << 4 | byte & 15;
                *high = *high << 4 | byte >> 4;
            }
        }
    }
}

/// Numbers as a little-endian stream of `BITS` bits each: eight of them are `BITS` bytes.
fn pack<const BITS: usize>(numbers: &[u8; 32], words: &mut [u32; BITS]) {
    let mut bytes = [0; 32];
    for (eight, bytes) in numbers
        .as_chunks::<8>()
        .0
        .iter()
        .zip(bytes.chunks_mut(BITS))
    {
        let fold = |all, (i, &number)| all | u64::from(number) << (BITS * i);
        let all = eight.iter().enumerate().fold(0, fold);
        bytes.copy_from_slice(&all.to_le_bytes()[..BITS]);
    }
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Numbers around `centre`.
fn centred(group: &mut Group, scale: f32, centre: f32) {
    (group.scale, group.bias) = (scale, -centre * scale);
}

/// The low halves of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8], numbers: &mut [u8; 32]) {
    let (low, high) = numbers.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Fifth bits.
fn fifths(bits: &[u8], numbers: &mut [u8; 32]) {
    for (i, number) in numbers.iter_mut().enumerate() {
        *number |= (bits[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// The scale and the bias of a group of Q4_K and Q5_K.
fn of_superblock(block: &[u8], index: usize, group: &mut Group) {
    let (scale, min) = Encoding::scale_min(block, index);
    (group.scale, group.bias) = (scale, -min);
}
