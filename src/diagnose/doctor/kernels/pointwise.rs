//! Norms, activations, rotary embedding, casts, and what tells whether values are finite.

use half::{bf16, f16};
use mlx_rs::error::Result;
use mlx_rs::ops::clip;
use mlx_rs::{Array, Dtype, fast};

use super::{Case, array, doubles, exact, is_used, precisions};
use crate::diagnose::doctor::reference::{self, uniform};
use crate::diagnose::doctor::{CheckResult, CheckRunner, Group};
use crate::model::dit::Rope;
use crate::runtime::{Device, Precision, all_finite};

/// Rows and width: one of 14B's; tokens of a clip of 1280 x 720 x 81, which norms see at once.
const NORMS: [(i32, i32); 2] = [(33, 5120), (75_600, 48)];

pub fn examine(round: &mut CheckRunner<'_>) {
    for (rows, width) in NORMS {
        norms(round, rows, width);
    }
    for precision in precisions(round.settings.device) {
        activations(round, precision);
        gated(round, precision);
    }
    rotation(round);
    heads(round);
    casts(round);
    finiteness(round);
}

fn norms(round: &mut CheckRunner<'_>, rows: i32, width: i32) {
    // Off the middle, which a mean in too few bits loses.
    let mut x = uniform(10, (rows * width) as usize, 1.0);
    x.iter_mut().for_each(|v| *v += 3.0);
    let (weight, bias) = (
        uniform(11, width as usize, 2.0),
        uniform(12, width as usize, 1.0),
    );
    let (shape, size) = ([rows, width], format!("{rows} x {width}"));
    let expected = reference::layer_norm(&x, &weight, &bias, 1e-6);
    let case = Case::new(
        format!("layer norm, {size}"),
        5e-5,
        width as usize,
        &expected,
    );
    let device = round.settings.device;
    round.kernel(&case, &|| {
        let (weight, bias) = (exact(&weight, &[width]), exact(&bias, &[width]));
        device.layer_norm(&exact(&x, &shape), &weight, &bias, 1e-6)
    });
    // The second is the VAE's.
    for eps in [1e-6_f32, 1e-24] {
        let expected = reference::rms_norm(&x, &weight, f64::from(eps));
        let name = format!("RMS norm, eps {eps:e}, {size}");
        round.kernel(&Case::new(name, 1e-5, width as usize, &expected), &|| {
            fast::rms_norm(exact(&x, &shape), Some(&exact(&weight, &[width])), eps)
        });
    }
}

fn activations(round: &mut CheckRunner<'_>, precision: Precision) {
    let (rows, width) = (40_000_i32, 16_i32);
    let mut x = uniform(13, (rows * width) as usize, 10.0);
    // Ends where an exponential overflows.
    x[..4].copy_from_slice(&[-200.0, -90.0, 0.0, -1e4]);
    x = precision.round(x);
    // Computed in float32, and rounded once.
    let tolerance = match precision {
        Precision::F32 => 1e-5,
        Precision::F16 => 0.5_f64.powi(10),
        Precision::Bf16 => 0.5_f64.powi(7),
    };
    let device = round.settings.device;
    let used = is_used(device, precision);
    type Layer = (
        &'static str,
        fn(f64) -> f64,
        fn(&Device, &Array) -> Result<Array>,
    );
    let layers: [Layer; 2] = [
        ("SiLU", reference::silu, Device::silu),
        ("GELU (tanh)", reference::gelu, Device::gelu_tanh),
    ];
    for (name, meant, layer) in layers {
        let expected: Vec<f64> = x.iter().map(|&v| meant(f64::from(v))).collect();
        let name = format!("{name}, {precision}, {rows} x {width}");
        let case = Case::new(name, tolerance, width as usize, &expected);
        round.kernel(&case.only_noted_if(!used), &|| {
            layer(&device, &array(&x, &[rows, width], precision)?)
        });
    }
}

/// A residual that modulation scales.
fn gated(round: &mut CheckRunner<'_>, precision: Precision) {
    let (rows, width) = (40_000_i32, 16_i32);
    let count = (rows * width) as usize;
    let (x, gate) = (uniform(16, count, 1.0), uniform(17, width as usize, 1.0));
    let h = precision.round(uniform(18, count, 1.0));
    let gates = gate.iter().cycle();
    let expected: Vec<f64> = x
        .iter()
        .zip(&h)
        .zip(gates)
        .map(|((&x, &h), &gate)| f64::from(x) + f64::from(h) * f64::from(gate))
        .collect();
    let device = round.settings.device;
    let used = is_used(device, precision);
    let name = format!("gated residual, {precision}, {rows} x {width}");
    let case = Case::new(name, 1e-6, width as usize, &expected);
    round.kernel(&case.only_noted_if(!used), &|| {
        let shape = [rows, width];
        device.add_gated(
            &exact(&x, &shape),
            &array(&h, &shape, precision)?,
            &exact(&gate, &[width]),
        )
    });
}

