//! Two tensors' differences, added up a stretch at a time.

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

use super::tensor::{RUN, Tensor};

/// Stretches that are let go of together.
const RUNS: usize = 64;

/// How far two tensors are apart. Values that are not finite count in `non_finite` and `unequal`
/// alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// The largest absolute difference.
    pub max: f64,
    /// The mean absolute difference.
    pub mean: f64,
    /// Root of the summed squared differences over that of the first's values; none when all of
    /// those are zero and the second's are not.
    pub relative: Option<f64>,
    /// Cosine of the angle between them; none when either is all zero.
    pub cosine: Option<f64>,
    /// The largest absolute value of either.
    pub largest: f64,
    /// `max / largest`, what a tolerance is held against.
    pub error: f64,
    /// Values of each that are NaN or infinite.
    pub non_finite: [u64; 2],
    /// Places where such a value has not its like in the other.
    pub unequal: u64,
    /// The first place that is outside the tolerance.
    pub first: Option<Vec<usize>>,
}

/// What is added up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    count: u64,
    max: f64,
    sum: f64,
    squares: f64,
    energy: [f64; 2],
    dot: f64,
    largest: f64,
    non_finite: [u64; 2],
    unequal: u64,
}

impl Sums {
    /// Adds values of both.
    pub fn add(&mut self, a: &[f64], b: &[f64]) {
        for (&a, &b) in a.iter().zip(b) {
            if !(a.is_finite() && b.is_finite()) {
                self.non_finite[0] += u64::from(!a.is_finite());
                self.non_finite[1] += u64::from(!b.is_finite());
                self.unequal += u64::from(!alike(a, b));
                continue;
            }
            let difference = (a - b).abs();
            self.count += 1;
            self.max = self.max.max(difference);
            self.sum += difference;
            self.squares += difference * difference;
            self.energy[0] += a * a;
            self.energy[1] += b * b;
            self.dot += a * b;
            self.largest = self.largest.max(a.abs()).max(b.abs());
        }
    }

    fn join(self, more: Self) -> Self {
        let both = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
        Self {
            count: self.count + more.count,
            max: self.max.max(more.max),
            sum: self.sum + more.sum,
            squares: self.squares + more.squares,
            energy: both(self.energy, more.energy),
            dot: self.dot + more.dot,
            largest: self.largest.max(more.largest),
            non_finite: [0, 1].map(|i| self.non_finite[i] + more.non_finite[i]),
            unequal: self.unequal + more.unequal,
        }
    }

    /// The difference, without the first place.
    pub fn difference(&self) -> Difference {
        let quotient = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        let relative = quotient(self.squares.sqrt(), self.energy[0].sqrt());
        let lengths = self.energy[0].sqrt() * self.energy[1].sqrt();
        Difference {
            max: self.max,
            mean: quotient(self.sum, self.count as f64),
            relative: relative.is_finite().then_some(relative),
            cosine: (lengths > 0.0).then(|| (self.dot / lengths).clamp(-1.0, 1.0)),
            largest: self.largest,
            error: quotient(self.max, self.largest),
            non_finite: self.non_finite,
            unequal: self.unequal,
            first: None,
        }
    }
}

