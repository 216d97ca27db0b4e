//! The commands that make many clips.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::batch::sweep::Axis;
use clap::{Args, Command};

use super::{ClipArgs, GenerateArgs, ReportingArgs};

/// Makes the clips of a job file (docs/batch.md).
///
/// What the clips share is loaded and encoded once: texts, then pictures, then each expert for as
/// many clips as are in flight. Every flag of a clip is a setting of all jobs that do not say
/// otherwise. Each clip's path goes to stdout when it is complete. The same command again makes only
/// what is missing. Exit codes: 0 every clip exists, 1 one or more are not, 2 wrong usage, 130
/// stopped by Ctrl-C, 143 by SIGTERM.
#[derive(Debug, Args)]
#[command(
    // A job may say them.
    mut_arg("image", |arg| arg.required(false)),
    mut_arg("prompt", |arg| arg.required(false)),
    mut_arg("output", |arg| arg.value_name("TEMPLATE").help(
        "Names of clips in the folder, with {name}, {seed}, {index}, {take}, {image}; as \
         --strip, --preview and --dump [default: {name}_{seed}.mp4]",
    )),
)]
pub(crate) struct BatchArgs {
    /// The jobs: .jsonl (an object a line), .csv (names in the first line) or .toml ([[job]] each)
    #[arg(value_name = "JOBS")]
    pub(crate) jobs: PathBuf,

    #[command(flatten)]
    pub(crate) many: ManyArgs,

    #[command(flatten)]
    pub(crate) seeds: SeedsArgs,

    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
}

/// The flags of all commands that make many clips.
#[derive(Debug, Args)]
#[command(next_help_heading = "Many clips")]
pub(crate) struct ManyArgs {
    /// The folder for all that is made, created if it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: PathBuf,

    /// Clips in flight: N share a loading of the experts, and wait in memory meanwhile
    /// [default: 8, or as many as the memory allows]
    #[arg(long, value_name = "N")]
    pub(crate) jobs_at_once: Option<NonZeroUsize>,

    /// Check everything and forecast its cost, but make nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// The seeds of a job.
#[derive(Debug, Args)]
#[command(next_help_heading = "Many clips")]
pub(crate) struct SeedsArgs {
    /// Seeds of jobs that name none: 7, 1..4, or several with commas; a clip each
    /// [default: one that follows from the job's name]
    #[arg(long, value_name = "SEEDS", conflicts_with = "seed")]
    pub(crate) seeds: Option<String>,
}

/// The command that reads a job: the flags of a clip, and seeds.
pub(crate) fn job_command() -> Command {
    SeedsArgs::augment_args(GenerateArgs::augment_args(Command::new("wan-i2v")))
}

/// Makes clips over all combinations of some flags' values, and shows them side by side.
///
/// The folder gets each clip, a sheet and a clip of all clips (grid.png, grid.mp4), their figures
/// (results.csv, results.json) and plots (plots.svg); stdout gets the table. Finished runs are
/// kept: the same command resumes where it was stopped, and one with more values makes only what
/// is missing. All flags of a clip are taken. Exit codes: 0 done, 1 a run failed, 2 wrong usage.
#[derive(Debug, Args)]
#[command(
    // They may be varied.
    mut_arg("image", |arg| arg.required(false)),
    mut_arg("prompt", |arg| arg.required(false)),
)]
pub(crate) struct SweepArgs {
    /// A flag and the values that it takes, such as steps=6,12,24; every combination of all --vary
    /// is made. Where values have commas, part them by semicolons: guide-scale=2;3,4
    #[arg(long, value_name = "FLAG=VALUES", value_parser = parse_axis, help_heading = "Sweep")]
    pub(crate) vary: Vec<Axis>,

    /// The same as --vary size=...
    #[arg(long, value_name = "WxH,...", help_heading = "Sweep")]
    pub(crate) sizes: Option<String>,

    #[command(flatten)]
    pub(crate) many: ManyArgs,

    /// Print JSON
    #[arg(long, help_heading = "Sweep")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) reporting: ReportingArgs,

    #[command(flatten)]
    pub(crate) clip: ClipArgs,
}

fn parse_axis(text: &str) -> std::result::Result<Axis, String> {
    text.parse().map_err(|error| format!("{error:#}"))
}
