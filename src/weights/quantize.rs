//! MLX's affine quantization, computed here so that every machine writes the same bytes.
//!
//! A weight `[outputs, inputs]` is cut into groups of inputs; each group keeps a bfloat16 scale and
//! bias, and each weight an unsigned number `q` of few bits: `scale * q + bias`. The numbers of
//! a row are a stream of bits in 32-bit words, the first input in the lowest bits, as `mlx.core.dequantize` reads
//! them (ml-explore/mlx, `mlx/backend/cpu/quantized.cpp`).
//!
//! Groups are computed side by side, one to a lane of the processor's vectors, so that each has sums of its own in the order
//! of its weights. IEEE's sums, products and quotients are the same everywhere, and Rust neither joins them (FMA)
//! nor changes their order: neither the processor nor the number of threads changes a byte.

use std::array;

use anyhow::{Result, ensure};
use half::bf16;

pub use crate::model::layers::GROUP_SIZE;
use crate::runtime::Packing;
use crate::runtime::kernels::cpu::vectorised;

/// The groups that this program makes.
pub const GROUP_SIZES: [usize; 2] = [32, GROUP_SIZE];
/// Groups side by side.
const LANES: usize = 16;
/// A number for each of these groups.
type Lanes = [f32; LANES];
/// What float32 rounds to a whole number when it is added.
const WHOLE: f32 = 8_388_608.0;

/// Bits per weight that this program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bits {
    /// 8 levels.
    Three,
    /// 16 levels.
    Four,
    /// 32 levels.
    Five,
    /// 64 levels.
    Six,
    /// 256 levels.
    Eight,
}

impl std::fmt::Display for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl Bits {
    /// All, the fewest first.
    pub const ALL: [Self; 5] = [Self::Three, Self::Four, Self::Five, Self::Six, Self::Eight];

    /// Their number.
    pub const fn number(self) -> usize {
        match self {
            Bits::Three => 3,
            Bits::Four => 4,
            Bits::Five => 5,
            Bits::Six => 6,
            Bits::Eight => 8,
        }
    }

    fn largest(self) -> u32 {
        (1 << self.number()) - 1
    }

    /// Bytes of packed numbers for `weights` weights, a multiple of the group.
    pub fn packed_bytes(self, weights: usize) -> usize {
        weights / 8 * self.number()
    }
}

/// How a weight is quantized: MLX's `bits` and `group_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits per weight.
    pub bits: Bits,
    /// Inputs that share a scale and a bias: one of [`GROUP_SIZES`].
    pub group_size: usize,
}

impl From<Bits> for Scheme {
    fn from(bits: Bits) -> Self {
        let group_size = GROUP_SIZE;
        Self { bits, group_size }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group_size {
            GROUP_SIZE => write!(f, "{}", self.bits),
            group => write!(f, "{} in groups of {group}", self.bits),
        }
    }
}

impl Scheme {
    /// The packing that this is.
    pub const fn packing(self) -> Packing {
        Packing::affine(self.bits.number() as i32, self.group_size as i32)
    }

    /// Bytes of numbers, scales and biases for `weights` weights, a multiple of the group.
    pub fn bytes(self, weights: usize) -> usize {
        self.bits.packed_bytes(weights) + weights / self.group_size * 4
    }
}

/// How the scale and the bias of a group are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// From its smallest weight to its largest: no weight is off by more than half a step. What a run takes, which has to
    /// load: some 0.7 billion weights a second on a core.
    MinMax,
    /// The least sum of squared errors that a search around that finds. It cuts off outermost weights, and is never
    /// worse; it takes seven times as long. Of 8 bits it is [`Self::MinMax`]: a twentieth less of an error that is small already
    /// would not be worth the wait.
    LeastSquares,
}

/// Some rows of a quantized weight, as little-endian bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// uint32 words.
    pub words: Vec<u8>,
    /// bfloat16, one per group.
    pub scales: Vec<u8>,
    /// As `scales`.
    pub biases: Vec<u8>,
}

