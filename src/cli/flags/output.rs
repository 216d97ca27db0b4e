//! The outputs of a run, its progress, and its saved state.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueHint};

use super::values::parse_count;
use crate::cli::ui::Style;

/// The outputs of a run.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Where to write: .mp4, .gif, or DIR/ for PNGs
    ///
    /// What ends in / or is a folder gets PNG frames [default: the picture's name and the seed, .mp4, in the current folder, numbered when taken]
    #[arg(short, long, value_name = "PATH", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,

    /// Also write a film strip of numbered frames, as PNG
    #[arg(
        long,
        value_name = "PATH",
        help_heading = "Output",
        hide_short_help = true
    )]
    pub(crate) strip: Option<PathBuf>,

    /// Make the folders of what is written when they are missing
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub(crate) parents: bool,

    #[command(flatten)]
    pub(crate) preview: PreviewArgs,

    /// Write every intermediate tensor into this folder as .npy
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Machine",
        hide_short_help = true
    )]
    pub(crate) dump: Option<PathBuf>,
}

impl OutputArgs {
    /// The paths that are written, besides previews.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Path> {
        [&self.output, &self.strip, &self.dump]
            .into_iter()
            .filter_map(|path| path.as_deref())
    }
}

/// Pictures while the clip is made.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct PreviewArgs {
    /// Preview the clip while it is denoised: in a .png or .gif that each step replaces, or - for
    /// the terminal (pictures in kitty, Ghostty, iTerm2 and WezTerm, coloured blocks in others)
    #[arg(
        long,
        value_name = "PATH|-",
        allow_hyphen_values = true,
        hide_short_help = true
    )]
    pub(crate) preview: Option<PathBuf>,

    /// Decode previews with this small decoder, taew2_1 or for TI2V-5B taew2_2, in place of a
    /// picture of colours alone
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub(crate) preview_vae: Option<PathBuf>,

    /// Steps between previews
    #[arg(long, hide_short_help = true, value_name = "N", default_value = "1", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) preview_every: NonZeroUsize,
}

impl PreviewArgs {
    /// What previews are decoded with, if there shall be any.
    pub(crate) fn decoder(&self) -> Option<&PathBuf> {
        self.preview_vae.as_ref().filter(|_| self.preview.is_some())
    }
}

/// How a run is reported.
#[derive(Debug, Args)]
#[command(next_help_heading = "Progress")]
pub(crate) struct ReportingArgs {
    /// Show progress on stderr this way; json prints one event per line (docs/progress.md)
    /// [default: bar in a terminal, plain elsewhere]
    #[arg(
        long,
        value_name = "bar|plain|json|none",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub(crate) progress: Option<Style>,

    /// Show only warnings and errors
    #[arg(short, long, conflicts_with = "progress", hide_short_help = true)]
    pub(crate) quiet: bool,

    /// Show details too: where settings come from, all of them, every step, and what is loaded
    #[arg(short, long, conflicts_with = "quiet", hide_short_help = true)]
    pub(crate) verbose: bool,
}

impl ReportingArgs {
    /// The style that progress is shown in; `None` for what suits stderr.
    pub(crate) fn style(&self) -> Option<Style> {
        match self.quiet {
            true => Some(Style::Quiet),
            false => self.progress,
        }
    }
}

/// Stopping and resuming.
#[derive(Debug, Args)]
#[command(next_help_heading = "Stopping and resuming")]
pub(crate) struct ResumeArgs {
    /// Resume a saved run: auto resumes this clip's if there is one; never starts over; PATH
    /// resumes that file
    #[arg(
        long,
        value_name = "auto|never|PATH",
        default_value = "auto",
        value_hint = ValueHint::FilePath,
        hide_short_help = true
    )]
    pub(crate) resume: ResumeFrom,

    /// Save the run's state there until the clip is complete
    /// [default: the output's name plus .wan-state, next to it]
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) checkpoint: Option<PathBuf>,

    /// Save the state after every N steps
    #[arg(long, value_name = "N", default_value = "1", hide_short_help = true, value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) checkpoint_every: NonZeroUsize,

    /// Don't save the run's state
    #[arg(long, hide_short_help = true, conflicts_with_all = ["checkpoint", "checkpoint_every"])]
    pub(crate) no_checkpoint: bool,
}

/// The saved run that a run resumes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResumeFrom {
    /// This clip's saved run, if there is one.
    Auto,
    /// Nothing.
    Never,
    /// A saved run.
    File(PathBuf),
}

impl From<OsString> for ResumeFrom {
    fn from(value: OsString) -> Self {
        match value.to_str() {
            Some("auto") => Self::Auto,
            Some("never") => Self::Never,
            _ => Self::File(value.into()),
        }
    }
}

impl ResumeArgs {
    /// Steps after which the state is saved; `None` for never.
    pub(crate) fn every(&self) -> Option<usize> {
        (!self.no_checkpoint).then_some(self.checkpoint_every.get())
    }

    /// Refuses what names one clip's state.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn check_for_many(&self) -> Result<()> {
        ensure!(
            !matches!(self.resume, ResumeFrom::File(_)) && self.checkpoint.is_none(),
            "--checkpoint PATH and --resume PATH are for one clip; the clips of a batch are saved \
             next to where they go"
        );
        Ok(())
    }
}
