//! Calls of mlx-c, OpenBLAS and libc that mlx-rs has no safe function for.

use std::ffi::CStr;
use std::io;

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::zeros_dtype;
use mlx_rs::{Array, Dtype, Stream};

use super::Packing;
use crate::util::npy::Header;

/// MLX's version, such as `0.32.2`.
pub fn mlx_version() -> String {
    // SAFETY: the call fills the string that it is given and keeps no pointer.
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
    device_text(c"device_name").unwrap_or_else(|| "unknown".into())
}

/// The GPU's architecture as Metal calls it, such as `applegpu_g16s`.
pub(super) fn gpu_architecture() -> Option<String> {
    metal_is_available().then(|| device_text(c"architecture"))?
}

/// What MLX says of the device that would be chosen.
fn device_text(key: &CStr) -> Option<String> {
    install_error_handler();
    let device = if metal_is_available() {
        mlx_sys::mlx_device_type__MLX_GPU
    } else {
        mlx_sys::mlx_device_type__MLX_CPU
    };
    // SAFETY: the handles are created and freed here; the string is copied before the info goes.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(device, 0);
        let mut info = mlx_sys::mlx_device_info_new();
        let mut text: *const std::ffi::c_char = std::ptr::null();
        let found = mlx_sys::mlx_device_info_get(&mut info, device) == 0
            && mlx_sys::mlx_device_info_get_string(&mut text, info, key.as_ptr()) == 0
            && !text.is_null();
        let name = found.then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        name
    }
}

