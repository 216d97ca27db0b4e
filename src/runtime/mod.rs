//! MLX and the machine: the one place that knows how MLX's backends differ.
//!
//! Metal on a Mac, MLX's CPU backend elsewhere (or with `--device cpu`). The device choice, the dtype
//! of matrix products and the kernels are decided here and handed to the networks as a [`Device`]
//! value.

mod again;
mod arrays;
mod counters;
mod device;
mod dtype;
mod environment;
mod ffi;
mod gpu_error;
mod group;
pub mod kernels;
mod library;
mod memory;
mod packing;
mod state;
mod threads;
mod tuning;

pub use again::{Again, again};
pub use arrays::{
    MAX_KERNEL_ROWS, all_finite, equal_parts, f32, in_chunks, in_row_chunks, rows, to_host,
};
pub use counters::{count_product, count_unpacked, operations, unpacked};
pub use device::{Device, DeviceKind, machine, on_cpu};
pub use dtype::Precision;
pub use environment::{ENVIRONMENT, prepare_environment, prepare_host_file};
pub use ffi::{device_name, metal_is_available, mlx_version};
pub use gpu_error::{GpuError, evaluate};
pub use group::{Exchange, Group, Heard, Hosts, Links, RankLost, is_abandoned, is_of_machine};
pub use kernels::Kernels;
pub use library::{faster_mlx, mlx_library};
pub use memory::{
    MACS, default_memory_budget, free_memory, has_limits, largest_buffer, limit_memory, mac_budget,
    machine_memory, recommended_working_set, wire,
};
pub use packing::{Mode, Packing, packed_number};
pub use state::State;
pub use threads::start_threads;
pub use tuning::Tuning;
