//! Matrix products: dense and quantized, few rows and many, wide and narrow.

use anyhow::Result;
use mlx_rs::ops::transpose;
use mlx_rs::{Array, Dtype};

use super::{Case, TALL, array, is_used, precisions, products_tolerance};
use crate::diagnose::doctor::reference::{self, uniform};
use crate::diagnose::doctor::{CheckRunner, Group};
use crate::model::layers::{Linear, Quantized, Weight};
use crate::runtime::{Device, DeviceKind, Mode, Packing, Precision, packed_number};
use crate::util::show::chain;
use crate::weights::quantize::{Bits, GROUP_SIZE};

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
    let own = [Bits::Eight, Bits::Four].map(|bits| bits.number() as i32);
    let own = own.map(|bits| Packing::affine(bits, GROUP_SIZE as i32));
    for packing in own {
        for precision in precisions(round.settings.device) {
            let sizes = PACKED.map(|size| (size, i32::MAX));
            let unpacked = UNPACKED.map(|size| (size, device.dense_above));
            for ((rows, inner, columns), dense_above) in sizes.into_iter().chain(unpacked) {
                let size = format!("{packing}, {precision}, {rows} x {inner} x {columns}");
                if let Err(error) = quantized(
                    round,
                    packing,
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
    of_other_programs(round);
}

/// What other programs' weights stay packed as, multiplied as they are and unpacked.
fn of_other_programs(round: &mut CheckRunner<'_>) {
    let device = round.settings.device;
    for packing in [
        Packing::affine(4, 32),
        Packing::affine(5, 32),
        Packing::affine(6, 32),
        Packing::affine(8, 128),
        Packing::MXFP8,
        Packing::MXFP4,
        Packing::NVFP4,
    ] {
        for precision in precisions(device) {
            // As they are, and just beyond the rows from which they are unpacked.
            let unpacked = (device.dense_above.min(4000) + 40, 256, 96);
            let both = [((12, 512, 96), i32::MAX), (unpacked, device.dense_above)];
            for ((rows, inner, columns), above) in both {
                let size = format!("{packing}, {precision}, {rows} x {inner} x {columns}");
                let sizes = [rows, inner, columns];
                if let Err(error) = quantized(round, packing, precision, sizes, above, &size) {
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
    packing: Packing,
    precision: Precision,
    [rows, inner, columns]: [i32; 3],
    dense_above: i32,
    size: &str,
) -> Result<()> {
    let product = Product::new(precision, rows, inner, columns);
    let device = Device {
        dense_above,
        ..round.settings.device
    };
    let (quantized, weights) = packed(packing, precision, [inner, columns], device)?;
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
            let (parts, biases) = (
                [&quantized.packed, &quantized.scales],
                quantized.biases.as_ref(),
            );
            device.quantized_matmul(&x, parts, biases, quantized.packing)
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
        let name = format!("dequantize, {packing}, {precision}, {columns} x {inner}");
        let case = Case::new(name, tolerance, inner as usize, &expected);
        let case = case.only_noted_if(!is_used(device, precision));
        round.kernel(&case, &|| quantized.dequantize()?.as_dtype(Dtype::Float32));
    }
    Ok(())
}

/// A weight of random numbers, and the values that they stand for.
fn packed(
    packing: Packing,
    precision: Precision,
    [inner, columns]: [i32; 2],
    device: Device,
) -> Result<(Quantized, Vec<f32>)> {
    let [row_words, row_groups] = [
        packing.words(inner as usize),
        packing.groups(inner as usize),
    ]
    .map(|side| side as i32);
    let bytes = uniform(2, (4 * row_words * columns) as usize, 128.0);
    let bytes = bytes.iter().map(|value| (value + 128.0) as u8);
    // Two codes of float8 are no numbers.
    let codes: Vec<u8> = match packing.mode {
        Mode::Mxfp8 => bytes.map(|byte| byte & 0xbf).collect(),
        _ => bytes.collect(),
    };
    let words: Vec<u32> = codes
        .as_chunks()
        .0
        .iter()
        .map(|b| u32::from_le_bytes(*b))
        .collect();
    let groups = [columns, row_groups];
    let count = (columns * row_groups) as usize;
    let spread = uniform(4, count, 1.0);
    let largest = f64::from((1_u32 << packing.bits) - 1);
    let (scales, biases, sides): (_, _, Vec<[f64; 2]>) = match packing.mode {
        Mode::Affine => {
            // From minus one to one.
            let scale = |value: &f32| (1.5 + 0.5 * f64::from(*value)) / largest;
            let scales = precision.round(spread.iter().map(|v| scale(v) as f32).collect());
            let biases = precision.round(spread.iter().map(|v| -0.5 * (1.5 + 0.5 * v)).collect());
            let sides = scales
                .iter()
                .zip(&biases)
                .map(|(s, b)| [f64::from(*s), f64::from(*b)]);
            let sides = sides.collect();
            let biases = array(&biases, &groups, precision)?;
            (array(&scales, &groups, precision)?, Some(biases), sides)
        }
        mode => {
            let middle = if mode == Mode::Nvfp4 { 40.0 } else { 124.0 };
            let codes: Vec<u8> = spread.iter().map(|v| (middle + 3.0 * v) as u8).collect();
            let sides = codes.iter().map(|&code| [mode.scale(code), 0.0]).collect();
            (Array::from_slice(&codes, &groups), None, sides)
        }
    };
    let value = |at: usize| {
        let number = packed_number(&codes, at * packing.bits as usize, packing.bits as usize);
        let [scale, bias] = sides[at / packing.group_size as usize];
        (scale * packing.mode.level(number) + bias) as f32
    };
    let weights = (0..(inner * columns) as usize).map(value).collect();
    let quantized = Quantized {
        packed: Array::from_slice(&words, &[columns, row_words]),
        scales,
        biases,
        packing,
        factor: None,
        rotation: None,
        device,
    };
    Ok((quantized, weights))
}
