//! What a device can choose between, and what shows which is faster: the networks' own calls, in sizes of
//! the published model or, on a processor, in such that take a tenth of a second.

use std::iter::once;

use anyhow::Result;
use mlx_rs::ops;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype, random};

use super::{Choice, Compute};
use crate::model::MemoryPlan;
use crate::model::dit::keys::{Gathered, laid_out};
use crate::model::layers::{GROUP_SIZE, Linear, Quantized, Weight};
use crate::model::vae::convolve;
use crate::runtime::{Device, DeviceKind, Kernels, Packing, Precision, Tuning, rows};

/// Heads of the published model, and their width.
const HEADS: i32 = 40;
const WIDTH: i32 = 128;
/// Tokens of its clip of 832 x 480 pixels and 81 frames.
const TOKENS: i32 = 32_760;
const BITS: i32 = 4;
/// Convolutions are in float32 whatever the dtype of products.
const FLOAT32: f64 = 1e-5;

/// Two of the last places that a dtype has, relative to the largest value.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => FLOAT32,
        Precision::F16 => 2.0 / 1024.0,
        Precision::Bf16 => 2.0 / 128.0,
    }
}

/// What there is to choose on a device; `any_dtype`: the user has left the dtype open.
pub fn choices(untuned: Device, any_dtype: bool) -> Vec<Choice> {
    let mut all = match untuned.kernels {
        Kernels::Mlx if untuned.fuses(WIDTH) => vec![calls(untuned), keys()],
        Kernels::Mlx => vec![keys()],
        Kernels::Cpu => vec![blocks(untuned)],
    };
    all.push(products(untuned));
    all.push(convolutions(untuned));
    // M1's and M2's: what is faster there rests on few measurements.
    if any_dtype && (untuned.kind, untuned.dtype) == (DeviceKind::Gpu, Precision::F16) {
        all.insert(0, precisions());
    }
    all
}

/// Numbers of a normal distribution, evaluated.
fn noise(shape: &[i32], dtype: Dtype) -> Result<Array> {
    let array = random::normal::<f32>(shape, None, None, None)?.as_dtype(dtype)?;
    array.eval()?;
    Ok(array)
}

/// Attention of so many heads, queries and keys as a transformer's block calls it.
fn attention([heads, queries, keys]: [i32; 3]) -> impl Fn(Device) -> Result<Compute> + Clone {
    move |device| {
        let dtype = device.dtype.matmul_dtype();
        let q = noise(&[1, heads, queries, WIDTH], dtype)?;
        let k = noise(&[1, heads, keys, WIDTH], dtype)?;
        let v = noise(&[1, heads, keys, WIDTH], dtype)?;
        Ok(Box::new(move |device| {
            let bytes = MemoryPlan::WHOLE.score_bytes;
            let dtype = device.dtype.matmul_dtype();
            let [q, k, v] = [q.as_dtype(dtype)?, k.as_dtype(dtype)?, v.as_dtype(dtype)?];
            let out = device.attention([&q, &k, &v], scale(), None, bytes)?;
            out.eval()?;
            Ok(vec![out])
        }))
    }
}

fn scale() -> f32 {
    (WIDTH as f32).sqrt().recip()
}

fn precisions() -> Choice {
    let bf16 = Tuning {
        precision: Some(Precision::Bf16),
        ..Tuning::NONE
    };
    Choice {
        name: "products",
        untuned: "f16".to_owned(),
        candidates: vec![("bf16".to_owned(), bf16)],
        tolerance: tolerance(Precision::Bf16),
        prepare: Box::new(|_| {
            let dim = HEADS * WIDTH;
            let (x, weight) = (
                noise(&[4096, dim], Dtype::Float32)?,
                noise(&[dim, dim], Dtype::Float32)?,
            );
            let weighed =
                attention([HEADS, 1024, 4096])(Device::new(DeviceKind::Gpu, Some(Precision::F32)))?;
            Ok(Box::new(move |device| {
                let dtype = device.dtype.matmul_dtype();
                let [x, weight] = [x.as_dtype(dtype)?, weight.as_dtype(dtype)?];
                let product = x.matmul(&weight)?;
                product.eval()?;
                Ok(once(product).chain(weighed(device)?).collect())
            }))
        }),
    }
}

/// Rows per call of a fused attention kernel: by operations, never more than without tuning.
fn calls(untuned: Device) -> Choice {
    let rows = |device: Device| {
        let rows = device.attention_rows([HEADS, TOKENS, TOKENS, WIDTH], 0);
        format!("calls of {rows} rows")
    };
    let candidates = [1_000_000_000_000, 500_000_000_000, 250_000_000_000].map(|most| {
        let tuning = Tuning {
            call_operations: Some(most),
            ..Tuning::NONE
        };
        (rows(untuned.tuned(tuning)), tuning)
    });
    Choice {
        name: "attention",
        untuned: rows(untuned),
        candidates: candidates.into(),
        tolerance: tolerance(untuned.dtype),
        // One call without tuning.
        prepare: Box::new(attention([HEADS, 2752, TOKENS])),
    }
}

