//! Where settings come from besides the command line.

use std::ffi::OsString;

use clap::{Args, ValueHint};

/// Where settings come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct ConfigArgs {
    /// Read settings from this TOML file; flags and WAN_I2V_* variables come first
    /// [default: ~/.config/wan-i2v/config.toml, if it exists]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub(crate) config: Option<OsString>,

    /// Don't read a config file
    #[arg(long, conflicts_with = "config", hide_short_help = true)]
    pub(crate) no_config: bool,
}
