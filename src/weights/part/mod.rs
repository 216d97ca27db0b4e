//! One part of a model (an expert, the VAE, the text encoder) as a strict source of tensors, by
//! their canonical names, whatever the layout.

mod filled;
mod foreign;
mod formats;
mod loader;
mod values;

pub(crate) use foreign::OTHER_MODEL;
pub use foreign::{Foreign, foreign};
pub use loader::{Held, Loader, stored_as_float32};
pub use values::quantize_parallel;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

use super::container::encoding::Encoding;
use super::naming::{self, Arrangement, Detected, Kind, Naming};
use super::quantize::{GROUP_SIZE, Scheme};
use super::repack::{self, Kept};
use super::store::{Container, Entry, Location, TensorStore};
use crate::model::TensorSpec;
use crate::runtime::{Mode, Packing};
use crate::util::show::{Show, chain};

/// How many missing or unexpected tensors an error lists.
const MAX_LISTED: usize = 8;

/// A part with its files mapped and its layout known.
#[derive(Debug)]
pub struct Part {
    store: TensorStore,
    names: Detected,
    /// What the files say of how weights are stored.
    formats: BTreeMap<String, formats::Named>,
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
        scale: Scale<'a>,
        /// How many inputs are rotated together, by a matrix that is its own inverse, where they are.
        rotation: Option<usize>,
    },
    /// Small floats with a scale for each 16 or 32.
    Blocks {
        /// The floats.
        codes: &'a Entry,
        /// The scales.
        scales: &'a Entry,
        /// The packing of MLX that holds the same.
        packing: Packing,
        /// Whether the upper half of a byte comes first.
        high_first: bool,
        /// Whether the scales lie in blocks (`formats::swizzled`).
        swizzled: bool,
        /// What all values are multiplied by.
        factor: f32,
    },
    /// As MLX packs weights.
    Packed {
        /// uint32 words.
        packed: &'a Entry,
        /// Scale of each group.
        scales: &'a Entry,
        /// Bias of each group, where the packing has one.
        biases: Option<&'a Entry>,
        /// What all values, or those of each row, are multiplied by; as this program writes it.
        factor: Option<&'a Entry>,
        /// How it is packed.
        packing: Packing,
    },
}

/// What a stored tensor's elements are multiplied by.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// All by the same number.
    One(f32),
    /// Each row by its own.
    Rows(&'a Entry),
}

impl Scale<'_> {
    /// Whether the stored elements are the values.
    pub fn is_none(self) -> bool {
        matches!(self, Scale::One(1.0))
    }
}

impl<'a> Values<'a> {
    /// How the values are stored, in a few letters.
    pub fn label(&self) -> String {
        match self {
            Values::Stored { entry, .. } => entry.encoding.name().to_owned(),
            Values::Packed { packing, .. } | Values::Blocks { packing, .. } => packing.to_string(),
        }
    }

