//! The one place that knows how MLX's backends differ.
//!
//! Metal on a Mac, MLX's CPU backend elsewhere (or with `--device cpu`). Everything that
//! depends on the backend, the device choice, the dtype of matrix products, how a convolution
//! is computed and how much one kernel call may see, is decided here and handed to the model
//! code as a [`Backend`] value.

pub mod kernels;
mod state;

pub use state::State;

use std::cell::Cell;
use std::ffi::CStr;

use anyhow::{Context, bail};
use mlx_rs::error::{Exception, Result};
use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Device, DeviceType, Dtype, fast, memory};

use self::kernels::cpu;

/// The most rows one kernel call is given.
///
/// Several Metal kernels kept row distances in int16 and returned wrong results above it
/// (ml-explore/mlx#3360, #3631, #3856; black clips in Blaizzy/mlx-video#40).
pub const MAX_KERNEL_ROWS: i32 = 32_767;

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

/// The dtype of matrix products. Norms, modulation, rotary embedding, softmax and the
/// residual stream are float32 in either case, as under the reference's autocast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Everything in float32.
    F32,
    /// Linear layers and attention in bfloat16.
    Bf16,
}

impl Precision {
    /// The MLX dtype of linear layers' weights and of attention's operands.
    pub fn matmul_dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::Float32,
            Precision::Bf16 => Dtype::Bfloat16,
        }
    }
}

impl Precision {
    /// Bytes of a value in [`Self::matmul_dtype`].
    pub const fn matmul_dtype_size(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// How 3-D convolutions are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvMethod {
    /// MLX's own convolution kernels: the natural choice on Metal.
    Native,
    /// A sum of matrix products, one per kernel tap. MLX's CPU backend unfolds the input
    /// before its product; without that copy the same shapes run 2.5 to 4 times faster.
    TapMatmul,
}

/// A chosen device and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where MLX computes.
    pub device: DeviceKind,
    /// The dtype of matrix products.
    pub precision: Precision,
    /// How convolutions are computed.
    pub conv: ConvMethod,
    /// Products of more rows than this unpack a quantized weight first and use the dense kernel.
    pub dense_above: i32,
    /// Score matrices of attention beyond this many bytes are computed in parts. Without a fused
    /// kernel the whole matrix exists at once, and one that is too large ends in
    /// `kIOGPUCommandBufferCallbackErrorOutOfMemory` (ddalcu/mlx-serve#321).
    pub score_bytes: u64,
    /// Rows of a clip's tokens that a transformer block computes at once; more go in chunks: only
    /// keys and values need all of them. The sums are the same, but a BLAS may round a row
    /// differently in a product of fewer rows.
    pub chunk_rows: i32,
    /// The conditional and the unconditional pass of clips of at most this many tokens run as one,
    /// which reads every weight once instead of twice.
    pub joint_tokens: i32,
    /// Bytes that the VAE may take; frames that need more are computed in tiles. `None`: whole
    /// frames, whatever they take.
    pub vae_budget: Option<u64>,
}

impl Backend {
    /// Makes `device` (default: the GPU where there is one) MLX's default device.
    ///
    /// `precision` defaults to bf16 on the GPU and f32 on the CPU, where bf16 products are
    /// some fifty times slower.
    ///
    /// # Errors
    /// When a GPU is asked for and MLX finds none.
    pub fn select(
        device: Option<DeviceKind>,
        precision: Option<Precision>,
    ) -> anyhow::Result<Self> {
        let gpu = metal_is_available();
        let device = match device {
            Some(DeviceKind::Gpu) if !gpu => {
                bail!("--device gpu: MLX finds no Metal device here; use --device cpu")
            }
            Some(device) => device,
            None if gpu => DeviceKind::Gpu,
            None => DeviceKind::Cpu,
        };
        keep_freed_memory();
        limit_blas_threads();
        Device::set_default(&match device {
            DeviceKind::Gpu => Device::gpu(),
            DeviceKind::Cpu => Device::cpu(),
        });
        // The first use of a broken installation (a missing metallib) should fail here, by name.
        Array::from_f32(1.0)
            .add(Array::from_f32(1.0))
            .and_then(|two| two.eval())
            .with_context(|| format!("MLX cannot compute on the {device}"))?;
        Ok(Self::new(device, precision))
    }

    /// Rows that one kernel call may see: [`MAX_KERNEL_ROWS`], but on the CPU, whose kernels count
    /// further.
    pub fn most_rows(&self) -> i32 {
        match self.device {
            DeviceKind::Gpu => MAX_KERNEL_ROWS,
            DeviceKind::Cpu => i32::MAX,
        }
    }

    /// Whether the two passes of a guided clip of `tokens` run as one.
    pub fn joins(&self, tokens: i32) -> bool {
        tokens <= self.joint_tokens
    }

