//! The values of stored tensors: checked, decoded, as MLX arrays.

use std::ffi::c_void;

use anyhow::{Context, Result, anyhow, bail, ensure};
use half::{bf16, f16};
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use super::{Found, Part, Scale, Values, formats};
use crate::model::layers::Quantized;
use crate::runtime::{Device, DeviceKind, Mode, Packing, Precision, to_host};
use crate::weights::adapter::Adapter;
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::Arrangement;
use crate::weights::quantize::{self, Packed, Scheme, Search};
use crate::weights::repack::{self, Kept};
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
        for entry in found.values.entries() {
            self.store.release(entry, 0..entry.byte_len());
        }
    }

    /// What is said of a tensor with a value that is not finite.
    fn not_finite(&self, name: &str) -> anyhow::Error {
        anyhow!(
            "{}: the tensor {name} holds a value that is not finite (NaN or infinite); the file \
             is damaged, download it again",
            self.store.location()
        )
    }

    /// Refuses a stored tensor with a value that is not finite.
    pub fn ensure_finite(&self, name: &str, entry: &Entry) -> Result<()> {
        self.store.verify(name, entry)?;
        ensure!(self.store.is_finite(entry), self.not_finite(name));
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
                let bad = entry.encoding.first_non_finite(bytes);
                ensure!(bad.is_none(), self.not_finite(name));
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
            Values::Packed { .. }
            | Values::Blocks { .. }
            | Values::Stored {
                rotation: Some(_), ..
            } => {
                let exact = Device {
                    dtype: Precision::F32,
                    ..device
                };
                let dense = self.kept(found, exact)?.dequantize()?;
                arrange(&dense, found, &shape)?.as_dtype(dtype)
            }
            Values::Stored { entry, scale, .. } => {
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

    /// All values of a found tensor, in canonical order.
    ///
    /// # Errors
    /// When one is not finite.
    pub fn values(&self, found: &Found) -> Result<Vec<f32>> {
        Ok(to_host(&self.dense(found, Dtype::Float32, EXACT)?)?)
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

    /// A found weight in the packing that it is kept in, for products in the dtype of `device`.
    ///
    /// # Errors
    /// When a value is not finite, or it is kept in none.
    pub(in crate::weights) fn kept(&self, found: &Found, device: Device) -> Result<Quantized> {
        let [outputs, inputs] = *found.shape else {
            bail!("{} is no weight of a linear layer", found.name);
        };
        let kept = found.values.kept(inputs);
        let Kept { packing, .. } =
            kept.with_context(|| format!("{} is not quantized", found.name))?;
        let shape = [outputs, inputs];
        let mut rotation = None;
        let (words, scales, biases, factor) = match found.values {
            Values::Packed {
                packed,
                scales,
                biases,
                factor,
                ..
            } => {
                if packing.mode == Mode::Mxfp8 {
                    let bad = Encoding::F8E4M3.first_non_finite(self.store.bytes(packed));
                    ensure!(bad.is_none(), self.not_finite(&found.name));
                }
                let words = array(self.store.bytes(packed), &packed.shape, Dtype::Uint32)?;
                let scales = self.beside(found, scales, "scales", packing, device)?;
                let biases = biases
                    .map(|biases| self.beside(found, biases, "biases", packing, device))
                    .transpose()?;
                let factor = factor.map(|entry| self.scales(&found.name, Scale::Rows(entry)));
                let factor = factor
                    .transpose()?
                    .map(|v| Array::from_slice(&v, &[v.len() as i32]));
                (words, scales, biases, factor)
            }
            Values::Blocks { .. } => self.reordered(found)?,
            Values::Stored {
                entry,
                scale,
                rotation: size,
            } => match entry.encoding {
                Encoding::F8E4M3 | Encoding::F8E5M2 | Encoding::I8 => {
                    rotation = size.map(i32::try_from).transpose()?;
                    self.scaled(found, entry, scale, packing, device)?
                }
                _ => self.repacked(found, entry, scale, packing, device)?,
            },
        };
        let groups = [outputs, packing.groups(inputs)];
        debug_assert_eq!(
            words.shape(),
            dimensions(&[outputs, packing.words(inputs)])?
        );
        debug_assert_eq!(scales.shape(), dimensions(&groups)?, "{shape:?}");
        Ok(Quantized {
            packed: words,
            scales,
            biases,
            packing,
            factor,
            rotation,
            device,
        })
    }

    /// Blocks of small floats in the order of MLX's packing.
    fn reordered(&self, found: &Found) -> Result<Parts> {
        let Values::Blocks {
            codes,
            scales,
            packing,
            high_first,
            swizzled,
            factor,
        } = found.values
        else {
            bail!("{} is not in blocks", found.name);
        };
        let (rows, groups) = (found.shape[0], packing.groups(found.shape[1]));
        let bytes = self.store.bytes(codes);
        if packing.bits == 8 {
            let bad = Encoding::F8E4M3.first_non_finite(bytes);
            ensure!(bad.is_none(), self.not_finite(&found.name));
        }
        let words = match high_first {
            true => {
                let swapped: Vec<u8> = bytes.iter().map(|byte| byte.rotate_left(4)).collect();
                array(
                    &swapped,
                    &[rows, packing.words(found.shape[1])],
                    Dtype::Uint32,
                )?
            }
            false => array(bytes, &[rows, packing.words(found.shape[1])], Dtype::Uint32)?,
        };
        let stored = self.store.bytes(scales);
        let ordered: Vec<u8> = match swizzled {
            true => (0..rows * groups)
                .into_par_iter()
                .map(|at| stored[formats::swizzled(at / groups, at % groups, groups)])
                .collect(),
            false => stored.to_vec(),
        };
        let bad = !ordered.iter().all(|&code| packing.mode.is_scale(code));
        ensure!(!bad, self.not_finite(&found.name));
        let scales = Array::from_slice(&ordered, &dimensions(&[rows, groups])?);
        let factor = (factor != 1.0).then(|| Array::from_slice(&[factor], &[1]));
        Ok((words, scales, None, factor))
    }

    /// Scales or biases that are stored as MLX has them.
    fn beside(
        &self,
        found: &Found,
        entry: &Entry,
        end: &str,
        packing: Packing,
        device: Device,
    ) -> Result<Array> {
        let name = format!("{} ({end})", found.name);
        if packing.mode != Mode::Affine {
            let bytes = self.store.bytes(entry);
            let bad = !bytes.iter().all(|&code| packing.mode.is_scale(code));
            ensure!(!bad, self.not_finite(&name));
            return Ok(Array::from_slice(bytes, &dimensions(&entry.shape)?));
        }
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
        let dtype = device.dtype.matmul_dtype();
        let array = array(self.store.bytes(entry), &entry.shape, stored)?.as_dtype(dtype)?;
        array.eval()?;
        Ok(array)
    }

    /// float8 and int8: the bytes as they are, the power of two of their scale beside the groups, and the
    /// rest of it as a factor of the products.
    fn scaled(
        &self,
        found: &Found,
        entry: &Entry,
        scale: Scale,
        packing: Packing,
        device: Device,
    ) -> Result<Parts> {
        self.ensure_finite(&found.name, entry)?;
        let bytes = self.store.bytes(entry);
        let [outputs, inputs] = [entry.shape[0], entry.shape[1]];
        let groups = packing.groups(inputs);
        let mut numbers = self.scales(&found.name, scale)?;
        if numbers.is_empty() {
            numbers.push(1.0);
        }
        let (mut powers, factors): (Vec<i32>, Vec<f32>) =
            numbers.into_iter().map(repack::split).unzip();
        let is_one = factors.iter().all(|&factor| factor == 1.0);
        let factor = (!is_one).then(|| Array::from_slice(&factors, &[factors.len() as i32]));
        if powers.len() == 1 {
            powers.resize(outputs, powers[0]);
        }
        let (sides, shape) = (
            dimensions(&[outputs, groups])?,
            [outputs, packing.words(inputs)],
        );
        if packing.mode == Mode::Affine {
            let words = Array::from_slice(&repack::int8(bytes), &dimensions(&shape)?);
            let scale = |power: &i32| std::iter::repeat_n(repack::power(*power), groups);
            let scales: Vec<f32> = powers.iter().flat_map(scale).collect();
            let biases: Vec<f32> = scales.iter().map(|scale| -128.0 * scale).collect();
            let [scales, biases] = [scales, biases].map(|side| to_side(&side, &sides, device));
            return Ok((words, scales?, Some(biases?), factor));
        }
        let mut codes = repack::float8(&powers, groups);
        let words = match entry.encoding {
            Encoding::F8E5M2 => {
                let mut out = vec![0_u8; bytes.len()];
                (out.as_chunks_mut().0.par_iter_mut())
                    .zip(bytes.as_chunks().0)
                    .zip(&mut codes)
                    .for_each(|((out, bytes), code)| {
                        *code = repack::from_e5m2(bytes, i32::from(*code) - 127, out);
                    });
                array(&out, &shape, Dtype::Uint32)?
            }
            _ => array(bytes, &shape, Dtype::Uint32)?,
        };
        Ok((words, Array::from_slice(&codes, &sides), None, factor))
    }

    /// GGUF's blocks as groups that MLX knows, and their scale as a factor of the products.
    fn repacked(
        &self,
        found: &Found,
        entry: &Entry,
        scale: Scale,
        packing: Packing,
        device: Device,
    ) -> Result<Parts> {
        /// Values that a core takes at once; a multiple of every block.
        const CHUNK: usize = 1 << 16;
        self.store.verify(&found.name, entry)?;
        let encoding = entry.encoding;
        let values: usize = entry.shape.iter().product();
        let inputs = *entry.shape.last().unwrap_or(&1);
        let rows = values / inputs.max(1);
        let groups = packing.groups(values);
        let words_of_group = packing.words(packing.group_size as usize);
        let many = CHUNK / packing.group_size as usize;
        let mut words = vec![0_u32; packing.words(values)];
        let [mut scales, mut biases] = [(); 2].map(|()| vec![0_f32; groups]);
        let round: fn(f32) -> f32 = match device.dtype {
            Precision::F32 => |value| value,
            Precision::F16 => |value| f16::from_f32(value).to_f32(),
            Precision::Bf16 => |value| bf16::from_f32(value).to_f32(),
        };
        let chunk = CHUNK / encoding.block_elements() * encoding.block_bytes();
        self.store
            .bytes(entry)
            .par_chunks(chunk)
            .zip(words.par_chunks_mut(many * words_of_group))
            .zip(scales.par_chunks_mut(many).zip(biases.par_chunks_mut(many)))
            .try_for_each(|((bytes, words), (scales, biases))| {
                let bad = encoding.first_non_finite(bytes);
                ensure!(bad.is_none(), self.not_finite(&found.name));
                let sides = repack::Sides {
                    words,
                    scales,
                    biases,
                };
                repack::blocks(encoding, bytes, sides, round);
                Ok(())
            })?;
        let words = Array::from_slice(&words, &dimensions(&[rows, packing.words(inputs)])?);
        let factors = self.scales(&found.name, scale)?;
        let factor =
            (!factors.is_empty()).then(|| Array::from_slice(&factors, &[factors.len() as i32]));
        let shape = dimensions(&[rows, packing.groups(inputs)])?;
        if packing.mode != Mode::Affine {
            let codes: Vec<u8> = scales.iter().map(|&code| code as u8).collect();
            return Ok((words, Array::from_slice(&codes, &shape), None, factor));
        }
        let scales = to_side(&scales, &shape, device)?;
        let biases = to_side(&biases, &shape, device)?;
        Ok((words, scales, Some(biases), factor))
    }

    /// Quantizes a found weight `[outputs, inputs]`, a chunk at a time.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn quantize(
        &self,
        found: &Found,
        scheme: Scheme,
        search: Search,
        each: &mut dyn FnMut(Packed) -> Result<()>,
    ) -> Result<()> {
        let Values::Stored {
            entry,
            scale,
            rotation: None,
        } = found.values
        else {
            // In a piece: few are stored like this.
            let values = self.values(found)?;
            return each(
                quantize_parallel(&values, scheme, search).with_context(|| found.name.clone())?,
            );
        };
        let elements: usize = entry.shape.iter().product();
        for start in (0..elements).step_by(CHUNK) {
            let range = start..(start + CHUNK).min(elements);
            let values = self.decode(&found.name, entry, scale, range)?;
            let packed = quantize_parallel(&values, scheme, search);
            each(packed.with_context(|| found.name.clone())?)?;
        }
        Ok(())
    }
}

/// For values of no more than they are.
const EXACT: Device = Device::new(DeviceKind::Cpu, Some(Precision::F32));

/// Words, scales, biases and factor of a packed weight.
type Parts = (Array, Array, Option<Array>, Option<Array>);

/// Scales or biases in the dtype of the products.
fn to_side(values: &[f32], shape: &[i32], device: Device) -> Result<Array> {
    let array = Array::from_slice(values, shape).as_dtype(device.dtype.matmul_dtype())?;
    array.eval()?;
    Ok(array)
}

/// [`quantize::quantize`] on every core; the same bytes.
///
/// # Errors
/// As there.
pub fn quantize_parallel(values: &[f32], scheme: Scheme, search: Search) -> Result<Packed> {
    let parts = values
        .par_chunks(1 << 16)
        .map(|values| quantize::quantize(values, scheme, search))
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::layers::{Linear, Weight};
    use crate::runtime::Kernels;
    use crate::weights::naming::{Detected, Kind, Naming};
    use crate::weights::store::{Location, TensorStore};

    const NAME: &str = "blocks.0.ffn.net.0.proj.weight";
    const SHAPE: [usize; 2] = [160, 64];

    fn part(form: &str) -> (Part, Vec<f32>) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/packed")
            .join(format!("{form}.safetensors"));
        let location = Location::at(&file).unwrap();
        let store = TensorStore::open(&location).unwrap();
        let mut expected = vec![0.0; SHAPE.iter().product()];
        let entry = &store.entries()["dequantized"];
        let bytes = store.bytes(entry);
        entry.encoding.decode(bytes, &mut expected).unwrap();
        let names = Detected::plain(Kind::Expert, Naming::Original);
        (Part::open_share(&location, names).unwrap(), expected)
    }

    /// Fails unless values are as near as sums of the reference's in another order.
    fn assert_near(what: &str, ours: &[f32], expected: &[f32], most: f32) {
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let off = (ours.iter().zip(expected)).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert_eq!(ours.len(), expected.len(), "{what}");
        assert!(off <= most * largest, "{what}: {off:.2e} of {largest:.2e}");
    }

    /// Against the matrices that the forms' own programs make of them (scripts/golden_packed.py).
    #[test]
    fn every_quantized_form_is_kept_packed_and_is_its_values() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let affine = |group| Packing::affine(8, group);
        for (form, packing) in [
            ("comfy_fp8_e5m2", Packing::MXFP8),
            ("comfy_int8", affine(64)),
            ("comfy_int8_rotated", affine(64)),
            ("comfy_mxfp8", Packing::MXFP8),
            ("comfy_nvfp4", Packing::NVFP4),
            ("lightx2v_fp8", Packing::MXFP8),
            ("lightx2v_mxfp4", Packing::MXFP4),
            ("lightx2v_mxfp8", Packing::MXFP8),
            ("lightx2v_nvfp4", Packing::NVFP4),
            ("mlx_mxfp4", Packing::MXFP4),
            ("mlx_mxfp8", Packing::MXFP8),
            ("mlx_nvfp4", Packing::NVFP4),
            ("modelopt_nvfp4", Packing::NVFP4),
            ("quanto_int8", affine(64)),
        ] {
            let (part, expected) = part(form);
            let found = part.find(NAME, &SHAPE).unwrap();
            assert_eq!(found.values.kept(64).unwrap().packing, packing, "{form}");
            // float8 of five exponent bits has values below a 2^15th of their group's largest.
            let most = if form.ends_with("e5m2") { 4e-6 } else { 5e-7 };
            assert_near(form, &part.values(&found).unwrap(), &expected, most);
            let x: Vec<f32> = (0..40 * 64)
                .map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0)
                .collect();
            let product = |row: usize, output: usize| -> f32 {
                let (x, w) = (&x[64 * row..][..64], &expected[64 * output..][..64]);
                x.iter()
                    .zip(w)
                    .map(|(x, w)| f64::from(*x) * f64::from(*w))
                    .sum::<f64>() as f32
            };
            let products: Vec<f32> = (0..40 * 160)
                .map(|at| product(at / 160, at % 160))
                .collect();
            for (kernels, dtype, most) in [
                (Kernels::Cpu, Precision::F32, 2e-6),
                (Kernels::Mlx, Precision::F32, 2e-6),
                // MLX's CPU backend sums in them.
                (Kernels::Mlx, Precision::Bf16, 0.04),
                (Kernels::Mlx, Precision::F16, 5e-3),
            ] {
                for dense_above in [0, i32::MAX] {
                    let device = Device {
                        dense_above,
                        ..Device::with_kernels(DeviceKind::Cpu, Some(dtype), kernels)
                    };
                    let kept = part.kept(&found, device).unwrap();
                    let linear = Linear::from_weight(Weight::Quantized(kept, Vec::new()), None);
                    let y = linear
                        .unwrap()
                        .forward(&Array::from_slice(&x, &[40, 64]))
                        .unwrap();
                    let what = format!("{form} by {kernels:?} in {dtype:?} above {dense_above}");
                    assert_near(&what, &to_host(&y).unwrap(), &products, most);
                }
            }
        }
    }
}
