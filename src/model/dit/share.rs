//! A sequence whose rows several machines have: each computes its own, and all need everybody's keys and
//! values.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::{concatenate, zeros_dtype};

use super::DitConfig;
use super::keys::laid_out;
use crate::runtime::{Device, rows};

/// The machines that a sequence is shared with. They compute the same in the same order, and so meet at
/// every exchange.
pub trait Share: std::fmt::Debug {
    /// This machine, from 0, and how many there are.
    fn place(&self) -> (i32, i32);

    /// Begins to gather everybody's `part`, of one shape, along the first axis, which goes on while other
    /// work is done.
    ///
    /// # Errors
    /// When MLX fails or a machine is lost.
    fn begin(&self, part: &Array) -> Result<Box<dyn Gathering + '_>>;
}

/// What is being gathered from machines.
pub trait Gathering {
    /// Waits for it.
    ///
    /// # Errors
    /// When MLX fails or a machine is lost.
    fn finish(self: Box<Self>) -> Result<Array>;
}

/// Rows of each machine but for the last one, which may have fewer.
fn each(share: &dyn Share, tokens: i32) -> i32 {
    (tokens + share.place().1 - 1) / share.place().1.max(1)
}

/// The first of this machine's rows of a sequence of `tokens`, and the one behind its last.
pub fn own_rows(share: &dyn Share, tokens: i32) -> (i32, i32) {
    let each = each(share, tokens);
    let start = (share.place().0 * each).min(tokens);
    (start, (start + each).min(tokens))
}

/// Whether every machine has rows of a sequence.
pub fn is_enough(machines: i32, tokens: i32) -> bool {
    (machines - 1) * ((tokens + machines - 1) / machines.max(1)) < tokens
}

/// All `tokens` rows `[tokens, ...]` of which `part` has this machine's.
pub(super) fn gather_rows(share: &dyn Share, part: &Array, tokens: i32) -> Result<Array> {
    rows(&begin_rows(share, part, tokens)?.finish()?, 0, tokens)
}

fn begin_rows<'a>(
    share: &'a dyn Share,
    part: &Array,
    tokens: i32,
) -> Result<Box<dyn Gathering + 'a>> {
    let missing = each(share, tokens) - part.dim(0);
    let part = match missing {
        0 => part.clone(),
        _ => {
            let shape: Vec<i32> = [&[missing], &part.shape()[1..]].concat();
            concatenate(&[part, &zeros_dtype(&shape, part.dtype())?], 0)?
        }
    };
    share.begin(&part.contiguous()?)
}

/// Keys or values of a sequence, `[1, heads, tokens, head_dim]`.
pub(super) enum Heads<'a> {
    /// They are all here.
    Here(Array),
    /// Other machines have rows of them, which are on their way.
    Coming {
        rows: Box<dyn Gathering + 'a>,
        tokens: i32,
    },
}

impl<'a> Heads<'a> {
    /// Begins to gather all of `tokens` rows, of which `part` `[1, heads, rows, head_dim]` has this machine's.
    pub(super) fn begin(share: &'a dyn Share, part: &Array, tokens: i32) -> Result<Self> {
        let by_rows = part.transpose_axes(&[0, 2, 1, 3])?.squeeze_axes(&[0])?;
        let rows = begin_rows(share, &by_rows, tokens)?;
        Ok(Self::Coming { rows, tokens })
    }

    /// All of them, as the device is to have them.
    pub(super) fn finish(self, device: Device) -> Result<Array> {
        match self {
            Self::Here(all) => Ok(all),
            Self::Coming { rows: all, tokens } => {
                let all = rows(&all.finish()?, 0, tokens)?.expand_dims(0)?;
                laid_out(device, all.transpose_axes(&[0, 2, 1, 3])?)
            }
        }
    }
}

/// Bytes that each of `machines` sends: as one of two halves of guidance a step, and for its rows of the
/// sequence a pass, where numbers of products have `product_bytes`. `grid` is the latents' frames, height
/// and width.
pub fn sent_bytes(
    config: &DitConfig,
    grid: [i32; 3],
    product_bytes: u64,
    machines: u64,
) -> [u64; 2] {
    let count = |sides: &[i32]| -> u64 { sides.iter().map(|side| (*side).max(0) as u64).product() };
    let rows = count(&config.token_grid(grid)).div_ceil(machines.max(1));
    let channels = config.out_channels.max(0) as u64;
    let keys_and_values = 2 * count(&[config.num_layers, config.dim()]) * product_bytes;
    let prediction = 4 * channels * count(&config.patch_size);
    [
        4 * channels * count(&grid),
        machines.saturating_sub(1) * rows * (keys_and_values + prediction),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DeviceKind, to_host};

    #[derive(Debug)]
    struct Alone(i32, i32);

    impl Share for Alone {
        fn place(&self) -> (i32, i32) {
            (self.0, self.1)
        }

        /// As if the others had the same.
        fn begin(&self, part: &Array) -> Result<Box<dyn Gathering + '_>> {
            let all = concatenate(&vec![part; self.1 as usize], 0)?;
            Ok(Box::new(Gathered(all)))
        }
    }

    struct Gathered(Array);

    impl Gathering for Gathered {
        fn finish(self: Box<Self>) -> Result<Array> {
            Ok(self.0)
        }
    }

    #[test]
    fn every_row_is_some_machine_s() {
        for machines in 1..5 {
            for tokens in 1..40 {
                let mut end = 0;
                for rank in 0..machines {
                    let (start, next) = own_rows(&Alone(rank, machines), tokens);
                    assert_eq!(start, end);
                    assert!(start < next || !is_enough(machines, tokens));
                    end = next;
                }
                assert_eq!(end, tokens);
            }
        }
    }

    #[test]
    fn rows_and_heads_come_together() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        // The last of two, which has one row fewer.
        let part = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[2, 2]);
        let all = gather_rows(&Alone(1, 2), &part, 5).unwrap();
        let expected = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(to_host(&all).unwrap(), expected);
        let heads = part.reshape(&[1, 2, 1, 2]).unwrap();
        let all = Heads::begin(&Alone(0, 2), &heads, 2).unwrap();
        let all = all.finish(Device::new(DeviceKind::Cpu, None)).unwrap();
        assert_eq!(all.shape(), [1, 2, 2, 2]);
        assert_eq!(
            to_host(&all).unwrap(),
            [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]
        );
    }
}
