//! The VAE's convolutions, by both of the ways there are to compute them.

use mlx_rs::error::Exception;

use super::{Case, exact, products_tolerance, winograd_tolerance};
use crate::diagnose::doctor::CheckRunner;
use crate::diagnose::doctor::reference::{self, uniform};
use crate::model::vae::convolve;
use crate::runtime::{Device, DeviceKind, Kernels, Precision};
use crate::util::show::chain;

/// Padded input `[t, h, w, inputs]`, outputs, kernel, stride.
type Sizes = ([i32; 4], i32, [i32; 3], [i32; 3]);
/// The usual one; the picture's three channels; halving rows and columns; halving time; channels
/// alone, of more rows than an int16 counts.
const CASES: [Sizes; 5] = [
    ([3, 18, 22, 24], 16, [3, 3, 3], [1, 1, 1]),
    ([3, 18, 22, 3], 16, [3, 3, 3], [1, 1, 1]),
    ([2, 19, 23, 16], 16, [1, 3, 3], [1, 2, 2]),
    ([5, 12, 14, 16], 16, [3, 1, 1], [2, 1, 1]),
    ([2, 130, 140, 16], 8, [1, 1, 1], [1, 1, 1]),
];

pub fn examine(round: &mut CheckRunner<'_>) {
    for (sides, outputs, kernel, stride) in CASES {
        let count = |sides: &[i32]| sides.iter().product::<i32>() as usize;
        let x = uniform(20, count(&sides), 1.0);
        let shape = [outputs, sides[3], kernel[0], kernel[1], kernel[2]];
        let (weight, bias) = (
            uniform(21, count(&shape), 1.0),
            uniform(22, outputs as usize, 1.0),
        );
        let expected = reference::convolution(
            &x,
            sides.map(|side| side as usize),
            &weight,
            &bias,
            kernel.map(|side| side as usize),
            stride.map(|side| side as usize),
        );
        for (kernels, way) in [(Kernels::Mlx, "MLX's"), (Kernels::Cpu, "by taps")] {
            let device = Device {
                kernels,
                ..round.settings.device
            };
            let tolerance = match (device.kind, kernels) {
                (DeviceKind::Gpu, Kernels::Mlx) => winograd_tolerance(),
                _ => products_tolerance(Precision::F32),
            };
            let name = format!(
                "convolution, {way}, {kernel:?} stride {stride:?} on {sides:?} to {outputs}"
            );
            round.kernel(
                &Case::new(name, tolerance, outputs as usize, &expected),
                &|| {
                    let (weight, bias) = (exact(&weight, &shape), exact(&bias, &[outputs]));
                    convolve(device, &exact(&x, &sides), &weight, &bias, stride)
                        .map_err(|error| Exception::custom(chain(&error)))
                },
            );
        }
    }
}
