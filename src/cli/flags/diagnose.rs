//! The commands that look for what is wrong.

use std::path::PathBuf;

use crate::media::Resize;
use clap::Args;

use super::values::parse_tolerance;
use super::{MachineArgs, ModelArgs};

/// Measures a clip's frames and says which symptoms of a broken model it shows, and from where.
///
/// Exit codes: 0 no alarm, 1 an alarm or a file that cannot be read, 2 wrong usage.
#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// A clip (.mp4, .gif), a folder of frames, or a dump's frames or latents (.npy)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The picture that the clip starts with: is the first frame that picture?
    #[arg(long, value_name = "PATH")]
    pub(crate) image: Option<PathBuf>,

    /// How that picture was resized [default: as the clip's file says, or lanczos]
    #[arg(long, value_enum, requires = "image")]
    pub(crate) resize: Option<Resize>,

    /// Print JSON (docs/analyze.md)
    #[arg(long)]
    pub(crate) json: bool,

    /// Also print the figures of every frame
    #[arg(long, conflicts_with = "json")]
    pub(crate) frames: bool,

    /// Write one page with film strip, plots and spectra, which needs nothing else
    #[arg(long, value_name = "PATH")]
    pub(crate) html: Option<PathBuf>,

    /// Write a sheet with the same as a picture
    #[arg(long, value_name = "PATH")]
    pub(crate) png: Option<PathBuf>,
}

/// Measures how far two dumps, files or checkpoints are apart.
///
/// A and B are two folders of --dump, two .npy or .safetensors files, or two models or parts of
/// models in any layouts, quantized or not; `tiny` is the built-in one. Every tensor is held
/// against a tolerance. Exit codes: 0 all within it, 1 not, 2 A and B cannot be compared.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A folder or a file; differences are relative to its values
    #[arg(value_name = "A")]
    pub(crate) a: PathBuf,

    /// The folder or file that is compared with it
    #[arg(value_name = "B")]
    pub(crate) b: PathBuf,

    /// The most that a tensor's largest difference may be, over its largest value
    /// [default: by how coarsely it is stored (docs/compare.md)]
    #[arg(long, value_name = "X", value_parser = parse_tolerance, allow_negative_numbers = true)]
    pub(crate) tolerance: Option<f64>,

    /// Rows of the table, the worst ones
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) most: usize,

    /// Show every row
    #[arg(long, conflicts_with = "most")]
    pub(crate) all: bool,

    /// Print JSON, every row
    #[arg(long, conflicts_with_all = ["most", "all"])]
    pub(crate) json: bool,
}

/// Looks at this machine and a model on it: kernels, VAE, guidance, a clip whose result is known.
///
/// Every kernel is held to a computation on the processor in float64, the VAE to a picture that has
/// to come back, guidance to having an effect, and a clip of the built-in miniature to its known
/// result. Exit codes: 0 everything is as it should be, 1 not, 2 wrong usage.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// Leave out what loads the model's text encoder and experts
    #[arg(long, help_heading = "Doctor")]
    pub(crate) quick: bool,

    /// Print JSON
    #[arg(long, help_heading = "Doctor")]
    pub(crate) json: bool,

    /// Write a report in Markdown, to attach to an issue
    #[arg(long, value_name = "FILE", help_heading = "Doctor")]
    pub(crate) report: Option<PathBuf>,

    /// Name files and folders in the report and in JSON, which are left out otherwise
    #[arg(long, help_heading = "Doctor")]
    pub(crate) with_paths: bool,
}
