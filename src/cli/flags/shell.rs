//! The commands around the program and its clips.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::values::parse_machine;
use super::{ConfigArgs, MachineArgs};

/// Show how a clip was made, or how far a saved run is
///
/// With the command that makes the clip again, or resumes the run.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Clip made by this program, or an unfinished one's .wan-state
    ///
    /// .mp4, .gif, one frame's .png or a folder of frames.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// List the presets: their settings, passes and sources
///
/// Those of the program, and those that the config file has as [presets.NAME].
#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// List models by their short names: what they are for and cost
///
/// Where each comes from, bytes to fetch, whether it is here, memory and time of its own clip on this
/// machine. Those of the program, and those that the config file has as [models.NAME].
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    /// Only the model of this name
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// Answer for a Mac with so many GB of memory
    ///
    /// Whatever this machine is. Its rates are not known, so there are no times.
    #[arg(long = "machine", value_name = "GB", value_parser = parse_machine, allow_negative_numbers = true, conflicts_with_all = ["device", "memory_budget"], help_heading = "Machine")]
    pub(crate) mac: Option<u64>,

    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// Print shell completions
///
/// Where each shell looks for them: docs/terminal.md. For one session of bash or zsh:
/// `source <(wan-i2v completions bash)`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell that takes them
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Write man pages, or print the program's own
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder for wan-i2v.1 and a page per command
    ///
    /// Created if missing, such as ~/.local/share/man/man1. Without it the program's page goes to
    /// stdout.
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}
