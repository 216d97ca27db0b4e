//! float8 and int8 as MLX's packing, times a factor.

/// The smallest power of two beside a group: float16, in which MLX multiplies them on some GPUs, ends at
/// 2^-24, and a group's own share comes to this.
const LEAST: i32 = -14;

/// A scale as a power of two, which goes into the packing so that what is packed has about the size of the
/// values, and the rest of it: from 1 to 2 unless the scale is tiny or huge.
pub fn split(scale: f32) -> (i32, f32) {
    let exponent = ((scale.to_bits() >> 23) & 0xff) as i32 - 127;
    match exponent {
        // Nothing, and what is nearly nothing, stays as it is.
        ..=-127 | 100.. => (0, scale),
        _ => {
            let exponent = exponent.max(LEAST);
            (exponent, scale * power(-exponent))
        }
    }
}

/// 2 to the power of -126 to 127.
pub fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The exponents that stand beside groups of float8 in rows, each of `groups` groups, of such powers.
pub fn float8(powers: &[i32], groups: usize) -> Vec<u8> {
    let code = |power: &i32| (power + 127).clamp(1, 254) as u8;
    let row = |power| std::iter::repeat_n(code(power), groups);
    powers.iter().flat_map(row).collect()
}

/// Float8 of 5 exponent bits as such of 4 and a power of two for each 32, times `power`: exact but for
/// values below a 2^15th of their group's largest, which are off by a 2^18th of it at most.
pub fn from_e5m2(bytes: &[u8; 32], power: i32, out: &mut [u8; 32]) -> u8 {
    let largest = bytes.iter().map(|byte| byte & 0x7f).max().unwrap_or(0);
    // The exponent of a subnormal is that of the smallest number.
    let exponent = |magnitude: u8| i32::from(magnitude >> 2).max(1) - 15;
    // The largest has e4m3's largest exponent, 8, with 2 bits behind it: 448 at most.
    let shift = exponent(largest) - 8;
    for (out, byte) in out.iter_mut().zip(bytes) {
        let magnitude = byte & 0x7f;
        let fraction = u32::from(magnitude & 3) | if magnitude >= 4 { 4 } else { 0 };
        // The value is fraction * 2^(unit - 9), e4m3's smallest being 2^-9.
        let unit = exponent(magnitude) - 2 - shift + 9;
        let code = match unit {
            // Below e4m3's smallest unit: rounded to even.
            ..0 => {
                let below = unit.unsigned_abs().min(8);
                let whole = fraction >> below;
                let rest = fraction & ((1 << below) - 1);
                let half = 1 << (below - 1);
                whole + u32::from(rest > half || (rest == half && whole & 1 == 1))
            }
            _ => e4m3(fraction, unit),
        };
        *out = code as u8 | byte & 0x80;
    }
    (shift + power + 127).clamp(1, 254) as u8
}

/// The code of `fraction * 2^(unit - 9)` with three bits of a fraction and a number that has a code.
fn e4m3(fraction: u32, unit: i32) -> u32 {
    if fraction == 0 {
        return 0;
    }
    // Four significant bits, or as many as a subnormal has.
    let (mut fraction, mut unit) = (fraction, unit);
    while fraction < 8 && unit > 0 {
        (fraction, unit) = (2 * fraction, unit - 1);
    }
    match fraction {
        8.. => ((unit as u32 + 1) << 3) | (fraction - 8),
        _ => fraction,
    }
}

/// Signed bytes as unsigned ones around 128, as words.
pub fn int8(bytes: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) ^ 0x8080_8080;
    bytes.as_chunks().0.iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::container::encoding::Encoding;

    #[test]
    fn a_scale_is_a_power_of_two_and_what_is_left() {
        for scale in [1.0, 0.75, -7.3e-5, 2.0, 448.0, 1e28, -1.0] {
            let (power, rest) = split(scale);
            assert!((1.0..2.0).contains(&rest.abs()), "{scale}: {rest}");
            assert_eq!(f64::from(rest) * 2_f64.powi(power), f64::from(scale));
        }
        assert_eq!(
            split(0.75 * 0.5_f32.powi(20)),
            (-14, 0.75 * 0.5_f32.powi(6))
        );
        for scale in [0.0, 1e-40, f32::MAX] {
            assert_eq!(split(scale), (0, scale));
        }
        assert_eq!(float8(&[0, -3], 2), [127, 127, 124, 124]);
    }

    fn values(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len()];
        encoding.decode(bytes, &mut values).unwrap();
        values
    }

    /// Every code beside the largest of its group and beside smaller ones.
    #[test]
    fn float8_of_five_exponent_bits_is_kept() {
        let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f < 0x7c).collect();
        for largest in [0x7b, 0x60, 0x40, 0x08, 0x04, 0x01, 0x00_u8] {
            let within = codes.iter().copied().filter(|code| code & 0x7f <= largest);
            let mut all: Vec<u8> = within.collect();
            all.resize(all.len().next_multiple_of(31), 0);
            for part in all.as_chunks::<31>().0 {
                let mut group = [largest; 32];
                group[..31].copy_from_slice(part);
                let mut out = [0; 32];
                let code = from_e5m2(&group, 3, &mut out);
                let scale = 2_f64.powi(i32::from(code) - 127 - 3);
                let before = values(Encoding::F8E5M2, &group);
                let most = f64::from(before[31]) / 2_f64.powi(18);
                for (before, after) in before.iter().zip(values(Encoding::F8E4M3, &out)) {
                    let (before, after) = (f64::from(*before), f64::from(after) * scale);
                    let is_small = before.abs() < f64::from(group_largest(&group)) / 2_f64.powi(15);
                    let allowed = if is_small { most } else { 0.0 };
                    assert!(
                        (before - after).abs() <= allowed,
                        "{largest}: {before} {after}"
                    );
                }
            }
        }
    }

    fn group_largest(group: &[u8; 32]) -> f32 {
        values(Encoding::F8E5M2, group)
            .into_iter()
            .fold(0.0, |m, v| m.max(v.abs()))
    }

    #[test]
    fn signed_bytes_get_another_zero() {
        assert_eq!(
            int8(&[0, 1, 0xff, 0x80])[0].to_le_bytes(),
            [128, 129, 127, 0]
        );
    }
}
