//! A sequence whose rows several machines have: each computes its own, and all need everybody's keys and
//! values.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::{concatenate, zeros_dtype};

use super::DitConfig;
use super::keys::laid_out;
use crate::model::cost::number;
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

/// Whether half of so many machines predict for the negative prompt of a guided clip. More than two of a half
/// would need groups within MLX's ring, which has none.
pub fn halve_guidance(machines: u64, guided: bool) -> bool {
    guided && matches!(machines, 2 | 4)
}

/// What machines that share a clip's passes send one another at a step, in bytes, without step caches.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    machines: u64,
    halves: bool,
    layers: u64,
    /// Blocks whose keys and values the second pass of a step has from the first.
    shared_layers: u64,
    /// The latents, and a prediction as large as they are.
    latents: u64,
    /// A machine's rows of a prediction, to one other.
    rows: u64,
    /// The keys and values of one layer of them, to one other.
    keys_and_values: u64,
}

impl Traffic {
    /// Of a clip of `grid` latents (frames, height and width) whose numbers of products have
    /// `product_bytes`; `guided` where it has guided steps, and `shared_start` as in
    /// [`MemoryPlan`](crate::model::MemoryPlan).
    pub fn new(
        config: &DitConfig,
        grid: [i32; 3],
        product_bytes: u64,
        machines: u64,
        guided: bool,
        shared_start: bool,
    ) -> Self {
        let count = |sides: &[i32]| -> u64 { sides.iter().map(|side| number(*side)).product() };
        let halves = halve_guidance(machines, guided);
        let values = 4 * number(config.out_channels);
        let mut traffic = Self {
            machines,
            halves,
            layers: number(config.num_layers),
            shared_layers: u64::from(shared_start).min(number(config.num_layers)),
            latents: values * count(&grid),
            rows: 0,
            keys_and_values: 0,
        };
        let rows = count(&config.token_grid(grid)).div_ceil(traffic.sequence());
        traffic.rows = rows * values * count(&config.patch_size);
        traffic.keys_and_values = 2 * rows * number(config.dim()) * product_bytes;
        traffic
    }

    /// Whether half of the machines predict for the negative prompt.
    pub fn halves(&self) -> bool {
        self.halves
    }

    /// How many share the sequence of a pass: 1 where each computes whole passes.
    pub fn sequence(&self) -> u64 {
        let parts = if self.halves { 2 } else { 1 };
        (self.machines / parts).max(1)
    }

    /// Passes of a step, one after the other, on each machine that has a part in it.
    pub fn passes(&self, guided: bool) -> u64 {
        if guided && !self.halves { 2 } else { 1 }
    }

    /// Layers whose keys and values are exchanged at a step.
    fn exchanged_layers(&self, guided: bool) -> u64 {
        let passes = self.passes(guided);
        passes * self.layers - (passes - 1) * self.shared_layers
    }

    /// What a machine sends at a step of keys, values and predictions to those that have other rows.
    fn of_rows(&self, guided: bool) -> u64 {
        let to_one =
            self.passes(guided) * self.rows + self.exchanged_layers(guided) * self.keys_and_values;
        (self.sequence() - 1) * to_one
    }

    /// The latents of a step, to all that have a part in it.
    fn of_latents(&self, guided: bool) -> u64 {
        let all = if guided {
            self.machines
        } else {
            self.sequence()
        };
        all.saturating_sub(1) * self.latents
    }

    /// Bytes that a rank sends at a step, `guided` or not.
    pub fn sent(&self, rank: u64, guided: bool) -> u64 {
        let is_idle = !guided && rank >= self.sequence();
        let starts = if rank == 0 {
            self.of_latents(guided)
        } else {
            0
        };
        let hands_over = guided && self.halves && rank + 1 == self.machines;
        match is_idle {
            true => 0,
            false => starts + self.of_rows(guided) + u64::from(hands_over) * self.latents,
        }
    }

