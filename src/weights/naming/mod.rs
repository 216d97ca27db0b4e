//! What each layout calls the tensors that the networks ask for, and how it arranges them.
//!
//! The canonical names are diffusers' for experts and VAE and transformers' for the text and the image
//! encoder.
//! Everything here is a pure function of names and shapes; files are read elsewhere.

mod companion;
pub mod config;
mod detect;
mod expert;
mod image;
mod infer;
mod original_config;
mod text;
mod vae;

pub use companion::{Companion, Role, affine_names, companion, scale_names};
pub use detect::{detect, parts};
pub(super) use image::{APART, FUSED};
pub(super) use infer::{EPS, PATCH_SIZE, QK_NORM, ROPE_LENGTH};
pub use infer::{LATENTS_MEAN, LATENTS_STD, WAN22_MEAN, WAN22_STD};
pub use original_config::{GuideScale, OriginalConfig, Quantization};

use anyhow::{Context, Result};

/// Which network a part of a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One of the two diffusion transformers.
    Expert,
    /// The video VAE: encoder, decoder and the convolutions between them.
    Vae,
    /// The UMT5 text encoder.
    TextEncoder,
    /// CLIP's vision encoder.
    ImageEncoder,
}

impl Kind {
    /// Its name with an article: `an expert`.
    pub fn with_article(self) -> &'static str {
        match self {
            Kind::Expert => "an expert",
            Kind::Vae => "a VAE",
            Kind::TextEncoder => "a text encoder",
            Kind::ImageEncoder => "an image encoder",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Expert => "expert",
            Kind::Vae => "VAE",
            Kind::TextEncoder => "text encoder",
            Kind::ImageEncoder => "image encoder",
        })
    }
}

/// Whose names a part's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Naming {
    /// diffusers' names, transformers' for the text and the image encoder: the canonical ones.
    Diffusers,
    /// Those of Wan-Video/Wan2.2, which ComfyUI's and GGUF's experts and ComfyUI's VAE have too.
    Original,
    /// Those of Blaizzy/mlx-video's converted folders, and of our own.
    MlxVideo,
    /// llama.cpp's, for GGUF text encoders.
    LlamaCpp,
    /// Those of lpalbou/mlx-gen's experts: diffusers' but for the feed-forward layers, with the patch
    /// embedding's input channels last.
    MlxGen,
    /// Those of madebyollin/taehv's small autoencoders, which have no others.
    Taehv,
}

impl std::fmt::Display for Naming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Naming::Diffusers => "diffusers",
            Naming::Original => "original",
            Naming::MlxVideo => "mlx-video",
            Naming::LlamaCpp => "llama.cpp",
            Naming::MlxGen => "mlx-gen",
            Naming::Taehv => "taehv",
        })
    }
}

/// How a stored array becomes the canonical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// It is the canonical one.
    AsIs,
    /// The same elements in the same order under another shape.
    Reshaped,
    /// Canonical axis `i` is stored axis `axes[i]`.
    Permuted(&'static [usize]),
}

/// A canonical tensor as a layout keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name there.
    pub name: String,
    /// Its shape there, outermost first.
    pub shape: Vec<usize>,
    /// What to do with the stored array.
    pub arrangement: Arrangement,
}

impl Stored {
    /// Whether an array of shape `found` holds this tensor in the order of `arrangement`.
    ///
    /// Unless axes are permuted, axes of length 1 may be missing or added, and a convolution's
    /// neighbouring axes may be merged: GGUF has room for four axes only, and its writers fold
    /// the patch embedding `[5120, 36, 1, 2, 2]` to `[5120, 36, 2, 2]` (dropped) or
    /// `[184320, 1, 2, 2]` (stable-diffusion.cpp). The order of the elements is the same. Matrices are
    /// never merged, so a transposed one does not fit.
    pub fn fits(&self, found: &[usize]) -> bool {
        if self.shape == found {
            return true;
        }
        if matches!(self.arrangement, Arrangement::Permuted(_)) {
            return false;
        }
        let long =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&d| d != 1).collect() };
        let (expected, found) = (long(&self.shape), long(found));
        expected == found || (expected.len() > 2 && merges(&expected, &found))
    }
}