/// OpenBLAS's kernels, and the threads that it gives to a large product.
#[cfg(target_os = "linux")]
pub(super) fn blas() -> Option<(String, i32)> {
    // SAFETY: the name is a string constant of OpenBLAS; 0 changes nothing.
    let (kernels, threads) = unsafe {
        let name = shim::mlx_shim_blas_kernels();
        let kernels = (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy());
        (kernels?.into_owned(), shim::mlx_shim_blas_threads(0))
    };
    Some((kernels, threads))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn blas() -> Option<(String, i32)> {
    None
}

/// Gives large products as many threads as this process may keep busy. OpenBLAS counts processors,
/// and of a container's share of them it knows nothing.
#[cfg(target_os = "linux")]
pub(super) fn limit_blas_threads() {
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
pub(super) fn limit_blas_threads() {}

/// `scripts/mlx/mlx_shim.c`, which is linked into mlx-c there.
#[cfg(target_os = "linux")]
mod shim {
    unsafe extern "C" {
        pub fn mlx_shim_blas_kernels() -> *const std::ffi::c_char;
        pub fn mlx_shim_blas_threads(wanted: i32) -> i32;
    }
}

/// Whether MLX has a fused kernel on its default device for attention in `dtype` of heads of `width`:
/// the graph node that demands one is refused otherwise, before anything is computed.
pub(super) fn has_fused_attention(dtype: Dtype, width: i32) -> bool {
    // More queries than the kernel for a handful of them takes.
    let Ok(heads) = zeros_dtype(&[1, 1, 16, width], dtype) else {
        return false;
    };
    // SAFETY: handles of nothing stand for the mask and the sinks that are missing, the others are
    // alive during the call, and each that was made here is freed here.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        let mut stream = mlx_sys::mlx_stream_new();
        let mut result = mlx_sys::mlx_array_new();
        let (mask, sinks) = (mlx_sys::mlx_array_new(), mlx_sys::mlx_array_new());
        let fused = mlx_sys::mlx_get_default_device(&mut device) == 0
            && mlx_sys::mlx_get_default_stream(&mut stream, device) == 0
            && mlx_sys::mlx_fast_scaled_dot_product_attention(
                &mut result,
                heads.as_ptr(),
                heads.as_ptr(),
                heads.as_ptr(),
                1.0,
                c"".as_ptr(),
                mask,
                sinks,
                true,
                stream,
            ) == 0;
        for array in [result, mask, sinks] {
            mlx_sys::mlx_array_free(array);
        }
        mlx_sys::mlx_stream_free(stream);
        mlx_sys::mlx_device_free(device);
        fused
    }
}

/// `x` `[rows, inputs]` times the transposed packed weight `[outputs, inputs]`. mlx-rs knows no mode but
/// the affine one, and neither does [`dequantize`] there.
pub(super) fn quantized_matmul(
    x: &Array,
    [packed, scales]: [&Array; 2],
    biases: Option<&Array>,
    packing: Packing,
) -> Result<Array> {
    from_parts(
        biases,
        packing,
        |result, biases, [group_size, bits], stream| {
            // SAFETY: the handles are alive during the call, which keeps none of them.
            unsafe {
                mlx_sys::mlx_quantized_matmul(
                    result,
                    x.as_ptr(),
                    packed.as_ptr(),
                    scales.as_ptr(),
                    biases,
                    true,
                    group_size,
                    bits,
                    packing.mode_name().as_ptr(),
                    stream,
                )
            }
        },
    )
}

/// The packed weight in `dtype`.
pub(super) fn dequantize(
    [packed, scales]: [&Array; 2],
    biases: Option<&Array>,
    packing: Packing,
    dtype: Dtype,
) -> Result<Array> {
    from_parts(
        biases,
        packing,
        |result, biases, [group_size, bits], stream| {
            let dtype = mlx_sys::mlx_optional_dtype {
                value: dtype.into(),
                has_value: true,
            };
            // SAFETY: the handles are alive during the call, which keeps none of them; one of nothing stands
            // for the scale of the whole, which there is none of.
            unsafe {
                let whole = mlx_sys::mlx_array_new();
                let status = mlx_sys::mlx_dequantize(
                    result,
                    packed.as_ptr(),
                    scales.as_ptr(),
                    biases,
                    group_size,
                    bits,
                    packing.mode_name().as_ptr(),
                    whole,
                    dtype,
                    stream,
                );
                mlx_sys::mlx_array_free(whole);
                status
            }
        },
    )
}

/// What `call` puts into the handle that it is given, with biases that may be missing.
fn from_parts(
    biases: Option<&Array>,
    packing: Packing,
    call: impl FnOnce(
        *mut mlx_sys::mlx_array,
        mlx_sys::mlx_array,
        [mlx_sys::mlx_optional_int; 2],
        mlx_sys::mlx_stream,
    ) -> i32,
) -> Result<Array> {
    install_error_handler();
    let sizes = [packing.group_size, packing.bits].map(|value| mlx_sys::mlx_optional_int {
        value,
        has_value: true,
    });
    let stream = Stream::thread_local_or_default();
    // SAFETY: handles of nothing are made and freed here, but for the result's where it is one.
    unsafe {
        let mut result = mlx_sys::mlx_array_new();
        let nothing = mlx_sys::mlx_array_new();
        let handle = biases.map_or(nothing, Array::as_ptr);
        let status = call(&mut result, handle, sizes, stream.as_ptr());
        mlx_sys::mlx_array_free(nothing);
        if status == 0 {
            return Ok(Array::from_ptr(result));
        }
        mlx_sys::mlx_array_free(result);
    }
    Err(Exception::custom(format!(
        "MLX refuses a weight that is packed as {packing}"
    )))
}

/// A float32 array in the host's memory whose values nobody writes. MLX has no such call, but it
/// allocates what it loads, and leaves the writing to whoever it loads from: here to nobody.
pub(super) fn unwritten(shape: &[i32]) -> Result<Array> {
    let sides: Vec<u64> = shape.iter().map(|&side| side as u64).collect();
    let mut header = Vec::new();
    Header::write(&mut header, "<f4", &sides).map_err(|e| Exception::custom(e.to_string()))?;
    install_error_handler();
    let stream = Stream::thread_local_or_default();
    // SAFETY: the functions of the table take the header that is given with it, which `free` takes back when
    // the array is evaluated and the handle freed.
    unsafe {
        let header = Box::into_raw(Box::new(io::Cursor::new(header)));
        let reader = mlx_sys::mlx_io_reader_new(header.cast(), nobody::TABLE);
        let mut result = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_load_reader(&mut result, reader, stream.as_ptr());
        mlx_sys::mlx_io_reader_free(reader);
        if status != 0 {
            mlx_sys::mlx_array_free(result);
            return Err(Exception::custom(format!("MLX allocates no {shape:?}")));
        }
        Ok(Array::from_ptr(result))
    }
}

/// A file of numbers that has no more than a header.
mod nobody {
    use std::ffi::{c_char, c_int, c_void};
    use std::io::{Cursor, Read};

    pub(super) const TABLE: mlx_sys::mlx_io_vtable = mlx_sys::mlx_io_vtable_ {
        is_open: Some(yes),
        good: Some(yes),
        tell: Some(nowhere),
        seek: Some(never),
        read: Some(read),
        read_at_offset: Some(leave),
        write: Some(refuse),
        label: Some(label),
        free: Some(free),
    };

    unsafe extern "C" fn yes(_: *mut c_void) -> bool {
        true
    }

    unsafe extern "C" fn nowhere(_: *mut c_void) -> usize {
        0
    }

    unsafe extern "C" fn never(_: *mut c_void, _: i64, _: c_int) -> c_int {
        -1
    }

    /// The header, a piece at a time.
    unsafe extern "C" fn read(header: *mut c_void, data: *mut c_char, n: usize) -> usize {
        // SAFETY: mlx-c passes on what the reader was made with, and a place for `n` bytes.
        let (header, data) = unsafe {
            (
                &mut *header.cast::<Cursor<Vec<u8>>>(),
                std::slice::from_raw_parts_mut(data.cast::<u8>(), n),
            )
        };
        header.read(data).unwrap_or(0)
    }

    /// The values, which stay as they are.
    unsafe extern "C" fn leave(_: *mut c_void, _: *mut c_char, n: usize, _: usize) -> usize {
        n
    }

    unsafe extern "C" fn refuse(_: *mut c_void, _: *const c_char, _: usize) -> usize {
        0
    }

    unsafe extern "C" fn label(_: *mut c_void) -> *const c_char {
        c"an array".as_ptr()
    }

    unsafe extern "C" fn free(header: *mut c_void) {
        // SAFETY: it came from a box, and nobody asks for it any more.
        drop(unsafe { Box::from_raw(header.cast::<Cursor<Vec<u8>>>()) });
    }
}

/// A number that MLX knows of the Metal device.
pub(super) fn metal_size(key: &CStr) -> Option<u64> {
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

/// MLX's CPU backend asks malloc for every array. glibc maps large blocks anew and unmaps them when
/// they are freed, and so the kernel zeroes every page of every activation: a seventh of the VAE's
/// time. Kept in the heap they are used again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn keep_freed_memory() {
    // SAFETY: mallopt takes two integers and changes how malloc gets its memory, no more. What it
    // refuses leaves malloc as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn keep_freed_memory() {}

/// MLX's ranks, and the stream that they talk on. An error of one of its operations poisons that stream,
/// which is therefore no other's.
#[derive(Debug)]
pub(super) struct Ranks {
    group: mlx_sys::mlx_distributed_group,
    stream: Stream,
}

/// A connected group, on its way from the thread that has waited for it.
pub(super) struct Connected(mlx_sys::mlx_distributed_group);

// SAFETY: it is a pointer to a shared group that belongs to no thread.
unsafe impl Send for Connected {}

impl Connected {
    /// Whether MLX was built with an engine.
    pub(super) fn is_available(engine: &CStr) -> bool {
        // SAFETY: the name ends with a zero, and is read during the call alone.
        unsafe { mlx_sys::mlx_distributed_is_available(engine.as_ptr()) }
    }

    /// Connects to the other ranks over an engine of MLX's, as `MLX_RANK` and the engine's own variables say;
    /// waits for them, forever if need be.
    pub(super) fn wait(engine: &CStr) -> Option<Self> {
        install_error_handler();
        // SAFETY: the call writes one handle; the name ends with a zero, and is read during the call alone.
        unsafe {
            let mut group = mlx_sys::mlx_distributed_group_new();
            match mlx_sys::mlx_distributed_init(&mut group, true, engine.as_ptr()) {
                0 => Some(Self(group)),
                _ => None,
            }
        }
    }
}

impl Ranks {
    /// The group, for this thread.
    pub(super) fn of(Connected(group): Connected) -> Self {
        Self {
            group,
            stream: Stream::new_with_device(&mlx_rs::Device::cpu()),
        }
    }

    /// This rank and how many there are.
    pub(super) fn place(&self) -> (i32, i32) {
        // SAFETY: the handle is alive.
        unsafe {
            (
                mlx_sys::mlx_distributed_group_rank(self.group),
                mlx_sys::mlx_distributed_group_size(self.group),
            )
        }
    }

    /// Everybody's `x`, in the order of ranks along the first axis.
    pub(super) fn all_gather(&self, x: &Array) -> Result<Array> {
        // SAFETY: the handles are alive during the call, which keeps none of them.
        self.made(|result, stream| unsafe {
            mlx_sys::mlx_distributed_all_gather(result, x.as_ptr(), self.group, stream)
        })
    }

    /// Hands `x` to a neighbour; what is returned is evaluated when it is gone.
    pub(super) fn send(&self, x: &Array, to: i32) -> Result<Array> {
        // SAFETY: the handles are alive during the call, which keeps none of them.
        self.made(|result, stream| unsafe {
            mlx_sys::mlx_distributed_send(result, x.as_ptr(), to, self.group, stream)
        })
    }

    /// What a neighbour hands over.
    pub(super) fn receive(&self, shape: &[i32], dtype: Dtype, from: i32) -> Result<Array> {
        // SAFETY: the handles are alive during the call, which keeps none of them.
        self.made(|result, stream| unsafe {
            mlx_sys::mlx_distributed_recv(
                result,
                shape.as_ptr(),
                shape.len(),
                dtype.into(),
                from,
                self.group,
                stream,
            )
        })
    }

    fn made(
        &self,
        call: impl FnOnce(*mut mlx_sys::mlx_array, mlx_sys::mlx_stream) -> i32,
    ) -> Result<Array> {
        // SAFETY: the handle is an array's where the call succeeds, and freed where it does not.
        unsafe {
            let mut result = mlx_sys::mlx_array_new();
            if call(&mut result, self.stream.as_ptr()) == 0 {
                return Ok(Array::from_ptr(result));
            }
            mlx_sys::mlx_array_free(result);
        }
        Err(Exception::custom(
            "MLX refuses an exchange between machines",
        ))
    }

    /// Whether `array`, whose evaluation has begun, is there.
    pub(super) fn is_done(&self, array: &Array) -> Result<bool> {
        let mut done = false;
        // SAFETY: the handle is alive, and the call writes one bool.
        match unsafe { mlx_sys::_mlx_array_is_available(&mut done, array.as_ptr()) } {
            0 => Ok(done),
            _ => Err(Exception::custom(
                "MLX has lost an exchange between machines",
            )),
        }
    }

    /// What has failed on the stream.
    pub(super) fn check(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        match unsafe { mlx_sys::mlx_synchronize(self.stream.as_ptr()) } {
            0 => Ok(()),
            _ => Err(Exception::custom("an exchange between machines has failed")),
        }
    }
}

/// mlx-c ends the process on an error until mlx-rs's first call puts its own handler in place.
fn install_error_handler() {
    let _ = mlx_rs::Device::try_default();
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

    /// Of one dimension and several; MLX counts them as any other, and frees them.
    #[test]
    fn arrays_that_nobody_writes_are_counted_by_mlx() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        for shape in [&[7][..], &[1 << 10, 1 << 12], &[1, 3, 5, 1]] {
            let array = unwritten(shape).unwrap();
            array.eval().unwrap();
            assert_eq!(array.shape(), shape);
            assert_eq!(array.dtype(), Dtype::Float32);
            let values: i32 = shape.iter().product();
            assert_eq!(array.as_slice::<f32>().len(), values as usize);
            assert!(mlx_rs::memory::active_memory().unwrap() >= 4 * values as usize);
        }
    }
}
