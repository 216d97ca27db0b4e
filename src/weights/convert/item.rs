//! What becomes of one tensor: how it is stored in the converted part, and the bytes of it.

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::Dtype;

use super::Bits;
use super::writer::{OutTensor, Writer};
use crate::model::{Recorder, Role, TensorSpec};
use crate::runtime::to_host;
use crate::weights::adapter::Adapter;
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::{self, Arrangement, Detected, Naming, Stored};
use crate::weights::part::{Found, Part, Values, may_quantize, quantize_parallel};
use crate::weights::quantize::{self, GROUP_SIZE};

/// Elements that pass through memory at a time.
const CHUNK: usize = 1 << 22;

/// How a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// In a float type.
    Float(Dtype),
    /// As MLX's affine quantization: packed words, scales, biases.
    Quantized(quantize::Bits),
    /// As the three tensors that it is stored in already.
    Affine,
}

/// A tensor of the part with the tensors that it becomes.
#[derive(Debug)]
pub struct Item {
    /// Its canonical name.
    pub name: String,
    shape: Vec<usize>,
    target: Target,
    out: Stored,
    /// What is written, in the order of the writer's numbers.
    pub tensors: Vec<OutTensor>,
    /// How it is stored in the source, in a few letters.
    pub from: String,
    /// Its bytes in the source.
    pub source_bytes: u64,
}

/// How far the written values are from the read ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Errors {
    /// The largest absolute difference.
    pub max: f64,
    /// The sum of squared differences.
    pub squares: f64,
    /// The sum of squared values.
    pub energy: f64,
}

impl Errors {
    fn add(&mut self, before: &[f32], after: &[f32]) {
        for (&before, &after) in before.iter().zip(after) {
            let error = f64::from(before) - f64::from(after);
            self.max = self.max.max(error.abs());
            self.squares += error * error;
            self.energy += f64::from(before) * f64::from(before);
        }
    }

    /// Root of the summed squared differences over that of the values.
    pub fn relative(&self) -> f64 {
        if self.squares == 0.0 {
            0.0
        } else {
            (self.squares / self.energy.max(f64::MIN_POSITIVE)).sqrt()
        }
    }
}

impl Item {
    /// Decides what becomes of a tensor.
    ///
    /// # Errors
    /// When it is quantized already and other bits are asked for.
    pub fn plan(
        spec: &TensorSpec,
        found: &Found,
        part: &Part,
        bits: Option<Bits>,
        adapters: &[Adapter],
    ) -> Result<Self> {
        let kind = part.names().kind;
        let out = Detected {
            residual: part.names().residual,
            ..Detected::plain(kind, Naming::MlxVideo)
        };
        let out = out.stored(&spec.name, &found.shape)?;
        let eligible = may_quantize(kind, &spec.name, &found.shape);
        let target = match found.values {
            Values::Affine {
                bits: stored,
                group_size,
                ..
            } => {
                let same = bits.is_none_or(|b| {
                    b.quantized().map(quantize::Bits::number) == Some(stored)
                        && group_size == GROUP_SIZE
                });
                ensure!(
                    same,
                    "{} is quantized to {stored} bits in groups of {group_size} already\nhint: convert \
                     from the unquantized model, or keep the bits",
                    found.name
                );
                ensure!(
                    adapters.iter().all(|adapter| !adapter.changes(&spec.name)),
                    "{} is quantized already, and an adapter changes it\nhint: convert from the \
                     unquantized model, or give --lora when a clip is made",
                    found.name
                );
                Target::Affine
            }
            Values::Stored { entry, scale } => {
                match bits.and_then(Bits::quantized).filter(|_| eligible) {
                    Some(bits) => Target::Quantized(bits),
                    None => Target::Float(float_type(
                        entry.encoding,
                        !scale.is_none(),
                        eligible,
                        spec.role,
                    )),
                }
            }
        };
        let tensor = |name: &str, dtype, shape: &[usize]| OutTensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let tensors = match (target, &found.values) {
            (
                Target::Affine,
                Values::Affine {
                    packed,
                    scales,
                    biases,
                    ..
                },
            ) => {
                let (scales_name, biases_name) = side_names(&out.name)?;
                let side = float_type(scales.encoding, false, false, Role::Exact);
                vec![
                    tensor(&out.name, Dtype::U32, &packed.shape),
                    tensor(&scales_name, side, &scales.shape),
                    tensor(&biases_name, side, &biases.shape),
                ]
            }
            (Target::Quantized(bits), _) => {
                let (outputs, inputs) = (found.shape[0], found.shape[1]);
                let (scales, biases) = side_names(&out.name)?;
                let words = [outputs, bits.packed_bytes(inputs) / 4];
                let groups = [outputs, inputs / GROUP_SIZE];
                vec![
                    tensor(&out.name, Dtype::U32, &words),
                    tensor(&scales, Dtype::BF16, &groups),
                    tensor(&biases, Dtype::BF16, &groups),
                ]
            }
            (Target::Float(dtype), _) => vec![tensor(&out.name, dtype, &out.shape)],
            (Target::Affine, Values::Stored { .. }) => bail!("{} is not quantized", found.name),
        };
        Ok(Self {
            name: spec.name.clone(),
            shape: found.shape.clone(),
            target,
            out,
            tensors,
            from: found.values.label(),
            source_bytes: found.values.byte_len() as u64,
        })
    }

