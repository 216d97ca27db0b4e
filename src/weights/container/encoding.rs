//! How a tensor's elements are stored, and their values as float32.

mod blocks;

use anyhow::{Result, bail, ensure};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// How a tensor's elements are stored, little-endian.
///
/// The `Q` encodings are GGUF's: blocks of 32 or 256 elements along the innermost dimension that
/// share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Encoding {
    F64,
    F32,
    F16,
    Bf16,
    /// The variant without infinities ("fn"): 0x7f and 0xff are NaN, the largest value is 448.
    F8E4M3,
    /// With infinities; the upper half of a float16.
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    /// float4 (e2m1) with a power of two for each 32.
    Mxfp4,
    /// float4 (e2m1) with a float8 (e4m3) for each 16.
    Nvfp4,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Self; 29] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nvfp4,
    ];

    /// Elements that are stored together: 1 for plain types.
    pub fn block_elements(self) -> usize {
        self.layout().1
    }

    /// Bytes of [`Self::block_elements`] elements.
    pub fn block_bytes(self) -> usize {
        self.layout().2
    }

    /// Short name in lower case: `f32`, `bf16`, `f8_e4m3`, `q4_k`.
    pub fn name(self) -> &'static str {
        self.layout().0
    }

    /// Name, elements of a block, bytes of a block (ggml-org/ggml, src/ggml-common.h).
    fn layout(self) -> (&'static str, usize, usize) {
        match self {
            Self::F64 => ("f64", 1, 8),
            Self::F32 => ("f32", 1, 4),
            Self::F16 => ("f16", 1, 2),
            Self::Bf16 => ("bf16", 1, 2),
            Self::F8E4M3 => ("f8_e4m3", 1, 1),
            Self::F8E5M2 => ("f8_e5m2", 1, 1),
            Self::I64 => ("i64", 1, 8),
            Self::I32 => ("i32", 1, 4),
            Self::I16 => ("i16", 1, 2),
            Self::I8 => ("i8", 1, 1),
            Self::U64 => ("u64", 1, 8),
            Self::U32 => ("u32", 1, 4),
            Self::U16 => ("u16", 1, 2),
            Self::U8 => ("u8", 1, 1),
            Self::Bool => ("bool", 1, 1),
            Self::Q4_0 => ("q4_0", 32, 18),
            Self::Q4_1 => ("q4_1", 32, 20),
            Self::Q5_0 => ("q5_0", 32, 22),
            Self::Q5_1 => ("q5_1", 32, 24),
            Self::Q8_0 => ("q8_0", 32, 34),
            Self::Q2K => ("q2_k", 256, 84),
            Self::Q3K => ("q3_k", 256, 110),
            Self::Q4K => ("q4_k", 256, 144),
            Self::Q5K => ("q5_k", 256, 176),
            Self::Q6K => ("q6_k", 256, 210),
            Self::Iq4Nl => ("iq4_nl", 32, 18),
            Self::Iq4Xs => ("iq4_xs", 256, 136),
            Self::Mxfp4 => ("mxfp4", 32, 17),
            Self::Nvfp4 => ("nvfp4", 64, 36),
        }
    }

    /// Bytes of a tensor of `shape` (outermost first). `None` when that overflows, or when the
    /// innermost dimension is no multiple of the block.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let block = self.block_elements();
        if !shape.last().copied().unwrap_or(1).is_multiple_of(block) {
            return None;
        }
        let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))?;
        (elements / block).checked_mul(self.block_bytes())
    }

    /// Whether the elements are real numbers, which [`Self::decode`] gives: false for integers
    /// and booleans.
    pub fn is_float(self) -> bool {
        !matches!(
            self,
            Self::I64
                | Self::I32
                | Self::I16
                | Self::I8
                | Self::U64
                | Self::U32
                | Self::U16
                | Self::U8
                | Self::Bool
        )
    }

    /// The scale and the minimum of the `group`th 32 elements of a `Q4K` or `Q5K` block.
    pub fn scale_min(block: &[u8], group: usize) -> (f32, f32) {
        blocks::scale_min(block, group)
    }

    /// Writes the values of `bytes` to `out`: exact for the floats of up to 32 bits and for signed bytes,
    /// which stand for themselves before a scale, rounded to nearest for `F64`, and for the blocks what `gguf.quants.dequantize` computes in float32.
    ///
    /// # Errors
    /// When the encoding holds no real numbers, or `bytes` is not what `out` takes.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        ensure!(
            self.is_float() || self == Self::I8,
            "the elements are {}, not real numbers",
            self.name()
        );
        ensure!(
            self.byte_len(&[out.len()]) == Some(bytes.len()),
            "{} bytes do not hold {} elements of {} ({} bytes for {})",
            bytes.len(),
            out.len(),
            self.name(),
            self.block_bytes(),
            self.block_elements()
        );
        match self {
            Self::F64 => each(bytes, out, f64_value),
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F16 => halves(bytes, out),
            Self::Bf16 => each(bytes, out, |[low, high]| {
                f32::from_le_bytes([0, 0, low, high])
            }),
            Self::F8E4M3 => each(bytes, out, |[code]| E4M3[usize::from(code)]),
            Self::F8E5M2 => each(bytes, out, |[code]| E5M2[usize::from(code)]),
            Self::Q4_0 => blocks::each(bytes, out, blocks::q4_0),
            Self::Q4_1 => blocks::each(bytes, out, blocks::q4_1),
            Self::Q5_0 => blocks::each(bytes, out, blocks::q5_0),
            Self::Q5_1 => blocks::each(bytes, out, blocks::q5_1),
            Self::Q8_0 => blocks::each(bytes, out, blocks::q8_0),
            Self::Q2K => blocks::each(bytes, out, blocks::q2_k),
            Self::Q3K => blocks::each(bytes, out, blocks::q3_k),
            Self::Q4K => blocks::each(bytes, out, blocks::q4_k),
            Self::Q5K => blocks::each(bytes, out, blocks::q5_k),
            Self::Q6K => blocks::each(bytes, out, blocks::q6_k),
            Self::Iq4Nl => blocks::each(bytes, out, blocks::iq4_nl),
            Self::Iq4Xs => blocks::each(bytes, out, blocks::iq4_xs),
            Self::Mxfp4 => blocks::each(bytes, out, blocks::mxfp4),
            Self::Nvfp4 => blocks::each(bytes, out, blocks::nvfp4),
            Self::I8 => each(bytes, out, |[byte]| f32::from(byte.cast_signed())),
            Self::I64
            | Self::I32
            | Self::I16
            | Self::U64
            | Self::U32
            | Self::U16
            | Self::U8
            | Self::Bool => bail!("cannot decode {}", self.name()),
        }
        Ok(())
    }

    /// The index of the first element whose float32 value is NaN or infinite; integers have none.
    ///
    /// Blocks are judged by their float16 scales: one that is not finite makes every element of
    /// its block so, and finite ones make none (the largest product is some 65504 * 63 * 31).
    /// Bytes after the last whole element are not looked at.
    pub fn first_non_finite(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::F64 => first(bytes, |b| !f64_value(b).is_finite()),
            Self::F32 => first(bytes, |b| {
                u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000
            }),
            Self::F16 => first(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Self::Bf16 => first(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            Self::F8E4M3 => first(bytes, |[b]| b & 0x7f == 0x7f),
            Self::F8E5M2 => first(bytes, |[b]| b & 0x7c == 0x7c),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Iq4Nl | Self::Iq4Xs => {
                self.first_block(bytes, &[0])
            }
            Self::Mxfp4 => self.first_with(bytes, |block| block[0] >= 0xfd),
            Self::Nvfp4 => self.first_with(bytes, |block| {
                block[..4].iter().any(|scale| scale & 0x7f == 0x7f)
            }),
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => self.first_block(bytes, &[0, 2]),
            Self::Q2K => self.first_block(bytes, &[80, 82]),
            Self::Q3K => self.first_block(bytes, &[108]),
            Self::Q6K => self.first_block(bytes, &[208]),
            Self::I64
            | Self::I32
            | Self::I16
            | Self::I8
            | Self::U64
            | Self::U32
            | Self::U16
            | Self::U8
            | Self::Bool => None,
        }
    }

    /// The first element that is not finite in a block that may have some.
    fn first_with(self, bytes: &[u8], may: impl Fn(&[u8]) -> bool) -> Option<usize> {
        let elements = self.block_elements();
        let blocks = bytes.chunks_exact(self.block_bytes()).enumerate();
        blocks
            .filter(|(_, block)| may(block))
            .find_map(|(index, block)| {
                let mut values = vec![0.0; elements];
                self.decode(block, &mut values).ok()?;
                let within = values.iter().position(|value| !value.is_finite())?;
                Some(index * elements + within)
            })
    }

    /// The first element of the first block with a float16 at one of `places` that is not finite.
    fn first_block(self, bytes: &[u8], places: &[usize]) -> Option<usize> {
        let block = bytes.chunks_exact(self.block_bytes()).position(|block| {
            let bad = |&at: &usize| block[at + 1] & 0x7c == 0x7c;
            places.iter().any(bad)
        });
        block.map(|index| index * self.block_elements())
    }
}

