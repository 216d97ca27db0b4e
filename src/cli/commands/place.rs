//! Where a forecast's clip would be made.

use anyhow::Result;

use crate::cli::flags::MachineArgs;
use crate::cli::ui::human_bytes;
use crate::pipeline::plan::{Budget, Clip, Forecast, refusal, refusal_on_mac};
use crate::runtime::{Device, DeviceKind, mac_budget};

/// Where the clip would be made.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) budget: Budget,
    /// GB of a Mac that this machine need not be.
    pub(super) mac: Option<u64>,
}

impl Place {
    /// This machine as flags have it, or a Mac with so many GB.
    ///
    /// # Errors
    /// When there is no such device.
    pub(super) fn of(machine: &MachineArgs, mac: Option<u64>) -> Result<Self> {
        let Some(memory) = mac else {
            let device = machine.device()?;
            let budget = machine.budget(device);
            return Ok(Self {
                device,
                budget,
                mac: None,
            });
        };
        let device = Device::new(DeviceKind::Gpu, machine.device.dtype);
        Ok(Self {
            device: Device {
                dense_above: machine.dense_above.unwrap_or(device.dense_above),
                ..device
            },
            budget: Budget {
                bytes: mac_budget(memory),
                explicit: false,
            },
            mac: Some(memory),
        })
    }

    /// Why a clip does not fit there.
    pub(super) fn refusal(&self, clip: Clip<'_>, least: &Forecast) -> String {
        match self.mac {
            Some(memory) => refusal_on_mac(clip, self.device, self.budget, least, memory),
            None => refusal(clip, self.device, self.budget, least),
        }
    }

    /// What the bytes of the budget are.
    pub(super) fn limit(&self) -> String {
        let bytes = human_bytes(self.budget.bytes);
        match (self.mac, self.budget.explicit) {
            (Some(memory), _) => format!("{bytes} that a run may take on a Mac with {memory} GB"),
            (None, true) => format!("the {bytes} of --memory-budget"),
            (None, false) => format!("{bytes} that a run may take on this machine"),
        }
    }
}