    /// Bytes of scores that [`attention`] in `dtype` has at once: of `queries` to `keys` in `heads`
    /// of `width`.
    pub fn scores_at_once(&self, dtype: Dtype, [heads, queries, keys, width]: [i32; 4]) -> u64 {
        if self.device == DeviceKind::Cpu && dtype == Dtype::Float32 {
            return cpu::scores_at_once(heads, queries, keys, width, self.score_bytes);
        }
        let size = |value: i32| value.max(0) as u64;
        let row = 4 * size(heads) * size(keys);
        (row * size(queries)).min(self.score_bytes.max(row))
    }

    /// The settings for `device`, without touching MLX's state.
    pub const fn new(device: DeviceKind, precision: Option<Precision>) -> Self {
        let (default_precision, conv, dense_above) = match device {
            DeviceKind::Gpu => (Precision::Bf16, ConvMethod::Native, GPU_DENSE_ABOVE),
            DeviceKind::Cpu => (Precision::F32, ConvMethod::TapMatmul, CPU_DENSE_ABOVE),
        };
        Self {
            device,
            precision: match precision {
                Some(precision) => precision,
                None => default_precision,
            },
            conv,
            dense_above: match (device, precision) {
                (DeviceKind::Cpu, Some(Precision::Bf16)) => CPU_BF16_DENSE_ABOVE,
                _ => dense_above,
            },
            score_bytes: SCORE_BYTES,
            chunk_rows: i32::MAX,
            joint_tokens: JOINT_TOKENS,
            vae_budget: None,
        }
    }
}

/// Rows from which unpacking a weight once costs less than unpacking it for each block of rows;
/// on Metal a published rule of thumb, not measured here.
const GPU_DENSE_ABOVE: i32 = 768;
/// MLX's CPU kernel unpacks for every row.
const CPU_DENSE_ABOVE: i32 = 2;
/// Its kernel for bfloat16 adds up in bfloat16: 5,120 products are off by a fifth.
const CPU_BF16_DENSE_ABOVE: i32 = 0;

/// Where memory is no matter.
const SCORE_BYTES: u64 = 512 << 20;
/// Above it the products take so much longer than reading their weights that there is nothing to
/// gain.
const JOINT_TOKENS: i32 = 2048;

thread_local! {
    static OPERATIONS: Cell<u64> = const { Cell::new(0) };
    static UNPACKED: Cell<u64> = const { Cell::new(0) };
}

/// Counts the operations of a product of `[rows, inner]` and `[inner, columns]`.
pub fn count_product(rows: i32, inner: i32, columns: i32) {
    let count = 2 * i64::from(rows) * i64::from(inner) * i64::from(columns);
    OPERATIONS.with(|sum| sum.set(sum.get().wrapping_add(count.max(0) as u64)));
}

/// Counts values of quantized weights that are unpacked for a product.
pub fn count_unpacked(values: usize) {
    UNPACKED.with(|sum| sum.set(sum.get().wrapping_add(values as u64)));
}

/// Values of quantized weights that this thread has had unpacked so far, as [`operations`].
pub fn unpacked() -> u64 {
    UNPACKED.with(Cell::get)
}

/// Floating-point operations of the matrix products, attentions and convolutions that this thread
/// has asked for so far: what a forecast is held to.
pub fn operations() -> u64 {
    OPERATIONS.with(Cell::get)
}

/// Multi-head attention, `softmax(q k^T * scale + weights) v`.
///
/// Shapes: `q` `[1, heads, n, d]`, `k` and `v` `[1, heads, m, d]`, `weights` `[1, 1, 1, m]`; result
/// `[1, heads, n, d]` in the operands' dtype. Queries go in chunks that keep to [`MAX_KERNEL_ROWS`]
/// and the score matrix within `score_bytes`: rows of the softmax are independent. As with any
/// product of fewer rows, a BLAS may round the last bits differently.
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    weights: Option<&Array>,
    score_bytes: u64,
) -> Result<Array> {
    for _head in 0..q.dim(1) {
        count_product(2 * q.dim(2), q.dim(3), k.dim(2));
    }
    if computes_on() == DeviceKind::Cpu && q.dtype() == Dtype::Float32 {
        return cpu::attention(q, k, v, scale, weights, score_bytes);
    }
    fused_attention(q, k, v, scale, weights, score_bytes)
}