/// Whether `merged` is `shape` with runs of neighbouring axes multiplied together.
fn merges(shape: &[usize], merged: &[usize]) -> bool {
    let mut axes = shape.iter();
    for &target in merged {
        let mut product = 1usize;
        while product < target {
            match axes.next().and_then(|&axis| product.checked_mul(axis)) {
                Some(next) if next > product => product = next,
                _ => return false,
            }
        }
        if product != target {
            return false;
        }
    }
    axes.next().is_none()
}

/// Residual blocks per level of the published VAE's decoder.
pub const DECODER_BLOCKS: usize = 3;

/// How a part names its tensors: what [`detect`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The network.
    pub kind: Kind,
    /// Whose names.
    pub naming: Naming,
    /// What is in front of every name, such as `model.diffusion_model.`; mostly empty.
    pub prefix: String,
    /// Residual blocks per level of the VAE's decoder: the original numbers them in one list.
    /// [`DECODER_BLOCKS`] for other networks.
    pub decoder_blocks: usize,
    /// Whether shortcuts lead around the VAE's levels, as in Wan2.2's, whose lists are nested.
    pub residual: bool,
}

impl Detected {
    /// Names of the published architecture without a prefix, for writing.
    pub fn plain(kind: Kind, naming: Naming) -> Self {
        Self {
            kind,
            naming,
            prefix: String::new(),
            decoder_blocks: DECODER_BLOCKS,
            residual: false,
        }
    }

    /// The canonical tensor `name` of `shape` as this part keeps it, prefix included.
    ///
    /// # Errors
    /// When the architecture has no such tensor or this naming does not exist for the network.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let arrangement = self.arrangement(name, shape.len());
        let stored_shape = match arrangement {
            Arrangement::AsIs => shape.to_vec(),
            Arrangement::Reshaped if self.kind == Kind::ImageEncoder => {
                let ones = std::iter::repeat_n(1, 3usize.saturating_sub(shape.len()));
                ones.chain(shape.iter().copied()).collect()
            }
            Arrangement::Reshaped => match shape {
                [first, rest @ ..] => {
                    let merged = rest.iter().fold(1usize, |p, &d| p.saturating_mul(d));
                    match merged {
                        1 => vec![*first],
                        _ => vec![*first, merged],
                    }
                }
                [] => Vec::new(),
            },
            Arrangement::Permuted(axes) => {
                let mut stored = shape.to_vec();
                for (&axis, &d) in axes.iter().zip(shape) {
                    if let Some(slot) = stored.get_mut(axis) {
                        *slot = d;
                    }
                }
                stored
            }
        };
        Ok(Stored {
            name: self.name(name)?,
            shape: stored_shape,
            arrangement,
        })
    }

    /// The name of the canonical tensor `name` in this part, prefix included.
    ///
    /// # Errors
    /// As [`Self::stored`].
    pub fn name(&self, name: &str) -> Result<String> {
        let found = match self.kind {
            Kind::Expert => expert::name(self.naming, name),
            Kind::Vae => {
                let levels = vae::Levels {
                    decoder_blocks: self.decoder_blocks,
                    residual: self.residual,
                };
                vae::name(self.naming, name, levels)
            }
            Kind::TextEncoder => text::name(self.naming, name),
            Kind::ImageEncoder => image::name(self.naming, name),
        };
        let found = found.with_context(|| {
            format!(
                "the {} has no tensor named {name} in the {} naming",
                self.kind, self.naming
            )
        })?;
        Ok(format!("{}{found}", self.prefix))
    }

    /// The canonical shape of `name` when the stored one is `found`, for the inference of
    /// dimensions. A merged shape stays as it is: its factors are not in it.
    pub fn canonical_shape(&self, name: &str, found: &[usize]) -> Vec<usize> {
        match self.arrangement(name, found.len()) {
            Arrangement::Permuted(axes) => axes
                .iter()
                .filter_map(|&axis| found.get(axis).copied())
                .collect(),
            Arrangement::Reshaped if self.kind == Kind::ImageEncoder => {
                found.iter().copied().skip_while(|&d| d == 1).collect()
            }
            Arrangement::AsIs | Arrangement::Reshaped => found.to_vec(),
        }
    }

    /// Of the canonical tensor `name` with `rank` axes.
    fn arrangement(&self, name: &str, rank: usize) -> Arrangement {
        match self.naming {
            Naming::MlxVideo => {}
            Naming::MlxGen if name == expert::PATCH_EMBEDDING && rank == 5 => {
                return Arrangement::Permuted(&[0, 4, 1, 2, 3]);
            }
            Naming::Original if self.kind == Kind::ImageEncoder && image::is_padded(name) => {
                return Arrangement::Reshaped;
            }
            _ => return Arrangement::AsIs,
        }
        // Blaizzy/mlx-video, mlx_video/models/wan_2/convert.py: the patch embedding becomes a
        // linear layer, and the VAE's convolutions have their input channels last. Gains have one axis in
        // Wan2.2's.
        match (self.kind, rank) {
            (Kind::Expert, _) if name == expert::PATCH_EMBEDDING => Arrangement::Reshaped,
            (Kind::Vae, 5) if name.ends_with(".weight") => Arrangement::Permuted(&[0, 4, 1, 2, 3]),
            (Kind::Vae, _) if self.residual && name.ends_with(".gamma") => Arrangement::Reshaped,
            (Kind::Vae, 4) if name.ends_with(".weight") => Arrangement::Permuted(&[0, 3, 1, 2]),
            _ => Arrangement::AsIs,
        }
    }
}

