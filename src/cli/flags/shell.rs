//! The commands around the program and its clips.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// Show how a clip was made, and the command that makes it again.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A clip made by this program: .mp4, .gif, one frame's .png or a folder of frames
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print shell completions
///
/// Where each shell looks for them: docs/terminal.md. For one session of bash or zsh:
/// `source <(wan-i2v completions bash)`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Write man pages, or print the program's own
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder for wan-i2v.1 and one page per command, created if missing, such as
    /// ~/.local/share/man/man1; without it, the program's page goes to stdout
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}
