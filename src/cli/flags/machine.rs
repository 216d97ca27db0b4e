//! Where a clip is computed.

use clap::Args;

use super::values::{parse_gigabytes, parse_rows};
use crate::pipeline::plan::Budget;
use crate::runtime::{self, Device, DeviceKind, Precision};
use anyhow::Result;

/// Where it is computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    /// Compute there [default: gpu where there is one]
    #[arg(long, value_enum, hide_short_help = true)]
    pub(crate) device: Option<DeviceKind>,

    /// Dtype of matrix products [default: bf16 on the gpu, f32 on the cpu]
    #[arg(long, value_enum, hide_short_help = true)]
    pub(crate) dtype: Option<Precision>,

    /// Memory the run may take, in GB (1e9 bytes); what does not fit is computed in smaller parts
    /// [default: what Metal recommends, or three quarters of the machine's memory]
    #[arg(long, hide_short_help = true, value_name = "GB", value_parser = parse_gigabytes, allow_negative_numbers = true)]
    pub(crate) memory_budget: Option<u64>,

    /// Rows above which a product unpacks quantized weights once instead of for each row
    /// [default: 768 on the gpu, 2 on the cpu (0 in bf16)]
    #[arg(long, hide_short_help = true, value_name = "ROWS", value_parser = parse_rows, allow_negative_numbers = true)]
    pub(crate) dense_above: Option<i32>,
}

impl MachineArgs {
    /// The device to compute on.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn device(&self) -> Result<Device> {
        let device = Device::select(self.device, self.dtype)?;
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
