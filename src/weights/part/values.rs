//! The values of stored tensors: checked, decoded, as MLX arrays.

use std::ffi::c_void;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use super::{Found, Part, Scale, Values};
use crate::model::layers::Quantized;
use crate::runtime::{Device, Precision};
use crate::weights::adapter::Adapter;
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::Arrangement;
use crate::weights::quantize::{self, Bits, Packed};
use crate::weights::store::Entry;

/// Elements that are converted at a time; a multiple of every block and group.
const CHUNK: usize = 1 << 22;
/// The dtypes whose bytes MLX takes as they are.
pub(super) const PLAIN: [(Encoding, Dtype); 3] = [
    (Encoding::F32, Dtype::Float32),
    (Encoding::F16, Dtype::Float16),
    (Encoding::Bf16, Dtype::Bfloat16),
];

impl Part {
    /// Lets the machine forget the pages of a tensor that has been copied: with them a model would
    /// take its size twice.
    pub(super) fn release(&self, found: &Found) {
        let entries = match found.values {
            Values::Stored { entry, .. } => [Some(entry), None, None],
            Values::Affine {
                packed,
                scales,
                biases,
                ..
            } => [Some(packed), Some(scales), Some(biases)],
        };
        for entry in entries.into_iter().flatten() {
            self.store.release(entry, 0..entry.byte_len());
        }
    }

    /// Refuses a stored tensor with a value that is not finite.
    pub fn ensure_finite(&self, name: &str, entry: &Entry) -> Result<()> {
        self.store.verify(name, entry)?;
        ensure!(
            self.store.is_finite(entry),
            "{}: the tensor {name} holds a value that is not finite (NaN or infinite); the file \
             is damaged, download it again",
            self.store.location()
        );
        Ok(())
    }

    /// The values of elements `range` (of whole blocks) of a stored tensor, in stored order.
    ///
    /// # Errors
    /// When one is not finite.
    pub fn decode(
        &self,
        name: &str,
        entry: &Entry,
        scale: Scale,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<f32>> {
        self.store.verify(name, entry)?;
        let (block, block_bytes) = (
            entry.encoding.block_elements(),
            entry.encoding.block_bytes(),
        );
        let bytes = &self.store.bytes(entry)
            [range.start / block * block_bytes..range.end / block * block_bytes];
        let scales = self.scales(name, scale)?;
        let in_row = entry.shape.iter().skip(1).product::<usize>().max(1);
        let mut values = vec![0.0; range.len()];
        values
            .par_chunks_mut(1 << 16)
            .zip(bytes.par_chunks((1 << 16) / block * block_bytes))
            .enumerate()
            .try_for_each(|(chunk, (values, bytes))| {
                ensure!(
                    entry.encoding.first_non_finite(bytes).is_none(),
                    "{}: the tensor {name} holds a value that is not finite (NaN or infinite); \
                     the file is damaged, download it again",
                    self.store.location()
                );
                entry.encoding.decode(bytes, values)?;
                match *scales.as_slice() {
                    [] => {}
                    [scale] => values.iter_mut().for_each(|v| *v *= scale),
                    _ => {
                        let first = range.start + (chunk << 16);
                        for (at, value) in (first..).zip(values) {
                            *value *= scales[at / in_row];
                        }
                    }
                }
                Ok(())
            })?;
        Ok(values)
    }

    /// The scale of the weight `name`, or that of each of its rows; none where it has none.
    ///
    /// # Errors
    /// When one is not finite.
    pub fn scales(&self, name: &str, scale: Scale) -> Result<Vec<f32>> {
        match scale {
            Scale::One(1.0) => Ok(Vec::new()),
            Scale::One(scale) => Ok(vec![scale]),
            Scale::Rows(scales) => {
                self.ensure_finite(&format!("{name} (scales)"), scales)?;
                let mut values = vec![0.0; scales.shape.iter().product()];
                let bytes = self.store.bytes(scales);
                scales.encoding.decode(bytes, &mut values)?;
                Ok(values)
            }
        }
    }

    /// A found tensor as MLX array in `dtype`, by the kernels of `device`.
    pub(super) fn dense(&self, found: &Found, dtype: Dtype, device: Device) -> Result<Array> {
        let shape = dimensions(&found.shape)?;
        match found.values {
            Values::Affine { .. } => {
                let dense = self.affine(found, Precision::F32, device)?.dequantize()?;
                arrange(&dense, found, &shape)?.as_dtype(dtype)
            }
            Values::Stored { entry, scale } => {
                let plain = PLAIN
                    .iter()
                    .find(|(encoding, _)| *encoding == entry.encoding);
                match plain {
                    Some(&(_, stored)) if scale.is_none() => {
                        self.ensure_finite(&found.name, entry)?;
                        let array = array(self.store.bytes(entry), &entry.shape, stored)?;
                        arrange(&array, found, &shape)?.as_dtype(dtype)
                    }
                    _ => {
                        let bytes = self.decode_to(found, entry, scale, dtype)?;
                        arrange(&array(&bytes, &entry.shape, dtype)?, found, &shape)
                    }
                }
            }
        }
        .map_err(Into::into)
    }

    /// A found tensor with adapters' changes, float32.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn with_changes(
        &self,
        name: &str,
        found: &Found,
        adapters: &[Adapter],
        device: Device,
    ) -> Result<Array> {
        let mut array = self.dense(found, Dtype::Float32, device)?;
        array.eval()?;
        for adapter in adapters {
            array = adapter.apply(name, &array)?;
        }
        Ok(array)
    }

