//! The units in which networks say what they cost, and how long that takes on this machine. What a
//! network costs stands beside it: [`dit::cost`](super::dit::cost), [`umt5::cost`](super::umt5::cost),
//! [`vae::cost`](super::vae::cost). [`crate::runtime::operations`] counts what is really asked for; a
//! test holds the two equal, and bytes within 15% of what MLX measures.

mod exchange;
mod kept;
mod rates;

pub use exchange::ExchangeRate;
pub use rates::{Measured, Rates};

/// Bytes of a float32.
pub(crate) const F32: u64 = 4;

/// A dimension as a number of things, 0 when it is negative.
pub(crate) fn number(value: i32) -> u64 {
    value.max(0) as u64
}

/// Floating-point operations, two for every multiplication of a matrix product, attention or
/// convolution; everything else is small beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Operations {
    /// Matrix products and convolutions.
    pub products: u64,
    /// Attention: scores and weighted values.
    pub attention: u64,
    /// Values of quantized weights that are unpacked; no part of [`Self::total`].
    pub unpacked: u64,
}

impl Operations {
    /// A product of `[rows, inputs]` and `[inputs, outputs]`.
    pub(crate) fn product(rows: u64, inputs: u64, outputs: u64) -> Self {
        Self {
            products: 2 * rows * inputs * outputs,
            ..Self::default()
        }
    }

    /// Scores and weighted values of all heads, `width` together.
    pub(crate) fn attention(queries: u64, keys: u64, width: u64) -> Self {
        Self {
            attention: 4 * queries * keys * width,
            ..Self::default()
        }
    }

    /// Unpacking of quantized values.
    pub(crate) fn unpacking(values: u64) -> Self {
        Self {
            unpacked: values,
            ..Self::default()
        }
    }

    /// The same, `factor` times.
    pub(crate) fn times(self, factor: u64) -> Self {
        Self {
            products: self.products * factor,
            attention: self.attention * factor,
            unpacked: self.unpacked * factor,
        }
    }

    /// All floating-point operations.
    pub fn total(self) -> u64 {
        self.products + self.attention
    }
}

impl std::ops::Add for Operations {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            unpacked: self.unpacked + other.unpacked,
        }
    }
}

impl std::iter::Sum for Operations {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), std::ops::Add::add)
    }
}
