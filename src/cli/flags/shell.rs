//! The commands around the program and its clips.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// Shows how a clip was made, and the command that renders it again.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A clip of this program: .mp4, .gif, a frame's .png or a folder of frames
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints completions of the command line for a shell
///
/// Where each shell looks for them: docs/terminal.md. For one session of bash or zsh:
/// `source <(wan-i2v completions bash)`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Writes man pages, or prints that of the program
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder for wan-i2v.1 and a page for every command, made if missing, such as
    /// ~/.local/share/man/man1; without one, the program's page goes to stdout
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}