/// Whether two values, one of them not finite, say the same.
fn alike(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// The difference of two tensors of one shape; [`Difference::first`] by `tolerance` of the largest
/// value.
///
/// # Errors
/// When either cannot be read.
pub fn measure(a: &Tensor, b: &Tensor, tolerance: f64) -> Result<Difference> {
    let sums = each_run(a, b, |_, a, b| {
        let mut sums = Sums::default();
        sums.add(a, b);
        sums
    })?;
    // In order, so that the sums are the same on any number of cores.
    let sums = sums.into_iter().fold(Sums::default(), Sums::join);
    let mut difference = sums.difference();
    if difference.unequal > 0 || difference.error > tolerance {
        let most = tolerance * difference.largest;
        let outside = |(&a, &b): (&f64, &f64)| match a.is_finite() && b.is_finite() {
            true => (a - b).abs() > most,
            false => !alike(a, b),
        };
        let found = each_run(a, b, |start, a, b| {
            let place = a.iter().zip(b).position(outside);
            place.map(|at| start + at)
        })?;
        let first = found.into_iter().flatten().next();
        difference.first = first.map(|at| index_of(at, &a.shape));
    }
    Ok(difference)
}

/// `f` of every stretch: its first element's number, and the values of both.
fn each_run<T: Send>(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(usize, &[f64], &[f64]) -> T + Sync,
) -> Result<Vec<T>> {
    let elements = a.elements();
    let mut all = Vec::with_capacity(elements.div_ceil(RUN));
    for start in (0..elements).step_by(RUN * RUNS) {
        let end = elements.min(start + RUN * RUNS);
        let runs: Vec<usize> = (start..end).step_by(RUN).collect();
        let values = runs
            .into_par_iter()
            .map(|start| {
                let range = start..end.min(start + RUN);
                let (mut ours, mut theirs) = (vec![0.0; range.len()], vec![0.0; range.len()]);
                a.read(range.clone(), &mut ours)?;
                b.read(range, &mut theirs)?;
                Ok(f(start, &ours, &theirs))
            })
            .collect::<Result<Vec<T>>>()?;
        all.extend(values);
        a.release(start..end);
        b.release(start..end);
    }
    a.release(0..elements);
    b.release(0..elements);
    Ok(all)
}

/// The index of element `at` of an array in row-major order.
fn index_of(at: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = at;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&side| {
            let place = rest % side.max(1);
            rest /= side.max(1);
            place
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::container::encoding::Encoding;

    fn compare(a: &[f32], b: &[f32], shape: &[usize], tolerance: f64) -> Difference {
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (a, b) = (bytes(a), bytes(b));
        let tensor = |bytes| Tensor::plain("t", Encoding::F32, shape, bytes);
        measure(&tensor(&a), &tensor(&b), tolerance).unwrap()
    }

    #[test]
    fn known_differences_are_found() {
        let found = compare(&[3.0, 4.0, 0.0, 0.0], &[3.0, 4.5, 0.0, -1.0], &[2, 2], 0.12);
        assert_eq!(found.max, 1.0);
        assert_eq!(found.mean, 0.375);
        assert_eq!(found.relative, Some((1.25_f64).sqrt() / 5.0));
        assert_eq!(found.largest, 4.5);
        assert_eq!(found.error, 1.0 / 4.5);
        // 0.5 is within 0.12 * 4.5, 1 is not.
        assert_eq!(found.first, Some(vec![1, 1]));
        let cosine = found.cosine.unwrap();
        assert!((cosine - 27.0 / (5.0 * (9.0_f64 + 20.25 + 1.0).sqrt())).abs() < 1e-12);
    }

    #[test]
    fn the_same_is_the_same() {
        let found = compare(&[1.0, -2.0], &[1.0, -2.0], &[2], 0.0);
        assert_eq!((found.max, found.error, found.unequal), (0.0, 0.0, 0));
        assert_eq!((found.relative, found.first), (Some(0.0), None));
        let zeros = compare(&[0.0; 3], &[0.0; 3], &[3], 0.0);
        assert_eq!((zeros.relative, zeros.cosine), (Some(0.0), None));
        assert_eq!(compare(&[], &[], &[0], 0.0).mean, 0.0);
    }

    #[test]
    fn what_is_not_finite_is_counted_and_its_place_named() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let found = compare(&[nan, inf, 1.0, 1.0], &[nan, inf, 1.0, nan], &[4], 1.0);
        assert_eq!((found.non_finite, found.unequal), ([2, 3], 1));
        assert_eq!(found.first, Some(vec![3]));
        assert_eq!(found.max, 0.0);
        let same = compare(&[nan, 1.0], &[nan, 1.0], &[2], 1.0);
        assert_eq!((same.unequal, same.first), (0, None));
        let signs = compare(&[inf, 1.0], &[-inf, 1.0], &[2], 1.0);
        assert_eq!((signs.unequal, signs.first), (1, Some(vec![0])));
    }

    /// Nothing of the first is there to be relative to.
    #[test]
    fn zeros_against_something() {
        let found = compare(&[0.0, 0.0], &[0.0, 2.0], &[2], 0.5);
        assert_eq!(
            (found.relative, found.cosine, found.error),
            (None, None, 1.0)
        );
        assert_eq!(found.first, Some(vec![1]));
    }

    #[test]
    fn places_beyond_the_first_stretch() {
        let count = 3 * RUN + 5;
        let a = vec![1.0_f32; count];
        let mut b = a.clone();
        b[2 * RUN + 3] = 0.0;
        let found = compare(&a, &b, &[count], 1e-3);
        assert_eq!(found.first, Some(vec![2 * RUN + 3]));
        assert_eq!(found.mean, 1.0 / count as f64);
        assert_eq!(index_of(23, &[2, 3, 4]), [1, 2, 3]);
    }
}
