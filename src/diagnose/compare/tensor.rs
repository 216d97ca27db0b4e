//! A tensor's values in row-major order, whatever holds them.

use std::ops::Range;

use anyhow::{Result, ensure};
use ndarray::{ArrayD, IxDyn};

use crate::runtime::{Mode, Packing, packed_number};
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::Arrangement;
use crate::weights::part::{Found, Part, Values};
use crate::weights::store::{Entry, TensorStore};

/// Elements that are read at a time: whole blocks and groups of every encoding.
pub const RUN: usize = 1 << 16;

/// A tensor of a file.
pub struct Tensor<'a> {
    /// Its name there.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How it is stored, in a few letters.
    pub label: String,
    /// By how much of its largest value two copies may differ, stored like this.
    pub tolerance: f64,
    values: Source<'a>,
    /// What is to be let go of once it has been read.
    mapped: Option<(&'a TensorStore, Vec<&'a Entry>)>,
    bytes: u64,
}

enum Source<'a> {
    /// Elements in row-major order, times the scales of equally many of them each.
    Plain {
        encoding: Encoding,
        bytes: &'a [u8],
        scales: Vec<f32>,
    },
    /// As MLX packs weights: `scale * q + bias`.
    Packed {
        words: &'a [u8],
        scales: (Encoding, &'a [u8]),
        biases: Option<(Encoding, &'a [u8])>,
        packing: Packing,
    },
    /// Put in order already.
    Whole(Vec<f64>),
}

/// The most by which values that are stored like this differ from others of theirs, over the
/// largest absolute value of the tensor: a unit in the last place of bfloat16 and float16, what
/// rounding takes of float8 and a tenth more, a step and some of quantized ones
/// ([`affine_tolerance`]); float32 is given what computing on another machine costs.
pub fn tolerance(encoding: Encoding) -> f64 {
    use Encoding as E;
    match encoding {
        E::F64 | E::F32 => 1e-4,
        E::F16 => 0.5_f64.powi(10),
        E::Bf16 => 0.5_f64.powi(8),
        E::F8E4M3 => 0.07,
        E::F8E5M2 => 0.14,
        E::Q8_0 => affine_tolerance(8),
        E::Q6K => affine_tolerance(6),
        E::Q5_0 | E::Q5_1 | E::Q5K => affine_tolerance(5),
        E::Q4_0 | E::Q4_1 | E::Q4K | E::Iq4Nl | E::Iq4Xs => affine_tolerance(4),
        // Half the distance of the two largest levels.
        E::Mxfp4 | E::Nvfp4 => 0.2,
        E::Q3K => affine_tolerance(3),
        E::Q2K => affine_tolerance(2),
        // Identities.
        E::I64 | E::I32 | E::I16 | E::I8 | E::U64 | E::U32 | E::U16 | E::U8 | E::Bool => 0.0,
    }
}

/// [`tolerance`] of weights in `bits` bits: a step and a half, where `2^bits` steps span at most
/// twice the largest value, and a unit in the last place of bfloat16. MLX rounds a group's scale
/// and offset to that after it has chosen the numbers, which at 8 bits costs as much as the half
/// step itself; a search for scales cuts the outermost weights off, by up to 1.3 steps of what they span.
pub fn affine_tolerance(bits: usize) -> f64 {
    3.0 / 2_f64.powi(bits.min(32) as i32) + tolerance(Encoding::Bf16)
}

impl<'a> Tensor<'a> {
    /// A tensor of a file by its stored name; integers too. Nothing when it is not there.
    pub fn stored(store: &'a TensorStore, name: &str) -> Option<Self> {
        let entry = store.entries().get(name)?;
        let mut tensor = Self::plain(name, entry.encoding, &entry.shape, store.bytes(entry));
        tensor.mapped = Some((store, vec![entry]));
        Some(tensor)
    }

    /// From bytes in row-major order.
    pub fn plain(name: &str, encoding: Encoding, shape: &[usize], bytes: &'a [u8]) -> Self {
        Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
            label: encoding.name().to_owned(),
            tolerance: tolerance(encoding),
            values: Source::Plain {
                encoding,
                bytes,
                scales: Vec::new(),
            },
            mapped: None,
            bytes: bytes.len() as u64,
        }
    }

    /// A tensor of a network, in its canonical shape.
    ///
    /// # Errors
    /// When the axes of a quantized one lie in another order, which no layout does.
    pub fn of_part(part: &'a Part, found: &Found<'a>) -> Result<Self> {
        let store = part.store();
        let tensor = match found.values {
            Values::Blocks { .. }
            | Values::Packed {
                factor: Some(_), ..
            }
            | Values::Stored {
                rotation: Some(_), ..
            } => {
                let values = part.values(found)?;
                let entries = found.values.entries().collect();
                Self {
                    name: found.name.clone(),
                    shape: found.shape.clone(),
                    label: found.values.label(),
                    tolerance: match found.values {
                        Values::Blocks { packing, .. } | Values::Packed { packing, .. }
                            if packing.bits == 4 =>
                        {
                            tolerance(Encoding::Mxfp4)
                        }
                        _ => tolerance(Encoding::F8E4M3),
                    },
                    values: Source::Whole(values.into_iter().map(f64::from).collect()),
                    mapped: Some((store, entries)),
                    bytes: found.values.byte_len() as u64,
                }
            }
            Values::Stored { entry, scale, .. } => Self {
                values: Source::Plain {
                    encoding: entry.encoding,
                    bytes: store.bytes(entry),
                    scales: part.scales(&found.name, scale)?,
                },
                mapped: Some((store, vec![entry])),
                tolerance: match entry.encoding {
                    Encoding::I8 => affine_tolerance(8),
                    encoding => tolerance(encoding),
                },
                ..Self::plain(
                    &found.name,
                    entry.encoding,
                    &entry.shape,
                    store.bytes(entry),
                )
            },
            Values::Packed {
                packed,
                scales,
                biases,
                packing,
                ..
            } => Self {
                name: found.name.clone(),
                shape: found.shape.clone(),
                label: found.values.label(),
                tolerance: match packing.mode {
                    Mode::Affine => affine_tolerance(packing.bits as usize),
                    Mode::Mxfp8 => tolerance(Encoding::F8E4M3),
                    Mode::Mxfp4 | Mode::Nvfp4 => tolerance(Encoding::Mxfp4),
                },
                values: Source::Packed {
                    words: store.bytes(packed),
                    scales: (scales.encoding, store.bytes(scales)),
                    biases: biases.map(|biases| (biases.encoding, store.bytes(biases))),
                    packing,
                },
                mapped: Some((
                    store,
                    [Some(packed), Some(scales), biases]
                        .into_iter()
                        .flatten()
                        .collect(),
                )),
                bytes: found.values.byte_len() as u64,
            },
        };
        match found.arrangement {
            Arrangement::Permuted(axes) => tensor.permuted(axes),
            Arrangement::AsIs | Arrangement::Reshaped => Ok(Self {
                shape: found.shape.clone(),
                ..tensor
            }),
        }
    }

    /// With axis `i` what is now axis `axes[i]`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn permuted(self, axes: &[usize]) -> Result<Self> {
        let mut values = vec![0.0; self.elements()];
        for (index, run) in values.chunks_mut(RUN).enumerate() {
            let start = index * RUN;
            let end = start + run.len();
            self.read(start..end, run)?;
        }
        let array = ArrayD::from_shape_vec(IxDyn(&self.shape), values)?;
        let array = array.permuted_axes(IxDyn(axes));
        Ok(Self {
            shape: array.shape().to_vec(),
            values: Source::Whole(array.iter().copied().collect()),
            ..self
        })
    }

    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes elements `range` to `out`; it starts at a multiple of [`RUN`] and ends at one or at
    /// the end.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn read(&self, range: Range<usize>, out: &mut [f64]) -> Result<()> {
        match &self.values {
            Source::Whole(values) => out.copy_from_slice(&values[range]),
            Source::Plain {
                encoding,
                bytes,
                scales,
            } => {
                let place = |at: usize| at / encoding.block_elements() * encoding.block_bytes();
                decode(*encoding, &bytes[place(range.start)..place(range.end)], out)?;
                if !scales.is_empty() {
                    let each = self.shape.iter().product::<usize>() / scales.len();
                    for (at, value) in (range.start..).zip(out) {
                        *value *= f64::from(scales[at / each.max(1)]);
                    }
                }
            }
            Source::Packed {
                words,
                scales,
                biases,
                packing,
            } => {
                let group_size = packing.group_size as usize;
                let bits = packing.bits as usize;
                let groups = range.start / group_size..range.end.div_ceil(group_size);
                let side = |&(encoding, bytes): &(Encoding, &[u8])| -> Result<Vec<f64>> {
                    let size = encoding.block_bytes();
                    let bytes = &bytes[groups.start * size..groups.end * size];
                    let mut values = vec![0.0; groups.len()];
                    match packing.mode {
                        Mode::Affine => decode(encoding, bytes, &mut values)?,
                        mode => each(bytes, &mut values, |[code]| mode.scale(code)),
                    }
                    Ok(values)
                };
                let scales = side(scales)?;
                let biases = biases.as_ref().map(side).transpose()?;
                for (i, out) in out.iter_mut().enumerate() {
                    let group = i / group_size;
                    let number = packed_number(words, (range.start + i) * bits, bits);
                    let bias = biases.as_ref().map_or(0.0, |biases| biases[group]);
                    *out = scales[group] * packing.mode.level(number) + bias;
                }
            }
        }
        Ok(())
    }

    /// Lets the machine forget what has been read of it, which counts as this program's memory.
    pub fn release(&self, range: Range<usize>) {
        let Some((store, entries)) = &self.mapped else {
            return;
        };
        let elements = self.elements().max(1) as u128;
        for entry in entries {
            let place = |at: usize| (entry.byte_len() as u128 * at as u128 / elements) as usize;
            store.release(entry, place(range.start)..place(range.end));
        }
    }
}

