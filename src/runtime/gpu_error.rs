//! Errors of the GPU, by the texts with which MLX reports them.

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

use super::again;

/// Why the GPU gave up.
///
/// MLX throws `[METAL] Command buffer execution failed: ` and what Metal says (`CommandEncoder::commit` in
/// `mlx/backend/metal/device.cpp`), or that it can allocate no more (`MetalAllocator::malloc`). Metal's texts
/// are as people report them: ml-explore/mlx#479 and #3267, mousebird-consulting-inc/WhirlyGlobe#1599.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuError {
    /// A piece of work took longer than macOS lets it.
    Timeout,
    /// Work is refused because of an error before, perhaps another program's.
    LostContext,
    /// There is no memory.
    OutOfMemory,
}

/// What each kind is recognised by.
const TEXTS: [(&str, GpuError); 10] = [
    // `(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)`, and so on.
    ("CallbackErrorOutOfMemory", GpuError::OutOfMemory),
    (
        "[METAL] Command buffer execution failed: Insufficient Memory",
        GpuError::OutOfMemory,
    ),
    (
        "[metal::malloc] Attempting to allocate",
        GpuError::OutOfMemory,
    ),
    ("[malloc] Unable to allocate", GpuError::OutOfMemory),
    ("CallbackErrorTimeout", GpuError::Timeout),
    ("CallbackErrorImpactingInteractivity", GpuError::Timeout),
    ("CallbackErrorHang", GpuError::Timeout),
    ("CallbackErrorSubmissionsIgnored", GpuError::LostContext),
    ("CallbackErrorInnocentVictim", GpuError::LostContext),
    ("Context lost", GpuError::LostContext),
];

impl GpuError {
    /// The GPU's error that an error comes from, if it does.
    pub fn of(error: &anyhow::Error) -> Option<Self> {
        let exception = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Exception>())?;
        Self::named(exception.what())
    }

    fn named(what: &str) -> Option<Self> {
        let known = TEXTS.iter().find(|(text, _)| what.contains(text));
        known.map(|(_, kind)| *kind)
    }
}

/// Makes MLX compute `array`.
///
/// # Errors
/// What MLX reports.
pub fn evaluate(array: &Array) -> Result<()> {
    array.eval()?;
    injected()
}

/// The error that a test wants MLX to report: `WAN_TEST_GPU_ERROR=2/1/TEXT` is one at the second step, or
/// part of the decoded clip, that a process computes, while fewer than 1 process has taken another's
/// place without getting any further. It is for this project's tests; nobody sets it by accident, since it is
/// no setting (those begin with `WAN_I2V_`), and what is not of this form does nothing.
fn injected() -> Result<()> {
    static EVALUATED: AtomicUsize = AtomicUsize::new(0);
    let Ok(wanted) = env::var("WAN_TEST_GPU_ERROR") else {
        return Ok(());
    };
    let mut parts = wanted.splitn(3, '/');
    let mut number = || parts.next()?.parse::<usize>().ok();
    let (at, tries) = (number(), number());
    let evaluated = EVALUATED.fetch_add(1, Ordering::Relaxed) + 1;
    let tried = again().map_or(0, |again| again.tries);
    match parts.next() {
        Some(text) if at == Some(evaluated) && tries.is_some_and(|tries| tried < tries) => {
            Err(Exception::custom(text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn errors_are_told_by_what_metal_says() {
        let failed = "[METAL] Command buffer execution failed: ";
        for (said, kind) in [
            (
                "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout).",
                Some(GpuError::Timeout),
            ),
            (
                "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).",
                Some(GpuError::Timeout),
            ),
            (
                "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang).",
                Some(GpuError::Timeout),
            ),
            (
                "Ignored (for causing prior/excessive GPU errors) (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored).",
                Some(GpuError::LostContext),
            ),
            (
                "Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim).",
                Some(GpuError::LostContext),
            ),
            (
                "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
                Some(GpuError::OutOfMemory),
            ),
            // A fault of a kernel comes again.
            (
                "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault).",
                None,
            ),
        ] {
            let exception = Exception::custom(format!("{failed}{said} at transforms.cpp:73"));
            let error = Err::<(), _>(exception).context("step 2 of 4").unwrap_err();
            assert_eq!(GpuError::of(&error), kind, "{said}");
        }
        let large =
            "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum";
        assert_eq!(GpuError::named(large), Some(GpuError::OutOfMemory));
        let full = "[malloc] Unable to allocate 9 bytes.";
        assert_eq!(GpuError::named(full), Some(GpuError::OutOfMemory));
        // What only says so is none.
        assert_eq!(GpuError::of(&anyhow::anyhow!(full)), None);
    }
}
