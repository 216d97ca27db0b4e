//! The machine and the model, without names of folders or people.

use anyhow::Result;
use serde::Serialize;

use super::Settings;
use crate::runtime::{self, DeviceKind};
use crate::weights::{Checkpoint, PartName};

/// What a report says of where it was made.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// This program's version.
    pub program: String,
    /// The operating system with its version, and the processor's architecture.
    pub system: String,
    /// The device that is computed on.
    pub device: String,
    /// Its name.
    pub chip: String,
    /// Processor cores.
    pub cores: usize,
    /// MLX's version.
    pub mlx: String,
    /// Whether MLX finds a Metal device.
    pub metal: bool,
    /// Dtype of matrix products.
    pub precision: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that Metal recommends to keep resident at most.
    pub recommended_working_set: Option<u64>,
    /// Bytes of the largest buffer that Metal makes.
    pub largest_buffer: Option<u64>,
    /// Bytes that the program would take.
    pub budget: u64,
    /// Whether `--memory-budget` says so.
    pub explicit_budget: bool,
    /// The model's parts.
    pub model: Vec<PartFacts>,
}

/// What a report says of a part of the model.
#[derive(Clone, Debug, Serialize)]
pub struct PartFacts {
    /// Which one.
    pub part: PartName,
    /// Whose names its tensors have.
    pub layout: String,
    /// How most of it is stored.
    pub stored_as: String,
    /// Its dimensions.
    pub dimensions: String,
    /// Bytes that it takes in memory.
    pub memory: u64,
}

impl Machine {
    pub(super) fn look(checkpoint: &Checkpoint, settings: &Settings) -> Result<Self> {
        let device = settings.device;
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let os = sysinfo::System::long_os_version().unwrap_or_else(|| std::env::consts::OS.into());
        let parts = checkpoint.inspect().parts.into_iter().map(|part| {
            Ok(PartFacts {
                part: part.part,
                stored_as: part.storage(),
                dimensions: part.dimensions(),
                memory: checkpoint.weight_bytes(part.part, device)?,
                layout: part.layout,
            })
        });
        Ok(Self {
            program: env!("CARGO_PKG_VERSION").into(),
            system: format!("{os}, {}", std::env::consts::ARCH),
            device: device.kind.to_string(),
            chip: match device.kind {
                DeviceKind::Cpu if runtime::metal_is_available() => "processor".into(),
                _ => runtime::device_name(),
            },
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            mlx: runtime::mlx_version(),
            metal: runtime::metal_is_available(),
            precision: device.dtype.to_string(),
            memory: system.total_memory(),
            recommended_working_set: runtime::recommended_working_set(),
            largest_buffer: runtime::largest_buffer(),
            budget: settings.budget.bytes,
            explicit_budget: settings.budget.explicit,
            model: parts.collect::<Result<_>>()?,
        })
    }
}