    /// A stored tensor's values as bytes of `dtype`, a chunk at a time.
    fn decode_to(
        &self,
        found: &Found,
        entry: &Entry,
        scale: Scale,
        dtype: Dtype,
    ) -> Result<Vec<u8>> {
        let elements: usize = entry.shape.iter().product();
        let mut bytes = Vec::with_capacity(elements.saturating_mul(dtype_size(dtype)));
        for start in (0..elements).step_by(CHUNK) {
            let range = start..(start + CHUNK).min(elements);
            append(
                &self.decode(&found.name, entry, scale, range)?,
                dtype,
                &mut bytes,
            );
        }
        Ok(bytes)
    }

    /// A found tensor that is stored in MLX's quantization, in `dtype`.
    pub(super) fn affine(
        &self,
        found: &Found,
        dtype: Precision,
        device: Device,
    ) -> Result<Quantized> {
        let Values::Affine {
            packed,
            scales,
            biases,
            bits,
            group_size,
        } = found.values
        else {
            bail!("{} is not quantized", found.name);
        };
        let dtype = dtype.matmul_dtype();
        let side = |entry: &Entry, end: &str| {
            let name = format!("{} ({end})", found.name);
            let stored = PLAIN
                .iter()
                .find(|(encoding, _)| *encoding == entry.encoding);
            let &(_, stored) = stored.with_context(|| {
                format!(
                    "{name} are {}; expected f32, f16 or bf16",
                    entry.encoding.name()
                )
            })?;
            self.ensure_finite(&name, entry)?;
            let array = array(self.store.bytes(entry), &entry.shape, stored)?.as_dtype(dtype)?;
            array.eval()?;
            anyhow::Ok(array)
        };
        Ok(Quantized {
            packed: array(self.store.bytes(packed), &packed.shape, Dtype::Uint32)?,
            scales: side(scales, "scales")?,
            biases: side(biases, "biases")?,
            group_size: group_size as i32,
            bits: bits as i32,
            device,
        })
    }

    /// Quantizes a found weight `[outputs, inputs]`, a chunk at a time.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn quantize(
        &self,
        found: &Found,
        bits: Bits,
        each: &mut dyn FnMut(Packed) -> Result<()>,
    ) -> Result<()> {
        let Values::Stored { entry, scale } = found.values else {
            bail!("{} is quantized already", found.name);
        };
        let elements: usize = entry.shape.iter().product();
        for start in (0..elements).step_by(CHUNK) {
            let range = start..(start + CHUNK).min(elements);
            let values = self.decode(&found.name, entry, scale, range)?;
            each(quantize_parallel(&values, bits).with_context(|| found.name.clone())?)?;
        }
        Ok(())
    }
}

/// [`quantize::quantize`] on every core; the same bytes.
///
/// # Errors
/// As there.
pub fn quantize_parallel(values: &[f32], bits: Bits) -> Result<Packed> {
    let parts = values
        .par_chunks(1 << 16)
        .map(|values| quantize::quantize(values, bits))
        .collect::<Result<Vec<_>>>()?;
    let mut all = Packed::default();
    for part in parts {
        all.extend(part);
    }
    Ok(all)
}

/// Appends values as little-endian bytes of float32, bfloat16 or float16.
fn append(values: &[f32], dtype: Dtype, bytes: &mut Vec<u8>) {
    match dtype {
        Dtype::Float16 => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        Dtype::Bfloat16 => {
            bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
        }
        _ => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}

fn dtype_size(dtype: Dtype) -> usize {
    if dtype == Dtype::Float32 { 4 } else { 2 }
}

/// A stored array as the canonical one.
fn arrange(stored: &Array, found: &Found, shape: &[i32]) -> mlx_rs::error::Result<Array> {
    match found.arrangement {
        Arrangement::AsIs => Ok(stored.clone()),
        Arrangement::Reshaped => stored.reshape(shape),
        Arrangement::Permuted(axes) => {
            let axes: Vec<i32> = axes.iter().map(|&axis| axis as i32).collect();
            stored.transpose_axes(&axes)?.reshape(shape)
        }
    }
}

/// Bytes of a file as an array.
pub(super) fn array(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Array> {
    let size = match dtype {
        Dtype::Float16 | Dtype::Bfloat16 => 2,
        _ => 4,
    };
    let dimensions = dimensions(shape)?;
    ensure!(
        shape.iter().product::<usize>() * size == bytes.len(),
        "a tensor of shape {shape:?} has {} bytes",
        bytes.len()
    );
    // MLX reads through a typed pointer, and older writers did not align the data.
    let copy: Vec<u64>;
    let data = if (bytes.as_ptr() as usize).is_multiple_of(size) {
        bytes.as_ptr()
    } else {
        copy = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        copy.as_ptr().cast()
    };
    // SAFETY: `data` points at the shape's elements, aligned, and MLX copies them.
    let array = unsafe { Array::from_raw_data(data.cast::<c_void>(), &dimensions, dtype) };
    let refused = array.as_ptr().ctx.is_null();
    ensure!(
        !refused,
        "the system refuses {} bytes of memory",
        bytes.len()
    );
    Ok(array)
}

fn dimensions(shape: &[usize]) -> Result<Vec<i32>> {
    shape
        .iter()
        .map(|&d| i32::try_from(d).with_context(|| format!("the shape {shape:?} is too large")))
        .collect()
}
