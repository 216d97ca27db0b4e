//! Matrix products: dense and quantized, few rows and many, wide and narrow.

use anyhow::Result;
use mlx_rs::ops::{quantized_matmul, transpose};
use mlx_rs::{Array, Dtype};

use super::{Case, TALL, array, is_used, precisions, products_tolerance};
use crate::diagnose::doctor::reference::{self, uniform};
use crate::diagnose::doctor::{CheckRunner, Group};
use crate::model::layers::{Linear, Quantized, Weight};
use crate::runtime::{Device, DeviceKind, Precision};
use crate::util::show::chain;
use crate::weights::quantize::{self, Bits, GROUP_SIZE};

/// Rows, inner width and columns: odd; as wide as a transformer block of 14B; a whole clip.
const DENSE: [(i32, i32, i32); 3] = [(257, 129, 65), (24, 5120, 1024), (TALL, 64, 32)];
/// As above, in whole groups.
const PACKED: [(i32, i32, i32); 3] = [(1, 512, 256), (12, 5120, 512), (200, 256, 96)];
/// Beyond the rows from which weights are unpacked first.
const UNPACKED: [(i32, i32, i32); 2] = [(2000, 256, 96), (TALL, 64, 32)];

pub fn examine(round: &mut CheckRunner<'_>) {
    let device = round.settings.device;
    for precision in precisions(round.settings.device) {
        let tolerance = products_tolerance(precision);
        for (rows, inner, columns) in DENSE {
            let product = Product::new(precision, rows, inner, columns);
            let size = format!("{precision}, {rows} x {inner} x {columns}");
            let expected =
                reference::linear(&product.x, &product.w, Some(&product.bias), inner as usize);
            let used = is_used(device, precision);
            let name = format!("addmm, {size}");
            let case = Case::new(name, tolerance, columns as usize, &expected);
            round.kernel(&case.only_noted_if(!used), &|| {
                let [x, w, bias] = product.arrays(precision)?;
                Linear::from_weight(Weight::Dense(w), Some(bias))
                    .and_then(|linear| Ok(linear.forward(&x)?))
                    .map_err(|error| mlx_rs::error::Exception::custom(chain(&error)))
            });
            let expected = reference::linear(&product.x, &product.w, None, inner as usize);
            let case = Case::new(
                format!("matmul, one call, {size}"),
                tolerance,
                columns as usize,
                &expected,
            );
            // The program cuts what is taller.
            round.kernel(&case.only_noted_if(!used || rows == TALL), &|| {
                let [x, w, _] = product.arrays(precision)?;
                x.matmul(&transpose(&w)?)
            });
        }
    }
    for bits in [Bits::Eight, Bits::Four] {
        for precision in precisions(round.settings.device) {
            let sizes = PACKED.map(|size| (size, i32::MAX));
            let unpacked = UNPACKED.map(|size| (size, device.dense_above));
            for ((rows, inner, columns), dense_above) in sizes.into_iter().chain(unpacked) {
                let size = format!("{bits} bits, {precision}, {rows} x {inner} x {columns}");
                if let Err(error) = quantized(
                    round,
                    bits,
                    precision,
                    [rows, inner, columns],
                    dense_above,
                    &size,
                ) {
                    round.fail(Group::Kernel, &size, &error);
                }
            }
        }
    }
}

/// A product's operands.
struct Product {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    sizes: [i32; 3],
}

impl Product {
    fn new(precision: Precision, rows: i32, inner: i32, columns: i32) -> Self {
        let values = |seed, count: i32| {
            let values = uniform(seed, count as usize, 1.0);
            precision.round(values)
        };
        Self {
            x: values(1, rows * inner),
            w: values(2, columns * inner),
            bias: values(3, columns),
            sizes: [rows, inner, columns],
        }
    }

    fn arrays(&self, precision: Precision) -> mlx_rs::error::Result<[Array; 3]> {
        let [rows, inner, columns] = self.sizes;
        Ok([
            array(&self.x, &[rows, inner], precision)?,
            array(&self.w, &[columns, inner], precision)?,
            array(&self.bias, &[columns], precision)?,
        ])
    }
}

fn quantized(
    round: &mut CheckRunner<'_>,
    bits: Bits,
    precision: Precision,
    [rows, inner, columns]: [i32; 3],
    dense_above: i32,
    size: &str,
) -> Result<()> {
    let product = Product::new(precision, rows, inner, columns);
    let packed = quantize::quantize(&product.w, bits)?;
    let weights = quantize::dequantize(&packed, bits)?;
    let [words, scales, biases] = packed.fields();
    let words: Vec<u32> = words
        .as_chunks()
        .0
        .iter()
        .map(|b| u32::from_le_bytes(*b))
        .collect();
    let side = |bytes: &[u8]| -> Result<Array> {
        let values: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| half::bf16::from_le_bytes(*b).to_f32())
            .collect();
        let groups = inner / GROUP_SIZE as i32;
        Ok(array(&values, &[columns, groups], precision)?)
    };
    let words = Array::from_slice(&words, &[columns, words.len() as i32 / columns]);
    let quantized = Quantized {
        packed: words,
        scales: side(scales)?,
        biases: side(biases)?,
        group_size: GROUP_SIZE as i32,
        bits: bits.number() as i32,
        device: Device {
            dense_above,
            ..round.settings.device
        },
    };
    let tolerance = products_tolerance(precision);
    let expected = reference::linear(&product.x, &weights, Some(&product.bias), inner as usize);
    let way = if rows > dense_above {
        "unpacked"
    } else {
        "packed"
    };
    // With so many rows this machine's runs unpack.
    let device = round.settings.device;
    let used = is_used(device, precision) && (rows > dense_above || rows <= device.dense_above);
    let name = format!("quantized product, {way}, {size}");
    let case = Case::new(name, tolerance, columns as usize, &expected);
    round.kernel(&case.only_noted_if(!used), &|| {
        let [x, _, bias] = product.arrays(precision)?;
        Linear::from_weight(Weight::Quantized(quantized.clone(), Vec::new()), Some(bias))
            .and_then(|linear| Ok(linear.forward(&x)?))
            .map_err(|error| mlx_rs::error::Exception::custom(chain(&error)))
    });
    // MLX's CPU kernel counts no rows in an int16, and takes seconds in bfloat16.
    let raw = is_used(device, precision) || device.kind == DeviceKind::Gpu;
    if rows == TALL && raw {
        let expected = reference::linear(&product.x, &weights, None, inner as usize);
        let name = format!("quantized_matmul, one call, {size}");
        let case = Case::new(name, tolerance, columns as usize, &expected).only_noted_if(true);
        round.kernel(&case, &|| {
            let [x, ..] = product.arrays(precision)?;
            let (scales, biases) = (&quantized.scales, Some(&quantized.biases));
            let (group, bits) = (quantized.group_size, quantized.bits);
            quantized_matmul(&x, &quantized.packed, scales, biases, true, group, bits)
        });
    }
    if rows == 200 {
        let expected: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        // Below float32 the scaled number, which is up to twice as large, is rounded before the offset
        // is added.
        let tolerance = match precision {
            Precision::F32 => 1e-6,
            Precision::F16 => 0.5_f64.powi(9),
            Precision::Bf16 => 0.5_f64.powi(6),
        };
        let name = format!("dequantize, {bits} bits, {precision}, {columns} x {inner}");
        let case = Case::new(name, tolerance, inner as usize, &expected);
        let case = case.only_noted_if(!is_used(device, precision));
        round.kernel(&case, &|| quantized.dequantize()?.as_dtype(Dtype::Float32));
    }
    Ok(())
}
