//! Convolutions as sums of matrix products, one per tap.

use std::cell::RefCell;
use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::Result;
use rayon::prelude::*;

use super::{Output, Seen, dense_weight, parts, values};
use crate::runtime::kernels::cpu::blas::{Matrix, add_product};
use crate::runtime::kernels::cpu::{Blocks, new_array};

/// Fewer input channels than this make a product of a tap too narrow.
const FEW: usize = 16;

/// A weight, tap by tap.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    /// `[kt, kh, kw, inputs, outputs]`.
    weight: Array,
}

thread_local! {
    /// What a part of an output row sees.
    static LINE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Direct {
    /// Of `weight` `[outputs, inputs, kt, kh, kw]`.
    pub(super) fn new(weight: &Array) -> Result<Self> {
        let dense = dense_weight(weight)?;
        let from = values(&dense)?;
        let [outputs, inputs, kt, kh, kw] = [0, 1, 2, 3, 4].map(|axis| weight.dim(axis));
        let taps = (kt * kh * kw) as usize;
        let (inputs_of, outputs_of) = (inputs as usize, outputs as usize);
        let weight = new_array(&[kt, kh, kw, inputs, outputs], |to| {
            // Rows of outputs: of each input, of each tap.
            let rows = to.par_chunks_mut(outputs_of.max(1)).enumerate();
            rows.for_each(|(row, to)| {
                let (tap, input) = (row / inputs_of, row % inputs_of);
                let from = from.iter().skip(input * taps + tap);
                for (to, from) in to.iter_mut().zip(from.step_by(inputs_of * taps)) {
                    *to = *from;
                }
            });
        })?;
        Ok(Self { weight })
    }

    pub(super) fn run(&self, seen: &Seen, bias: &[f32], stride: [usize; 3], out: &Output) {
        let Ok(weight) = values(&self.weight) else {
            return;
        };
        let kernel = [0, 1, 2].map(|axis| self.weight.dim(axis) as usize);
        let [frames, height, width] = out.size;
        // Without neighbours the rows of a frame follow each other, and are as one.
        let flat = kernel[1..] == [1, 1] && stride[1..] == [1, 1] && seen.is_plain([height, width]);
        let [lines, length] = match flat {
            true => [1, height * width],
            false => [height, width],
        };
        let job = Job {
            seen,
            weight,
            kernel,
            stride,
            flat,
            outputs: out.channels,
        };
        let most = Blocks::default().rows(seen.inputs as i32, out.channels as i32) as usize;
        let parts: Vec<_> = parts(length, most).collect();
        (0..frames * lines * parts.len())
            .into_par_iter()
            .for_each(|i| {
                let (line, part) = (i / parts.len(), &parts[i % parts.len()]);
                let start = (line * length + part.start) * out.channels;
                // SAFETY: no other part has these pixels.
                let sums = unsafe { out.values.slice(start, part.len() * out.channels) };
                for pixel in sums.chunks_exact_mut(out.channels) {
                    pixel.copy_from_slice(bias);
                }
                job.add([line / lines, line % lines], part.clone(), sums);
            });
    }
}

/// One convolution.
struct Job<'a> {
    seen: &'a Seen<'a>,
    /// `[kt, kh, kw, inputs, outputs]`.
    weight: &'a [f32],
    kernel: [usize; 3],
    stride: [usize; 3],
    flat: bool,
    outputs: usize,
}

impl Job<'_> {
    /// Adds to `sums` what the kernel makes of the pixels in `part` of an output row.
    fn add(&self, [frame, y]: [usize; 2], part: Range<usize>, sums: &mut [f32]) {
        let (seen, [kt, kh, kw], outputs) = (self.seen, self.kernel, self.outputs);
        let inputs = seen.inputs;
        let product = |from: &[f32], pitch, inner, tap, sums: &mut [f32]| {
            let from = Matrix::new(from, pitch);
            let weight = Matrix::new(&self.weight[tap * inputs * outputs..], outputs);
            add_product(
                [part.len(), outputs, inner],
                from,
                weight,
                true,
                sums,
                outputs,
            );
        };
        let time = (0..kt).filter_map(|k| {
            let frame = (frame * self.stride[0] + k).checked_sub(seen.missing)?;
            Some((k, seen.frames[frame]))
        });
        if self.flat {
            for (k, frame) in time {
                product(&frame[part.start * inputs..], inputs, inputs, k, sums);
            }
            return;
        }
        let load = |line: &mut Vec<f32>, frame: &[f32], y, x| match seen.pixel(frame, y, x) {
            Some(at) => line.extend(&frame[at..at + inputs]),
            None => line.resize(line.len() + inputs, 0.0),
        };
        let [_, down, across] = self.stride;
        LINE.with_borrow_mut(|line| {
            if inputs < FEW {
                // All that a pixel sees beside each other: one product that is wide enough.
                line.clear();
                let mut first = kt;
                for x in part.clone() {
                    for (k, frame) in time.clone() {
                        first = first.min(k);
                        for tap in 0..kh * kw {
                            load(line, frame, y * down + tap / kw, x * across + tap % kw);
                        }
                    }
                }
                let inner = (kt - first) * kh * kw * inputs;
                return product(line, inner, inner, first * kh * kw, sums);
            }
            for (k, frame) in time {
                for row in 0..kh {
                    line.clear();
                    for x in part.start * across..(part.end - 1) * across + kw {
                        load(line, frame, y * down + row, x);
                    }
                    for column in 0..kw {
                        let tap = (k * kh + row) * kw + column;
                        product(&line[column * inputs..], across * inputs, inputs, tap, sums);
                    }
                }
            }
        });
    }
}