/// Keys and values head by head or row by row: a whole sequence's come row by row, and those of chunks are
/// put together head by head.
fn keys() -> Choice {
    const ROWS: i32 = 8192;
    const CHUNK: i32 = 2048;
    let as_is = "as they come".to_owned();
    let candidates = [("contiguous", true), ("strided", false)].map(|(name, by_heads)| {
        let tuning = Tuning {
            keys_by_heads: Some(by_heads),
            ..Tuning::NONE
        };
        (name.to_owned(), tuning)
    });
    Choice {
        name: "keys and values",
        untuned: as_is,
        candidates: candidates.into(),
        // They are the same numbers, multiplied in the same order.
        tolerance: 0.0,
        prepare: Box::new(|device| {
            let dtype = device.dtype.matmul_dtype();
            let projected = |rows: i32| noise(&[rows, HEADS * WIDTH], dtype);
            let (q, k, v) = (projected(CHUNK)?, projected(ROWS)?, projected(ROWS)?);
            Ok(Box::new(move |device| {
                let heads = |x: &Array| device.to_heads(x, HEADS, None, None);
                let q = heads(&q)?;
                let attend = |k: &Array, v: &Array| {
                    let bytes = MemoryPlan::WHOLE.score_bytes;
                    device.attention([&q, k, v], scale(), None, bytes)
                };
                let whole = attend(
                    &laid_out(device, heads(&k)?)?,
                    &laid_out(device, heads(&v)?)?,
                )?;
                whole.eval()?;
                let gathered = |all: &Array| -> Result<Array> {
                    let part = |start| heads(&rows(all, start, start + CHUNK)?);
                    let mut gathered = Gathered::of_rows(device, ROWS, &part(0)?)?;
                    for start in (0..ROWS).step_by(CHUNK as usize) {
                        gathered.put(start..start + CHUNK, &part(start)?)?;
                        gathered.so_far().eval()?;
                    }
                    Ok(gathered.finished()?)
                };
                let in_chunks = attend(&gathered(&k)?, &gathered(&v)?)?;
                in_chunks.eval()?;
                Ok(vec![whole, in_chunks])
            }))
        }),
    }
}

/// Rows from which on a product unpacks its weight first: some of each number of rows, equally many
/// rows of each.
fn products(untuned: Device) -> Choice {
    let (limits, side): (&[i32], i32) = match untuned.kernels {
        Kernels::Mlx => (&[256, 512, 1024, 2048, 4096], HEADS * WIDTH),
        Kernels::Cpu => (&[1, 2, 4, 8, 16], 1024),
    };
    let named = |most: i32| match most {
        0 => "always unpacked".to_owned(),
        _ => format!("packed up to {most} rows"),
    };
    let candidates = once(0).chain(limits.iter().copied());
    let candidates = candidates.filter(|&most| most != untuned.dense_above);
    let candidates = candidates.map(|most| {
        let tuning = Tuning {
            dense_above: Some(most),
            ..Tuning::NONE
        };
        (named(most), tuning)
    });
    Choice {
        name: "quantized products",
        untuned: named(untuned.dense_above),
        candidates: candidates.collect(),
        tolerance: tolerance(untuned.dtype),
        prepare: Box::new(move |device| {
            let dtype = device.dtype.matmul_dtype();
            let weight = noise(&[side, side], dtype)?;
            let (packed, scales, biases) = ops::quantize(&weight, GROUP_SIZE as i32, BITS)?;
            eval([&packed, &scales, &biases])?;
            let most = limits.iter().copied().max().unwrap_or(1);
            let x = noise(&[most, side], dtype)?;
            Ok(Box::new(move |device| {
                let linear = Linear::from_weight(
                    Weight::Quantized(
                        Quantized {
                            packed: packed.clone(),
                            scales: scales.clone(),
                            biases: Some(biases.clone()),
                            packing: Packing::affine(BITS, GROUP_SIZE as i32),
                            factor: None,
                            rotation: None,
                            device,
                        },
                        Vec::new(),
                    ),
                    None,
                )?;
                let mut products = Vec::new();
                for &count in limits {
                    for start in (0..most).step_by(count as usize) {
                        let product = linear.forward(&rows(&x, start, start + count)?)?;
                        product.eval()?;
                        products.push(product);
                    }
                }
                Ok(products)
            }))
        }),
    }
}

/// The VAE's convolutions of so many frames, sides and channels, padded, with 3 x 3 x 3 taps.
fn convolve_all(shapes: &'static [[i32; 4]]) -> impl Fn(Device) -> Result<Compute> + Clone {
    move |_| {
        let prepared = shapes.iter().map(|&[t, h, w, channels]| {
            let bias = noise(&[channels], Dtype::Float32)?;
            let weight = noise(&[channels, channels, 3, 3, 3], Dtype::Float32)?;
            Ok([noise(&[t, h, w, channels], Dtype::Float32)?, weight, bias])
        });
        let prepared = prepared.collect::<Result<Vec<_>>>()?;
        Ok(Box::new(move |device| {
            let outputs = prepared.iter().map(|[x, weight, bias]| {
                let out = convolve(device, x, weight, bias, [1, 1, 1])?;
                out.eval()?;
                Ok(out)
            });
            outputs.collect()
        }))
    }
}

