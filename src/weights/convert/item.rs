//! What becomes of one tensor: how it is stored in the converted part, and the bytes of it.

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use mlx_rs::Array;
use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::Bits;
use super::writer::{OutTensor, Writer};
use crate::model::layers::Quantized;
use crate::model::{Recorder, Role, TensorSpec};
use crate::runtime::{Device, DeviceKind, Mode, Packing, Precision, f32, to_host};
use crate::weights::adapter::Adapter;
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::{self, Arrangement, Detected, Naming, Stored};
use crate::weights::part::{Found, Part, Scale, Values, may_quantize, quantize_parallel};
use crate::weights::quantize::{self, Packed, Scheme, Search};

/// Elements that pass through memory at a time.
const CHUNK: usize = 1 << 22;

/// Where what is kept is packed: scales are rounded to float16, as they are written.
const KEEPING: Device = Device::new(DeviceKind::Cpu, Some(Precision::F16));

/// How a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// In a float type.
    Float(Dtype),
    /// As MLX's affine quantization: packed words, scales, biases.
    Quantized(Scheme),
    /// As the tensors that it is stored in already.
    Copied,
    /// In MLX's packing of what is stored.
    Kept(Packing),
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
    /// Adds what is off between values and what became of them.
    pub fn add(&mut self, before: &[f32], after: &[f32]) {
        for (&before, &after) in before.iter().zip(after) {
            let error = f64::from(before) - f64::from(after);
            self.max = self.max.max(error.abs());
            self.squares += error * error;
            self.energy += f64::from(before) * f64::from(before);
        }
    }

    /// As [`Self::add`], of quantized values, on every core.
    fn add_quantized(&mut self, before: &[f32], packed: &Packed, scheme: Scheme) -> Result<()> {
        // In parts of one size, whatever the cores, whose sums are added in order.
        const PART: usize = 1 << 16;
        let sides = PART / scheme.group_size * 2;
        let [words, scales, biases] = packed.fields();
        let parts = (before.par_chunks(PART))
            .zip(words.par_chunks(scheme.bits.packed_bytes(PART)))
            .zip(scales.par_chunks(sides).zip(biases.par_chunks(sides)))
            .map(|((before, words), (scales, biases))| {
                let [words, scales, biases] = [words, scales, biases].map(<[u8]>::to_vec);
                let packed = Packed {
                    words,
                    scales,
                    biases,
                };
                let mut part = Self::default();
                part.add(before, &quantize::dequantize(&packed, scheme)?);
                Ok(part)
            });
        for part in parts.collect::<Result<Vec<_>>>()? {
            self.max = self.max.max(part.max);
            self.squares += part.squares;
            self.energy += part.energy;
        }
        Ok(())
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
    /// Decides what becomes of a tensor; without `bits` what is quantized is kept, and others get 16.
    ///
    /// # Errors
    /// When it is quantized already and other bits are asked for.
    pub fn plan(
        spec: &TensorSpec,
        found: &Found,
        part: &Part,
        bits: Option<Bits>,
        group_size: usize,
        adapters: &[Adapter],
    ) -> Result<Self> {
        let kind = part.names().kind;
        let naming = match part.names().naming {
            Naming::Taehv => Naming::Taehv,
            _ => Naming::MlxVideo,
        };
        let out = Detected {
            residual: part.names().residual,
            ..Detected::plain(kind, naming)
        };
        let out = out.stored(&spec.name, &found.shape)?;
        let eligible = may_quantize(kind, &spec.name, &found.shape);
        let changed = adapters.iter().any(|adapter| adapter.changes(&spec.name));
        let target = match found.values {
            Values::Packed { packing, .. } => {
                let (stored, groups) = (packing.bits as usize, packing.group_size as usize);
                let same = bits.is_none_or(|b| {
                    b.quantized().map(quantize::Bits::number) == Some(stored)
                        && groups == group_size
                        && packing.mode == Mode::Affine
                });
                ensure!(
                    same,
                    "{} is quantized to {stored} bits in groups of {groups} already\nhint: convert \
                     from the unquantized model, or keep the bits",
                    found.name
                );
                ensure!(
                    !changed,
                    "{} is quantized already, and an adapter changes it\nhint: convert from the \
                     unquantized model, or give --lora when a clip is made",
                    found.name
                );
                Target::Copied
            }
            values => {
                let is_weight = spec.role == Role::Matmul
                    && found.shape.len() == 2
                    && [found.arrangement, out.arrangement]
                        .iter()
                        .all(|a| *a == Arrangement::AsIs);
                let kept = if is_weight {
                    values.kept(found.shape[1])
                } else {
                    None
                };
                let fewer = (bits.and_then(Bits::quantized))
                    .filter(|bits| eligible && kept.is_none_or(|kept| bits.number() < kept.bits));
                match (fewer, kept, values) {
                    (Some(bits), ..) => Target::Quantized(Scheme { bits, group_size }),
                    (None, Some(kept), _) if bits != Some(Bits::Sixteen) && !changed => {
                        match has_own_bytes(&values) {
                            true => Target::Copied,
                            false => Target::Kept(kept.packing),
                        }
                    }
                    (_, _, Values::Stored { entry, scale, .. }) => Target::Float(float_type(
                        entry.encoding,
                        !scale.is_none(),
                        eligible,
                        spec.role,
                    )),
                    _ => Target::Float(Dtype::BF16),
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
                Target::Copied,
                Values::Packed {
                    packed,
                    scales,
                    biases,
                    factor,
                    packing,
                },
            ) => {
                let (scales_name, biases_name) = side_names(&out.name)?;
                let side = match packing.mode {
                    Mode::Affine => float_type(scales.encoding, false, false, Role::Exact),
                    _ => Dtype::U8,
                };
                let biases = biases.map(|biases| tensor(&biases_name, side, &biases.shape));
                let [factor_name, _] = beside_names(&out.name)?;
                let factor = factor.map(|factor| {
                    let dtype = float_type(factor.encoding, false, false, Role::Exact);
                    tensor(&factor_name, dtype, &factor.shape)
                });
                [
                    tensor(&out.name, Dtype::U32, &packed.shape),
                    tensor(&scales_name, side, &scales.shape),
                ]
                .into_iter()
                .chain(biases)
                .chain(factor)
                .collect()
            }
            (Target::Copied, Values::Blocks { .. }) => bail!("{} is in blocks", found.name),
            (
                Target::Copied,
                Values::Stored {
                    entry,
                    scale,
                    rotation,
                },
            ) => {
                let dtype = match entry.encoding {
                    Encoding::F8E4M3 => Dtype::F8_E4M3,
                    Encoding::F8E5M2 => Dtype::F8_E5M2,
                    _ => Dtype::I8,
                };
                let shape = match scale {
                    Scale::One(1.0) => None,
                    Scale::One(_) => Some(Vec::new()),
                    Scale::Rows(scales) => Some(scales.shape.clone()),
                };
                let [scale, format] = beside_names(&out.name)?;
                let scale = shape.map(|shape| tensor(&scale, Dtype::F32, &shape));
                let format =
                    rotation.map(|size| tensor(&format, Dtype::U8, &[rotated_format(size).len()]));
                let weight = tensor(&out.name, dtype, &entry.shape);
                std::iter::once(weight).chain(scale).chain(format).collect()
            }
            (Target::Kept(packing), _) => {
                let (outputs, inputs) = (found.shape[0], found.shape[1]);
                let (scales, biases) = side_names(&out.name)?;
                let groups = [outputs, packing.groups(inputs)];
                let words = tensor(&out.name, Dtype::U32, &[outputs, packing.words(inputs)]);
                let sides = match packing.mode {
                    // GGUF's own scales have these.
                    Mode::Affine => vec![
                        tensor(&scales, Dtype::F16, &groups),
                        tensor(&biases, Dtype::F16, &groups),
                    ],
                    _ => vec![tensor(&scales, Dtype::U8, &groups)],
                };
                let factor = match found.values {
                    Values::Blocks { factor: 1.0, .. } => None,
                    Values::Stored { scale, .. } if scale.is_none() => None,
                    Values::Stored {
                        scale: Scale::Rows(scales),
                        ..
                    } => Some(scales.shape.as_slice()),
                    _ => Some(&[1][..]),
                };
                let [name, _] = beside_names(&out.name)?;
                let factor = factor.map(|shape| tensor(&name, Dtype::F32, shape));
                [words].into_iter().chain(sides).chain(factor).collect()
            }
            (Target::Quantized(Scheme { bits, group_size }), _) => {
                let (outputs, inputs) = (found.shape[0], found.shape[1]);
                let (scales, biases) = side_names(&out.name)?;
                let words = [outputs, bits.packed_bytes(inputs) / 4];
                let groups = [outputs, inputs / group_size];
                vec![
                    tensor(&out.name, Dtype::U32, &words),
                    tensor(&scales, Dtype::BF16, &groups),
                    tensor(&biases, Dtype::BF16, &groups),
                ]
            }
            (Target::Float(dtype), _) => vec![tensor(&out.name, dtype, &out.shape)],
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
            Target::Quantized(scheme) => scheme.packing().to_string(),
            Target::Copied => "kept".into(),
            Target::Kept(packing) => packing.to_string(),
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
        let changed = adapters.iter().any(|adapter| adapter.changes(&self.name));
        let rewritten = !matches!(self.target, Target::Copied | Target::Kept(_));
        let in_order = matches!(found.values, Values::Stored { rotation: None, .. });
        if changed || (rewritten && !in_order) {
            errors = self.write_changed(part, &found, adapters, writer, first)?;
            on_read(found.values.byte_len() as u64);
            return self.is_whole(&found, writer, first).map(|()| errors);
        }
        match (self.target, found.values) {
            (Target::Copied, values) => {
                let store = part.store();
                if matches!(values, Values::Packed { .. }) {
                    // Its scales are numbers that only loading knows to be none.
                    part.kept(&found, Recorder::DEVICE)?;
                }
                for (i, entry) in values.entries().enumerate() {
                    part.ensure_finite(&found.name, entry)?;
                    for chunk in store.bytes(entry).chunks(CHUNK) {
                        writer.write(first + i, chunk)?;
                        on_read(chunk.len() as u64);
                    }
                    store.release(entry, 0..entry.byte_len());
                }
                if let Values::Stored {
                    scale, rotation, ..
                } = values
                {
                    let scales = part.scales(&found.name, scale)?;
                    if !scales.is_empty() {
                        let bytes: Vec<u8> = scales.iter().flat_map(|v| v.to_le_bytes()).collect();
                        writer.write(first + 1, &bytes)?;
                    }
                    if let Some(size) = rotation {
                        let last = first + self.tensors.len() - 1;
                        writer.write(last, rotated_format(size).as_bytes())?;
                    }
                }
            }
            (Target::Kept(packing), values) => {
                let kept = part.kept(&found, KEEPING)?;
                let words = kept.packed.try_as_slice::<u32>()?;
                let mut all = vec![words.iter().flat_map(|word| word.to_le_bytes()).collect()];
                match (packing.mode, &kept.biases) {
                    (Mode::Affine, Some(biases)) => {
                        for side in [&kept.scales, biases] {
                            let (bytes, after) = encode(&to_host(side)?, Dtype::F16);
                            ensure_held(&found, part, &after, Dtype::F16)?;
                            all.push(bytes);
                        }
                    }
                    _ => all.push(kept.scales.try_as_slice::<u8>()?.to_vec()),
                }
                if let Some(factor) = &kept.factor {
                    all.push(encode(&to_host(factor)?, Dtype::F32).0);
                }
                for (i, bytes) in all.iter().enumerate() {
                    writer.write(first + i, bytes)?;
                }
                if let Values::Stored { entry, scale, .. } = values {
                    let wide = |side: &Array| match packing.mode {
                        Mode::Affine => f32(side),
                        _ => Ok(side.clone()),
                    };
                    let exact = Quantized {
                        scales: wide(&kept.scales)?,
                        biases: kept.biases.as_ref().map(wide).transpose()?,
                        device: Recorder::DEVICE,
                        ..kept
                    };
                    let after = to_host(&exact.dequantize()?)?;
                    errors.add(
                        &part.decode(&found.name, entry, scale, 0..after.len())?,
                        &after,
                    );
                }
                for entry in values.entries() {
                    part.store().release(entry, 0..entry.byte_len());
                    on_read(entry.byte_len() as u64);
                }
            }
            (
                Target::Quantized(scheme),
                Values::Stored {
                    entry,
                    scale: factor,
                    ..
                },
            ) => {
                each_chunk(part, &found, on_read, &mut |range| {
                    let values = part.decode(&found.name, entry, factor, range)?;
                    self.write_quantized(&values, scheme, writer, first, &mut errors)
                })?;
            }
            (Target::Float(dtype), Values::Stored { entry, scale, .. }) => {
                let permuted = [found.arrangement, self.out.arrangement]
                    .iter()
                    .any(|a| matches!(a, Arrangement::Permuted(_)));
                if permuted {
                    let elements = entry.shape.iter().product();
                    let values = part.decode(&found.name, entry, scale, 0..elements)?;
                    let values = self.rearranged(&found, entry.shape.clone(), values)?;
                    let (bytes, after) = encode(&values, dtype);
                    ensure_held(&found, part, &after, dtype)?;
                    writer.write(first, &bytes)?;
                    errors.add(&values, &after);
                    part.store().release(entry, 0..entry.byte_len());
                    on_read(entry.byte_len() as u64);
                } else {
                    each_chunk(part, &found, on_read, &mut |range| {
                        let values = part.decode(&found.name, entry, scale, range)?;
                        let (bytes, after) = encode(&values, dtype);
                        ensure_held(&found, part, &after, dtype)?;
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

    fn write_quantized(
        &self,
        values: &[f32],
        scheme: Scheme,
        writer: &mut Writer,
        first: usize,
        errors: &mut Errors,
    ) -> Result<()> {
        let packed = quantize_parallel(values, scheme, Search::LeastSquares);
        let packed = packed.with_context(|| self.name.clone())?;
        for (i, bytes) in packed.fields().into_iter().enumerate() {
            writer.write(first + i, bytes)?;
        }
        errors.add_quantized(values, &packed, scheme)
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
            Target::Quantized(scheme) => {
                self.write_quantized(&values, scheme, writer, first, &mut errors)?;
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
            Target::Copied | Target::Kept(_) => bail!("{} is quantized already", found.name),
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

/// Refuses values that became infinite when they were rounded.
fn ensure_held(found: &Found, part: &Part, after: &[f32], dtype: Dtype) -> Result<()> {
    ensure!(
        after.iter().all(|value| value.is_finite()),
        "{}: the tensor {} has values that are too large for {}; no trained weights are\nhint: download the \
         file again",
        part.store().location(),
        found.name,
        format!("{dtype:?}").to_lowercase()
    );
    Ok(())
}

/// Whether the bytes of a weight are of a type that safetensors has.
fn has_own_bytes(values: &Values) -> bool {
    let own = [Encoding::F8E4M3, Encoding::F8E5M2, Encoding::I8];
    matches!(values, Values::Stored { entry, .. } if own.contains(&entry.encoding))
}

/// What ComfyUI calls a weight of signed bytes with rotated inputs.
fn rotated_format(size: usize) -> String {
    format!(r#"{{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": {size}}}"#)
}

/// The names of a weight's factor and of its format.
fn beside_names(weight: &str) -> Result<[String; 2]> {
    let module = weight.strip_suffix(".weight");
    let module = module.with_context(|| format!("{weight} is no weight"))?;
    Ok(["weight_scale", "comfy_quant"].map(|end| format!("{module}.{end}")))
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
pub fn float_type(encoding: Encoding, scaled: bool, eligible: bool, role: Role) -> Dtype {
    match encoding {
        Encoding::Bf16 if !scaled => Dtype::BF16,
        Encoding::F16 if !scaled => Dtype::F16,
        Encoding::F32 | Encoding::F64 if !eligible => Dtype::F32,
        _ if matches!(role, Role::Exact | Role::Stored) => Dtype::F32,
        _ => Dtype::BF16,
    }
}

/// Bytes of `values` in a float type, and the values that they stand for.
pub fn encode(values: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
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
