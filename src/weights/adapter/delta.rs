//! The values of an adapter's changes.

use anyhow::{Context, Result, ensure};
use mlx_rs::ops::addmm;
use mlx_rs::{Array, Dtype};

use super::Adapter;
use super::changes::{Change, Factor, What};
use crate::model::layers::Term;
use crate::util::show::Show;

/// What a norm is at least, so that a row of zeros has one to divide by.
const TINIEST: f32 = f32::MIN_POSITIVE;

impl Adapter {
    /// Whether it changes a tensor.
    pub fn changes(&self, tensor: &str) -> bool {
        self.changes.contains_key(tensor)
    }

    /// Whether what it changes of a weight can be computed beside it: what is linear in the weight's
    /// input alone, and narrow.
    pub(in crate::weights) fn is_beside(&self, tensor: &str) -> bool {
        self.on(tensor)
            .iter()
            .all(|change| change.magnitude.is_none() && !matches!(change.what, What::Full(_)))
    }

    /// Values of the matrices that are computed with beside a weight `[outputs, inputs]`.
    pub(in crate::weights) fn values_beside(&self, tensor: &str, shape: &[usize]) -> u64 {
        let sides: usize = shape.iter().sum();
        let one = |change: &Change| match &change.what {
            What::Low { .. } => change.rank().unwrap_or(0) * sides,
            // Of rank times rank.
            What::Hada([(a, _), (b, _)]) => {
                let rank = |name: &str| self.shape(name).get(1).copied().unwrap_or(0);
                rank(a) * rank(b) * sides
            }
            What::Kron(factors) => factors
                .iter()
                .map(|factor| {
                    let [rows, columns] = self.factor_shape(factor);
                    rows * columns
                })
                .sum(),
            What::Full(_) => 0,
        };
        self.on(tensor)
            .iter()
            .map(|change| one(change) as u64)
            .sum()
    }

    /// A tensor with its changes, float32.
    ///
    /// # Errors
    /// When a value is not finite.
    pub(in crate::weights) fn apply(&self, tensor: &str, weight: &Array) -> Result<Array> {
        let mut changed = weight.clone();
        for change in self.on(tensor) {
            changed = self.apply_one(change, &changed)?;
            changed.eval()?;
        }
        Ok(changed)
    }

    fn apply_one(&self, change: &Change, weight: &Array) -> Result<Array> {
        let strength = self.strength as f32;
        if let (What::Low { up, down }, None) = (&change.what, &change.magnitude) {
            // In one call, which makes one array of the weight's size: new memory takes longer than
            // the product.
            let scale = Array::from_f32((change.scale * self.strength) as f32);
            let (up, down) = (self.matrix(up)?.multiply(scale)?, self.matrix(down)?);
            let flat = weight.reshape(&[up.dim(0), -1])?;
            return Ok(addmm(&flat, &up, &down, None, None)?.reshape(weight.shape())?);
        }
        let delta = self.delta(change)?.reshape(weight.shape())?;
        let scaled = |scale: f64| delta.multiply(Array::from_f32(scale as f32));
        let Some(name) = &change.magnitude else {
            return Ok(weight.add(scaled(change.scale * self.strength)?)?);
        };
        // The norm is of the whole change; strength moves from the weight towards the result, as
        // comfyanonymous/ComfyUI, comfy/weight_adapter/base.py, has it.
        let shape = weight.shape().to_vec();
        let outputs = shape.first().copied().unwrap_or(1);
        let flat = weight.reshape(&[outputs, -1])?;
        let moved = flat.add(scaled(change.scale)?.reshape(&[outputs, -1])?)?;
        let magnitude = self.values(name)?;
        let count = magnitude.size() as i32;
        // Of rows unless the shape says columns: [1, inputs].
        let columns = self.shape(name).first() == Some(&1) && count == flat.dim(1) && count > 1;
        let by_rows = !columns && count == outputs;
        let (axis, side) = match by_rows {
            true => (1, [outputs, 1]),
            false => (0, [1, count]),
        };
        let norm = moved.square()?.sum_axis(axis, true)?.sqrt()?;
        let norm = mlx_rs::ops::maximum(norm, Array::from_f32(TINIEST))?;
        let directed = moved.multiply(magnitude.reshape(&side)?.divide(norm)?)?;
        let difference = directed.subtract(&flat)?;
        let result = flat.add(difference.multiply(Array::from_f32(strength))?)?;
        Ok(result.reshape(&shape)?)
    }

