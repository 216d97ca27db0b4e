//! The elementwise of [`super::elementwise`] as MLX compiles them: a kernel each instead of one for every
//! operation, so that an activation is read and written once.
//!
//! For the GPU only. On the CPU MLX compiles by calling the machine's C++ compiler at run time,
//! which a user need not have.

use std::cell::RefCell;
use std::mem::ManuallyDrop;

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::transforms::compile::compile;

use super::elementwise;

type Unary = Box<dyn for<'a> FnMut(&'a Array) -> Result<Array>>;
type Ternary = Box<dyn for<'a> FnMut((&'a Array, &'a Array, &'a Array)) -> Result<Array>>;

/// Compiled once for a thread: mlx-rs forgets what it compiled with the function that it gave. Never
/// dropped, since MLX's own cache may go before a thread's values do.
type Kept<F> = RefCell<ManuallyDrop<F>>;

fn kept<F>(f: F) -> Kept<F> {
    RefCell::new(ManuallyDrop::new(f))
}

thread_local! {
    static SILU: Kept<Unary> = kept(Box::new(compile(elementwise::silu, true)));
    static GELU_TANH: Kept<Unary> = kept(Box::new(compile(elementwise::gelu_tanh, true)));
    static ADD_GATED: Kept<Ternary> = kept(Box::new(compile(
        |(x, h, gate): (&Array, &Array, &Array)| elementwise::add_gated(x, h, gate),
        true,
    )));
    static SCALE_SHIFT: Kept<Ternary> = kept(Box::new(compile(
        |(x, factor, bias): (&Array, &Array, &Array)| elementwise::scale_shift(x, factor, Some(bias)),
        true,
    )));
    // Its shapes are part of it.
    static ROTATE: Kept<Ternary> = kept(Box::new(compile(
        |(x, cos, sin): (&Array, &Array, &Array)| elementwise::rotate(x, cos, sin),
        false,
    )));
}

/// As [`elementwise::silu`].
pub(crate) fn silu(x: &Array) -> Result<Array> {
    SILU.with_borrow_mut(|f| f(x))
}

/// As [`elementwise::gelu_tanh`].
pub(crate) fn gelu_tanh(x: &Array) -> Result<Array> {
    GELU_TANH.with_borrow_mut(|f| f(x))
}

/// As [`elementwise::add_gated`].
pub(crate) fn add_gated(x: &Array, h: &Array, gate: &Array) -> Result<Array> {
    ADD_GATED.with_borrow_mut(|f| f((x, h, gate)))
}

/// As [`elementwise::scale_shift`].
pub(crate) fn scale_shift(x: &Array, factor: &Array, bias: &Array) -> Result<Array> {
    SCALE_SHIFT.with_borrow_mut(|f| f((x, factor, bias)))
}

/// As [`elementwise::rotate`].
pub(crate) fn rotate(x: &Array, cos: &Array, sin: &Array) -> Result<Array> {
    ROTATE.with_borrow_mut(|f| f((x, cos, sin)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use mlx_rs::ops::indexing::TryIndexOp;
    use mlx_rs::transforms::compile::{disable_compile, enable_compile};
    use mlx_rs::{Device, Dtype};

    use super::*;
    use crate::runtime::ffi::metal_is_available;
    use crate::runtime::to_host;

    fn values(shape: &[i32], dtype: Dtype) -> Array {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0)
            .collect();
        Array::from_slice(&values, shape).as_dtype(dtype).unwrap()
    }

    fn agree(ours: Result<Array>, expected: Result<Array>) {
        let (ours, expected) = (ours.unwrap(), expected.unwrap());
        assert_eq!(ours.shape(), expected.shape());
        assert_eq!(ours.dtype(), expected.dtype());
        let tolerance = match ours.dtype() {
            Dtype::Bfloat16 => 0.05,
            _ => 1e-5,
        };
        let [ours, expected] = [ours, expected].map(|x| to_host(&x).unwrap());
        for (a, b) in ours.iter().zip(&expected) {
            assert!((a - b).abs() <= tolerance, "{a} {b}");
        }
    }

    fn every_chain_agrees() {
        for tokens in [24, 6] {
            for dtype in [Dtype::Float32, Dtype::Bfloat16] {
                let x = values(&[tokens, 36], dtype);
                agree(silu(&x), elementwise::silu(&x));
                agree(gelu_tanh(&x), elementwise::gelu_tanh(&x));
                let stream = values(&[tokens, 36], Dtype::Float32);
                let gate = values(&[36], Dtype::Float32);
                agree(
                    add_gated(&stream, &x, &gate),
                    elementwise::add_gated(&stream, &x, &gate),
                );
                let bias = values(&[36], dtype);
                agree(
                    scale_shift(&x, &gate, &bias),
                    elementwise::scale_shift(&x, &gate, Some(&bias)),
                );
            }
            let x = values(&[tokens, 3, 12], Dtype::Float32);
            let [cos, sin] = [3, 5].map(|heads| {
                let table = values(&[tokens, heads, 6], Dtype::Float32);
                table.try_index((.., 0..1)).unwrap()
            });
            agree(rotate(&x, &cos, &sin), elementwise::rotate(&x, &cos, &sin));
        }
    }

    /// What is compiled is the right function, and compiled it stays so: by Metal's compiler where there
    /// is one, and by the C++ compiler that MLX calls for its CPU backend.
    #[test]
    fn every_chain_agrees_compiled_or_not() {
        Device::set_default(&Device::cpu());
        disable_compile();
        every_chain_agrees();
        enable_compile();
        let compiler = Command::new("g++").arg("--version").output();
        let cpu = compiler.is_ok_and(|output| output.status.success());
        if cpu {
            every_chain_agrees();
        }
        if metal_is_available() {
            Device::set_default(&Device::gpu());
            every_chain_agrees();
            Device::set_default(&Device::cpu());
        } else if !cpu {
            println!("neither Metal nor g++ is here: nothing was compiled");
        }
    }
}
