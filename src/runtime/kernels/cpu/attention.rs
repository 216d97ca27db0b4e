//! Attention on all cores.

use std::cell::RefCell;

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

use super::blas::{Engine, Matrix, add_product, product_at};
use super::cores::Blocks;
use super::math::exp_of_negative;
use super::norm::sum;
use super::{LANES, Places, evaluated, new_array, spread, vector};

thread_local! {
    /// A core's scores: those of a block of queries stay in its cache from the first product to the second.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `softmax(q k^T * scale + weights) v`, float32.
///
/// Shapes: `q` `[1, heads, n, d]`, `k` `[1, heads, m, d]`, `v` `[1, heads, m, e]`, `weights`
/// `[1, 1, 1, m]`; result `[n, heads * e]`. Of scores a core has as many as [`Blocks::rows`] says.
pub fn attention(
    [q, k, v]: [&Array; 3],
    scale: f32,
    weights: Option<&Array>,
    blocks: Blocks,
) -> Result<Array> {
    let [heads, queries, keys, width] = [q.dim(1), q.dim(2), k.dim(2), v.dim(3)];
    let weights = match weights {
        Some(weights) => vector(weights, keys as usize)?,
        None => &[],
    };
    let block = blocks.rows(q.dim(3).max(width), keys).max(1) as usize;
    let parts = (queries as usize).div_ceil(block);
    let [q, k, v] = [Heads::of(q)?, Heads::of(k)?, Heads::of(v)?];
    if [k.heads, v.heads, v.rows, k.width] != [q.heads, q.heads, k.rows, q.width] {
        return Err(Exception::custom(
            "queries, keys and values of other shapes",
        ));
    }
    let (row, width) = ((heads * width) as usize, width as usize);
    new_array(&[queries, heads * v.width as i32], |out| {
        let room = out.len();
        let to = Places::of(out);
        let work = q.heads * q.rows * k.rows;
        spread(q.heads * parts, work, |i| {
            let (head, first) = (i / parts, i % parts * block);
            let count = block.min(q.rows - first);
            SCORES.with_borrow_mut(|scores| {
                let size = count * k.rows;
                if scores.len() < size {
                    scores.resize(size, 0.0);
                }
                let scores = &mut scores[..size];
                let [q, keys, values] = [q.head(head, first), k.head(head, 0), v.head(head, 0)];
                let sides = [count, k.rows, k.width];
                add_product(sides, q, keys.transposed(), false, scores, k.rows);
                for row in scores.chunks_mut(k.rows.max(1)) {
                    softmax_row(row, scale, weights);
                }
                let (sides, start) = ([count, width, k.rows], first * row + head * width);
                let to = to.at(start);
                let scores = Matrix::new(scores, k.rows);
                // SAFETY: these rows of this head are nobody else's.
                unsafe {
                    let engine = Engine::of(sides);
                    product_at(engine, sides, scores, values, false, to, row, room - start);
                }
            });
        });
    })
}

/// The rows of heads, `[1, heads, rows, width]`, where they lie.
struct Heads {
    array: Array,
    heads: usize,
    rows: usize,
    width: usize,
    /// Values from head to head, and from row to row.
    strides: [usize; 2],
}

impl Heads {
    fn of(x: &Array) -> Result<Self> {
        let array = evaluated(x, 4, |strides| {
            strides[3] == 1 && (x.dim(2) <= 1 || strides[2] >= x.dim(3) as usize)
        })?;
        let [heads, rows, width] = [1, 2, 3].map(|axis| x.dim(axis) as usize);
        Ok(Self {
            heads,
            rows,
            width,
            strides: [array.strides()[1], array.strides()[2].max(width)],
            array,
        })
    }

    /// Rows of `head` from `first` on.
    fn head(&self, head: usize, first: usize) -> Matrix<'_> {
        let Some(last) = self.rows.checked_sub(first + 1) else {
            return Matrix::new(&[], self.width);
        };
        assert!(head < self.heads);
        let start = head * self.strides[0] + first * self.strides[1];
        // SAFETY: the array is evaluated, float32 and on the host; these are the head's values from its row
        // `first` to its last, and nobody writes to an array that has been evaluated.
        let values = unsafe {
            let data = mlx_sys::mlx_array_data_float32(self.array.as_ptr()).add(start);
            std::slice::from_raw_parts(data, last * self.strides[1] + self.width)
        };
        Matrix::new(values, self.strides[1])
    }
}

