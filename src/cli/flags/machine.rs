//! Where a clip is computed.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::values::{parse_gigabytes, parse_rows};
use crate::model::tune::Store;
use crate::pipeline::plan::Budget;
use crate::runtime::{self, Device, DeviceKind, Precision, Tuning};
use anyhow::Result;

/// What computes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct DeviceArgs {
    /// Compute there [default: gpu where there is one]
    #[arg(long, value_enum, hide_short_help = true)]
    pub(crate) device: Option<DeviceKind>,

    /// Dtype of matrix products [default: bf16 on the gpu, f32 on the cpu]
    #[arg(long, value_enum, hide_short_help = true)]
    pub(crate) dtype: Option<Precision>,
}

/// Where it is computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Memory the run may take, in GB (1e9 bytes); what does not fit is computed in smaller parts
    /// [default: what Metal recommends, or three quarters of the machine's memory]
    #[arg(long, hide_short_help = true, value_name = "GB", value_parser = parse_gigabytes, allow_negative_numbers = true)]
    pub(crate) memory_budget: Option<u64>,

    /// Rows above which a product unpacks quantized weights once instead of for each row
    /// [default: 768 on the gpu, 2 on the cpu (0 in bf16)]
    #[arg(long, hide_short_help = true, value_name = "ROWS", value_parser = parse_rows, allow_negative_numbers = true)]
    pub(crate) dense_above: Option<i32>,

    /// Compute without what `wan-i2v tune` has chosen, and don't tune before a first long run
    #[arg(long, hide_short_help = true)]
    pub(crate) no_tune: bool,
}

/// Other machines.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct GroupArgs {
    /// Share the work with the machines of this file (docs/machines.md); MLX_RANK says which of them this
    /// one is, and `wan-i2v launch` starts them all
    #[arg(long, hide_short_help = true, value_name = "HOSTFILE", value_hint = ValueHint::FilePath)]
    pub(crate) machines: Option<PathBuf>,
}

/// Start a command on several machines, which share its work
///
/// Such as: wan-i2v launch --hosts mac1,mac2 -- -i start.png -p 'what happens'. Makes one clip, or the clips of a
/// batch or sweep.
/// Starts itself on this machine and, over ssh, on the others; see docs/machines.md. Shows what rank 0,
/// the first machine, shows, and errors of the others. When one ends, all do; a batch or sweep goes on. Every machine has to have
/// the model and the pictures at the same paths. The exit code is rank 0's, or that of a rank without which it cannot begin.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct LaunchArgs {
    /// Machines in the order of ranks, the first being the one that writes: NAME, USER@NAME or NAME=ADDRESS
    ///
    /// ssh reaches a machine by its name, the others by its IPv4 address, such as that of its
    /// Thunderbolt port [default address: what the name stands for]
    #[arg(long, required = true, value_name = "HOST,...", value_delimiter = ',', value_parser = parse_host)]
    pub(crate) hosts: Vec<Host>,

    /// First port; each machine has one, and rank 0 the one after all of them too
    /// [default: 32323, or free ones where all run on this machine]
    #[arg(long, value_name = "PORT", value_parser = parse_port)]
    pub(crate) port: Option<u16>,

    /// The program on other machines [default: the path that it has here]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::Other)]
    pub(crate) program: Option<PathBuf>,

    /// What to do: the flags of a clip, or batch, sweep or doctor with theirs
    #[arg(last = true, required = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<OsString>,
}

/// A machine to start a rank on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// What ssh calls it.
    pub(crate) name: String,
    /// Where the other machines reach it.
    pub(crate) address: Option<Ipv4Addr>,
}

fn parse_host(text: &str) -> std::result::Result<Host, String> {
    let (name, address) = match text.split_once('=') {
        Some((name, address)) => {
            let parsed = address
                .parse()
                .ok()
                .filter(|ip| runtime::is_of_machine(*ip));
            let parsed = parsed.ok_or_else(|| {
                format!(
                    "\"{address}\" is not a machine's IPv4 address; expected one such as 10.0.0.1"
                )
            })?;
            (name, Some(parsed))
        }
        None => (text, None),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(is_name) {
        return Err(format!(
            "\"{name}\" is no machine; expected a name or an IPv4 address"
        ));
    }
    let name = name.to_owned();
    Ok(Host { name, address })
}

fn parse_port(text: &str) -> std::result::Result<u16, String> {
    let port = text
        .parse()
        .ok()
        .filter(|port| (1024..=65000).contains(port));
    port.ok_or_else(|| format!("\"{text}\" is no port; expected a number from 1024 to 65000"))
}

impl DeviceArgs {
    /// The device without tuning.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn untuned(&self) -> Result<Device> {
        Device::select(self.device, self.dtype)
    }
}

impl MachineArgs {
    /// The device to compute on, as it was tuned.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn device(&self) -> Result<Device> {
        self.device_as(self.kept()?.unwrap_or_default())
    }

    /// What was chosen for the device, if it was tuned.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn kept(&self) -> Result<Option<Tuning>> {
        let untuned = self.device.untuned()?;
        Ok(Store::usual().and_then(|store| store.find(untuned)))
    }

    /// The device to compute on, tuned like this as far as flags allow.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn device_as(&self, tuning: Tuning) -> Result<Device> {
        // What was chosen for one dtype is not for another.
        let is_other = self.device.dtype.is_some() && tuning.precision.is_some();
        let tuning = match self.no_tune || is_other {
            true => Tuning::NONE,
            false => tuning,
        };
        let dtype = self.device.dtype.or(tuning.precision);
        let device = Device::select(self.device.device, dtype)?.tuned(tuning);
        Ok(Device {
            dense_above: self.dense_above.unwrap_or(device.dense_above),
            ..device
        })
    }

    /// The memory that may be taken; less than asked for where it has run out.
    pub(crate) fn budget(&self, device: Device) -> Budget {
        let left = runtime::again().and_then(|again| again.budget);
        Budget {
            bytes: self
                .memory_budget
                .unwrap_or_else(|| runtime::default_memory_budget(device.kind))
                .min(left.unwrap_or(u64::MAX)),
            explicit: self.memory_budget.is_some(),
        }
    }
}
