//! One part of a model (an expert, the VAE, the text encoder) as a strict source of tensors, by
//! their canonical names, whatever the layout.

use std::collections::BTreeSet;
use std::ffi::c_void;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use super::encoding::Encoding;
use super::names::{self, Arrangement, Detected, Kind, Naming};
use super::quantize::{self, Bits, GROUP_SIZE, Packed};
use super::store::{Container, Entry, Location, TensorStore};
use crate::backend::Backend;
use crate::model::layers::{Quantized, Weight};
use crate::model::{Role, TensorSource, TensorSpec};

/// How many missing or unexpected tensors an error lists.
const MAX_LISTED: usize = 8;
/// Elements that are converted at a time; a multiple of every block and group.
const CHUNK: usize = 1 << 22;
/// The dtypes whose bytes MLX takes as they are.
const PLAIN: [(Encoding, Dtype); 3] = [
    (Encoding::F32, Dtype::Float32),
    (Encoding::F16, Dtype::Float16),
    (Encoding::Bf16, Dtype::Bfloat16),
];

/// A part with its files mapped and its layout known.
#[derive(Debug)]
pub struct Part {
    store: TensorStore,
    names: Detected,
}

/// Where a canonical tensor's values are.
#[derive(Debug)]
pub struct Found<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its canonical shape.
    pub shape: Vec<usize>,
    /// How its axes lie in the file.
    pub arrangement: Arrangement,
    /// What holds them.
    pub values: Values<'a>,
}

/// What holds a tensor's values.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// One stored tensor, times a scale where the file has one.
    Stored {
        /// The tensor.
        entry: &'a Entry,
        /// The factor of scaled float8.
        scale: f32,
    },
    /// MLX's affine quantization.
    Affine {
        /// uint32 words.
        packed: &'a Entry,
        /// Scale of each group.
        scales: &'a Entry,
        /// Bias of each group.
        biases: &'a Entry,
        /// Bits per weight.
        bits: usize,
        /// Inputs per group.
        group_size: usize,
    },
}

impl Values<'_> {
    /// How the values are stored, in a few letters.
    pub fn label(&self) -> String {
        match self {
            Values::Stored { entry, .. } => entry.encoding.name().to_owned(),
            Values::Affine { bits, .. } => format!("{bits}-bit"),
        }
    }

    /// Bytes in the files.
    pub fn byte_len(&self) -> usize {
        match self {
            Values::Stored { entry, .. } => entry.byte_len(),
            Values::Affine {
                packed,
                scales,
                biases,
                ..
            } => packed.byte_len() + scales.byte_len() + biases.byte_len(),
        }
    }
}

/// What is wrong with a part's tensors, by header.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// Missing tensors, by their stored names, with the shape.
    pub missing: Vec<String>,
    /// Tensors of another shape or of a type that holds no real numbers.
    pub wrong: Vec<String>,
    /// Tensors that no part of the architecture asks for.
    pub extra: Vec<String>,
}

impl Problems {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty() && self.extra.is_empty()
    }
}

impl Part {
    /// Maps the files at `location`, reads their headers and tells their layout from the tensors.
    ///
    /// # Errors
    /// Names the file that is missing or malformed, or that holds another kind of part.
    pub fn open(location: &Location, kind: Kind) -> Result<Self> {
        let store = TensorStore::open(location)?;
        // What nothing is known of is compared with diffusers' names, which shows what it is not.
        let names = detect(&store, kind)?.unwrap_or(Detected::plain(kind, Naming::Diffusers));
        Ok(Self { store, names })
    }