// SAFETY: `head` only reads from memory that stays as it is while the array is alive.
unsafe impl Sync for Heads {}

vectorised! {
    /// The softmax of `row * scale + weights` (none: of `row * scale`) in place. A row with a value
    /// that is not finite becomes NaN.
    fn softmax_row(row: &mut [f32], scale: f32, weights: &[f32]) {
        if weights.is_empty() {
            for v in row.iter_mut() {
                *v *= scale;
            }
        } else {
            for (v, weight) in row.iter_mut().zip(weights) {
                *v = *v * scale + weight;
            }
        }
        let mut most = [f32::NEG_INFINITY; LANES];
        let (lanes, rest) = row.as_chunks::<LANES>();
        for lane in lanes {
            for (most, v) in most.iter_mut().zip(lane) {
                *most = most.max(*v);
            }
        }
        let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        // The largest value and the exponential pass over NaN, and infinities become ordinary.
        let faults = sum(row, |v| v * 0.0);
        for v in row.iter_mut() {
            *v = exp_of_negative(*v - most);
        }
        let scale = 1.0 / sum(row, |v| v) + faults;
        for v in row.iter_mut() {
            *v *= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;
    use mlx_rs::fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention};

    use super::*;

    fn values(shape: [i32; 4], seed: i32) -> Array {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i * 37 + seed) % 1009) as f32 / 300.0 - 1.7)
            .collect();
        Array::from_slice(&values, &shape)
    }

    #[test]
    fn it_is_mlx_s_attention_in_whatever_pieces() {
        Device::set_default(&Device::cpu());
        for [heads, n, m, d, e] in [
            [1, 1, 1, 8, 8],
            [3, 5, 7, 8, 4],
            [12, 80, 80, 32, 32],
            [12, 300, 25, 128, 128],
            [2, 700, 700, 16, 16],
            [5, 130, 1100, 128, 128],
        ] {
            let q = values([1, heads, n, d], 3);
            let k = values([1, heads, m, d], 17);
            let v = values([1, heads, m, e], 5);
            let scale = 1.0 / (d as f32).sqrt();
            let added: Vec<f32> = (0..m).map(|i| (i % 5) as f32 * 0.7).collect();
            let added = Array::from_slice(&added, &[1, 1, 1, m]);
            for weights in [None, Some(&added)] {
                let mask = weights.map(ScaledDotProductAttentionMask::from);
                let expected = scaled_dot_product_attention(&q, &k, &v, scale, mask, None).unwrap();
                let expected = expected.transpose_axes(&[0, 2, 1, 3]).unwrap();
                let expected = expected.reshape(&[n, heads * e]).unwrap();
                for divisor in [1, 64] {
                    let blocks = Blocks { divisor };
                    let ours = attention([&q, &k, &v], scale, weights, blocks).unwrap();
                    assert_eq!(ours.shape(), [n, heads * e]);
                    let off = ours.subtract(&expected).unwrap().abs().unwrap();
                    let off = off.max(None).unwrap().item_exact::<f32>();
                    assert!(off < 1e-5, "{heads} {n} {m} {d} {e} {divisor}: {off}");
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_not_lost() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, 36] {
                let mut row = [0.5; 37];
                row[at] = bad;
                softmax_row(&mut row, 0.3, &[]);
                assert!(row.iter().all(|v| v.is_nan()), "{bad} at {at}");
            }
        }
        let mut row = [-3e38, 3e38, 0.0];
        softmax_row(&mut row, 1.0, &[]);
        assert_eq!(row, [exp_of_negative(-87.0), 1.0, exp_of_negative(-87.0)]);
    }
}
