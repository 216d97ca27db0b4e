//! How self-attention's keys and values lie in memory.

use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::indexing::TryIndexMutOp;
use mlx_rs::ops::zeros_dtype;

use crate::runtime::Device;

/// Keys or values `[1, heads, rows, head_dim]` of a whole sequence as the device is to have them: a view
/// of rows one after the other, or a copy of heads one after the other.
pub fn laid_out(device: Device, x: Array) -> Result<Array> {
    match device.tuning.keys_by_heads {
        Some(true) => x.contiguous(),
        _ => Ok(x),
    }
}

/// Keys or values of a sequence that comes in chunks.
pub struct Gathered {
    /// `[1, heads, rows, head_dim]`, or `[1, rows, heads, head_dim]`.
    all: Array,
    by_rows: bool,
}

impl Gathered {
    /// Room for `rows` of what `part` `[1, heads, n, head_dim]` is a part of.
    pub fn of_rows(device: Device, rows: i32, part: &Array) -> Result<Self> {
        let by_rows = device.tuning.keys_by_heads == Some(false);
        let shape = match by_rows {
            true => [1, rows, part.dim(1), part.dim(3)],
            false => [1, part.dim(1), rows, part.dim(3)],
        };
        let all = zeros_dtype(&shape, part.dtype())?;
        Ok(Self { all, by_rows })
    }

    /// Puts some rows in their place, without a copy of the others: nobody else has them.
    pub fn put(&mut self, rows: Range<i32>, part: &Array) -> Result<()> {
        match self.by_rows {
            true => {
                let part = part.transpose_axes(&[0, 2, 1, 3])?;
                self.all.try_index_mut((.., rows, .., ..), part)
            }
            false => self.all.try_index_mut((.., .., rows, ..), part),
        }
    }

    /// All there is, to be evaluated.
    pub fn so_far(&self) -> &Array {
        &self.all
    }

    /// `[1, heads, rows, head_dim]`.
    pub fn finished(self) -> Result<Array> {
        match self.by_rows {
            true => self.all.transpose_axes(&[0, 2, 1, 3]),
            false => Ok(self.all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DeviceKind, Kernels, Tuning, rows, to_host};

    #[test]
    fn they_are_the_same_however_they_lie() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let numbers: Vec<f32> = (0..10 * 3 * 4).map(|i| i as f32).collect();
        let all = Array::from_slice(&numbers, &[10, 3, 4]);
        let by_heads = |x: &Array| {
            let x = x.transpose_axes(&[1, 0, 2]).unwrap();
            x.expand_dims(0).unwrap()
        };
        let expected = by_heads(&all);
        for (keys_by_heads, whole, gathered) in [
            (None, [4, 12], [40, 4]),
            (Some(true), [40, 4], [40, 4]),
            (Some(false), [4, 12], [4, 12]),
        ] {
            let device = Device::with_kernels(DeviceKind::Cpu, None, Kernels::Mlx);
            let device = device.tuned(Tuning {
                keys_by_heads,
                ..Tuning::NONE
            });
            let at_once = laid_out(device, expected.clone()).unwrap();
            let mut in_chunks = None;
            for (start, end) in [(0, 6), (6, 10)] {
                let part = by_heads(&rows(&all, start, end).unwrap());
                let room =
                    in_chunks.get_or_insert_with(|| Gathered::of_rows(device, 10, &part).unwrap());
                room.put(start..end, &part).unwrap();
                room.so_far().eval().unwrap();
            }
            let in_chunks = in_chunks.unwrap().finished().unwrap();
            for (found, strides) in [(at_once, whole), (in_chunks, gathered)] {
                found.eval().unwrap();
                assert_eq!(found.strides()[1..3], strides, "{keys_by_heads:?}");
                assert_eq!(to_host(&found).unwrap(), to_host(&expected).unwrap());
            }
        }
    }
}