impl Packed {
    /// Appends further rows.
    pub fn extend(&mut self, more: Self) {
        self.words.extend(more.words);
        self.scales.extend(more.scales);
        self.biases.extend(more.biases);
    }

    /// The bytes of words, scales and biases.
    pub fn fields(&self) -> [&[u8]; 3] {
        [&self.words, &self.scales, &self.biases]
    }
}

/// Quantizes whole groups of weights.
///
/// # Errors
/// When a group spans more than bfloat16 can hold.
pub fn quantize(weights: &[f32], scheme: impl Into<Scheme>, search: Search) -> Result<Packed> {
    let Scheme { bits, group_size } = scheme.into();
    ensure!(
        GROUP_SIZES.contains(&group_size) && weights.len().is_multiple_of(group_size),
        "{} weights are not whole groups of {group_size}",
        weights.len()
    );
    let groups = weights.len() / group_size;
    let mut packed = Packed {
        words: Vec::with_capacity(bits.packed_bytes(weights.len())),
        scales: Vec::with_capacity(2 * groups),
        biases: Vec::with_capacity(2 * groups),
    };
    let levels = bits.largest() as f32;
    let searches = search == Search::LeastSquares && bits != Bits::Eight;
    let (mut columns, mut numbers) = ([[0.0; LANES]; GROUP_SIZE], [[0; LANES]; GROUP_SIZE]);
    let (columns, numbers) = (&mut columns[..group_size], &mut numbers[..group_size]);
    for groups in weights.chunks(LANES * group_size) {
        for (lane, group) in groups.chunks_exact(group_size).enumerate() {
            for (column, &weight) in columns.iter_mut().zip(group) {
                column[lane] = weight;
            }
        }
        let mut chosen = Lattice::default();
        choose(columns, levels, searches, &mut chosen, numbers);
        for (lane, group) in groups.chunks_exact(group_size).enumerate() {
            let [scale, bias] = [chosen.scale[lane], chosen.bias[lane]];
            let outer = |of: fn(f32, f32) -> f32| group.iter().copied().reduce(of).unwrap_or(0.0);
            ensure!(
                scale.is_finite() && bias.is_finite(),
                "weights from {} to {} are too large to quantize",
                outer(f32::min),
                outer(f32::max)
            );
            packed.scales.extend(bf16::from_f32(scale).to_le_bytes());
            packed.biases.extend(bf16::from_f32(bias).to_le_bytes());
            for eight in numbers.chunks_exact(8) {
                let word = (eight.iter().rev()).fold(0_u64, |word, row| {
                    word << bits.number() | u64::from(row[lane])
                });
                packed.words.extend(&word.to_le_bytes()[..bits.number()]);
            }
        }
    }
    Ok(packed)
}

/// The scale and the bias of each group.
#[derive(Clone, Copy, Default)]
struct Lattice {
    scale: Lanes,
    bias: Lanes,
}

vectorised! {
    /// The scales and biases of groups whose weights are the lanes of `columns`, and the weights' numbers.
    fn choose(
        columns: &[Lanes],
        levels: f32,
        searches: bool,
        chosen: &mut Lattice,
        numbers: &mut [[u8; LANES]],
    ) {
        *chosen = min_max(columns, levels);
        if searches {
            *chosen = least_squares(columns, levels, *chosen);
        }
        let inverse = inverse(&chosen.scale);
        for (numbers, column) in numbers.iter_mut().zip(columns) {
            for i in 0..LANES {
                // What is added has the number in its lowest bits.
                let number = number((column[i] - chosen.bias[i]) * inverse[i], levels) + WHOLE;
                numbers[i] = number.to_bits() as u8;
            }
        }
    }
}

/// The smallest weight as the bias and a scale that spans to the largest, both rounded outwards.
#[inline(always)]
fn min_max(columns: &[Lanes], levels: f32) -> Lattice {
    let [low, high] = outermost(columns);
    let bias = low.map(|low| -round_up(-low));
    let scale = array::from_fn(|i| round_up((high[i] - bias[i]) / levels));
    Lattice { scale, bias }
}