    /// What it adds to the products with a weight, in `dtype`.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(in crate::weights) fn terms(&self, tensor: &str, dtype: Dtype) -> Result<Vec<Term>> {
        let made = |array: Array| -> Result<Array> {
            let array = array.as_dtype(dtype)?;
            array.eval()?;
            Ok(array)
        };
        let one = |change: &Change| -> Result<Term> {
            let scale = Array::from_f32((change.scale * self.strength) as f32);
            Ok(match &change.what {
                What::Low { up, down } => Term::LowRank {
                    down: made(self.matrix(down)?.transpose()?)?,
                    up: made(self.matrix(up)?.multiply(scale)?.transpose()?)?,
                },
                What::Hada([(a, b), (c, d)]) => {
                    // The elementwise product of two products is one of all pairs of their ranks.
                    let (a, c) = (self.matrix(a)?, self.matrix(c)?);
                    let up = pairs(&a, &c)?.multiply(scale)?;
                    let (b, d) = (self.matrix(b)?, self.matrix(d)?);
                    let down = pairs(&b.transpose()?, &d.transpose()?)?;
                    Term::LowRank {
                        down: made(down)?,
                        up: made(up.transpose()?)?,
                    }
                }
                What::Kron([left, right]) => Term::Kronecker {
                    left: made(self.factor(left)?.multiply(scale)?)?,
                    right: made(self.factor(right)?)?,
                },
                What::Full(name) => anyhow::bail!("{} is no product", name.shown()),
            })
        };
        self.on(tensor).iter().map(one).collect()
    }

    /// The change without its scale, float32, of some shape with the right number of values.
    fn delta(&self, change: &Change) -> Result<Array> {
        Ok(match &change.what {
            What::Low { up, down } => self.matrix(up)?.matmul(&self.matrix(down)?)?,
            What::Hada([(a, b), (c, d)]) => {
                let first = self.matrix(a)?.matmul(&self.matrix(b)?)?;
                first.multiply(self.matrix(c)?.matmul(&self.matrix(d)?)?)?
            }
            What::Kron([left, right]) => {
                let (left, right) = (self.factor(left)?, self.factor(right)?);
                let [a, b] = [left.dim(0), left.dim(1)];
                let [c, d] = [right.dim(0), right.dim(1)];
                let left = left.reshape(&[a, 1, b, 1])?;
                let right = right.reshape(&[1, c, 1, d])?;
                left.multiply(right)?.reshape(&[a * c, b * d])?
            }
            What::Full(name) => self.values(name)?,
        })
    }

    fn factor(&self, factor: &Factor) -> Result<Array> {
        match factor {
            Factor::Whole(name) => self.matrix(name),
            Factor::Product(a, b) => Ok(self.matrix(a)?.matmul(&self.matrix(b)?)?),
        }
    }

    fn factor_shape(&self, factor: &Factor) -> [usize; 2] {
        let first = |name: &str| self.shape(name).first().copied().unwrap_or(0);
        let rest = |name: &str| self.shape(name).iter().skip(1).product();
        match factor {
            Factor::Whole(name) => [first(name), rest(name)],
            Factor::Product(a, b) => [first(a), rest(b)],
        }
    }

    fn shape(&self, name: &str) -> &[usize] {
        let entry = self.store.entries().get(name);
        entry.map_or(&[], |entry| entry.shape.as_slice())
    }

    /// A tensor as a matrix, its axes behind the first taken together; float32.
    fn matrix(&self, name: &str) -> Result<Array> {
        let rows = self.shape(name).first().copied().unwrap_or(1) as i32;
        Ok(self.values(name)?.reshape(&[rows, -1])?)
    }

    /// A tensor's values, float32.
    fn values(&self, name: &str) -> Result<Array> {
        let location = self.store.location();
        let entry = self.store.entries().get(name);
        let entry = entry.with_context(|| format!("{location}: no tensor {}", name.shown()))?;
        self.store.verify(name, entry)?;
        ensure!(
            self.store.is_finite(entry),
            "{location}: the tensor {} holds a value that is not finite (NaN or infinite); the \
             file is damaged\nhint: download it again",
            name.shown()
        );
        let mut values = vec![0.0; entry.shape.iter().product()];
        entry
            .encoding
            .decode(self.store.bytes(entry), &mut values)?;
        let shape: Vec<i32> = entry.shape.iter().map(|&d| d as i32).collect();
        Ok(Array::from_slice(&values, &shape))
    }
}

/// All products of a column of `a` `[n, r]` with one of `b` `[n, s]`: `[n, r * s]`.
fn pairs(a: &Array, b: &Array) -> Result<Array> {
    let (n, r, s) = (a.dim(0), a.dim(1), b.dim(1));
    let a = a.reshape(&[n, r, 1])?;
    Ok(a.multiply(b.reshape(&[n, 1, s])?)?.reshape(&[n, r * s])?)
}
