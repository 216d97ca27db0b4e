//! The program, untouched by the settings of who runs the tests.

use std::process::Command;

/// A command that runs it, with neither variables nor a file of settings, and without what a machine was
/// tuned to.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wan-i2v"));
    let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in inherited.filter(|name| name.starts_with("WAN_I2V_")) {
        command.env_remove(name);
    }
    command.env("XDG_CONFIG_HOME", "/nowhere");
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");
    command.env("XDG_CACHE_HOME", cache);
    command
}