/// On a GPU the narrowest level's, a quarter of 832 x 480 pixels; on a processor small ones of the
/// narrowest and of the widest level.
const GPU_CONVOLUTIONS: &[[i32; 4]] = &[[6, 242, 418, 96]];
const CPU_CONVOLUTIONS: &[[i32; 4]] = &[[6, 50, 66, 96], [4, 18, 26, 384]];

fn convolutions(untuned: Device) -> Choice {
    let whole = Tuning {
        whole_convolutions: true,
        ..Tuning::NONE
    };
    let (untuned, shapes) = match untuned.kernels {
        Kernels::Mlx => ("three time taps at once", GPU_CONVOLUTIONS),
        Kernels::Cpu => ("Winograd's algorithm", CPU_CONVOLUTIONS),
    };
    Choice {
        name: "convolutions",
        untuned: untuned.to_owned(),
        candidates: vec![("MLX's own".to_owned(), whole)],
        tolerance: FLOAT32,
        prepare: Box::new(convolve_all(shapes)),
    }
}

/// Queries whose attention a core computes at once.
fn blocks(untuned: Device) -> Choice {
    let candidates = [2, 4, 8].map(|divisor| {
        let tuning = Tuning {
            block_divisor: Some(divisor),
            ..Tuning::NONE
        };
        (format!("1/{divisor} of them"), tuning)
    });
    Choice {
        name: "blocks of attention",
        untuned: "2^18 scores".to_owned(),
        candidates: candidates.into(),
        tolerance: tolerance(untuned.dtype),
        prepare: Box::new(attention([12, 720, 720])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tune::off;

    fn named(device: Device, any_dtype: bool) -> Vec<String> {
        let choices = choices(device, any_dtype);
        let named = choices.iter().map(|choice| {
            let names = choice.candidates.iter().map(|(name, _)| name.as_str());
            let all: Vec<&str> = once(choice.untuned.as_str()).chain(names).collect();
            format!("{}: {}", choice.name, all.join(", "))
        });
        named.collect()
    }

    #[test]
    fn a_gpu_chooses_between_shorter_calls_and_other_layouts() {
        let usual = [
            "attention: calls of 2752 rows, calls of 1472 rows, calls of 704 rows, calls of 320 rows",
            "keys and values: as they come, contiguous, strided",
            "quantized products: packed up to 768 rows, always unpacked, packed up to 256 rows, \
             packed up to 512 rows, packed up to 1024 rows, packed up to 2048 rows, packed up to 4096 \
             rows",
            "convolutions: three time taps at once, MLX's own",
        ];
        let m3 = Device::new(DeviceKind::Gpu, None);
        assert_eq!(named(m3, true), usual);
        // An M1 or M2 may be faster in either of 16 bits, if the user leaves it open.
        let m1 = Device::new(DeviceKind::Gpu, Some(Precision::F16));
        assert_eq!(named(m1, false), usual);
        let open = named(m1, true);
        assert_eq!(open[0], "products: f16, bf16");
        assert_eq!(open[1..], usual);
        for choice in choices(m1, true) {
            assert!(
                choice
                    .candidates
                    .iter()
                    .all(|(_, tuning)| tuning.is_plausible())
            );
        }
        // No call gets longer.
        let shape = [HEADS, TOKENS, TOKENS, WIDTH];
        for (name, tuning) in calls(m3).candidates {
            let rows = m3.tuned(tuning).attention_rows(shape, 0);
            assert!(rows < m3.attention_rows(shape, 0), "{name}");
        }
        let unfused = Device {
            fused_attention: false,
            ..m3
        };
        assert_eq!(named(unfused, true), usual[1..]);
    }

    #[test]
    fn every_way_of_a_processor_is_right() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let untuned = Device::new(DeviceKind::Cpu, None);
        for choice in choices(untuned, true) {
            let compute = (choice.prepare)(untuned).unwrap();
            let expected = compute(untuned).unwrap();
            for (name, tuning) in &choice.candidates {
                let found = compute(untuned.tuned(*tuning)).unwrap();
                let off = off(&expected, &found).unwrap();
                assert!(off <= choice.tolerance, "{}: {name}: {off}", choice.name);
            }
        }
    }

    /// MLX's product on a processor adds up in 16 bits, and is off by far: it is faster, and never taken.
    #[test]
    fn what_adds_up_in_16_bits_is_wrong() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let untuned = Device::new(DeviceKind::Cpu, Some(Precision::Bf16));
        let choice = products(untuned);
        assert_eq!(choice.untuned, "always unpacked");
        let compute = (choice.prepare)(untuned).unwrap();
        let far = choice.candidates.last().unwrap();
        let [expected, found] = [untuned, untuned.tuned(far.1)].map(|d| compute(d).unwrap());
        let far_off = off(&expected, &found).unwrap();
        assert!(far_off > choice.tolerance, "{far_off}");
    }
}