/// Angles of the rotary embedding, in radians: half of `dim` for each token of a grid.
fn angles(grid: [i32; 3], dim: i32) -> Vec<f64> {
    let spatial = 2 * (dim / 6);
    let tokens: i32 = grid.iter().product();
    (0..tokens)
        .flat_map(|token| {
            let place = [
                token / (grid[1] * grid[2]),
                token / grid[2] % grid[1],
                token % grid[2],
            ];
            let widths = [dim - 2 * spatial, spatial, spatial];
            place.into_iter().zip(widths).flat_map(|(at, width)| {
                (0..width / 2).map(move |i| {
                    f64::from(at) * 10_000_f64.powf(-f64::from(2 * i) / f64::from(width))
                })
            })
        })
        .collect()
}

/// Adjacent pairs, each turned by its angle.
fn turned(x: &[f64], angles: &[f64]) -> Vec<f64> {
    let pairs = x.chunks(2).zip(angles);
    pairs
        .flat_map(|(pair, angle)| {
            let (sin, cos) = angle.sin_cos();
            let (a, b) = (pair[0], pair[1]);
            [a * cos - b * sin, a * sin + b * cos]
        })
        .collect()
}

fn rotation(round: &mut CheckRunner<'_>) {
    // Tokens beyond 32,767, and the 14B's channels.
    let (grid, dim) = ([21, 45, 36], 128_i32);
    let tokens: i32 = grid.iter().product();
    let rope = Rope::new(grid, dim);
    let x = uniform(14, (tokens * dim) as usize, 1.0);
    let expected = turned(&doubles(&x), &angles(grid, dim));
    let device = round.settings.device;
    let name = format!("rotary embedding, {tokens} x {dim}");
    round.kernel(&Case::new(name, 1e-6, dim as usize, &expected), &|| {
        device.rotate(&exact(&x, &[tokens, 1, dim]), rope.cos(), rope.sin())
    });
}

/// Projections on their way to attention: normed over all heads, rotated, heads first.
fn heads(round: &mut CheckRunner<'_>) {
    let (grid, heads, dim) = ([3, 5, 7], 40_i32, 128_i32);
    let tokens: i32 = grid.iter().product();
    let width = (heads * dim) as usize;
    let rope = Rope::new(grid, dim);
    let x = uniform(19, tokens as usize * width, 1.0);
    let weight = uniform(20, width, 2.0);
    let normed = reference::rms_norm(&x, &weight, 1e-6);
    let angles = angles(grid, dim);
    let [half, dim_values] = [dim / 2, dim].map(|side| side as usize);
    let expected: Vec<f64> = (0..heads as usize)
        .flat_map(|head| {
            let (normed, angles) = (&normed, &angles);
            (0..tokens as usize).flat_map(move |token| {
                let start = token * width + head * dim_values;
                let row = &normed[start..start + dim_values];
                turned(row, &angles[token * half..(token + 1) * half])
            })
        })
        .collect();
    let device = round.settings.device;
    let name = format!("heads normed and rotated, {tokens} x {heads} x {dim}");
    round.kernel(&Case::new(name, 1e-5, dim_values, &expected), &|| {
        let weight = exact(&weight, &[heads * dim]);
        let tables = Some([rope.cos(), rope.sin()]);
        let x = exact(&x, &[tokens, heads * dim]);
        device.to_heads(&x, heads, Some((&weight, 1e-6)), tables)
    });
}

fn casts(round: &mut CheckRunner<'_>) {
    let (rows, width) = (40_000_i32, 16_i32);
    let x = uniform(15, (rows * width) as usize, 100.0);
    let bf: Vec<f64> = x.iter().map(|&v| bf16::from_f32(v).to_f64()).collect();
    let half: Vec<f64> = x.iter().map(|&v| f16::from_f32(v).to_f64()).collect();
    for (dtype, name, expected) in [
        (Dtype::Bfloat16, "bf16", &bf),
        (Dtype::Float16, "f16", &half),
    ] {
        let name = format!("cast to {name} and back, {rows} x {width}");
        round.kernel(&Case::exact(&name, width as usize, expected), &|| {
            exact(&x, &[rows, width])
                .as_dtype(dtype)?
                .as_dtype(Dtype::Float32)
        });
    }
    let clipped: Vec<f32> = x.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    let expected = doubles(&clipped);
    let name = format!("clip, {rows} x {width}");
    round.kernel(&Case::exact(&name, width as usize, &expected), &|| {
        clip(exact(&x, &[rows, width]), (-1.0, 1.0))
    });
}

/// The check on which every other one of a run rests.
fn finiteness(round: &mut CheckRunner<'_>) {
    let (rows, width) = (40_000_i32, 16_i32);
    let sound = uniform(16, (rows * width) as usize, 1e30);
    let name = format!("NaN and infinity are seen, {rows} x {width}");
    round.check(Group::Kernel, &name.clone(), false, |_| {
        let is_finite = |values: &[f32]| -> anyhow::Result<bool> {
            Ok(all_finite(&exact(values, &[rows, width]))?)
        };
        let mut missed = Vec::new();
        if !is_finite(&sound)? {
            missed.push("sound values are taken for infinite".to_owned());
        }
        let places = [0, 32_767 * width as usize + 1, sound.len() - 1];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in places {
                let mut values = sound.clone();
                values[place] = bad;
                if is_finite(&values)? {
                    missed.push(format!("{bad} in row {} is missed", place / width as usize));
                }
            }
        }
        Ok(CheckResult {
            name,
            sound: missed.is_empty(),
            measured: None,
            bound: None,
            detail: missed.join("; "),
        })
    });
}
