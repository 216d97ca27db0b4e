//! Whether other machines share the work, and which of them this one is.

use std::path::Path;
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use tempfile::TempDir;

use super::launch;
use crate::cli::flags::GroupArgs;
use crate::cli::ui::stderr::{note, repeat, warning};
use crate::runtime::{Hosts, Links};
use crate::util::show::Show;

/// The exit code when another machine is lost, or has failed.
pub(crate) const LOST: u8 = 3;

/// A folder for what a rank that rank 0 reports for makes. It is gone with the rank, also at Ctrl-C or SIGTERM, at
/// which that ends at once.
///
/// # Errors
/// When it cannot be made.
pub(super) fn folder() -> Result<TempDir> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let path = folder.path().to_owned();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for signals")?;
    thread::Builder::new().spawn(move || {
        if let Some(number) = signals.forever().next() {
            let _ = fs::remove_dir_all(path);
            let _ = emulate_default_handler(number);
        }
    })?;
    Ok(folder)
}

impl GroupArgs {
    /// Whether this is a rank that rank 0 reports for.
    pub(crate) fn serves(&self) -> bool {
        let named = self.machines.is_some() || env::var_os("MLX_HOSTFILE").is_some();
        named && env::var_os("MLX_RANK").is_some_and(|rank| rank != "0")
    }

    /// The other machines, once all are there.
    ///
    /// # Errors
    /// When one is missing or another.
    pub(super) fn meet(&self) -> Result<Option<Links>> {
        launch::end_with_input()?;
        let Some((hosts, rank)) = self.place()? else {
            return Ok(None);
        };
        // Nobody else says for whom a rank waits that rank 0 has not met.
        let tell = if rank > 0 { repeat } else { note };
        let links = Links::meet(hosts, rank, &tell)?;
        launch::tell_of_joining(rank)?;
        Ok(Some(links))
    }

    /// The machines, and which of them this one is: as the flag says, or MLX's own variables.
    fn place(&self) -> Result<Option<(Hosts, usize)>> {
        let rank = env::var_os("MLX_RANK");
        let file = env::var_os("MLX_HOSTFILE").filter(|_| rank.is_some());
        let (what, file) = match (&self.machines, &file) {
            (Some(file), _) => ("--machines", file.as_path()),
            (None, Some(file)) => ("MLX_HOSTFILE", Path::new(file)),
            (None, None) => {
                if rank.is_some() {
                    warning(
                        "MLX_RANK is set without MLX_HOSTFILE or --machines; this machine works alone",
                    );
                }
                return Ok(None);
            }
        };
        let hosts = Hosts::read(file).context(what)?;
        let Some(rank) = rank else {
            bail!(
                "--machines: MLX_RANK is not set; expected this machine's place in the file, from 0\n\
                 hint: wan-i2v launch sets it"
            );
        };
        let number = rank.to_str().and_then(|rank| rank.parse().ok());
        let number = number.filter(|rank| *rank < hosts.size());
        let number = number.with_context(|| {
            let (most, rank) = (hosts.size() - 1, rank.to_string_lossy());
            format!(
                "MLX_RANK: \"{}\" is no place in {}; expected 0 to {most}",
                rank.as_ref().shown(),
                file.shown()
            )
        })?;
        Ok(Some((hosts, number)))
    }
}