/// [`attention`] by MLX's kernel.
fn fused_attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    weights: Option<&Array>,
    score_bytes: u64,
) -> Result<Array> {
    // The mask has to be of the operands' dtype.
    let weights = weights.map(|w| w.as_dtype(q.dtype())).transpose()?;
    let weights = weights.as_ref();
    let row_bytes = 4 * k.dim(1).max(1) as u64 * k.dim(2).max(1) as u64;
    let rows = (score_bytes / row_bytes).clamp(1, MAX_KERNEL_ROWS as u64);
    let chunked = q.dim(2) > rows as i32;
    in_chunks(q, 2, rows as i32, |q| {
        let mask = weights.map(ScaledDotProductAttentionMask::from);
        let out = fast::scaled_dot_product_attention(q, k, v, scale, mask, None)?;
        if chunked {
            out.eval()?;
        }
        Ok(out)
    })
}

/// Applies `f` to slices of `x` along `axis` of at most [`MAX_KERNEL_ROWS`] and joins the results.
pub fn in_row_chunks(
    x: &Array,
    axis: i32,
    f: impl FnMut(&Array) -> Result<Array>,
) -> Result<Array> {
    in_chunks(x, axis, MAX_KERNEL_ROWS, f)
}

/// As [`in_row_chunks`] with at most `most` rows each.
pub fn in_chunks(
    x: &Array,
    axis: i32,
    most: i32,
    mut f: impl FnMut(&Array) -> Result<Array>,
) -> Result<Array> {
    let rows = x.dim(axis);
    if rows <= most {
        return f(x);
    }
    let parts = (rows + most - 1) / most;
    let boundaries: Vec<i32> = (1..parts).map(|i| i * most).collect();
    let outputs = x
        .split_at_indices(&boundaries, axis)?
        .iter()
        .map(f)
        .collect::<Result<Vec<_>>>()?;
    concatenate(&outputs, axis)
}

/// Where MLX computes now, whatever a [`Backend`] has been made for.
pub fn computes_on() -> DeviceKind {
    match Device::try_default().and_then(|device| device.get_type()) {
        Ok(DeviceType::Gpu) => DeviceKind::Gpu,
        _ => DeviceKind::Cpu,
    }
}

/// True when every element of `x` is finite. Evaluates `x`.
pub fn all_finite(x: &Array) -> Result<bool> {
    x.is_finite()?
        .all(None)?
        .try_item_exact::<bool>()
        .map_err(|e| Exception::custom(e.to_string()))
}

/// Copies a float array to the host as float32 in row-major order. Evaluates `x`.
pub fn to_host(x: &Array) -> Result<Vec<f32>> {
    let x = x.as_dtype(Dtype::Float32)?.contiguous()?;
    let data = x
        .try_as_slice::<f32>()
        .map_err(|e| Exception::custom(e.to_string()))?;
    Ok(data.to_vec())
}

/// `x` in float32.
pub fn f32(x: &Array) -> Result<Array> {
    x.as_dtype(Dtype::Float32)
}

/// Rows `start..end` of axis 0, without a copy.
pub fn rows(x: &Array, start: i32, end: i32) -> Result<Array> {
    x.try_index(start..end)
}

/// MLX's version, such as `0.32.2`.
pub fn mlx_version() -> String {
    mlx_string(|s| unsafe { mlx_sys::mlx_version(s) }).unwrap_or_else(|| "unknown".into())
}

/// True when MLX was built with Metal and finds a device.
pub fn metal_is_available() -> bool {
    install_error_handler();
    let mut available = false;
    // SAFETY: the call writes one bool and keeps no pointer.
    let status = unsafe { mlx_sys::mlx_metal_is_available(&mut available) };
    status == 0 && available
}

/// The name of the device that would be chosen, such as `Apple M4 Max`.
pub fn device_name() -> String {
    install_error_handler();
    let device = if metal_is_available() {
        mlx_sys::mlx_device_type__MLX_GPU
    } else {
        mlx_sys::mlx_device_type__MLX_CPU
    };
    // SAFETY: the handles are created and freed here; the string is copied before the info goes.
    let name = unsafe {
        let device = mlx_sys::mlx_device_new_type(device, 0);
        let mut info = mlx_sys::mlx_device_info_new();
        let mut text: *const std::ffi::c_char = std::ptr::null();
        let found = mlx_sys::mlx_device_info_get(&mut info, device) == 0
            && mlx_sys::mlx_device_info_get_string(&mut text, info, c"device_name".as_ptr()) == 0
            && !text.is_null();
        let name = found.then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        name
    };
    name.unwrap_or_else(|| "unknown".into())
}

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

/// OpenBLAS's kernels, and the threads that it gives to a large product.
#[cfg(target_os = "linux")]
fn blas() -> Option<(String, i32)> {
    // SAFETY: the name is a string constant of OpenBLAS; 0 changes nothing.
    let (kernels, threads) = unsafe {
        let name = shim::mlx_shim_blas_kernels();
        let kernels = (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy());
        (kernels?.into_owned(), shim::mlx_shim_blas_threads(0))
    };
    Some((kernels, threads))
}