    /// As [`Self::open`], for files that may hold a share of the part only, whose names are known.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub fn open_share(location: &Location, names: Detected) -> Result<Self> {
        let store = TensorStore::open(location)?;
        Ok(Self { store, names })
    }

    /// What kind of part it is, and whose names its tensors have.
    pub fn names(&self) -> &Detected {
        &self.names
    }

    /// How its files hold the tensors.
    pub fn container(&self) -> Container {
        self.store.container()
    }

    /// The mapped files.
    pub fn store(&self) -> &TensorStore {
        &self.store
    }

    /// Finds a canonical tensor by header.
    ///
    /// # Errors
    /// Says what is missing or wrong, by the stored name.
    pub fn find(&self, name: &str, shape: &[usize]) -> Result<Found<'_>, Trouble> {
        let expected = match self.names.stored(name, shape) {
            Ok(expected) => expected,
            Err(error) => return Err(Trouble::Wrong(format!("{error:#}"))),
        };
        let stored = expected.name.clone();
        let entries = self.store.entries();
        let Some(entry) = entries.get(&stored) else {
            return Err(Trouble::Missing(format!("{stored} {:?}", expected.shape)));
        };
        let wrong = |text: String| Err(Trouble::Wrong(text));
        let sides = names::affine_names(&stored)
            .and_then(|(scales, biases)| Some((entries.get(&scales)?, entries.get(&biases)?)));
        let mut arrangement = expected.arrangement;
        let values = match sides {
            Some((scales, biases)) if entry.encoding == Encoding::U32 => {
                let layout = affine_layout(entry, scales, biases, &expected.shape);
                let Some((bits, group_size)) = layout else {
                    return wrong(format!(
                        "{stored} has shape {:?} with scales {:?} and biases {:?}, which is no \
                         quantization of {:?} that MLX knows",
                        entry.shape, scales.shape, biases.shape, expected.shape
                    ));
                };
                Values::Affine {
                    packed: entry,
                    scales,
                    biases,
                    bits,
                    group_size,
                }
            }
            _ => {
                // Only GGUF's writers have a reason to fold axes.
                let folded = self.container() == Container::Gguf && expected.fits(&entry.shape);
                if entry.shape != expected.shape && !folded {
                    return wrong(format!(
                        "{stored} has shape {:?}; expected {:?}",
                        entry.shape, expected.shape
                    ));
                }
                if arrangement == Arrangement::AsIs && entry.shape != shape {
                    arrangement = Arrangement::Reshaped;
                }
                if !entry.encoding.is_float() {
                    return wrong(format!(
                        "{stored} is stored as {}; expected real numbers",
                        entry.encoding.name()
                    ));
                }
                let scale = match self.scale_of(&stored) {
                    Ok(scale) => scale,
                    Err(error) => return wrong(format!("{error:#}")),
                };
                Values::Stored { entry, scale }
            }
        };
        Ok(Found {
            name: stored,
            shape: shape.to_vec(),
            arrangement,
            values,
        })
    }

    /// The factor of a weight of a scaled float8 file; 1 elsewhere.
    fn scale_of(&self, stored: &str) -> Result<f32> {
        let entries = self.store.entries();
        let found = names::scale_names(stored)
            .into_iter()
            .flatten()
            .find_map(|name| Some((entries.get(&name)?, name)));
        let Some((entry, name)) = found else {
            return Ok(1.0);
        };
        let elements: usize = entry.shape.iter().product();
        ensure!(
            elements == 1 && entry.encoding.is_float(),
            "{name} is {} of shape {:?}; expected one number",
            entry.encoding.name(),
            entry.shape
        );
        let mut scale = [0.0];
        entry.encoding.decode(self.store.bytes(entry), &mut scale)?;
        ensure!(scale[0].is_finite(), "{name} is {}", scale[0]);
        Ok(scale[0])
    }

    /// The shape that a canonical tensor would have as the file stores it; `None` when it is not
    /// there. For telling dimensions from a file without a configuration.
    pub fn canonical_shape(&self, name: &str) -> Option<Vec<usize>> {
        let stored = self.names.name(name).ok()?;
        let entry = self.store.entries().get(&stored)?;
        let mut shape = entry.shape.clone();
        if entry.encoding == Encoding::U32
            && let Some((scales, _)) = names::affine_names(&stored)
            && let Some(scales) = self.store.entries().get(&scales)
            && let (Some(inputs), Some(groups)) = (shape.last_mut(), scales.shape.last())
        {
            // The usual group; the check against the tensors shows when it is another.
            *inputs = groups.checked_mul(GROUP_SIZE)?;
        }
        Some(self.names.canonical_shape(name, &shape))
    }

    /// Compares the headers with `specs`, which is every tensor of the architecture.
    pub fn problems(&self, specs: &[TensorSpec]) -> Problems {
        let entries = self.store.entries();
        let mut problems = Problems::default();
        let mut used = BTreeSet::new();
        for spec in specs {
            match self.find(&spec.name, &usizes(&spec.shape)) {
                Ok(found) => {
                    used.insert(found.name);
                }
                Err(Trouble::Missing(text)) => problems.missing.push(text),
                Err(Trouble::Wrong(text)) => {
                    used.extend(text.split(' ').next().map(str::to_owned));
                    problems.wrong.push(text);
                }
            }
        }
        problems.extra = entries
            .iter()
            .filter(|(name, _)| !used.contains(*name))
            .filter(|(name, _)| match names::companion(&self.names, name) {
                Some(companion) => companion.owner.is_some_and(|owner| !used.contains(&owner)),
                None => true,
            })
            .map(|(name, entry)| format!("{name} {:?}", entry.shape))
            .collect();
        problems
    }

    /// Checks by header that the files hold exactly the tensors of `specs`.
    ///
    /// # Errors
    /// Lists what is missing, unexpected or of another shape, with the nearest names.
    pub fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        let problems = self.problems(specs);
        if problems.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<String> = Vec::new();
        for missing in &problems.missing {
            // Only where it is shown: between two layouts it is thousands times thousands.
            let near = (lines.len() < MAX_LISTED)
                .then(|| nearest(missing, &problems.extra))
                .flatten();
            lines.push(match near {
                Some(near) => format!("missing: {missing} (nearest name in the file: {near})"),
                None => format!("missing: {missing}"),
            });
        }
        lines.extend(problems.wrong.iter().cloned());
        lines.extend(problems.extra.iter().map(|e| format!("unexpected: {e}")));
        let more = lines.len().saturating_sub(MAX_LISTED);
        lines.truncate(MAX_LISTED);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        bail!(
            "{}: the tensors are not those of {} with this configuration ({} expected, {} \
             found):\n  {}",
            self.store.location(),
            self.names.kind.with_article(),
            specs.len(),
            self.store.entries().len(),
            lines.join("\n  ")
        )
    }

    /// Checks that no weight is stored in another quantization than the one that is asked for.
    ///
    /// # Errors
    /// Names the weight and its bits.
    pub fn check_bits(&self, specs: &[TensorSpec], wanted: Bits) -> Result<()> {
        for spec in specs {
            if let Values::Affine { bits, .. } =
                self.expect(&spec.name, &usizes(&spec.shape))?.values
            {
                ensure!(
                    bits == wanted.number(),
                    "{}: {} is quantized to {bits} bits already; leave --bits away, or take the \
                     unquantized model",
                    self.store.location(),
                    spec.name
                );
            }
        }
        Ok(())
    }

    /// [`Self::find`] for a tensor that the check has found before.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<Found<'_>> {
        self.find(name, shape).map_err(|trouble| {
            let location = self.store.location();
            match trouble {
                Trouble::Missing(text) => anyhow::anyhow!("{location}: missing: {text}"),
                Trouble::Wrong(text) => anyhow::anyhow!("{location}: {text}"),
            }
        })
    }

    /// Lets the machine forget the pages of a tensor that has been copied: with them a model would
    /// take its size twice.
    fn release(&self, found: &Found) {
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
        let bytes = self.store.bytes(entry);
        let block = entry.encoding.block_bytes() * CHUNK / entry.encoding.block_elements();
        let bad = bytes
            .par_chunks(block)
            .position_first(|chunk| entry.encoding.first_non_finite(chunk).is_some());
        ensure!(
            bad.is_none(),
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
        scale: f32,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<f32>> {
        let (block, block_bytes) = (
            entry.encoding.block_elements(),
            entry.encoding.block_bytes(),
        );
        let bytes = &self.store.bytes(entry)
            [range.start / block * block_bytes..range.end / block * block_bytes];
        let mut values = vec![0.0; range.len()];
        values
            .par_chunks_mut(1 << 16)
            .zip(bytes.par_chunks((1 << 16) / block * block_bytes))
            .try_for_each(|(values, bytes)| {
                ensure!(
                    entry.encoding.first_non_finite(bytes).is_none(),
                    "{}: the tensor {name} holds a value that is not finite (NaN or infinite); \
                     the file is damaged, download it again",
                    self.store.location()
                );
                entry.encoding.decode(bytes, values)?;
                if scale != 1.0 {
                    values.iter_mut().for_each(|v| *v *= scale);
                }
                Ok(())
            })?;
        Ok(values)
    }

    /// A found tensor as MLX array in `dtype`.
    fn dense(&self, found: &Found, dtype: Dtype) -> Result<Array> {
        let shape = dimensions(&found.shape)?;
        match found.values {
            Values::Affine { .. } => {
                let dense = self.affine(found, Dtype::Float32, i32::MAX)?.dequantize()?;
                arrange(&dense, found, &shape)?.as_dtype(dtype)
            }
            Values::Stored { entry, scale } => {
                let plain = PLAIN
                    .iter()
                    .find(|(encoding, _)| *encoding == entry.encoding);
                match plain {
                    Some(&(_, stored)) if scale == 1.0 => {
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

    /// A stored tensor's values as bytes of `dtype`, a chunk at a time.
    fn decode_to(&self, found: &Found, entry: &Entry, scale: f32, dtype: Dtype) -> Result<Vec<u8>> {
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

    /// A found tensor that is stored in MLX's quantization, with scales and biases in `dtype`.
    fn affine(&self, found: &Found, dtype: Dtype, dense_above: i32) -> Result<Quantized> {
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
            dense_above,
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

/// A part together with what decides how its tensors are held in memory.
#[derive(Debug)]
pub struct Loader<'a> {
    /// The part.
    pub part: &'a Part,
    /// Where it will be computed.
    pub backend: Backend,
    /// Bits that eligible weights are quantized to while they are loaded.
    pub bits: Option<Bits>,
}

impl Loader<'_> {
    /// Bytes that tensors take in memory, by header.
    ///
    /// # Errors
    /// When one is missing.
    pub fn bytes(&self, specs: &[TensorSpec]) -> Result<u64> {
        let matmul = self.backend.precision.matmul_dtype_size() as u64;
        let mut sum = 0;
        for spec in specs {
            let found = self.part.expect(&spec.name, &usizes(&spec.shape))?;
            let elements: u64 = found.shape.iter().map(|&d| d as u64).product();
            let kind = self.part.names.kind;
            let bits = self
                .bits
                .filter(|_| may_quantize(kind, &spec.name, &found.shape));
            let dense = match spec.role {
                Role::Matmul => matmul,
                Role::Exact => 4,
                Role::Table if table_dtype(&found.values) == Dtype::Float32 => 4,
                Role::Table => 2,
            };
            sum += match (found.values, bits) {
                (Values::Affine { packed, scales, .. }, _) if spec.role == Role::Matmul => {
                    let groups: u64 = scales.shape.iter().map(|&d| d as u64).product();
                    packed.byte_len() as u64 + 2 * matmul * groups
                }
                (_, Some(bits)) if spec.role == Role::Matmul => {
                    let groups = elements / GROUP_SIZE as u64;
                    bits.packed_bytes(elements as usize) as u64 + 2 * matmul * groups
                }
                _ => dense * elements,
            };
        }
        Ok(sum)
    }
}

impl TensorSource for Loader<'_> {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array> {
        let found = self.part.expect(name, &usizes(shape))?;
        let dtype = match role {
            Role::Matmul => self.backend.precision.matmul_dtype(),
            Role::Exact => Dtype::Float32,
            Role::Table => table_dtype(&found.values),
        };
        let array = self.part.dense(&found, dtype)?;
        // Now, so that the stored copy goes before the next tensor comes.
        array.eval()?;
        self.part.release(&found);
        Ok(array)
    }

    fn weight(&mut self, name: &str, shape: [i32; 2], role: Role) -> Result<Weight> {
        let found = self.part.expect(name, &usizes(&shape))?;
        let dtype = self.backend.precision.matmul_dtype();
        let dense_above = self.backend.dense_above;
        if role != Role::Matmul {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        }
        if matches!(found.values, Values::Affine { .. }) && found.arrangement == Arrangement::AsIs {
            let quantized = self.part.affine(&found, dtype, dense_above)?;
            self.part.release(&found);
            return Ok(Weight::Quantized(quantized));
        }
        let bits = self
            .bits
            .filter(|_| may_quantize(self.part.names.kind, name, &found.shape));
        let Some(bits) = bits else {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        };
        let mut all = Packed::default();
        self.part.quantize(&found, bits, &mut |packed| {
            all.extend(packed);
            Ok(())
        })?;
        self.part.release(&found);
        let (outputs, inputs) = (found.shape[0], found.shape[1]);
        let groups = [outputs, inputs / GROUP_SIZE];
        let side = |bytes: &[u8]| {
            let array = array(bytes, &groups, Dtype::Bfloat16)?.as_dtype(dtype)?;
            array.eval()?;
            anyhow::Ok(array)
        };
        let words = [outputs, bits.packed_bytes(inputs) / 4];
        Ok(Weight::Quantized(Quantized {
            packed: array(&all.words, &words, Dtype::Uint32)?,
            scales: side(&all.scales)?,
            biases: side(&all.biases)?,
            group_size: GROUP_SIZE as i32,
            bits: bits.number() as i32,
            dense_above,
        }))
    }
}

/// Why a tensor cannot be had; starts with its stored name.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// It is not there.
    Missing(String),
    /// It is something else.
    Wrong(String),
}

/// Whether a weight is quantized on request: the linear layers inside the blocks, which are nearly
/// all of a network. Embeddings, norms, modulation, heads and the VAE keep their precision.
pub fn may_quantize(kind: Kind, name: &str, shape: &[usize]) -> bool {
    let in_block = match kind {
        Kind::Expert => name.starts_with("blocks."),
        Kind::TextEncoder => {
            name.starts_with("encoder.block.") && !name.contains("relative_attention_bias")
        }
        Kind::Vae => false,
    };
    in_block && name.ends_with(".weight") && shape.len() == 2 && shape[1].is_multiple_of(GROUP_SIZE)
}

/// Whose names the tensors of a part of this kind have; nothing when they are none of a known
/// layout.
///
/// # Errors
/// When the files hold other parts, or this one several times.
fn detect(store: &TensorStore, kind: Kind) -> Result<Option<Detected>> {
    let mut parts = parts(store);
    let found: Vec<&str> = parts.iter().map(|p| p.kind.with_article()).collect();
    parts.retain(|part| part.kind == kind);
    ensure!(
        found.is_empty() || !parts.is_empty(),
        "{}: this is {}; expected {}",
        store.location(),
        found.join(" and "),
        kind.with_article()
    );
    ensure!(
        found.len() < 2,
        "{}: this file holds several parts ({}); give each in a file of its own",
        store.location(),
        found.join(", ")
    );
    Ok(parts.pop())
}

/// Every part that the files hold, from their tensors alone.
pub fn parts(store: &TensorStore) -> Vec<Detected> {
    let entries = store.entries();
    names::parts(
        entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice())),
    )
}

/// The dtype that a table keeps: its own, or the nearest that MLX has.
fn table_dtype(values: &Values) -> Dtype {
    let Values::Stored { entry, .. } = values else {
        return Dtype::Bfloat16;
    };
    let plain = PLAIN
        .iter()
        .find(|(encoding, _)| *encoding == entry.encoding);
    plain.map_or(Dtype::Bfloat16, |&(_, dtype)| dtype)
}

/// Bits and group size of a quantized weight, from the shapes.
fn affine_layout(
    packed: &Entry,
    scales: &Entry,
    biases: &Entry,
    shape: &[usize],
) -> Option<(usize, usize)> {
    let ([outputs, inputs], [rows, words], [scale_rows, groups]) = (
        shape.first_chunk::<2>().filter(|_| shape.len() == 2)?,
        packed
            .shape
            .first_chunk::<2>()
            .filter(|_| packed.shape.len() == 2)?,
        scales
            .shape
            .first_chunk::<2>()
            .filter(|_| scales.shape.len() == 2)?,
    );
    let bits = words.checked_mul(32)?.checked_div(*inputs)?;
    let group_size = inputs.checked_div(*groups)?;
    // ml-explore/mlx, `mlx/ops.cpp`: what affine quantization takes.
    let known = [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size);
    let fits = rows == outputs
        && scale_rows == outputs
        && scales.shape == biases.shape
        && bits * inputs == 32 * words
        && group_size * groups == *inputs;
    (known && fits).then_some((bits, group_size))
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
pub fn append(values: &[f32], dtype: Dtype, bytes: &mut Vec<u8>) {
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

fn array(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Array> {
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
    Ok(unsafe { Array::from_raw_data(data.cast::<c_void>(), &dimensions, dtype) })
}

fn dimensions(shape: &[usize]) -> Result<Vec<i32>> {
    shape
        .iter()
        .map(|&d| i32::try_from(d).with_context(|| format!("the shape {shape:?} is too large")))
        .collect()
}

/// A network's shape as a file's.
pub fn usizes(shape: &[i32]) -> Vec<usize> {
    shape.iter().map(|&d| d as usize).collect()
}

/// The candidate most like `name`, when one is like it at all.
fn nearest<'a>(name: &str, candidates: &'a [String]) -> Option<&'a str> {
    let bare = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    let wanted = bare(name);
    candidates
        .iter()
        .map(|c| (strsim::jaro_winkler(&wanted, &bare(c)), c.as_str()))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