/// Where a file of the published architecture with `naming` and no prefix keeps the canonical
/// tensor `name` of `shape`.
///
/// # Errors
/// When the architecture has no such tensor or this naming does not exist for the network.
pub fn stored(kind: Kind, naming: Naming, name: &str, shape: &[usize]) -> Result<Stored> {
    Detected::plain(kind, naming).stored(name, shape)
}

/// A module's canonical name and what `ORIGINAL`, `MLX_VIDEO` and so on call it, with `{}` for a
/// block's index; `leaves` are its tensors.
struct Row<const N: usize> {
    canonical: &'static str,
    others: [&'static str; N],
    leaves: &'static [&'static str],
}

/// Leaves of a linear layer or convolution.
const BOTH: &[&str] = &["weight", "bias"];
/// Leaf of a norm without shift, or of a linear layer without bias.
const WEIGHT: &[&str] = &["weight"];
/// A tensor that is no module's.
const ITSELF: &[&str] = &[];

/// The name that column `column` of `rows` has for the canonical tensor `name`.
fn look_up<const N: usize>(rows: &[Row<N>], column: usize, name: &str) -> Option<String> {
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    for row in rows {
        let template = row.others.get(column)?;
        if row.leaves.is_empty() {
            if let Some(index) = capture(row.canonical, name) {
                return Some(fill(template, index));
            }
        } else if let Some(index) = capture(row.canonical, module)
            && row.leaves.contains(&leaf)
        {
            return Some(format!("{}.{leaf}", fill(template, index)));
        }
    }
    None
}

/// The index in `text` where `template` has `{}`, empty when it has none; nothing when they do
/// not match.
fn capture<'a>(template: &str, text: &'a str) -> Option<&'a str> {
    match template.split_once("{}") {
        None => (template == text).then_some(""),
        Some((before, after)) => {
            let index = text.strip_prefix(before)?.strip_suffix(after)?;
            is_index(index).then_some(index)
        }
    }
}

fn fill(template: &str, index: &str) -> String {
    template.replacen("{}", index, 1)
}

/// Whether `text` is a block's index as every layout writes it: decimal, no leading zero.
fn is_index(text: &str) -> bool {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0'))
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
