//! The VAE's convolutions, by both of the ways there are to compute them.

use mlx_rs::error::Exception;

use super::{Case, exact, products_tolerance, sampled, winograd_tolerance};
use crate::diagnose::doctor::CheckRunner;
use crate::diagnose::doctor::reference::{self, uniform};
use crate::model::vae::convolve;
use crate::runtime::{Device, DeviceKind, Kernels, Precision};
use crate::util::show::chain;

/// Padded input `[t, h, w, inputs]`, outputs, kernel, stride.
type Sizes = ([i32; 4], i32, [i32; 3], [i32; 3]);
/// The usual one; the picture's three channels; halving rows and columns; halving time; channels
/// alone, of more rows than an int16 counts.
const CASES: [Sizes; 8] = [
    ([3, 18, 22, 24], 16, [3, 3, 3], [1, 1, 1]),
    ([3, 18, 22, 3], 16, [3, 3, 3], [1, 1, 1]),
    ([2, 19, 23, 16], 16, [1, 3, 3], [1, 2, 2]),
    ([5, 12, 14, 16], 16, [3, 1, 1], [2, 1, 1]),
    ([2, 130, 140, 16], 8, [1, 1, 1], [1, 1, 1]),
    // The published VAE's: those that Metal computes by Winograd's algorithm, and one whose time taps
    // the program joins for that.
    ([4, 52, 52, 128], 128, [3, 3, 3], [1, 1, 1]),
    ([4, 66, 66, 192], 96, [1, 3, 3], [1, 1, 1]),
    ([6, 40, 40, 96], 96, [3, 3, 3], [1, 1, 1]),
];
/// Values of a large result that are compared.
const COMPARED: usize = 32_768;

pub fn examine(round: &mut CheckRunner<'_>) {
    for (sides, outputs, kernel, stride) in CASES {
        let count = |sides: &[i32]| sides.iter().product::<i32>() as usize;
        let x = uniform(20, count(&sides), 1.0);
        let shape = [outputs, sides[3], kernel[0], kernel[1], kernel[2]];
        let (weight, bias) = (
            uniform(21, count(&shape), 1.0),
            uniform(22, outputs as usize, 1.0),
        );
        let out: [i32; 3] = std::array::from_fn(|i| (sides[i] - kernel[i]) / stride[i] + 1);
        // What takes float64 seconds is compared at some places of every frame.
        let most = match sides[3] >= 96 {
            true => COMPARED / outputs as usize,
            false => usize::MAX,
        };
        let places = reference::every(count(&out), most);
        let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
        let expected = reference::convolution(
            &x,
            sides.map(|side| side as usize),
            &weight,
            &bias,
            kernel.map(|side| side as usize),
            stride.map(|side| side as usize),
            most,
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
                    let all = convolve(device, &exact(&x, &sides), &weight, &bias, stride)
                        .map_err(|error| Exception::custom(chain(&error)))?;
                    sampled(&all.reshape(&[-1, outputs])?, &places)
                },
            );
        }
    }
}