#[cfg(not(target_os = "linux"))]
fn blas() -> Option<(String, i32)> {
    None
}

/// Gives large products as many threads as this process may keep busy. OpenBLAS counts processors,
/// and of a container's share of them it knows nothing.
#[cfg(target_os = "linux")]
fn limit_blas_threads() {
    if std::env::var_os("OPENBLAS_NUM_THREADS").is_some() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: the call sets one number.
    unsafe {
        let threads = shim::mlx_shim_blas_threads(0);
        shim::mlx_shim_blas_threads(threads.min(i32::try_from(cores).unwrap_or(i32::MAX)));
    }
}

#[cfg(not(target_os = "linux"))]
fn limit_blas_threads() {}

/// `scripts/linux/mlx_shim.c`, which is linked into mlx-c there.
#[cfg(target_os = "linux")]
mod shim {
    unsafe extern "C" {
        pub fn mlx_shim_blas_kernels() -> *const std::ffi::c_char;
        pub fn mlx_shim_blas_threads(wanted: i32) -> i32;
    }
}

/// Bytes that a run may take when nobody says how many: on the GPU what Metal recommends to keep
/// resident, elsewhere as large a share of what the machine, or its container, has.
///
/// Not what is free at the moment: in what parts a clip is computed follows from this number, and
/// the same command is to compute the same products on an idle machine and on a busy one.
pub fn default_memory_budget(device: DeviceKind) -> u64 {
    if device == DeviceKind::Gpu
        && let Some(bytes) = recommended_working_set()
    {
        return bytes;
    }
    let system = memory_of_the_system();
    let limit = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.total_memory);
    // Three quarters of the whole is what Metal names on a Mac.
    system.total_memory().min(limit) / 4 * 3
}

/// Bytes that nobody uses now, where the system says so.
pub fn free_memory() -> Option<u64> {
    let system = memory_of_the_system();
    let limit = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.free_memory);
    match system.available_memory() {
        // macOS does not count what it could evict.
        0 => None,
        available => Some(available.min(limit)),
    }
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

/// A number that MLX knows of the Metal device.
fn metal_size(key: &CStr) -> Option<u64> {
    if !metal_is_available() {
        return None;
    }
    // SAFETY: the handles are created and freed here; the call writes one integer.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let mut info = mlx_sys::mlx_device_info_new();
        let mut bytes = 0;
        let found = mlx_sys::mlx_device_info_get(&mut info, device) == 0
            && mlx_sys::mlx_device_info_get_size(&mut bytes, info, key.as_ptr()) == 0;
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        (found && bytes > 0).then_some(bytes as u64)
    }
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

/// MLX's CPU backend asks malloc for every array. glibc maps large blocks anew and unmaps them when
/// they are freed, and so the kernel zeroes every page of every activation: a seventh of the VAE's
/// time. Kept in the heap they are used again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    // SAFETY: mallopt takes two integers and changes how malloc gets its memory, no more. What it
    // refuses leaves malloc as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// mlx-c ends the process on an error until mlx-rs's first call puts its own handler in place.
fn install_error_handler() {
    let _ = Device::try_default();
}

fn mlx_string(fill: impl FnOnce(*mut mlx_sys::mlx_string) -> i32) -> Option<String> {
    // SAFETY: mlx-c's string handles are created, filled, read and freed here only.
    unsafe {
        let mut handle = mlx_sys::mlx_string_new();
        let status = fill(&mut handle);
        let data = mlx_sys::mlx_string_data(handle);
        let text = (status == 0 && !data.is_null())
            .then(|| CStr::from_ptr(data).to_string_lossy().into_owned());
        mlx_sys::mlx_string_free(handle);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way that the CPU takes in bfloat16 only, and the GPU always.
    #[test]
    fn scores_in_parts_are_the_same_attention() {
        Device::set_default(&Device::cpu());
        let values = |shape: [i32; 4], seed: i32| {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|i| ((i * 37 + seed) % 1009) as f32 / 300.0 - 1.7)
                .collect();
            Array::from_slice(&values, &shape)
        };
        let [q, k, v] = [3, 17, 5].map(|seed| values([1, 3, 40, 16], seed));
        let weights = values([1, 1, 1, 40], 11);
        for weights in [None, Some(&weights)] {
            let with = |score_bytes| {
                let all = fused_attention(&q, &k, &v, 0.25, weights, score_bytes);
                to_host(&all.unwrap()).unwrap()
            };
            // Seven rows of scores at once.
            let parts = with(7 * 4 * 3 * 40);
            let host = cpu::attention(&q, &k, &v, 0.25, weights, SCORE_BYTES).unwrap();
            let all = with(SCORE_BYTES);
            for other in [parts, to_host(&host).unwrap()] {
                for (a, b) in all.iter().zip(&other) {
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
            }
        }
    }
}
