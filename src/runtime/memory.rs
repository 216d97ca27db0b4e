//! Memory: what the machine has, and what MLX may take of it.

use mlx_rs::error::Result;
use mlx_rs::memory;
use nix::sys::resource::{Resource, getrlimit};

use super::DeviceKind;
use super::ffi::metal_size;

/// Bytes of a machine that tells nothing.
const UNKNOWN: u64 = 8 << 30;

/// Bytes that a run may take when nobody says how many: on the GPU what Metal recommends to keep
/// resident, elsewhere as large a share of what the machine, or its container, has.
///
/// Not what is free at the moment: in what parts a clip is computed follows from this number, and
/// the same command is to compute the same products on an idle machine and on a busy one.
pub fn default_memory_budget(kind: DeviceKind) -> u64 {
    if kind == DeviceKind::Gpu
        && let Some(bytes) = recommended_working_set()
    {
        return bytes;
    }
    // Three quarters of the whole is what Metal names on a Mac.
    machine_memory() / 4 * 3
}

/// GB of memory of Macs, and bytes that Metal recommends to keep resident there at most, as reported;
/// none was measured here. Of 16 and 32 GB the least that was.
pub const MACS: [(u64, u64); 6] = [
    (16, 10_900_000_000),
    (24, 17_200_000_000),
    (32, 22_900_000_000),
    (48, 38_700_000_000),
    (64, 51_500_000_000),
    (128, 115_000_000_000),
];

/// Bytes that Metal recommends to keep resident on a Mac with so many GB: between those of [`MACS`] in
/// proportion, beyond them as large a share as of the nearest.
pub fn mac_budget(gigabytes: u64) -> u64 {
    let above = MACS.iter().position(|&(memory, _)| memory >= gigabytes);
    let (from, to) = match above {
        Some(0) => ((0, 0), MACS[0]),
        Some(above) => (MACS[above - 1], MACS[above]),
        None => ((0, 0), MACS[MACS.len() - 1]),
    };
    let share = (gigabytes as f64 - from.0 as f64) / (to.0 - from.0) as f64;
    from.1 + (share * (to.1 - from.1) as f64) as u64
}

/// Bytes that the machine has, or that its container or the process's limits allow.
pub fn machine_memory() -> u64 {
    let system = memory_of_the_system();
    let limit = limits(&system).map_or(u64::MAX, |limits| limits.total_memory);
    let total = match system.total_memory() {
        0 => installed_memory().unwrap_or(UNKNOWN),
        total => total,
    };
    total.min(limit).min(allowed())
}

/// Bytes that the limits of the process allow it (`ulimit -v`, `ulimit -d`).
fn allowed() -> u64 {
    let limits = [Resource::RLIMIT_AS, Resource::RLIMIT_DATA].map(getrlimit);
    limits
        .into_iter()
        .flatten()
        .fold(u64::MAX, |least, (soft, _)| least.min(soft))
}

/// Whether the process may take less than the system has (`ulimit -v`, `ulimit -d`).
pub fn has_limits() -> bool {
    allowed() < u64::MAX
}

/// Bytes that nobody uses now, where the system says so.
pub fn free_memory() -> Option<u64> {
    let system = memory_of_the_system();
    let limit = limits(&system).map_or(u64::MAX, |limits| limits.free_memory);
    match system.available_memory() {
        // macOS does not count what it could evict.
        0 => None,
        available => Some(available.min(limit)),
    }
}

/// What a container may take. The library wants to know of a system's memory first, which it does
/// not where `/proc` is missing or cannot be read.
fn limits(system: &sysinfo::System) -> Option<sysinfo::CGroupLimits> {
    (system.total_memory() > 0).then(|| system.cgroup_limits())?
}

/// What the kernel says without `/proc`.
fn installed_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let info = rustix::system::sysinfo();
        Some(info.totalram.saturating_mul(info.mem_unit.into()))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

fn memory_of_the_system() -> sysinfo::System {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    system
}

/// The most bytes that Metal recommends to keep resident.
pub fn recommended_working_set() -> Option<u64> {
    metal_size(c"max_recommended_working_set_size")
}

/// Bytes of the largest buffer that Metal makes.
pub fn largest_buffer() -> Option<u64> {
    metal_size(c"max_buffer_length")
}

/// Makes MLX give back freed buffers that it keeps for later rather than take more than `bytes`.
///
/// # Errors
/// When MLX refuses.
pub fn limit_memory(bytes: u64) -> Result<()> {
    memory::set_memory_limit(usize::try_from(bytes).unwrap_or(usize::MAX)).map(drop)
}

/// Lets Metal keep `bytes` wired, as far as the system allows; 0 wires nothing. Without it a model
/// of more than three quarters of the memory is paged out between steps
/// (osaurus-ai/vmlx-swift#417). Elsewhere than on Metal nothing happens.
pub fn wire(bytes: u64) {
    if let Some(most) = recommended_working_set() {
        // A system that refuses (before macOS 15) is slower for it, no more.
        let _ = memory::set_wired_limit(bytes.min(most) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_of_macs_are_those_reported_and_between_them_in_proportion() {
        for (gigabytes, bytes) in MACS {
            assert_eq!(mac_budget(gigabytes), bytes);
        }
        for (gigabytes, bytes) in [
            (8, 5_450_000_000),
            (18, 12_475_000_000),
            (36, 26_850_000_000),
            (96, 83_250_000_000),
            (256, 230_000_000_000),
        ] {
            assert_eq!(mac_budget(gigabytes), bytes, "{gigabytes}");
        }
        assert!((1..1024).all(|gb| mac_budget(gb) < mac_budget(gb + 1)));
    }
}
