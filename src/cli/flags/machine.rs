//! Where a clip is computed.

use clap::Args;

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