fn f64_value(bytes: [u8; 8]) -> f32 {
    f64::from_le_bytes(bytes) as f32
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}

/// float16, with the processor's own conversion where it has one.
fn halves(bytes: &[u8], out: &mut [f32]) {
    const RUN: usize = 512;
    for (out, bytes) in out.chunks_mut(RUN).zip(bytes.chunks(2 * RUN)) {
        let mut words = [0_u16; RUN];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u16::from_le_bytes(*bytes);
        }
        let halves: &[f16] = words[..out.len()].reinterpret_cast();
        halves.convert_to_f32_slice(out);
    }
}

/// The first element that is `bad`.
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const RUN: usize = 2048;
    for (index, run) in bytes.as_chunks().0.chunks(RUN).enumerate() {
        // Without leaving early: so the loop vectorises.
        if run.iter().fold(false, |any, element| any | bad(*element)) {
            let within = run.iter().position(|element| bad(*element));
            return within.map(|at| index * RUN + at);
        }
    }
    None
}

// The values of float8's 256 codes (Micikevicius et al., FP8 Formats for Deep Learning, 2022).
static E4M3: [f32; 256] = float8(3, 7);
static E5M2: [f32; 256] = float8(2, 15);

const fn float8(mantissa_bits: u32, bias: u32) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0_u32;
    while code < 256 {
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = (code & 0x7f) >> mantissa_bits;
        let largest = 0x7f >> mantissa_bits;
        let magnitude = if bias == 7 && code & 0x7f == 0x7f {
            f32::NAN.to_bits()
        } else if bias == 15 && exponent == largest {
            0x7f80_0000 | (mantissa << 21)
        } else if exponent == 0 {
            // A multiple of the smallest subnormal, 2^(1 - bias - mantissa_bits).
            let unit = f32::from_bits((127 + 1 - bias - mantissa_bits) << 23);
            (mantissa as f32 * unit).to_bits()
        } else {
            ((exponent + 127 - bias) << 23) | (mantissa << (23 - mantissa_bits))
        };
        table[code as usize] = f32::from_bits(magnitude | ((code & 0x80) << 24));
        code += 1;
    }
    table
}
