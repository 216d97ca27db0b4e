//! Where and how the networks compute.

use std::sync::Once;

use anyhow::{anyhow, bail};
use memmap2::MmapOptions;
use mlx_rs::ops::zeros_dtype;
use mlx_rs::{Array, Dtype};

use super::arrays::{MAX_KERNEL_ROWS, TILE_ROWS, equal_parts};
use super::ffi::{
    blas, device_name, gpu_architecture, has_fused_attention, keep_freed_memory,
    limit_blas_threads, metal_is_available,
};
use super::kernels::Kernels;
use super::kernels::cpu::{self, Blocks};
use super::library::{check_version, kernels_hint, mlx_library};
use super::{Precision, Tuning};

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
    /// Whether MLX has one kernel for all of attention, without a score matrix, for the head widths
    /// 64, 72, 80, 96 and 128.
    pub fused_attention: bool,
    /// Products of more rows than this unpack a quantized weight first and use the dense kernel,
    /// which spares each row the unpacking.
    pub dense_above: i32,
    /// What a measurement on this machine has chosen.
    pub tuning: Tuning,
}

impl Device {
    /// Makes `kind` (default: the GPU where there is one) MLX's default device.
    ///
    /// `dtype` defaults to bf16 on the GPU, or f16 where that is faster, and to f32 on the CPU, where
    /// products in 16 bits are some fifty times slower.
    ///
    /// # Errors
    /// When a GPU is asked for and MLX finds none, or MLX is another version or lacks its kernels.
    pub fn select(kind: Option<DeviceKind>, dtype: Option<Precision>) -> anyhow::Result<Self> {
        check_version()?;
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
            .map_err(|error| {
                let hint = kernels_hint(error.what(), mlx_library().as_deref());
                let hint = hint.unwrap_or_default();
                anyhow!("MLX cannot compute on the {kind}: {}{hint}", error.what())
            })?;
        let faster = (kind == DeviceKind::Gpu).then(|| fastest_precision(&gpu_architecture()?));
        if kind == DeviceKind::Cpu {
            reserve_blas_memory()?;
        }
        let device = Self::new(kind, dtype.or(faster.flatten()));
        let dtype = device.dtype.matmul_dtype();
        let fused = |width: &i32| has_fused_attention(dtype, *width);
        Ok(Self {
            fused_attention: device.fused_attention && FUSED_WIDTHS.iter().all(fused),
            ..device
        })
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
            fused_attention: matches!((kind, kernels), (DeviceKind::Gpu, Kernels::Mlx)),
            dense_above: usual_dense_above(kind, kernels, dtype),
            tuning: Tuning::NONE,
        }
    }

    /// The same as a measurement has chosen.
    pub fn tuned(self, tuning: Tuning) -> Self {
        let dtype = tuning.precision.unwrap_or(self.dtype);
        let usual = usual_dense_above(self.kind, self.kernels, dtype);
        Self {
            dtype,
            dense_above: tuning.dense_above.unwrap_or(usual),
            tuning,
            ..self
        }
    }

    /// Rows above which products unpack, unless the user says otherwise.
    pub fn own_dense_above(&self) -> i32 {
        let usual = usual_dense_above(self.kind, self.kernels, self.dtype);
        self.tuning.dense_above.unwrap_or(usual)
    }

    /// In what blocks the processor computes.
    pub fn blocks(&self) -> Blocks {
        let usual = Blocks::default();
        Blocks {
            divisor: self.tuning.block_divisor.unwrap_or(usual.divisor),
        }
    }

    /// The same for the text encoder, whose weights are published in bfloat16.
    pub fn for_text(self) -> Self {
        self.without_f16()
    }

    /// The same in bfloat16 where it is float16.
    pub fn without_f16(self) -> Self {
        let dtype = match self.dtype {
            Precision::F16 => Precision::Bf16,
            other => other,
        };
        Self { dtype, ..self }
    }

    /// Queries that a call of attention gets, of `heads` with `queries`, `keys` and `width`.
    ///
    /// A fused kernel has no score matrix, but macOS ends GPU work that keeps the display waiting:
    /// its calls are bounded by their operations. Elsewhere the score matrix keeps within `score_bytes`.
    pub fn attention_rows(&self, [heads, queries, keys, width]: [i32; 4], score_bytes: u64) -> i32 {
        let row = 4 * u64::from(heads.max(1) as u32) * u64::from(keys.max(1) as u32);
        let most = match self.fuses(width) {
            true => {
                let most = self.tuning.call_operations.unwrap_or(CALL_OPERATIONS);
                let rows = most / (row * u64::from(width.max(1) as u32));
                rows.clamp(FUSED_ROWS[0], FUSED_ROWS[1]) as i32 / TILE_ROWS * TILE_ROWS
            }
            false => (score_bytes / row).clamp(1, MAX_KERNEL_ROWS as u64) as i32,
        };
        equal_parts(queries, most)
    }

    /// Whether attention of heads of this width is fused.
    pub fn fuses(&self, width: i32) -> bool {
        self.fused_attention && FUSED_WIDTHS.contains(&width)
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

/// Lets OpenBLAS take its threads' memory now: it asks for it at the first large product, which may come
/// hours later, and ends the process where the system refuses.
fn reserve_blas_memory() -> anyhow::Result<()> {
    /// What a thread takes is 32 to 40 MB.
    const OF_A_THREAD: usize = 64 << 20;
    static DONE: Once = Once::new();
    let Some((_, threads)) = blas().filter(|_| !DONE.is_completed()) else {
        return Ok(());
    };
    let bytes = OF_A_THREAD * threads.max(1) as usize;
    // What is reserved here is given back before OpenBLAS asks.
    if MmapOptions::new().len(bytes).map_anon().is_err() {
        bail!(
            "the system refuses {} MB of memory, which products on {threads} threads need\nhint: raise the \
             limit on this process's memory (ulimit -v), or set OPENBLAS_NUM_THREADS=1",
            bytes / 1_000_000
        );
    }
    // Large enough for all threads.
    let square = zeros_dtype(&[512, 512], Dtype::Float32)?;
    square.matmul(&square)?.eval()?;
    DONE.call_once(|| ());
    Ok(())
}

/// Head widths of `steel_attention`, in float32, float16 and bfloat16, for more than 8 queries
/// (`ScaledDotProductAttention::use_fallback` in MLX 0.32).
pub const FUSED_WIDTHS: [i32; 5] = [64, 72, 80, 96, 128];
/// Operations of one call: a fifth of a second on a GPU of 10 TFLOP/s, a second on one of 2.
pub(super) const CALL_OPERATIONS: u64 = 2_000_000_000_000;
/// The least and the most queries of a fused call: a tile, and so many that a further call costs nothing.
const FUSED_ROWS: [u64; 2] = [64, 16_384];

/// Rows from which unpacking a weight once costs less than unpacking it for each block of rows;
/// on Metal a published rule of thumb, not measured here.
const MLX_DENSE_ABOVE: i32 = 768;
/// MLX's CPU kernel unpacks for every row.
const CPU_DENSE_ABOVE: i32 = 2;
/// Its kernel for 16 bits adds up in them: in bfloat16 5,120 products are off by a fifth.
const CPU_HALF_DENSE_ABOVE: i32 = 0;

const fn usual_dense_above(kind: DeviceKind, kernels: Kernels, dtype: Precision) -> i32 {
    match (kind, kernels, dtype) {
        (DeviceKind::Cpu, _, Precision::Bf16 | Precision::F16) => CPU_HALF_DENSE_ABOVE,
        (_, Kernels::Mlx, _) => MLX_DENSE_ABOVE,
        (_, Kernels::Cpu, _) => CPU_DENSE_ABOVE,
    }
}

/// The precision of 16 bits in which a GPU is fastest, by its architecture. M1 (g13) and M2 (g14) have no
/// bfloat16 of their own; published measurements have float16 ahead there by 20 to 34%.
fn fastest_precision(architecture: &str) -> Option<Precision> {
    Some(match generation(architecture)? {
        0..=14 => Precision::F16,
        _ => Precision::Bf16,
    })
}

/// The generation of a GPU of Apple's, by its architecture: 13 is M1's.
pub(super) fn generation(architecture: &str) -> Option<u32> {
    let name = architecture.strip_prefix("applegpu_g")?;
    let digits = name.trim_end_matches(|c: char| !c.is_ascii_digit());
    digits.parse().ok()
}

/// What `compute` makes on MLX's CPU backend, whatever the default device. That is changed and put back:
/// MLX keeps compiled functions by it, which a stream would not change.
pub fn on_cpu<T>(compute: impl FnOnce() -> T) -> T {
    struct PutBack(mlx_rs::Device);
    impl Drop for PutBack {
        fn drop(&mut self) {
            mlx_rs::Device::set_default(&self.0);
        }
    }
    let _before = PutBack(mlx_rs::Device::default());
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    compute()
}

/// What decides the last bits of a result on this machine, beside the program: the device and, on
/// MLX's CPU backend on Linux, the kernels that OpenBLAS has for the processor, or its matrix unit, and how
/// many threads share a large product: of OpenBLAS, and of this program where those are others.
pub fn machine() -> String {
    let device = device_name();
    let blas = blas().map(|(kernels, threads)| match cpu::has_matrix_unit() {
        true => (kernels + " and AMX", threads),
        false => (kernels, threads),
    });
    match blas {
        Some((kernels, threads)) => {
            let threads = match (threads, rayon::current_num_threads()) {
                (1, 1) => "1 thread".to_owned(),
                (theirs, ours) if theirs as usize == ours => format!("{ours} threads"),
                (theirs, ours) => format!("{theirs} and {ours} threads"),
            };
            format!("{device} ({kernels} kernels, {threads})")
        }
        None => device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A14B's calls of self-attention in a layer, and those that a score matrix would ask for.
    #[test]
    fn fused_attention_has_few_calls_and_no_long_one() {
        let gpu = Device::new(DeviceKind::Gpu, None);
        let unfused = Device {
            fused_attention: false,
            ..gpu
        };
        for (tokens, chunk, calls, before) in [
            (32_760, i32::MAX, 12, 322),
            (32_760, 16_384, 12, 322),
            (32_760, 8192, 12, 324),
            (32_760, 4096, 16, 328),
            (32_760, 2048, 16, 335),
            (75_600, i32::MAX, 60, 1719),
            (75_600, 2048, 74, 1735),
        ] {
            let count = |device: Device| {
                let rows = equal_parts(tokens, chunk);
                let calls = (0..tokens).step_by(rows as usize).map(|start| {
                    let queries = rows.min(tokens - start);
                    let each = device.attention_rows([40, queries, tokens, 128], 512 << 20);
                    let operations = 4.0 * 40.0 * 128.0 * f64::from(tokens) * f64::from(each);
                    assert!(!device.fused_attention || operations <= 2e12);
                    queries.div_euclid(each) + i32::from(queries % each > 0)
                });
                calls.sum::<i32>()
            };
            assert_eq!(count(gpu), calls, "{tokens} in chunks of {chunk}");
            assert_eq!(count(unfused), before, "{tokens} in chunks of {chunk}");
        }
        // A short sequence is one call, and so is text.
        assert_eq!(gpu.attention_rows([40, 1560, 1560, 128], 0), 1560);
        assert_eq!(gpu.attention_rows([40, 16_384, 512, 128], 0), 16_384);
        assert!(!gpu.fuses(384) && !Device::new(DeviceKind::Cpu, None).fuses(128));
    }

    #[test]
    fn chips_without_bfloat16_compute_in_float16() {
        use Precision::{Bf16, F16};
        for (architecture, fastest) in [
            ("applegpu_g13g", Some(F16)),
            ("applegpu_g13d", Some(F16)),
            ("applegpu_g14s", Some(F16)),
            ("applegpu_g15c", Some(Bf16)),
            ("applegpu_g16p", Some(Bf16)),
            ("applegpu_g17g", Some(Bf16)),
            ("applegpu_g", None),
            ("sm_90", None),
            ("", None),
        ] {
            assert_eq!(fastest_precision(architecture), fastest, "{architecture}");
        }
        let gpu = Device::new(DeviceKind::Gpu, Some(F16));
        assert_eq!(gpu.for_text(), Device::new(DeviceKind::Gpu, None));
    }

    #[test]
    fn a_fused_kernel_is_asked_for_where_there_is_one() {
        let device = Device::select(Some(DeviceKind::Cpu), None).unwrap();
        assert!(!device.fused_attention);
        assert!(!has_fused_attention(Dtype::Float32, 128));
    }

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
                fused_attention: false,
                ..exact
            }
        );
        assert_eq!(mlx(Precision::Bf16).dense_above, 0);
    }
}
