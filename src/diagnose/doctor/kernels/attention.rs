//! Attention with and without a mask, for many queries and for many keys.

use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::softmax_axis;
use mlx_rs::{Array, error::Result};

use super::{Case, array, exact, is_used, precisions, products_tolerance, sampled};
use crate::diagnose::doctor::reference::{self, uniform};
use crate::diagnose::doctor::{CheckRunner, Group};
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
    for size in [A14B, VAE] {
        long(round, size);
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

/// Heads, tokens and channels of a head: two of the transformer's for a clip of 832 x 480 x 81, and the
/// VAE's for a picture of 416 x 240, which no fused kernel takes.
const A14B: [i32; 3] = [2, 32_760, 128];
const VAE: [i32; 3] = [1, 1560, 384];
/// Heads of a layer, which decide how many queries a call gets.
const LAYER_HEADS: i32 = 40;
/// Queries whose results are compared, of each head.
const COMPARED: usize = 8;

/// One call of a clip's self-attention: with as many queries as a run gives it, all keys, few heads.
fn long(round: &mut CheckRunner<'_>, [heads, tokens, dim]: [i32; 3]) {
    let is_vae = heads == 1;
    let device = round.settings.device;
    let (precision, layer) = match is_vae {
        true => (Precision::F32, heads),
        false => (device.dtype, LAYER_HEADS),
    };
    let score_bytes = MemoryPlan::WHOLE.score_bytes;
    let queries = device.attention_rows([layer, tokens, tokens, dim], score_bytes);
    let name = format!(
        "attention, a call of a clip's, {precision}, {heads} x {queries} x {tokens} x {dim}"
    );
    if round.settings.quick && !is_vae {
        return round.skip(Group::Kernel, &name, "--quick");
    }
    let values = |seed, rows: i32| {
        let values = uniform(seed, (heads * rows * dim) as usize, 2.0);
        precision.round(values)
    };
    let (q, k, v) = (values(14, queries), values(15, tokens), values(16, tokens));
    let [all, width] = [queries, dim].map(|size| size as usize);
    let places: Vec<usize> = (0..heads as usize)
        .flat_map(|head| {
            let of_head = reference::every(all, COMPARED).into_iter();
            of_head.map(move |row| head * all + row)
        })
        .collect();
    let compared: Vec<f32> = places
        .iter()
        .flat_map(|&row| &q[row * width..(row + 1) * width])
        .copied()
        .collect();
    let expected = reference::attention([&compared, &k, &v], None, heads as usize, width);
    let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
    let case = Case::new(name, tolerance(precision), width, &expected);
    round.kernel(&case, &|| {
        let shape = |rows| [1, heads, rows, dim];
        let q = array(&q, &shape(queries), precision)?;
        let k = array(&k, &shape(tokens), precision)?;
        let v = array(&v, &shape(tokens), precision)?;
        let scale = f64::from(dim).sqrt().recip() as f32;
        let all = device.attention([&q, &k, &v], scale, None, score_bytes)?;
        sampled(&all.reshape(&[-1, dim])?, &places)
    });
}

/// Without a fused kernel the scores are rounded too, and then they are in an exponent.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => products_tolerance(precision),
        Precision::F16 => 0.5_f64.powi(8),
        Precision::Bf16 => 0.5_f64.powi(5),
    }
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
    let tolerance = tolerance(precision);
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
