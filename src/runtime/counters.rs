//! Counts of the work that a thread has asked for: what a forecast is compared with.

use std::cell::Cell;

thread_local! {
    static OPERATIONS: Cell<u64> = const { Cell::new(0) };
    static UNPACKED: Cell<u64> = const { Cell::new(0) };
}

/// Counts the operations of a product of `[rows, inner]` and `[inner, columns]`.
pub fn count_product(rows: i32, inner: i32, columns: i32) {
    let count = 2 * i64::from(rows) * i64::from(inner) * i64::from(columns);
    OPERATIONS.with(|sum| sum.set(sum.get().wrapping_add(count.max(0) as u64)));
}

/// Counts values of quantized weights that are unpacked for a product.
pub fn count_unpacked(values: usize) {
    UNPACKED.with(|sum| sum.set(sum.get().wrapping_add(values as u64)));
}

/// Values of quantized weights that this thread has had unpacked so far, as [`operations`].
pub fn unpacked() -> u64 {
    UNPACKED.with(Cell::get)
}

/// Floating-point operations of the matrix products, attentions and convolutions that this thread
/// has asked for so far: what a forecast is held to.
pub fn operations() -> u64 {
    OPERATIONS.with(Cell::get)
}
