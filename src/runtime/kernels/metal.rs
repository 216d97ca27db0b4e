//! What MLX's Metal backend does with a convolution, and the memory that it takes for it: read in
//! `mlx/backend/metal/conv.cpp` of MLX 0.32.2, the version that is built in. Not measured.

/// Outputs along each side of a Winograd tile, F(6, 3), and values of a transformed one.
const TILE: i32 = 6;
const TRANSFORMED: i32 = 64;
/// Channels that the implicit products take come in groups of so many.
const CHANNELS: i32 = 16;
/// The longest kernel in time that goes tap by tap.
const MOST_TAPS: i32 = 7;

/// A 3D convolution of one clip, padded by the caller, not dilated.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Frames, rows and columns of the padded input.
    pub input: [i32; 3],
    /// Input and output channels.
    pub channels: [i32; 2],
    /// Kernel in time, rows and columns.
    pub kernel: [i32; 3],
    /// Stride, likewise.
    pub stride: [i32; 3],
}

/// The way that MLX takes (`dispatch_conv_3D_gpu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One implicit product on inputs whose channels were padded to sixteens.
    Padded,
    /// One implicit product.
    Implicit,
    /// A 2D convolution for each tap in time, summed; each by Winograd's algorithm or not.
    Taps {
        /// Whether it is.
        winograd: bool,
    },
}

impl Conv {
    /// Frames, rows and columns of the output.
    fn output(&self) -> [i32; 3] {
        [0, 1, 2].map(|axis| (self.input[axis] - self.kernel[axis]) / self.stride[axis] + 1)
    }

    /// Which way MLX goes.
    pub fn way(&self) -> Way {
        let [inputs, outputs] = self.channels;
        let [frames, rows, columns] = self.input;
        let fit = inputs % CHANNELS == 0 && (outputs <= CHANNELS || outputs % CHANNELS == 0);
        if !fit {
            return Way::Padded;
        }
        if self.kernel[0] > MOST_TAPS || self.stride[0] != 1 {
            return Way::Implicit;
        }
        let large = values(&[self.output()[0].min(frames), rows, columns]) >= 4096;
        let square = self.kernel[1..] == [3, 3] && self.stride[1..] == [1, 1];
        Way::Taps {
            winograd: square && large && takes_winograd(self.channels),
        }
    }

    /// Values that live until the command buffer ends, besides the input, the weight and the output.
    /// Winograd goes frame by frame ([`ENVIRONMENT`](crate::runtime::ENVIRONMENT)).
    pub fn temporaries(&self) -> u64 {
        let [inputs, outputs] = self.channels;
        let [frames, rows, columns] = self.output();
        let [kt, kh, kw] = self.kernel;
        match self.way() {
            Way::Implicit => 0,
            Way::Padded => {
                let [padded_in, padded_out] = self
                    .channels
                    .map(|c| (c + CHANNELS - 1) / CHANNELS * CHANNELS);
                let [t, h, w] = self.input;
                let input = values(&[t, h, w, padded_in]) * u64::from(padded_in > inputs);
                let weight = values(&[padded_out, kt, kh, kw, padded_in]);
                input + weight + values(&[frames, rows, columns, padded_out - outputs])
            }
            Way::Taps { winograd } => {
                let sums = values(&[kt, frames, rows, columns, outputs]);
                let weights = values(&[kt, outputs, kh, kw, inputs]);
                let [_, height, width] = self.input;
                let one = match winograd {
                    true => winograd_values([height, width], self.channels),
                    false => 0,
                };
                sums + weights + values(&[kt]) * one
            }
        }
    }
}

/// Whether a 3x3 convolution of a large frame goes by Winograd's algorithm (`dispatch_conv_2D_gpu`).
pub fn takes_winograd([inputs, outputs]: [i32; 2]) -> bool {
    inputs % 32 == 0 && outputs % 32 == 0 && inputs + outputs >= 256
}

/// Values that Winograd's algorithm takes for one padded frame (`winograd_conv_2D_gpu`): transformed
/// weights, inputs and outputs, and the frame padded to whole tiles.
pub fn winograd_values([height, width]: [i32; 2], [inputs, outputs]: [i32; 2]) -> u64 {
    let tiles = |side: i32| (side - 2 + TILE - 1) / TILE;
    let [down, across] = [tiles(height), tiles(width)];
    let padded = [down, across].map(|count| TILE * count + 2);
    values(&[TRANSFORMED, inputs, outputs])
        + values(&[TRANSFORMED, down, across, inputs + outputs])
        + values(&[padded[0], padded[1], inputs])
}

/// The product; none where a side is negative.
fn values(sides: &[i32]) -> u64 {
    sides.iter().map(|&side| side.max(0) as u64).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(input: [i32; 3], channels: [i32; 2], kernel: [i32; 3], stride: [i32; 3]) -> Conv {
        Conv {
            input,
            channels,
            kernel,
            stride,
        }
    }

    /// The VAE's kinds, counted by hand.
    #[test]
    fn ways_and_temporaries_are_mlx_s() {
        let one = [1, 1, 1];
        let all = [3, 3, 3];
        let taps = |winograd| Way::Taps { winograd };
        for (conv, way, expected) in [
            // 9 x 9 tiles of 50 x 50 outputs, padded to 56 x 56.
            (
                conv([6, 52, 52], [128, 128], all, one),
                taps(true),
                3 * (4 * 50 * 50 * 128)
                    + 27 * 128 * 128
                    + 3 * (64 * 128 * 128 + 64 * 81 * 256 + 56 * 56 * 128),
            ),
            (
                conv([4, 66, 66], [192, 96], [1, 3, 3], one),
                taps(true),
                4 * 64 * 64 * 96 + 9 * 192 * 96 + 64 * 192 * 96 + 64 * 121 * 288 + 68 * 68 * 192,
            ),
            // Too few channels; too few pixels.
            (
                conv([6, 40, 40], [96, 96], all, one),
                taps(false),
                3 * (4 * 38 * 38 * 96) + 27 * 96 * 96,
            ),
            (
                conv([3, 12, 12], [384, 384], all, one),
                taps(false),
                3 * (10 * 10 * 384) + 27 * 384 * 384,
            ),
            // A picture's channels; every second frame; rows and columns.
            (
                conv([3, 34, 34], [3, 96], all, one),
                Way::Padded,
                3 * 34 * 34 * 16 + 96 * 27 * 16,
            ),
            (
                conv([5, 32, 32], [192, 192], [3, 1, 1], [2, 1, 1]),
                Way::Implicit,
                0,
            ),
            (
                conv([4, 65, 65], [96, 96], [1, 3, 3], [1, 2, 2]),
                taps(false),
                4 * 32 * 32 * 96 + 9 * 96 * 96,
            ),
            (
                conv([6, 34, 34], [96, 3], all, one),
                taps(false),
                3 * (4 * 32 * 32 * 3) + 27 * 96 * 3,
            ),
        ] {
            assert_eq!(conv.way(), way, "{conv:?}");
            assert_eq!(conv.temporaries(), expected, "{conv:?}");
        }
    }
}
