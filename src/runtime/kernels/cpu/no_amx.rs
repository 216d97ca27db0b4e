//! Where processors have no matrix unit that is known here.

use super::blas::Matrix;

pub(super) fn takes(_: [usize; 3]) -> bool {
    is_there()
}

pub(super) fn is_there() -> bool {
    false
}

/// # Safety
/// As there is no unit, never.
pub(super) unsafe fn product(_: [usize; 3], _: Matrix, _: Matrix, _: bool, _: *mut f32, _: usize) {
    unreachable!("no matrix unit");
}
