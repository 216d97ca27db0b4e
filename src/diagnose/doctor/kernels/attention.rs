//! Attention with and without a mask, for many queries and for many keys.

use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::softmax_axis;
use mlx_rs::{Array, error::Result};

use super::{Case, array, exact, is_used, precisions, products_tolerance};
use crate::diagnose::doctor::CheckRunner;
use crate::diagnose::doctor::reference::{self, uniform};
use crate::model::MemoryPlan;
use crate::runtime::Precision;

/// Heads, queries, keys, channels of a head: odd; cross-attention; more queries than a kernel call
/// may see; more keys.
const SIZES: [[i32; 4]; 4] = [
    [3, 193, 193, 128],
    [2, 300, 25, 128],
    [1, 40_000, 25, 64],
    [1, 24, 40_000, 64],
];

pub fn examine(round: &mut CheckRunner<'_>) {
    for precision in precisions(round.settings.device) {
        for size in SIZES {
            for masked in [false, true] {
                attend(round, precision, size, masked);
            }
        }
    }
    // As the text encoder writes it out: [heads, tokens, tokens].
    let (heads, tokens) = (6, 150);
    let scores = uniform(9, (heads * tokens * tokens) as usize, 20.0);
    let expected = reference::each_row(&scores, tokens as usize, |row| {
        let mut row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
        reference::softmax(&mut row);
        row
    });
    let case = Case::new(
        format!("softmax, {heads} x {tokens} x {tokens}"),
        1e-5,
        tokens as usize,
        &expected,
    );
    round.kernel(&case, &|| {
        softmax_axis(exact(&scores, &[heads, tokens, tokens]), -1, true)
    });
}

fn attend(
    round: &mut CheckRunner<'_>,
    precision: Precision,
    [heads, queries, keys, dim]: [i32; 4],
    masked: bool,
) {
    let device = round.settings.device;
    let values = |seed, rows: i32| {
        let values = uniform(seed, (heads * rows * dim) as usize, 2.0);
        precision.round(values)
    };
    let (q, k, v) = (values(4, queries), values(5, keys), values(6, keys));
    // Of many weights one is large, as that of the padding row.
    let mut weights = vec![0.0_f32; keys as usize];
    if let (true, Some(last)) = (masked, weights.last_mut()) {
        *last = 6.0;
    }
    let expected = reference::attention(
        [&q, &k, &v],
        masked.then_some(&weights),
        heads as usize,
        dim as usize,
    );
    let mask = if masked { "with a mask" } else { "no mask" };
    let size = format!("{precision}, {mask}, {heads} x {queries} x {keys} x {dim}");
    // Without a fused kernel the scores are rounded too, and then they are in an exponent.
    let tolerance = match precision {
        Precision::F32 => products_tolerance(precision),
        Precision::F16 => 0.5_f64.powi(8),
        Precision::Bf16 => 0.5_f64.powi(5),
    };
    let used = is_used(device, precision);
    let case = |name| Case::new(name, tolerance, dim as usize, &expected);
    let arrays = || -> Result<[Array; 4]> {
        let shape = |rows| [1, heads, rows, dim];
        Ok([
            array(&q, &shape(queries), precision)?,
            array(&k, &shape(keys), precision)?,
            array(&v, &shape(keys), precision)?,
            exact(&weights, &[1, 1, 1, keys]),
        ])
    };
    let scale = f64::from(dim).sqrt().recip() as f32;
    let whole = case(format!("attention, {size}"));
    round.kernel(&whole.only_noted_if(!used), &|| {
        let [q, k, v, weights] = arrays()?;
        let weights = masked.then_some(&weights);
        device.attention([&q, &k, &v], scale, weights, MemoryPlan::WHOLE.score_bytes)
    });
    if queries == 40_000 {
        let case = case(format!("attention, one call, {size}")).only_noted_if(true);
        round.kernel(&case, &|| {
            let [q, k, v, weights] = arrays()?;
            let weights = weights.as_dtype(q.dtype())?;
            let mask = masked.then_some(ScaledDotProductAttentionMask::from(&weights));
            fast::scaled_dot_product_attention(&q, &k, &v, scale, mask, None)
        });
    }
}
