//! The commands that make many clips.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::batch::sweep::Axis;
use crate::util::show::chain;
use clap::{Args, Command};

use super::command::arranged;
use super::values::parse_count;
use super::{AfterArgs, ClipArgs, GenerateArgs, GroupArgs, ReportingArgs};

/// Make the clips of a job file
///
/// Its form: docs/batch.md. What clips share is loaded and encoded once: texts, then pictures, then each expert for as many
/// clips as are in flight. Flags of a clip apply to every job that does not set them itself. Each
/// clip's path goes to stdout when the clip is complete; index.html in the folder shows all clips. Running the same command again makes only
/// what is missing. Exit codes: 0 all clips made, 1 some failed, 2 wrong usage, 130 stopped by
/// Ctrl-C, 143 by SIGTERM.
#[derive(Debug, Args)]
#[command(
    // A job may say them.
    mut_arg("prompt", |arg| arg.required(false)),
    mut_arg("output", |arg| arg.value_name("TEMPLATE").help("Names of clips in the folder").long_help(
        "Names of clips in the folder, with {name}, {seed}, {index}, {take}, {image}; strips, \
         previews and dumps have the same [default: {name}_{seed}.mp4]",
    )),
)]
pub(crate) struct BatchArgs {
    /// File of the jobs: .jsonl, .csv or .toml
    ///
    /// .jsonl has one object per line, .csv names in the first line, .toml one [[job]] each.
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
    /// Folder for the results, created if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: PathBuf,

    /// Clips in flight
    ///
    /// N clips share one loading of each expert, and wait in memory meanwhile [default: 8, or as many as memory allows]
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) jobs_at_once: Option<NonZeroUsize>,

    /// Check all and forecast the cost, but make nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// The seeds of a job.
#[derive(Debug, Args)]
#[command(next_help_heading = "Many clips")]
pub(crate) struct SeedsArgs {
    /// Seeds of jobs without one: 7, 1..4 or 7,9,1..4
    ///
    /// A clip for each [default: derived from the job's name]
    #[arg(long, value_name = "SEEDS", conflicts_with = "seed")]
    pub(crate) seeds: Option<String>,
}

/// The command that reads a job: the flags of a clip, and seeds.
pub(crate) fn job_command() -> Command {
    let command = GenerateArgs::augment_args(Command::new("wan-i2v"));
    arranged(SeedsArgs::augment_args(command))
}

/// The command that reads what a sweep varies: the flags of a clip.
pub(crate) fn clip_command() -> Command {
    arranged(ClipArgs::augment_args(Command::new("wan-i2v")))
}

/// Make clips for all combinations of some flags' values
///
/// And show them side by side. The folder gets each clip, all of them side by side (grid.png, grid.mp4) and on a
/// page (index.html), their figures (results.csv, results.json) and plots (plots.svg); stdout gets the
/// table. Finished runs are
/// kept: the same command resumes where it stopped, and more values make only what is missing. Exit
/// codes: 0 done, 1 a run failed, 2 wrong usage.
#[derive(Debug, Args)]
#[command(
    // They may be varied.
    mut_arg("prompt", |arg| arg.required(false)),
)]
pub(crate) struct SweepArgs {
    /// Flag and its values: steps=6,12 or seed=1..4
    ///
    /// Repeat it for all combinations. 1..4 is 1,2,3,4 and 10..40..10 is 10,20,30,40. Separate values
    /// that have commas by semicolons: guide-scale=2;3,4
    #[arg(long, value_name = "FLAG=VALUES", value_parser = parse_axis, help_heading = "Sweep")]
    pub(crate) vary: Vec<Axis>,

    /// Sizes to vary, as --vary size=...
    #[arg(long, value_name = "WxH,...", help_heading = "Sweep")]
    pub(crate) sizes: Option<String>,

    #[command(flatten)]
    pub(crate) many: ManyArgs,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) reporting: ReportingArgs,

    #[command(flatten)]
    pub(crate) after: AfterArgs,

    #[command(flatten)]
    pub(crate) clip: ClipArgs,

    #[command(flatten)]
    pub(crate) group: GroupArgs,
}

fn parse_axis(text: &str) -> std::result::Result<Axis, String> {
    text.parse().map_err(|error| chain(&error))
}
