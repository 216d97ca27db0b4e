//! Attention with a softmax on all cores.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::eval;
use rayon::prelude::*;

use super::cores::{Blocks, in_turn};
use super::math::exp_of_negative;
use super::norm::sum;
use super::{LANES, Rows, new_array, parcel_rows, values_mut, vector};

/// Fewer scores than this are one piece of work.
const SMALL: i32 = 1 << 16;

/// `softmax(q k^T * scale + weights) v`, float32.
///
/// Shapes: `q` `[1, heads, n, d]`, `k` `[1, heads, m, d]`, `v` `[1, heads, m, e]`, `weights`
/// `[1, 1, 1, m]`; result `[1, heads, n, e]`, a view of `[n, heads, e]` in row-major order. Of scores
/// [`scores_at_once`] exist.
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    weights: Option<&Array>,
    score_bytes: u64,
    blocks: Blocks,
) -> Result<Array> {
    let [heads, queries, keys, width] = [q.dim(1), q.dim(2), k.dim(2), v.dim(3)];
    let weights = match weights {
        Some(weights) => vector(weights, keys as usize)?,
        None => &[],
    };
    let transposed = k.swap_axes(2, 3)?;
    let pieces = pieces([heads, queries, keys, q.dim(3).max(width)], blocks);
    let mut outputs = Vec::with_capacity(pieces.len());
    for round in rounds(&pieces, keys, score_bytes.min(blocks.round_bytes)) {
        let scores = in_turn(round, |piece| {
            let rows = q.try_index((.., piece.heads(), piece.rows(), ..))?;
            rows.matmul(transposed.try_index((.., piece.heads()))?)
        })?;
        eval(&scores)?;
        for scores in &scores {
            // SAFETY: a product has a buffer of its own without gaps, and its only handle is here.
            let scores = unsafe { values_mut(scores) };
            let parcel = parcel_rows(keys as usize) * keys as usize;
            scores.par_chunks_mut(parcel.max(1)).for_each(|rows| {
                for row in rows.chunks_mut(keys as usize) {
                    softmax_row(row, scale, weights);
                }
            });
        }
        let weighed = in_turn(round.iter().zip(&scores), |(piece, scores)| {
            scores.matmul(v.try_index((.., piece.heads()))?)
        })?;
        eval(&weighed)?;
        outputs.extend(weighed);
    }
    let outputs = pieces
        .iter()
        .zip(&outputs)
        .map(|(piece, output)| {
            let rows = output.reshape(&[-1, width])?;
            Ok((piece, Rows::of_matrix(&rows)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let row_values = (heads * width) as usize;
    let many = parcel_rows(row_values);
    let merged = new_array(&[1, queries, heads, width], |out| {
        out.par_chunks_mut((many * row_values).max(1))
            .enumerate()
            .for_each(|(parcel, out)| {
                for (i, out) in out.chunks_mut(row_values).enumerate() {
                    let row = (parcel * many + i) as i32;
                    for (piece, rows) in &outputs {
                        piece.copy_row(row, rows, out);
                    }
                }
            });
    })?;
    merged.transpose_axes(&[0, 2, 1, 3])
}

/// Bytes of scores that [`attention`] of `heads`, `queries`, `keys` and the larger of `d` and `e` has at
/// once.
pub fn scores_at_once(shape: [i32; 4], score_bytes: u64, blocks: Blocks) -> u64 {
    let pieces = pieces(shape, blocks);
    let [_, _, keys, _] = shape;
    rounds(&pieces, keys, score_bytes.min(blocks.round_bytes))
        .map(|round| round.iter().map(|piece| 4 * piece.scores(keys)).sum())
        .max()
        .unwrap_or(0)
}

/// Some heads' attention of some queries: several heads only where it is all queries.
struct Piece {
    heads: [i32; 2],
    rows: [i32; 2],
}

impl Piece {
    fn heads(&self) -> std::ops::Range<i32> {
        self.heads[0]..self.heads[1]
    }

    fn rows(&self) -> std::ops::Range<i32> {
        self.rows[0]..self.rows[1]
    }

    fn scores(&self, keys: i32) -> u64 {
        [self.heads().len(), self.rows().len(), keys as usize]
            .iter()
            .map(|&side| side as u64)
            .product()
    }

    /// Copies query `row` of this piece's output `from` to its heads' places in `out`.
    fn copy_row(&self, row: i32, from: &Rows, out: &mut [f32]) {
        if !self.rows().contains(&row) {
            return;
        }
        for (i, head) in self.heads().enumerate() {
            let from = from.row(i * self.rows().len() + (row - self.rows[0]) as usize);
            let start = head as usize * from.len();
            out[start..start + from.len()].copy_from_slice(from);
        }
    }
}

/// All of the work in pieces that a core computes at once.
fn pieces([heads, queries, keys, inner]: [i32; 4], blocks: Blocks) -> Vec<Piece> {
    let rows = blocks.rows(inner, keys);
    let (heads_each, rows_each) = if queries > rows {
        (1, rows)
    } else {
        let of_a_head = (queries * keys).max(1);
        let fitting = (rows / queries.max(1)).max(SMALL / of_a_head);
        (fitting.clamp(1, heads.max(1)), queries.max(1))
    };
    let steps = |count: i32, each: i32| {
        (0..count)
            .step_by(each as usize)
            .map(move |start| [start, (start + each).min(count)])
    };
    steps(heads, heads_each)
        .flat_map(|heads| steps(queries, rows_each).map(move |rows| Piece { heads, rows }))
        .collect()
}

/// Groups of pieces with at most `bytes` of scores, if one has no more.
fn rounds(pieces: &[Piece], keys: i32, bytes: u64) -> impl Iterator<Item = &[Piece]> {
    let largest = pieces.iter().map(|piece| 4 * piece.scores(keys)).max();
    let each = bytes / largest.unwrap_or(0).max(1);
    pieces.chunks((each as usize).max(1))
}

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
                for bytes in [u64::MAX, 1 << 16] {
                    let ours =
                        attention(&q, &k, &v, scale, weights, bytes, Blocks::default()).unwrap();
                    assert_eq!(ours.shape(), [1, heads, n, e]);
                    let off = ours.subtract(&expected).unwrap().abs().unwrap();
                    let off = off.max(None).unwrap().item_exact::<f32>();
                    assert!(off < 1e-5, "{heads} {n} {m} {d} {e} {bytes}: {off}");
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

    #[test]
    fn no_piece_is_larger_than_a_core_is_to_have() {
        for [heads, queries, keys] in [[12, 720, 720], [40, 9, 9], [40, 32_760, 512]] {
            let pieces = pieces([heads, queries, keys, 128], Blocks::default());
            let all: u64 = pieces.iter().map(|piece| piece.scores(keys)).sum();
            assert_eq!(
                all,
                [heads, queries, keys]
                    .iter()
                    .map(|&n| n as u64)
                    .product::<u64>()
            );
            for piece in &pieces {
                assert!(piece.scores(keys) <= 1 << 18);
            }
            for round in rounds(&pieces, keys, 4 << 20) {
                let scores: u64 = round.iter().map(|piece| piece.scores(keys)).sum();
                assert!(4 * scores <= 4 << 20);
            }
        }
    }
}
