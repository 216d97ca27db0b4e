//! How MLX packs quantized weights.

use std::ffi::CStr;
use std::fmt;

use crate::util::float::e8m0;

/// What a packed number and what stands beside its group mean (ml-explore/mlx, `mlx/primitives.h`,
/// `QuantizationMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// `scale * q + bias`, with an unsigned `q` and a scale and a bias for each group.
    Affine,
    /// float8 (e4m3) with a power of two for each 32.
    Mxfp8,
    /// float4 (e2m1) with a power of two for each 32.
    Mxfp4,
    /// float4 (e2m1) with a float8 (e4m3) for each 16.
    Nvfp4,
}

impl Mode {
    /// What a packed number stands for before its group's scale.
    pub fn level(self, number: u32) -> f64 {
        let (sign_bit, exponent, mantissa_bits, bias) = match self {
            Mode::Affine => return f64::from(number),
            Mode::Mxfp8 => (7, number >> 3 & 15, 3, 7),
            Mode::Mxfp4 | Mode::Nvfp4 => (3, number >> 1 & 3, 1, 1),
        };
        let fraction = f64::from(number & ((1 << mantissa_bits) - 1)) / 2_f64.powi(mantissa_bits);
        let magnitude = match exponent as i32 {
            0 => fraction * 2_f64.powi(1 - bias),
            exponent => (1.0 + fraction) * 2_f64.powi(exponent - bias),
        };
        if number >> sign_bit & 1 == 1 {
            -magnitude
        } else {
            magnitude
        }
    }

    /// Whether a byte beside a group is a number: e8m0 and e4m3 have codes that are none.
    pub fn is_scale(self, code: u8) -> bool {
        match self {
            Mode::Nvfp4 => code & 0x7f != 0x7f,
            Mode::Affine | Mode::Mxfp8 | Mode::Mxfp4 => code != 0xff,
        }
    }

    /// What a byte beside a group multiplies its levels by; the affine mode has none.
    pub fn scale(self, code: u8) -> f64 {
        match self {
            Mode::Affine => 1.0,
            Mode::Nvfp4 => Mode::Mxfp8.level(u32::from(code)),
            Mode::Mxfp8 | Mode::Mxfp4 => f64::from(e8m0(code)),
        }
    }
}

/// How a weight `[outputs, inputs]` is packed: the numbers of a row lie in uint32 words, the first input
/// in the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Packing {
    /// What the numbers mean.
    pub mode: Mode,
    /// Inputs that share what stands beside them.
    pub group_size: i32,
    /// Bits of a number.
    pub bits: i32,
}

impl Packing {
    /// [`Mode::Mxfp8`].
    pub const MXFP8: Self = Self::new(Mode::Mxfp8, 32, 8);
    /// [`Mode::Mxfp4`].
    pub const MXFP4: Self = Self::new(Mode::Mxfp4, 32, 4);
    /// [`Mode::Nvfp4`].
    pub const NVFP4: Self = Self::new(Mode::Nvfp4, 16, 4);

    const fn new(mode: Mode, group_size: i32, bits: i32) -> Self {
        Self {
            mode,
            group_size,
            bits,
        }
    }

    /// [`Mode::Affine`] in groups of 32, 64 or 128, of 2, 3, 4, 5, 6 or 8 bits.
    pub const fn affine(bits: i32, group_size: i32) -> Self {
        Self::new(Mode::Affine, group_size, bits)
    }

    /// uint32 words of a row.
    pub const fn words(self, inputs: usize) -> usize {
        inputs * self.bits as usize / 32
    }

    /// Groups of a row.
    pub const fn groups(self, inputs: usize) -> usize {
        inputs / self.group_size as usize
    }

    /// Bytes that `values` weights take where products are of a dtype of `dtype_bytes`.
    pub const fn bytes(self, values: u64, dtype_bytes: u64) -> u64 {
        let beside = match self.mode {
            Mode::Affine => 2 * dtype_bytes,
            Mode::Mxfp8 | Mode::Mxfp4 | Mode::Nvfp4 => 1,
        };
        values * self.bits as u64 / 8 + values / self.group_size as u64 * beside
    }

    /// What MLX calls the mode.
    pub(super) const fn mode_name(self) -> &'static CStr {
        match self.mode {
            Mode::Affine => c"affine",
            Mode::Mxfp8 => c"mxfp8",
            Mode::Mxfp4 => c"mxfp4",
            Mode::Nvfp4 => c"nvfp4",
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Affine if self.group_size == 64 => write!(f, "{}-bit", self.bits),
            Mode::Affine => write!(f, "{}-bit in groups of {}", self.bits, self.group_size),
            Mode::Mxfp8 => f.write_str("mxfp8"),
            Mode::Mxfp4 => f.write_str("mxfp4"),
            Mode::Nvfp4 => f.write_str("nvfp4"),
        }
    }
}

/// The number of `bits` bits at bit `at` of little-endian words: what MLX packs are such streams,
/// whatever the bits (ml-explore/mlx, `mlx/backend/cpu/quantized.cpp`).
pub fn packed_number(words: &[u8], at: usize, bits: usize) -> u32 {
    let first = at / 8;
    let mut window = [0_u8; 4];
    let end = words.len().min(first + 4);
    window[..end - first].copy_from_slice(&words[first..end]);
    (u32::from_le_bytes(window) >> (at % 8)) & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight 3-bit numbers fill three bytes; a stream of any bits is read across the bytes.
    #[test]
    fn numbers_of_any_bits_are_found() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let numbers: Vec<u32> = (0..64).map(|i| (i * 7 + 3) % (1 << bits)).collect();
            let mut bytes = vec![0_u8; 64 * bits / 8];
            for (i, number) in numbers.iter().enumerate() {
                for bit in 0..bits {
                    let at = i * bits + bit;
                    bytes[at / 8] |= ((number >> bit & 1) as u8) << (at % 8);
                }
            }
            let read: Vec<u32> = (0..64)
                .map(|i| packed_number(&bytes, i * bits, bits))
                .collect();
            assert_eq!(read, numbers, "{bits} bits");
        }
    }

    #[test]
    fn sizes_follow_from_bits_and_groups() {
        let four = Packing::affine(4, 64);
        assert_eq!((four.words(128), four.groups(128)), (16, 2));
        assert_eq!(four.bytes(1024, 2), 512 + 16 * 4);
        assert_eq!(Packing::affine(5, 32).bytes(1024, 4), 640 + 32 * 8);
        assert_eq!(Packing::MXFP8.bytes(1024, 2), 1024 + 32);
        assert_eq!(Packing::NVFP4.bytes(1024, 2), 512 + 64);
        let names = [four, Packing::affine(5, 32), Packing::NVFP4].map(|p| p.to_string());
        assert_eq!(names, ["4-bit", "5-bit in groups of 32", "nvfp4"]);
    }
}
