//! The commands that look for what is wrong.

use std::path::PathBuf;

use crate::media::{Fit, Resize};
use clap::Args;

use super::machine::DeviceArgs;
use super::values::{parse_most, parse_seconds, parse_tolerance};
use super::{GroupArgs, MachineArgs, ModelArgs};

/// Find the symptoms of a broken model in a clip's frames
///
/// And where they begin. Exit codes: 0 no alarm, 1 an alarm or an unreadable file, 2 wrong usage.
#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// A clip (.mp4, .gif), a folder of frames, or a dump's frames or latents (.npy)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The picture the clip starts with, to compare the first frame with
    #[arg(long, help_heading = "Input", value_name = "PATH")]
    pub(crate) image: Option<PathBuf>,

    /// How that picture was resized [default: as the clip's file says, or lanczos]
    #[arg(long, help_heading = "Input", value_enum, requires = "image")]
    pub(crate) resize: Option<Resize>,

    /// How it was brought into the clip's shape [default: as the clip's file says, or crop]
    #[arg(long, help_heading = "Input", value_enum, requires = "image")]
    pub(crate) fit: Option<Fit>,

    /// Print JSON (docs/analyze.md)
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Also print the figures of every frame
    #[arg(long, help_heading = "Output", conflicts_with = "json")]
    pub(crate) frames: bool,

    /// Write a self-contained page with film strip, plots and spectra
    #[arg(long, help_heading = "Output", value_name = "PATH")]
    pub(crate) html: Option<PathBuf>,

    /// Write the same as one picture
    #[arg(long, help_heading = "Output", value_name = "PATH")]
    pub(crate) png: Option<PathBuf>,
}

/// Measure how far apart two clips, dumps, files or models are
///
/// A and B are two clips (.mp4, .gif, folders of frames), two folders of --dump, two .npy or
/// .safetensors files, or two models or parts of models in any layouts, quantized or not; `tiny` is
/// the built-in one. Every tensor has a tolerance; clips are expected to be equal. Exit codes: 0 all
/// within it, 1 some are not, 2 A and B cannot be compared.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A folder or a file; differences are relative to its values
    #[arg(value_name = "A")]
    pub(crate) a: PathBuf,

    /// The folder or file to compare with A
    #[arg(value_name = "B")]
    pub(crate) b: PathBuf,

    /// Largest difference allowed in a tensor, relative to its largest value; in clips, as a share of
    /// 255 levels
    /// [default: from a tensor's storage format (docs/compare.md); 0 for clips]
    #[arg(long, help_heading = "Input", value_name = "X", value_parser = parse_tolerance, allow_negative_numbers = true)]
    pub(crate) tolerance: Option<f64>,

    /// Show N rows, worst first
    #[arg(long, help_heading = "Output", value_name = "N", default_value = "20", value_parser = parse_most, allow_negative_numbers = true)]
    pub(crate) most: usize,

    /// Show every row
    #[arg(long, help_heading = "Output", conflicts_with = "most")]
    pub(crate) all: bool,

    /// Also write a picture of frames of two clips and of their difference
    #[arg(long, help_heading = "Output", value_name = "PATH")]
    pub(crate) png: Option<PathBuf>,

    /// Print JSON, with every row
    #[arg(long, help_heading = "Output", conflicts_with_all = ["most", "all"])]
    pub(crate) json: bool,
}

/// Check this machine, and a model on it
///
/// Compares each kernel with a float64 computation on the processor, sends a picture through the
/// VAE and back, checks that guidance has an effect, and renders a clip of the miniature whose
/// result is known. With --machines it measures how fast they exchange arrays instead. Exit codes: 0 all is well, 1 something is wrong, 2 wrong usage.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    #[command(flatten)]
    pub(crate) group: GroupArgs,

    /// Skip what takes long: a clip's attention, and checks that load the model's text encoder and experts
    #[arg(long, help_heading = "Doctor")]
    pub(crate) quick: bool,

    /// Ask the hub whether it answers
    #[arg(long, help_heading = "Doctor")]
    pub(crate) hub: bool,

    /// Print every check and all facts
    #[arg(short, long, help_heading = "Output", conflicts_with = "json")]
    pub(crate) verbose: bool,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Write a Markdown report, to attach to an issue
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) report: Option<PathBuf>,

    /// Include names of files and folders in the report and JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) with_paths: bool,
}

/// Find out how this machine computes fastest, and keep to it
///
/// Tries, in under a minute, ways of computing the same: rows per call of attention, how keys and
/// values lie in memory, packed or unpacked weights, convolutions, blocks. One that gives another result
/// than without tuning is never taken. Runs that were saved before go on as they began
/// (docs/performance.md).
#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Take so many seconds at most; candidates that there is no time for are not chosen
    #[arg(long, help_heading = "Tuning", value_name = "SECONDS", default_value = "50", value_parser = parse_seconds, allow_negative_numbers = true)]
    pub(crate) within: f64,

    /// Forget what was chosen, on all devices
    #[arg(long, help_heading = "Tuning", conflicts_with = "dry_run")]
    pub(crate) reset: bool,

    /// Only show what would be chosen
    #[arg(long, help_heading = "Tuning")]
    pub(crate) dry_run: bool,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