    /// How it is written, in a few letters.
    pub fn label(&self) -> String {
        match self.target {
            Target::Float(dtype) => dtype.to_string().to_lowercase(),
            Target::Quantized(bits) => format!("{}-bit", bits.number()),
            Target::Affine => "kept".into(),
        }
    }

    /// Its canonical shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes that are written.
    pub fn byte_len(&self) -> u64 {
        self.tensors.iter().map(OutTensor::byte_len).sum()
    }

    /// Converts the tensor: reads `part` and fills the writer's tensors from number `first` on.
    /// `on_read` hears of the bytes read.
    ///
    /// # Errors
    /// When a value is not finite, or the disk refuses.
    pub fn write(
        &self,
        part: &Part,
        adapters: &[Adapter],
        writer: &mut Writer,
        first: usize,
        on_read: &mut dyn FnMut(u64),
    ) -> Result<Errors> {
        let found = part.expect(&self.name, &self.shape)?;
        let mut errors = Errors::default();
        if adapters.iter().any(|adapter| adapter.changes(&self.name)) {
            errors = self.write_changed(part, &found, adapters, writer, first)?;
            on_read(found.values.byte_len() as u64);
            return self.is_whole(&found, writer, first).map(|()| errors);
        }
        match (self.target, found.values) {
            (
                Target::Affine,
                Values::Affine {
                    packed,
                    scales,
                    biases,
                    ..
                },
            ) => {
                let store = part.store();
                for (i, entry) in [packed, scales, biases].into_iter().enumerate() {
                    part.ensure_finite(&found.name, entry)?;
                    for chunk in store.bytes(entry).chunks(CHUNK) {
                        writer.write(first + i, chunk)?;
                        on_read(chunk.len() as u64);
                    }
                    store.release(entry, 0..entry.byte_len());
                }
            }
            (Target::Quantized(bits), Values::Stored { entry, scale }) => {
                each_chunk(part, &found, on_read, &mut |range| {
                    let values = part.decode(&found.name, entry, scale, range)?;
                    let packed =
                        quantize_parallel(&values, bits).with_context(|| found.name.clone())?;
                    for (i, bytes) in packed.fields().into_iter().enumerate() {
                        writer.write(first + i, bytes)?;
                    }
                    errors.add(&values, &quantize::dequantize(&packed, bits)?);
                    Ok(())
                })?;
            }
            (Target::Float(dtype), Values::Stored { entry, scale }) => {
                let permuted = [found.arrangement, self.out.arrangement]
                    .iter()
                    .any(|a| matches!(a, Arrangement::Permuted(_)));
                if permuted {
                    let elements = entry.shape.iter().product();
                    let values = part.decode(&found.name, entry, scale, 0..elements)?;
                    let values = self.rearranged(&found, entry.shape.clone(), values)?;
                    let (bytes, after) = encode(&values, dtype);
                    writer.write(first, &bytes)?;
                    errors.add(&values, &after);
                    part.store().release(entry, 0..entry.byte_len());
                    on_read(entry.byte_len() as u64);
                } else {
                    each_chunk(part, &found, on_read, &mut |range| {
                        let values = part.decode(&found.name, entry, scale, range)?;
                        let (bytes, after) = encode(&values, dtype);
                        writer.write(first, &bytes)?;
                        errors.add(&values, &after);
                        Ok(())
                    })?;
                }
            }
            _ => bail!("{} changed while it was converted", found.name),
        }
        self.is_whole(&found, writer, first).map(|()| errors)
    }

    fn is_whole(&self, found: &Found, writer: &Writer, first: usize) -> Result<()> {
        for i in 0..self.tensors.len() {
            ensure!(
                writer.is_full(first + i),
                "{} has fewer values than its shape says",
                found.name
            );
        }
        Ok(())
    }

