//! Named arrays and numbers: what a part of a run hands to whoever keeps it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mlx_rs::Array;

/// Arrays and numbers by name: what a run needs to go on.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) arrays: BTreeMap<String, Array>,
    pub(crate) numbers: BTreeMap<String, u64>,
}

impl State {
    /// Adds an array, float32 or bfloat16.
    pub fn set(&mut self, name: &str, array: &Array) {
        self.arrays.insert(name.to_owned(), array.clone());
    }

    /// Adds an array that may be missing.
    pub fn set_optional(&mut self, name: &str, array: Option<&Array>) {
        if let Some(array) = array {
            self.set(name, array);
        }
    }

    /// Adds a count.
    pub fn set_count(&mut self, name: &str, count: usize) {
        self.numbers.insert(name.to_owned(), count as u64);
    }

    /// Adds a float, to the last bit.
    pub fn set_float(&mut self, name: &str, value: f64) {
        self.numbers.insert(name.to_owned(), value.to_bits());
    }

    /// An array.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn array(&self, name: &str) -> Result<Array> {
        let array = self.optional(name);
        array.with_context(|| format!("the saved run has no {name}"))
    }

    /// An array that may be missing.
    pub fn optional(&self, name: &str) -> Option<Array> {
        self.arrays.get(name).cloned()
    }

    /// A count.
    ///
    /// # Errors
    /// When there is none of that name, or it is of more than a run can have.
    pub fn count(&self, name: &str) -> Result<usize> {
        let count = self.numbers.get(name).copied();
        count
            .and_then(|count| u32::try_from(count).ok())
            .map(|count| count as usize)
            .with_context(|| format!("the saved run has no {name}"))
    }

    /// A float that may be missing.
    pub fn float(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied().map(f64::from_bits)
    }
}
