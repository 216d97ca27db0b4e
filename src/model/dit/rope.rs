//! Rotary position embedding over frames, rows and columns.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::indexing::TryIndexOp;

/// Base of the frequencies (`rope_params` of Wan-Video/Wan2.2 `wan/modules/model.py`).
const THETA: f64 = 10_000.0;

/// Cosines and sines of one token grid, `[tokens, 1, head_dim / 2]` each, float32.
#[derive(Clone, Debug)]
pub struct Rope {
    cos: Array,
    sin: Array,
}

impl Rope {
    /// The tables of a grid of `frames x height x width` tokens for heads of `head_dim`.
    ///
    /// The head is divided among the axes (frames take what is left of two sixths each for
    /// rows and columns), and every axis has a table of its own, normalised by its own width,
    /// so that each spans the whole range of frequencies. One table of `head_dim` cut in three
    /// is wrong, whatever the report that this project grew from says: a test holds that.
    ///
    /// Computed in float64 on the host, as the reference does; MLX has no float64 on a GPU.
    pub fn new(grid: [i32; 3], head_dim: i32) -> Self {
        let spatial = 2 * (head_dim / 6);
        let axis_dims = [head_dim - 2 * spatial, spatial, spatial];
        let frequencies = axis_dims.map(|dim| {
            (0..dim / 2)
                .map(|i| THETA.powf(-f64::from(2 * i) / f64::from(dim)))
                .collect()
        });
        Self::from_frequencies(grid, &frequencies)
    }

    /// The tables for given frequencies per axis (frames, rows, columns), in radians per token.
    pub fn from_frequencies(grid: [i32; 3], frequencies: &[Vec<f64>; 3]) -> Self {
        let half: usize = frequencies.iter().map(Vec::len).sum();
        let tokens = grid.iter().product::<i32>();
        let mut cos = Vec::with_capacity(tokens as usize * half);
        let mut sin = Vec::with_capacity(tokens as usize * half);
        for frame in 0..grid[0] {
            for row in 0..grid[1] {
                for column in 0..grid[2] {
                    for (position, axis) in [frame, row, column].into_iter().zip(frequencies) {
                        for frequency in axis {
                            let (s, c) = (f64::from(position) * frequency).sin_cos();
                            cos.push(c as f32);
                            sin.push(s as f32);
                        }
                    }
                }
            }
        }
        let shape = [tokens, 1, half as i32];
        Self {
            cos: Array::from_slice(&cos, &shape),
            sin: Array::from_slice(&sin, &shape),
        }
    }

    /// Cosines, `[tokens, 1, head_dim / 2]`.
    pub fn cos(&self) -> &Array {
        &self.cos
    }

    /// Sines, `[tokens, 1, head_dim / 2]`.
    pub fn sin(&self) -> &Array {
        &self.sin
    }

    /// Tokens of the grid.
    pub fn tokens(&self) -> i32 {
        self.cos.dim(0)
    }

    /// The tables of tokens `start..end`.
    pub(super) fn part(&self, start: i32, end: i32) -> Result<Self> {
        Ok(Self {
            cos: self.cos.try_index(start..end)?,
            sin: self.sin.try_index(start..end)?,
        })
    }
}