    /// As [`Self::write`], of a tensor that adapters change.
    fn write_changed(
        &self,
        part: &Part,
        found: &Found,
        adapters: &[Adapter],
        writer: &mut Writer,
        first: usize,
    ) -> Result<Errors> {
        let changed = part.with_changes(&self.name, found, adapters, Recorder::DEVICE)?;
        let values = to_host(&changed)?;
        let mut errors = Errors::default();
        match self.target {
            Target::Quantized(bits) => {
                let packed =
                    quantize_parallel(&values, bits).with_context(|| found.name.clone())?;
                for (i, bytes) in packed.fields().into_iter().enumerate() {
                    writer.write(first + i, bytes)?;
                }
                errors.add(&values, &quantize::dequantize(&packed, bits)?);
            }
            Target::Float(dtype) => {
                let canonical = ArrayD::from_shape_vec(IxDyn(&self.shape), values)?;
                let values = self.as_written(canonical);
                let (bytes, after) = encode(&values, dtype);
                ensure!(
                    after.iter().all(|value| value.is_finite()),
                    "{}: what {} {} is too large for {}\nhint: give it less strength, such as :0.5",
                    found.name,
                    adapters
                        .iter()
                        .map(Adapter::file_name)
                        .collect::<Vec<_>>()
                        .join(", "),
                    match adapters.len() {
                        1 => "makes of it",
                        _ => "make of it",
                    },
                    format!("{dtype:?}").to_lowercase()
                );
                writer.write(first, &bytes)?;
                errors.add(&values, &after);
            }
            Target::Affine => bail!("{} is quantized already", found.name),
        }
        Ok(errors)
    }

    /// Values in stored order, in the order of the output.
    fn rearranged(&self, found: &Found, shape: Vec<usize>, values: Vec<f32>) -> Result<Vec<f32>> {
        let stored = ArrayD::from_shape_vec(IxDyn(&shape), values)?;
        let canonical = match found.arrangement {
            Arrangement::Permuted(axes) => stored.permuted_axes(IxDyn(axes)),
            Arrangement::AsIs | Arrangement::Reshaped => stored,
        };
        Ok(self.as_written(canonical))
    }

    /// A canonical array's values in the order of the output.
    fn as_written(&self, canonical: ArrayD<f32>) -> Vec<f32> {
        let out = match self.out.arrangement {
            Arrangement::Permuted(axes) => {
                // Canonical axis i is stored axis axes[i]; here the way back.
                let mut inverse = vec![0; axes.len()];
                for (canonical, &stored) in axes.iter().enumerate() {
                    inverse[stored] = canonical;
                }
                canonical.permuted_axes(IxDyn(&inverse))
            }
            Arrangement::AsIs | Arrangement::Reshaped => canonical,
        };
        out.iter().copied().collect()
    }
}

fn side_names(weight: &str) -> Result<(String, String)> {
    naming::affine_names(weight).with_context(|| format!("{weight} is no weight"))
}

/// Calls `f` with ranges of a stored tensor's elements and lets go of what it has read.
fn each_chunk(
    part: &Part,
    found: &Found,
    on_read: &mut dyn FnMut(u64),
    f: &mut dyn FnMut(std::ops::Range<usize>) -> Result<()>,
) -> Result<()> {
    let Values::Stored { entry, .. } = found.values else {
        bail!("{} is quantized", found.name);
    };
    let elements: usize = entry.shape.iter().product();
    let bytes =
        |element: usize| element / entry.encoding.block_elements() * entry.encoding.block_bytes();
    for start in (0..elements).step_by(CHUNK) {
        let end = (start + CHUNK).min(elements);
        f(start..end)?;
        part.store().release(entry, bytes(start)..bytes(end));
        on_read((bytes(end) - bytes(start)) as u64);
    }
    Ok(())
}

/// The type that a tensor which is not quantized is written in: its own where it has one that MLX
/// knows, and bfloat16 for the linear layers inside the blocks, as the models are published.
fn float_type(encoding: Encoding, scaled: bool, eligible: bool, role: Role) -> Dtype {
    match encoding {
        Encoding::Bf16 if !scaled => Dtype::BF16,
        Encoding::F16 if !scaled => Dtype::F16,
        Encoding::F32 | Encoding::F64 if !eligible => Dtype::F32,
        _ if matches!(role, Role::Exact | Role::Stored) => Dtype::F32,
        _ => Dtype::BF16,
    }
}

/// Bytes of `values` in a float type, and the values that they stand for.
fn encode(values: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
    match dtype {
        Dtype::BF16 => {
            let after: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            (
                after.iter().flat_map(|v| v.to_le_bytes()).collect(),
                after.iter().map(|v| v.to_f32()).collect(),
            )
        }
        Dtype::F16 => {
            let after: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            (
                after.iter().flat_map(|v| v.to_le_bytes()).collect(),
                after.iter().map(|v| v.to_f32()).collect(),
            )
        }
        _ => (
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            values.to_vec(),
        ),
    }
}