    /// What of the files holds them.
    pub fn entries(&self) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let all = match *self {
            Values::Stored { entry, .. } => [Some(entry), None, None, None],
            Values::Blocks { codes, scales, .. } => [Some(codes), Some(scales), None, None],
            Values::Packed {
                packed,
                scales,
                biases,
                factor,
                ..
            } => [Some(packed), Some(scales), biases, factor],
        };
        all.into_iter().flatten()
    }

    /// How a weight `[outputs, inputs]` with these values stays packed in memory, and the bits that its
    /// values have; nothing where it is unpacked.
    pub fn kept(&self, inputs: usize) -> Option<Kept> {
        match *self {
            Values::Packed { packing, .. } | Values::Blocks { packing, .. } => Some(Kept {
                packing,
                bits: packing.bits as usize,
            }),
            Values::Stored { entry, .. } => repack::kept(entry.encoding, inputs),
        }
    }

    /// Bytes in the files.
    pub fn byte_len(&self) -> usize {
        self.entries().map(Entry::byte_len).sum()
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
        if let Some(Foreign { what, hint, .. }) = foreign(&store) {
            bail!(
                "{location}: this is {what}; expected {}\nhint: {hint}",
                kind.with_article()
            );
        }
        // What nothing is known of is compared with diffusers' names, which shows what it is not.
        let names = detect(&store, kind)?.unwrap_or(Detected::plain(kind, Naming::Diffusers));
        Self::new(store, names)
    }

    fn new(mut store: TensorStore, names: Detected) -> Result<Self> {
        if names.kind == Kind::ImageEncoder && names.naming == Naming::Original {
            store.take_apart(naming::FUSED, naming::APART);
        }
        let formats = formats::named(&store)?;
        Ok(Self {
            store,
            names,
            formats,
        })
    }

    /// As [`Self::open`], for files that may hold a share of the part only, whose names are known.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub fn open_share(location: &Location, names: Detected) -> Result<Self> {
        Self::new(TensorStore::open(location)?, names)
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
            Err(error) => return Err(Trouble::Wrong(chain(&error))),
        };
        let stored = expected.name.clone();
        let entries = self.store.entries();
        let Some(entry) = entries.get(&stored) else {
            return Err(Trouble::Missing(format!(
                "{} {:?}",
                stored.shown(),
                expected.shape
            )));
        };
        let wrong = |text: String| Err(Trouble::Wrong(text));
        let sides = naming::affine_names(&stored)
            .and_then(|(scales, biases)| Some((entries.get(&scales)?, entries.get(&biases))));
        let mut arrangement = expected.arrangement;
        let blocks = match self.blocks(&stored, entry, &expected.shape) {
            Ok(blocks) => blocks,
            Err(error) => return wrong(chain(&error)),
        };
        let values = match sides {
            _ if let Some(blocks) = blocks => blocks,
            Some((scales, biases)) if entry.encoding == Encoding::U32 => {
                let layout = packing(entry, scales, biases, &expected.shape);
                let Some(packing) = layout else {
                    let biases = match biases {
                        Some(biases) => format!("biases {:?}", biases.shape),
                        None => "no biases".into(),
                    };
                    return wrong(format!(
                        "{} has shape {:?} with scales {:?} and {biases}, which is no \
                         quantization of {:?} that MLX knows",
                        stored.shown(),
                        entry.shape,
                        scales.shape,
                        expected.shape
                    ));
                };
                Values::Packed {
                    packed: entry,
                    scales,
                    biases,
                    factor: naming::scale_names(&stored).and_then(|[_, name]| entries.get(&name)),
                    packing,
                }
            }
            _ => {
                // Only GGUF's writers have a reason to fold axes.
                let folded = self.container() == Container::Gguf && expected.fits(&entry.shape);
                if entry.shape != expected.shape && !folded {
                    return wrong(format!(
                        "{} has shape {:?}; expected {:?}",
                        stored.shown(),
                        entry.shape,
                        expected.shape
                    ));
                }
                if arrangement == Arrangement::AsIs && entry.shape != shape {
                    arrangement = Arrangement::Reshaped;
                }
                let scale = match self.scale_of(&stored, entry) {
                    Ok(scale) => scale,
                    Err(error) => return wrong(chain(&error)),
                };
                // Bytes are a weight only with what they are multiplied by.
                let scaled = entry.encoding == Encoding::I8 && scale.is_some();
                if !entry.encoding.is_float() && !scaled {
                    let without = match entry.encoding {
                        Encoding::I8 => " without a scale",
                        _ => "",
                    };
                    return wrong(format!(
                        "{} is stored as {}{without}; expected real numbers",
                        stored.shown(),
                        entry.encoding.name()
                    ));
                }
                let rotation = match self.rotation(&stored, entry) {
                    Ok(rotation) => rotation,
                    Err(error) => return wrong(chain(&error)),
                };
                Values::Stored {
                    entry,
                    scale: scale.unwrap_or(Scale::One(1.0)),
                    rotation,
                }
            }
        };
        Ok(Found {
            name: stored,
            shape: shape.to_vec(),
            arrangement,
            values,
        })
    }

    /// The factor of a weight of a scaled float8 or int8 file.
    fn scale_of(&self, stored: &str, weight: &Entry) -> Result<Option<Scale<'_>>> {
        let entries = self.store.entries();
        let found = naming::scale_names(stored)
            .into_iter()
            .flatten()
            .find_map(|name| Some((entries.get(&name)?, name)));
        let Some((entry, name)) = found else {
            return Ok(None);
        };
        let of = || format!("{} has the scale {}", stored.shown(), name.shown());
        let elements: usize = entry.shape.iter().product();
        // Of a matrix, as LightX2V writes them: [rows] or [rows, 1].
        let rows = weight.shape.first().filter(|_| weight.shape.len() == 2);
        let is_rows = entry.shape.first() == rows && Some(&elements) == rows;
        ensure!(
            (elements == 1 || is_rows) && entry.encoding.is_float(),
            "{}, {} of shape {:?}; expected one number, or one for each row",
            of(),
            entry.encoding.name(),
            entry.shape
        );
        if elements != 1 {
            return Ok(Some(Scale::Rows(entry)));
        }
        let mut scale = [0.0];
        entry.encoding.decode(self.store.bytes(entry), &mut scale)?;
        ensure!(scale[0].is_finite(), "{}, which is {}", of(), scale[0]);
        Ok(Some(Scale::One(scale[0])))
    }

    /// The shape that a canonical tensor would have as the file stores it; `None` when it is not
    /// there. For telling dimensions from a file without a configuration.
    pub fn canonical_shape(&self, name: &str) -> Option<Vec<usize>> {
        let stored = self.names.name(name).ok()?;
        let entry = self.store.entries().get(&stored)?;
        let mut shape = entry.shape.clone();
        if entry.encoding == Encoding::U32
            && let Some((scales, _)) = naming::affine_names(&stored)
            && let Some(scales) = self.store.entries().get(&scales)
            && let (Some(inputs), Some(groups)) = (shape.last_mut(), scales.shape.last())
        {
            // The usual group; the check against the tensors shows when it is another.
            *inputs = groups.checked_mul(GROUP_SIZE)?;
        }
        if entry.encoding == Encoding::U8
            && let Some([_, scales]) = naming::scale_names(&stored)
            && let Some(scales) = self.store.entries().get(&scales)
            && let Some(inputs) = shape.last_mut()
            // Two float4 in a byte: with a scale for 16 values or 32.
            && scales.shape.iter().product::<usize>() / entry.shape[0].next_multiple_of(128) > *inputs / 32
        {
            *inputs *= 2;
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
            .filter(|(name, _)| match naming::companion(&self.names, name) {
                Some(companion) => companion.owner.is_some_and(|owner| !used.contains(&owner)),
                None => true,
            })
            .map(|(name, entry)| format!("{} {:?}", name.shown(), entry.shape))
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

    /// Checks that no weight is stored in another of MLX's packings than the one that is asked for.
    ///
    /// # Errors
    /// Names the weight and its bits.
    pub fn check_bits(&self, specs: &[TensorSpec], wanted: Scheme) -> Result<()> {
        for spec in specs {
            if let Values::Packed { packing, .. } =
                self.expect(&spec.name, &usizes(&spec.shape))?.values
            {
                let (bits, group_size) = (packing.bits as usize, packing.group_size as usize);
                let location = self.store.location();
                ensure!(
                    bits == wanted.bits.number(),
                    "{location}: {} is quantized to {bits} bits already; leave --bits away, or take the \
                     unquantized model",
                    spec.name
                );
                // The usual groups need not have been asked for.
                ensure!(
                    [GROUP_SIZE, group_size].contains(&wanted.group_size),
                    "{location}: {} is quantized in groups of {group_size} already; leave --group-size away, \
                     or take the unquantized model",
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
        Kind::Vae | Kind::ImageEncoder => false,
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
        "{}: this file holds several parts ({})\nhint: give each in a file of its own",
        store.location(),
        found.join(", ")
    );
    Ok(parts.pop())
}

/// Every part that the files hold, from their tensors alone.
pub fn parts(store: &TensorStore) -> Vec<Detected> {
    let entries = store.entries();
    naming::parts(
        entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice())),
    )
}

/// How a quantized weight is packed, from the shapes.
fn packing(
    packed: &Entry,
    scales: &Entry,
    biases: Option<&Entry>,
    shape: &[usize],
) -> Option<Packing> {
    let matrix = |shape: &[usize]| match *shape {
        [rows, columns] => Some([rows, columns]),
        _ => None,
    };
    let [outputs, inputs] = matrix(shape)?;
    let ([rows, words], [scale_rows, groups]) = (matrix(&packed.shape)?, matrix(&scales.shape)?);
    let bits = words.checked_mul(32)?.checked_div(inputs)?;
    let group_size = inputs.checked_div(groups)?;
    let packing = match biases {
        Some(_) => Packing::affine(i32::try_from(bits).ok()?, i32::try_from(group_size).ok()?),
        // ml-explore/mlx, `mlx/ops.cpp`: the other modes have one form each, with bytes as scales.
        None => [Packing::MXFP8, Packing::MXFP4, Packing::NVFP4]
            .into_iter()
            .find(|p| [p.bits, p.group_size].map(|n| n as usize) == [bits, group_size])
            .filter(|_| scales.encoding == Encoding::U8)?,
    };
    // As there: what affine quantization takes.
    let known = packing.mode != Mode::Affine
        || ([2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size));
    let fits = rows == outputs
        && scale_rows == outputs
        && biases.is_none_or(|biases| scales.shape == biases.shape)
        && bits * inputs == 32 * words
        && group_size * groups == inputs;
    (known && fits).then_some(packing)
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
