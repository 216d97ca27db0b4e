//! One part of a model (an expert, the VAE, the text encoder) as a strict source of tensors, by
//! their canonical names, whatever the layout.

mod filled;
mod foreign;
mod loader;
mod values;

pub(crate) use foreign::OTHER_MODEL;
pub use foreign::{Foreign, foreign};
pub use loader::{Held, Loader, stored_as_float32};
pub use values::quantize_parallel;

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::container::encoding::Encoding;
use super::naming::{self, Arrangement, Detected, Kind, Naming};
use super::quantize::{Bits, GROUP_SIZE};
use super::store::{Container, Entry, Location, TensorStore};
use crate::model::TensorSpec;
use crate::util::show::{Show, chain};

/// How many missing or unexpected tensors an error lists.
const MAX_LISTED: usize = 8;

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
        scale: Scale<'a>,
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
        if let Some(Foreign { what, hint, .. }) = foreign(&store) {
            bail!(
                "{location}: this is {what}; expected {}\nhint: {hint}",
                kind.with_article()
            );
        }
        // What nothing is known of is compared with diffusers' names, which shows what it is not.
        let names = detect(&store, kind)?.unwrap_or(Detected::plain(kind, Naming::Diffusers));
        Ok(Self::new(store, names))
    }

    fn new(mut store: TensorStore, names: Detected) -> Self {
        if names.kind == Kind::ImageEncoder && names.naming == Naming::Original {
            store.take_apart(naming::FUSED, naming::APART);
        }
        Self { store, names }
    }

    /// As [`Self::open`], for files that may hold a share of the part only, whose names are known.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub fn open_share(location: &Location, names: Detected) -> Result<Self> {
        Ok(Self::new(TensorStore::open(location)?, names))
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
            .and_then(|(scales, biases)| Some((entries.get(&scales)?, entries.get(&biases)?)));
        let mut arrangement = expected.arrangement;
        let values = match sides {
            Some((scales, biases)) if entry.encoding == Encoding::U32 => {
                let layout = affine_layout(entry, scales, biases, &expected.shape);
                let Some((bits, group_size)) = layout else {
                    return wrong(format!(
                        "{} has shape {:?} with scales {:?} and biases {:?}, which is no \
                         quantization of {:?} that MLX knows",
                        stored.shown(),
                        entry.shape,
                        scales.shape,
                        biases.shape,
                        expected.shape
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
                        "{} has shape {:?}; expected {:?}",
                        stored.shown(),
                        entry.shape,
                        expected.shape
                    ));
                }
                if arrangement == Arrangement::AsIs && entry.shape != shape {
                    arrangement = Arrangement::Reshaped;
                }
                if !entry.encoding.is_float() {
                    return wrong(format!(
                        "{} is stored as {}; expected real numbers",
                        stored.shown(),
                        entry.encoding.name()
                    ));
                }
                let scale = match self.scale_of(&stored, entry) {
                    Ok(scale) => scale,
                    Err(error) => return wrong(chain(&error)),
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
    fn scale_of(&self, stored: &str, weight: &Entry) -> Result<Scale<'_>> {
        let entries = self.store.entries();
        let found = naming::scale_names(stored)
            .into_iter()
            .flatten()
            .find_map(|name| Some((entries.get(&name)?, name)));
        let Some((entry, name)) = found else {
            return Ok(Scale::One(1.0));
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
            return Ok(Scale::Rows(entry));
        }
        let mut scale = [0.0];
        entry.encoding.decode(self.store.bytes(entry), &mut scale)?;
        ensure!(scale[0].is_finite(), "{}, which is {}", of(), scale[0]);
        Ok(Scale::One(scale[0]))
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