/// The smallest and the largest of each lane.
#[inline(always)]
fn outermost(columns: &[Lanes]) -> [Lanes; 2] {
    let (mut low, mut high) = ([f32::MAX; LANES], [f32::MIN; LANES]);
    for column in columns {
        for i in 0..LANES {
            low[i] = if column[i] < low[i] {
                column[i]
            } else {
                low[i]
            };
            high[i] = if column[i] > high[i] {
                column[i]
            } else {
                high[i]
            };
        }
    }
    [low, high]
}

/// A group of equal weights has no scale; its numbers are all zero.
#[inline(always)]
fn inverse(scale: &Lanes) -> Lanes {
    scale.map(|scale| if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// The number of a weight that is so many steps above the bias, halves rounded up.
#[inline(always)]
fn number(steps: f32, levels: f32) -> f32 {
    let steps = clamp(steps + 0.5, levels);
    let nearest = (steps + WHOLE) - WHOLE;
    if nearest > steps {
        nearest - 1.0
    } else {
        nearest
    }
}

/// `steps` within 0 and `levels`; one instruction each, which `f32::clamp` is not.
#[inline(always)]
fn clamp(steps: f32, levels: f32) -> f32 {
    let steps = if steps > 0.0 { steps } else { 0.0 };
    if steps < levels { steps } else { levels }
}

/// Steps by which the ends of the lattice are moved inwards in turn. The error has many minima, the best of which lies somewhere among these: finer
/// grids gain little (near-exhaustive search 11.0% on the miniature's weights of 4 bits, this one 10.7%).
const ENDS: [f32; 6] = [-0.3, 0.2, 0.7, 1.2, 1.7, 2.2];
/// Then once more around the best of them.
const NEAR: [f32; 3] = [-0.25, 0.0, 0.25];

/// A line through the weights of each group over their numbers.
#[derive(Clone, Copy, Default)]
struct Line {
    /// By how much the sum of squared errors is below that of a constant.
    gain: Lanes,
    slope: Lanes,
    /// The mean number, where the line has the mean weight.
    middle: Lanes,
}

impl Line {
    /// From sums of numbers, of their squares and of their products with weights whose sum is zero.
    #[inline(always)]
    fn new([sum, squares, products]: &[Lanes; 3], count: f32) -> Self {
        let mut line = Self::default();
        for i in 0..LANES {
            line.middle[i] = sum[i] / count;
            let spread = squares[i] - sum[i] * line.middle[i];
            // Of equal numbers there is no line.
            line.slope[i] = if spread > 0.25 {
                products[i] / spread
            } else {
                0.0
            };
            line.gain[i] = line.slope[i] * products[i];
        }
        line
    }
}

/// The lattice with the least sum of squared errors that is found, as it is stored; `first` where none is better.
///
/// The numbers that a lattice gives the weights have a best lattice of their own: a regression of weights on
/// numbers. So each try is judged by what its numbers would be worth.
#[inline(always)]
fn least_squares(columns: &[Lanes], levels: f32, first: Lattice) -> Lattice {
    let count = columns.len() as f32;
    let mut mean = [0.0; LANES];
    for column in columns {
        for i in 0..LANES {
            mean[i] += column[i];
        }
    }
    let mean = mean.map(|sum| sum / count);
    let mut centred = [[0.0; LANES]; GROUP_SIZE];
    let centred = &mut centred[..columns.len()];
    for (centred, column) in centred.iter_mut().zip(columns) {
        for i in 0..LANES {
            centred[i] = column[i] - mean[i];
        }
    }
    let centred = &*centred;
    let [low, high] = outermost(centred);
    let mut best = Line::default();
    let start: Lanes = array::from_fn(|i| (high[i] - low[i]) / levels);
    for lower in ENDS {
        for upper in ENDS {
            attempt(centred, levels, [&start, &low], [lower, upper], &mut best);
        }
    }
    let start = best.slope;
    let low = array::from_fn(|i| -best.slope[i] * best.middle[i]);
    for lower in NEAR {
        for upper in NEAR {
            attempt(centred, levels, [&start, &low], [lower, upper], &mut best);
        }
    }
    let (mut chosen, mut least) = (first, stored_error([columns, centred], &first, levels).0);
    // Once as it was found, and once fitted to what rounding to bfloat16 has made of its numbers.
    for _ in 0..2 {
        let scale = best.slope.map(to_bf16);
        let bias = array::from_fn(|i| to_bf16(mean[i] - scale[i] * best.middle[i]));
        let next = Lattice { scale, bias };
        let (error, line) = stored_error([columns, centred], &next, levels);
        for i in 0..LANES {
            if error[i] < least[i] {
                (least[i], chosen.scale[i], chosen.bias[i]) = (error[i], scale[i], bias[i]);
            }
        }
        best = line;
    }
    chosen
}

/// Keeps what a lattice's numbers are worth, where it is more: one from `low` in steps of `step`, whose ends are moved
/// inwards by so many of these.
#[inline(always)]
fn attempt(
    centred: &[Lanes],
    levels: f32,
    [step, low]: [&Lanes; 2],
    [lower, upper]: [f32; 2],
    best: &mut Line,
) {
    let share = 1.0 - (lower + upper) / levels;
    let scale = step.map(|step| step * share);
    let inverse = inverse(&scale);
    let offset: Lanes = array::from_fn(|i| -(low[i] + lower * step[i]) * inverse[i]);
    let mut sums = [[0.0; LANES]; 3];
    for column in centred {
        for i in 0..LANES {
            let steps = clamp(column[i] * inverse[i] + offset[i], levels);
            let number = (steps + WHOLE) - WHOLE;
            sums[0][i] += number;
            sums[1][i] += number * number;
            sums[2][i] += number * column[i];
        }
    }
    let line = Line::new(&sums, centred.len() as f32);
    for i in 0..LANES {
        let better = line.gain[i] > best.gain[i];
        best.gain[i] = if better { line.gain[i] } else { best.gain[i] };
        best.slope[i] = if better { line.slope[i] } else { best.slope[i] };
        best.middle[i] = if better {
            line.middle[i]
        } else {
            best.middle[i]
        };
    }
}

/// The sum of squared errors of a stored lattice, and the line through its numbers.
#[inline(always)]
fn stored_error(
    [columns, centred]: [&[Lanes]; 2],
    lattice: &Lattice,
    levels: f32,
) -> (Lanes, Line) {
    let Lattice { scale, bias } = lattice;
    let inverse = inverse(scale);
    let (mut error, mut sums) = ([0.0; LANES], [[0.0; LANES]; 3]);
    for (column, centred) in columns.iter().zip(centred) {
        for i in 0..LANES {
            let number = number((column[i] - bias[i]) * inverse[i], levels);
            let off = number * scale[i] + bias[i] - column[i];
            error[i] += off * off;
            sums[0][i] += number;
            sums[1][i] += number * number;
            sums[2][i] += number * centred[i];
        }
    }
    (error, Line::new(&sums, columns.len() as f32))
}

/// The weights that [`quantize`] stands for, as `mlx.core.dequantize` computes them in float32.
///
/// # Errors
/// When the three lengths do not belong together.
pub fn dequantize(packed: &Packed, scheme: impl Into<Scheme>) -> Result<Vec<f32>> {
    let Scheme { bits, group_size } = scheme.into();
    let [words, scales, biases] = packed.fields();
    let groups = scales.len() / 2;
    ensure!(
        scales.len() == biases.len() && words.len() == bits.packed_bytes(groups * group_size),
        "{} bytes of numbers, {} of scales and {} of biases do not belong together",
        words.len(),
        scales.len(),
        biases.len()
    );
    let mut weights = Vec::with_capacity(groups * group_size);
    let group_bytes = bits.packed_bytes(group_size);
    let number = |pair: &[u8]| bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
    for ((words, scale), bias) in words
        .chunks_exact(group_bytes)
        .zip(scales.chunks_exact(2))
        .zip(biases.chunks_exact(2))
    {
        let (scale, bias) = (number(scale), number(bias));
        for eight in words.chunks_exact(bits.number()) {
            let mut word = [0; 8];
            word[..eight.len()].copy_from_slice(eight);
            let word = u64::from_le_bytes(word);
            weights.extend((0..8).map(|i| {
                let q = (word >> (i * bits.number())) as u32 & bits.largest();
                q as f32 * scale + bias
            }));
        }
    }
    Ok(weights)
}

/// The smallest bfloat16 that is not below `value`.
#[inline(always)]
fn round_up(value: f32) -> f32 {
    let cut = value.to_bits() & 0xffff_0000;
    // Only positive values are cut downwards; their next bit pattern is the next number.
    let next = if f32::from_bits(cut) < value {
        0x1_0000
    } else {
        0
    };
    f32::from_bits(cut.wrapping_add(next))
}

/// The nearest bfloat16 of a value that is not NaN, the even one of two.
#[inline(always)]
fn to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Array, Dtype, ops};

    use super::*;
    use crate::tiny;
    use crate::weights::files::Files;
    use crate::weights::layout::Layout;
    use crate::weights::part::{Part, Values, may_quantize};
    use crate::weights::{PartName, config::PartConfig, part::usizes};

    /// Uniform in [0, 1), the same on every machine.
    fn uniform(count: usize) -> impl Iterator<Item = f32> {
        let mut state = 1_u64;
        (0..count).map(move |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32
        })
    }

    /// An uneven mixture of magnitudes and signs.
    fn weights(count: usize) -> Vec<f32> {
        let values = uniform(count).enumerate();
        values
            .map(|(i, x)| (x - 0.5) * 0.01 * (1 + i % 7) as f32)
            .collect()
    }

    /// Normal, or Student's t of five degrees of freedom, by Box and Muller.
    fn bell(count: usize, heavy: bool) -> Vec<f32> {
        let all: Vec<f32> = uniform(12 * count).collect();
        let normal = |pair: &[f32]| {
            (-2.0 * (1.0 - pair[0]).ln()).sqrt() * (std::f32::consts::TAU * pair[1]).cos()
        };
        let one = |values: &[f32]| {
            let squares: f32 = values
                .chunks(2)
                .skip(1)
                .map(|pair| normal(pair).powi(2))
                .sum();
            let t = if heavy { (squares / 5.0).sqrt() } else { 1.0 };
            0.02 * normal(values) / t
        };
        all.chunks(12).map(one).collect()
    }

    fn schemes() -> impl Iterator<Item = Scheme> {
        Bits::ALL
            .into_iter()
            .flat_map(|bits| GROUP_SIZES.map(|group_size| Scheme { bits, group_size }))
    }

    fn squares(before: &[f32], after: &[f32]) -> f64 {
        let off = before
            .iter()
            .zip(after)
            .map(|(a, b)| f64::from(a - b).powi(2));
        off.sum()
    }

    fn error(weights: &[f32], scheme: Scheme, search: Search) -> f64 {
        let packed = quantize(weights, scheme, search).unwrap();
        squares(weights, &dequantize(&packed, scheme).unwrap())
    }

    #[test]
    fn no_weight_is_off_by_more_than_half_a_step() {
        for scheme in schemes() {
            // More groups than lanes, and some left over.
            let weights = weights(64 * 50);
            let packed = quantize(&weights, scheme, Search::MinMax).unwrap();
            let back = dequantize(&packed, scheme).unwrap();
            let groups = weights
                .chunks(scheme.group_size)
                .zip(back.chunks(scheme.group_size));
            for (group, (w, b)) in groups.enumerate() {
                let pair = [packed.scales[2 * group], packed.scales[2 * group + 1]];
                let half = bf16::from_le_bytes(pair).to_f32() * 0.5 * 1.0001;
                for (w, b) in w.iter().zip(b) {
                    assert!(
                        (w - b).abs() <= half,
                        "{scheme:?}: {w} became {b}, step {half}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_search_is_never_worse() {
        let mut cases: Vec<Vec<f32>> = weights(64 * 40).chunks(64).map(<[f32]>::to_vec).collect();
        cases.extend(bell(64 * 40, true).chunks(64).map(<[f32]>::to_vec));
        // Far from zero, nearly constant, tiny, huge, with one outlier, with few values.
        let some = &weights(64);
        for change in [
            |w: f32| 1.0 + w * 1e-3,
            |w: f32| -7.0 + w,
            |w: f32| w * 1e-37,
            |w: f32| w * 1e37,
            |w: f32| if w > 0.029 { 1.0 } else { w },
            |w: f32| w.signum(),
            |w: f32| if w > 0.0 { 0.3 } else { 0.0 },
        ] {
            cases.push(some.iter().copied().map(change).collect());
        }
        for scheme in schemes() {
            for weights in &cases {
                let [quick, found] = [Search::MinMax, Search::LeastSquares]
                    .map(|search| error(weights, scheme, search));
                assert!(
                    found <= quick * 1.00001,
                    "{scheme:?}: {found} {quick} {weights:?}"
                );
            }
        }
    }

    /// Groups do not see each other, whatever lies beside them; and these bytes are everybody's.
    #[test]
    fn bytes_depend_on_nothing_else() {
        let mut hasher = blake3::Hasher::new();
        for scheme in schemes() {
            let weights = weights(64 * 37);
            for search in [Search::MinMax, Search::LeastSquares] {
                let whole = quantize(&weights, scheme, search).unwrap();
                let mut parts = Packed::default();
                for part in weights.chunks(64 * 5) {
                    parts.extend(quantize(part, scheme, search).unwrap());
                }
                assert_eq!(whole, parts, "{scheme:?} {search:?}");
                for field in whole.fields() {
                    hasher.update(field);
                }
            }
        }
        let hash = hasher.finalize().to_hex();
        assert_eq!(&hash[..16], "7453c66b9763de55");
    }

    #[test]
    fn mlx_reads_what_is_written_and_writes_what_is_read() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let (rows, columns) = (6, 320);
        let weights = weights(rows * columns);
        let plain = Array::from_slice(&weights, &[rows as i32, columns as i32]);
        for scheme in schemes() {
            let (group, bits) = (scheme.group_size as i32, scheme.bits.number() as i32);
            let packed = quantize(&weights, scheme, Search::LeastSquares).unwrap();
            let side = |bytes: &[u8]| {
                let values: Vec<bf16> = (bytes.chunks_exact(2))
                    .map(|pair| bf16::from_le_bytes([pair[0], pair[1]]))
                    .collect();
                let array = Array::from_slice(&values, &[rows as i32, columns as i32 / group]);
                array.as_dtype(Dtype::Float32).unwrap()
            };
            let words: Vec<u32> = (packed.words.chunks_exact(4))
                .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                .collect();
            let words = Array::from_slice(&words, &[rows as i32, columns as i32 * bits / 32]);
            let (scales, biases) = (side(&packed.scales), side(&packed.biases));
            let theirs = ops::dequantize(&words, &scales, Some(&biases), group, bits).unwrap();
            let ours = dequantize(&packed, scheme).unwrap();
            let off = squares(theirs.as_slice(), &ours);
            assert!(off < 1e-12, "{scheme:?}: {off}");
            // Theirs, read by us.
            let plain = plain.as_dtype(Dtype::Bfloat16).unwrap();
            let (words, scales, biases) = ops::quantize(&plain, group, bits).unwrap();
            let bytes = |side: &Array| -> Vec<u8> {
                let values = side.as_slice::<bf16>().iter();
                values.flat_map(|value| value.to_le_bytes()).collect()
            };
            let numbers = words.as_slice::<u32>().iter();
            let read = Packed {
                words: numbers.flat_map(|word| word.to_le_bytes()).collect(),
                scales: bytes(&scales),
                biases: bytes(&biases),
            };
            let [scales, biases] =
                [scales, biases].map(|side| side.as_dtype(Dtype::Float32).unwrap());
            let theirs = ops::dequantize(&words, &scales, Some(&biases), group, bits).unwrap();
            let off = squares(theirs.as_slice(), &dequantize(&read, scheme).unwrap());
            assert!(off < 1e-12, "{scheme:?}: {off}");
        }
    }

    /// Weights of the miniature's part that may be quantized.
    fn trained(name: PartName) -> Vec<f32> {
        let layout = Layout::of_folder(&Files::embedded_root(tiny::FILES)).unwrap();
        let part = Part::open(layout.part(name).unwrap(), name.kind()).unwrap();
        let mut all = Vec::new();
        for spec in PartConfig::of(&part, name).unwrap().specs().unwrap() {
            let found = part.expect(&spec.name, &usizes(&spec.shape)).unwrap();
            if let Values::Stored { entry, scale, .. } = found.values
                && may_quantize(name.kind(), &spec.name, &found.shape)
            {
                let elements = found.shape.iter().product();
                all.extend(part.decode(&found.name, entry, scale, 0..elements).unwrap());
            }
        }
        all
    }

    /// MLX's own scales span each group as well, and are rounded to have zero among the values. A search through a
    /// thousand scales and biases of each group would gain half a percent more at 4 bits.
    #[test]
    fn less_is_lost_than_by_mlx() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let mlx = |weights: &[f32], scheme: Scheme| {
            let (group, bits) = (scheme.group_size as i32, scheme.bits.number() as i32);
            let plain = Array::from_slice(weights, &[weights.len() as i32 / 64, 64]);
            let (words, scales, biases) = ops::quantize(&plain, group, bits).unwrap();
            let back = ops::dequantize(&words, &scales, Some(&biases), group, bits).unwrap();
            squares(weights, back.as_slice())
        };
        for (what, weights) in [
            ("high-noise expert", trained(PartName::HighNoise)),
            ("text encoder", trained(PartName::TextEncoder)),
            ("normal", bell(1 << 16, false)),
            ("Student's t", bell(1 << 16, true)),
        ] {
            let energy = squares(&weights, &vec![0.0; weights.len()]);
            let four = |group_size| Scheme {
                bits: Bits::Four,
                group_size,
            };
            let theirs = mlx(&weights, four(64));
            for scheme in schemes() {
                let own = mlx(&weights, scheme);
                let [quick, found] = [Search::MinMax, Search::LeastSquares]
                    .map(|search| error(&weights, scheme, search));
                println!(
                    "measured {what}, {scheme}: {:.3}% of the weights, MLX's {:.3}%: {:.1}% less, min-max {:.1}%",
                    100.0 * (found / energy).sqrt(),
                    100.0 * (own / energy).sqrt(),
                    100.0 * (1.0 - (found / own).sqrt()),
                    100.0 * (1.0 - (quick / own).sqrt()),
                );
            }
            let less =
                |group| 1.0 - (error(&weights, four(group), Search::LeastSquares) / theirs).sqrt();
            assert!(less(64) > 0.1, "{what}: {}", less(64));
            assert!(less(32) > 0.2, "{what}: {}", less(32));
        }
    }

    #[test]
    fn equal_and_zero_groups_stay() {
        let weights = [[0.0; 64], [0.25; 64], [-1.5; 64]].concat();
        for scheme in schemes() {
            let packed = quantize(&weights, scheme, Search::LeastSquares).unwrap();
            assert_eq!(dequantize(&packed, scheme).unwrap(), weights);
        }
    }

    #[test]
    fn rounding_is_outward() {
        for value in [0.0, 1.0, 1.001, -1.001, 1e-39, -1e-39, 3.0e38, -7.77e-5] {
            assert!(round_up(value) >= value, "{value}");
            assert!((round_up(value) - value).abs() <= value.abs() / 127.0 + 1e-38);
            assert_eq!(to_bf16(value), bf16::from_f32(value).to_f32());
        }
    }

    #[test]
    fn what_cannot_be_held_is_refused() {
        let mut weights = vec![0.0; 64];
        weights[3] = f32::MAX;
        weights[4] = f32::MIN;
        for search in [Search::MinMax, Search::LeastSquares] {
            assert!(quantize(&weights, Bits::Four, search).is_err());
        }
        assert!(quantize(&weights[..63], Bits::Eight, Search::MinMax).is_err());
    }
}