    /// The most bytes that any of them sends at a step.
    pub fn most_sent(&self, guided: bool) -> u64 {
        let all = (0..self.machines).map(|rank| self.sent(rank, guided));
        all.max().unwrap_or_default()
    }

    /// Seconds that the exchanges of a step take where a machine sends `bytes_per_second`, and an exchange takes
    /// `least_seconds` whatever its size: all one after the other, and none while something is computed.
    pub fn seconds(&self, guided: bool, bytes_per_second: f64, least_seconds: f64) -> f64 {
        // Keys, values and predictions of rows. Two of a half send one after the other, all others at once.
        let turns = if self.halves { 2 } else { 1 };
        let of_rows = match self.sequence() {
            1 => 0,
            _ => turns * (self.passes(guided) + 2 * self.exchanged_layers(guided)),
        };
        // The latents there, and the prediction for the negative prompt back.
        let starts = self.of_latents(guided);
        let back = u64::from(guided && self.halves);
        let bytes = starts + turns * self.of_rows(guided) + back * self.latents;
        let exchanges = u64::from(starts > 0) + of_rows + back;
        bytes as f64 / bytes_per_second + exchanges as f64 * least_seconds
    }
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

    /// Of 2 layers of width 8, and 5 tokens of 2 x 2 latents with 4 channels.
    #[test]
    fn ranks_send_what_their_part_is() {
        let config = DitConfig {
            patch_size: [1, 2, 2],
            num_attention_heads: 2,
            attention_head_dim: 4,
            in_channels: 4,
            out_channels: 4,
            text_dim: 8,
            freq_dim: 8,
            ffn_dim: 16,
            num_layers: 2,
            cross_attn_norm: true,
            eps: 1e-6,
            rope_max_seq_len: 8,
            qk_norm: None,
            image_dim: None,
            added_kv_proj_dim: None,
            pos_embed_seq_len: None,
        };
        let of = |machines, guided, shared_start| {
            Traffic::new(&config, [5, 2, 2], 2, machines, guided, shared_start)
        };
        let sent = |traffic: &Traffic, guided| -> Vec<u64> {
            let ranks = 0..traffic.machines;
            ranks.map(|rank| traffic.sent(rank, guided)).collect()
        };
        let latents = 4 * 4 * 5 * 2 * 2;
        // Rows of a prediction, and keys and values of a layer.
        let (values, layer) = (4 * 4 * 4, 2 * 8 * 2);

        let two = of(2, true, true);
        assert_eq!(sent(&two, true), [latents, latents]);
        assert_eq!(sent(&two, false), [0, 0]);
        assert_eq!(two.seconds(true, 1.0, 0.5), (2 * latents) as f64 + 1.0);
        assert_eq!(two.seconds(false, 1.0, 0.5), 0.0);

        let two = of(2, false, true);
        let pass = 3 * (values + 2 * layer);
        assert_eq!(sent(&two, false), [latents + pass, pass]);
        assert_eq!(two.seconds(false, 1.0, 0.5), (latents + pass) as f64 + 3.0);

        let three = of(3, true, true);
        let both = 2 * 2 * (2 * values + 3 * layer);
        assert_eq!(sent(&three, true), [2 * latents + both, both, both]);
        assert_eq!(three.most_sent(true), 2 * latents + both);
        let seconds = (2 * latents + both) as f64 + 0.5 * (1.0 + 2.0 + 6.0);
        assert_eq!(three.seconds(true, 1.0, 0.5), seconds);
        let apart = of(3, true, false);
        assert_eq!(apart.sent(1, true), both + 2 * 2 * layer);
        assert_eq!(apart.sent(1, false), 2 * 2 * (values + 2 * layer));

        let four = of(4, true, true);
        assert_eq!(
            sent(&four, true),
            [3 * latents + pass, pass, pass, pass + latents]
        );
        assert_eq!(sent(&four, false), [latents + pass, pass, 0, 0]);
        let seconds = (4 * latents + 2 * pass) as f64 + 0.5 * (1.0 + 10.0 + 1.0);
        assert_eq!(four.seconds(true, 1.0, 0.5), seconds);
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
