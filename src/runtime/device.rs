//! Where and how the networks compute.

use anyhow::{Context, bail};
use mlx_rs::Array;

use super::ffi::{blas, device_name, keep_freed_memory, limit_blas_threads, metal_is_available};
use super::kernels::Kernels;
use super::{MAX_KERNEL_ROWS, Precision};

/// Where MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Apple's GPU through Metal.
    Gpu,
    /// MLX's CPU backend.
    Cpu,
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DeviceKind::Gpu => "gpu (Metal)",
            DeviceKind::Cpu => "cpu",
        })
    }
}

/// Where and how the networks compute: networks keep the device that they were loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where MLX computes.
    pub kind: DeviceKind,
    /// The dtype of matrix products.
    pub dtype: Precision,
    /// The functions that the networks compute with.
    pub kernels: Kernels,
    /// Products of more rows than this unpack a quantized weight first and use the dense kernel,
    /// which spares each row the unpacking.
    pub dense_above: i32,
}

impl Device {
    /// Makes `kind` (default: the GPU where there is one) MLX's default device.
    ///
    /// `dtype` defaults to bf16 on the GPU and f32 on the CPU, where bf16 products are some fifty
    /// times slower.
    ///
    /// # Errors
    /// When a GPU is asked for and MLX finds none.
    pub fn select(kind: Option<DeviceKind>, dtype: Option<Precision>) -> anyhow::Result<Self> {
        let gpu = metal_is_available();
        let kind = match kind {
            Some(DeviceKind::Gpu) if !gpu => {
                bail!("--device gpu: MLX finds no Metal device here\nhint: use --device cpu")
            }
            Some(kind) => kind,
            None if gpu => DeviceKind::Gpu,
            None => DeviceKind::Cpu,
        };
        keep_freed_memory();
        limit_blas_threads();
        mlx_rs::Device::set_default(&match kind {
            DeviceKind::Gpu => mlx_rs::Device::gpu(),
            DeviceKind::Cpu => mlx_rs::Device::cpu(),
        });
        // The first use of a broken installation (a missing metallib) should fail here, by name.
        Array::from_f32(1.0)
            .add(Array::from_f32(1.0))
            .and_then(|two| two.eval())
            .with_context(|| format!("MLX cannot compute on the {kind}"))?;
        Ok(Self::new(kind, dtype))
    }

    /// What [`Self::select`] returns, without touching MLX's state.
    pub const fn new(kind: DeviceKind, dtype: Option<Precision>) -> Self {
        match kind {
            DeviceKind::Gpu => Self::with_kernels(kind, dtype, Kernels::Mlx),
            DeviceKind::Cpu => Self::with_kernels(kind, dtype, Kernels::Cpu),
        }
    }

    /// As [`Self::new`] with other kernels: [`Kernels::Mlx`] on the CPU is what a GPU computes, but
    /// for MLX's own part in it.
    pub const fn with_kernels(
        kind: DeviceKind,
        dtype: Option<Precision>,
        kernels: Kernels,
    ) -> Self {
        let dtype = match (dtype, kind) {
            (Some(dtype), _) => dtype,
            (None, DeviceKind::Gpu) => Precision::Bf16,
            (None, DeviceKind::Cpu) => Precision::F32,
        };
        Self {
            kind,
            dtype,
            kernels,
            dense_above: match (kind, kernels, dtype) {
                (DeviceKind::Cpu, _, Precision::Bf16) => CPU_BF16_DENSE_ABOVE,
                (_, Kernels::Mlx, _) => MLX_DENSE_ABOVE,
                (_, Kernels::Cpu, _) => CPU_DENSE_ABOVE,
            },
        }
    }

    /// Rows that one kernel call may see: [`MAX_KERNEL_ROWS`], or any number for this program's own
    /// kernels.
    pub fn most_rows(&self) -> i32 {
        match self.kernels {
            Kernels::Mlx => MAX_KERNEL_ROWS,
            Kernels::Cpu => i32::MAX,
        }
    }
}

/// Rows from which unpacking a weight once costs less than unpacking it for each block of rows;
/// on Metal a published rule of thumb, not measured here.
const MLX_DENSE_ABOVE: i32 = 768;
/// MLX's CPU kernel unpacks for every row.
const CPU_DENSE_ABOVE: i32 = 2;
/// Its kernel for bfloat16 adds up in bfloat16: 5,120 products are off by a fifth.
const CPU_BF16_DENSE_ABOVE: i32 = 0;

/// What decides the last bits of a result on this machine, beside the program: the device and, on
/// MLX's CPU backend on Linux, the kernels that OpenBLAS has for the processor and how many threads
/// share a large product.
pub fn machine() -> String {
    let device = device_name();
    match blas() {
        Some((kernels, 1)) => format!("{device} ({kernels} kernels, 1 thread)"),
        Some((kernels, threads)) => format!("{device} ({kernels} kernels, {threads} threads)"),
        None => device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_thresholds_follow_from_the_device() {
        let gpu = Device::new(DeviceKind::Gpu, None);
        let chosen = (gpu.dtype, gpu.kernels, gpu.dense_above, gpu.most_rows());
        assert_eq!(chosen, (Precision::Bf16, Kernels::Mlx, 768, 32_767));
        let cpu = Device::new(DeviceKind::Cpu, None);
        let chosen = (cpu.dtype, cpu.kernels, cpu.dense_above, cpu.most_rows());
        assert_eq!(chosen, (Precision::F32, Kernels::Cpu, 2, i32::MAX));
        // MLX's kernels on the CPU are a GPU's way, but for the product that adds up in bfloat16.
        let mlx = |dtype| Device::with_kernels(DeviceKind::Cpu, Some(dtype), Kernels::Mlx);
        let exact = Device::new(DeviceKind::Gpu, Some(Precision::F32));
        assert_eq!(
            mlx(Precision::F32),
            Device {
                kind: DeviceKind::Cpu,
                ..exact
            }
        );
        assert_eq!(mlx(Precision::Bf16).dense_above, 0);
    }
}