/// Numbers of any encoding.
fn decode(encoding: Encoding, bytes: &[u8], out: &mut [f64]) -> Result<()> {
    ensure!(
        encoding.byte_len(&[out.len()]) == Some(bytes.len()),
        "{} bytes do not hold {} elements of {}",
        bytes.len(),
        out.len(),
        encoding.name()
    );
    use Encoding as E;
    match encoding {
        E::F64 => each(bytes, out, f64::from_le_bytes),
        E::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
        E::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f64),
        E::I32 => each(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
        E::U32 => each(bytes, out, |b| f64::from(u32::from_le_bytes(b))),
        E::I16 => each(bytes, out, |b| f64::from(i16::from_le_bytes(b))),
        E::U16 => each(bytes, out, |b| f64::from(u16::from_le_bytes(b))),
        E::I8 => each(bytes, out, |b| f64::from(i8::from_le_bytes(b))),
        E::U8 | E::Bool => each(bytes, out, |[b]| f64::from(b)),
        _ => {
            let mut values = vec![0_f32; out.len()];
            encoding.decode(bytes, &mut values)?;
            for (out, value) in out.iter_mut().zip(values) {
                *out = f64::from(value);
            }
        }
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f64], value: impl Fn([u8; N]) -> f64) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_their_signs() {
        let mut out = [0.0; 2];
        let bytes: Vec<u8> = [-3_i16, 700].iter().flat_map(|v| v.to_le_bytes()).collect();
        decode(Encoding::I16, &bytes, &mut out).unwrap();
        assert_eq!(out, [-3.0, 700.0]);
        assert!(decode(Encoding::I16, &bytes[1..], &mut out).is_err());
    }

    #[test]
    fn axes_are_put_in_order() {
        let bytes: Vec<u8> = (0..6).collect();
        let tensor = Tensor::plain("t", Encoding::U8, &[2, 3], &bytes);
        let tensor = tensor.permuted(&[1, 0]).unwrap();
        assert_eq!(tensor.shape, [3, 2]);
        let mut out = [0.0; 6];
        tensor.read(0..6, &mut out).unwrap();
        assert_eq!(out, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}
