//! Matrix products on the calling thread: by the processor's matrix unit where it has one that is known here,
//! or by the BLAS that MLX uses.

use std::ffi::c_int;

use super::amx;

/// A row-major matrix, or one that is read as its transpose.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub values: &'a [f32],
    /// Values from row to row.
    pub pitch: usize,
    /// Whether the product takes its transpose.
    pub transposed: bool,
}

impl<'a> Matrix<'a> {
    /// As it lies there.
    pub(super) fn new(values: &'a [f32], pitch: usize) -> Self {
        Self {
            values,
            pitch,
            transposed: false,
        }
    }

    /// Its transpose.
    pub(super) fn transposed(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }
}

/// `a b`, or with `add` that and what is there, of `[rows, columns, inner]`, to rows of `to` that are
/// `pitch` values apart.
pub(super) fn add_product(
    [rows, columns, inner]: [usize; 3],
    a: Matrix,
    b: Matrix,
    add: bool,
    to: &mut [f32],
    pitch: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    // SAFETY: the slice is the caller's own.
    unsafe {
        product_at(
            Engine::of([rows, columns, inner]),
            [rows, columns, inner],
            a,
            b,
            add,
            to.as_mut_ptr(),
            pitch,
            to.len(),
        )
    };
}

/// What computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    /// The processor's matrix unit.
    Unit,
    Blas,
}

impl Engine {
    /// For a product of these rows, columns and inner values. What is cut in parts takes that of the whole, or
    /// its last bits would depend on their number.
    pub(super) fn of(sides: [usize; 3]) -> Self {
        match amx::takes(sides) {
            true => Self::Unit,
            false => Self::Blas,
        }
    }
}

/// As [`add_product`], to where `to` points and `room` values follow.
///
/// # Safety
/// Nobody else may write to or read the rows' values meanwhile.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product_at(
    engine: Engine,
    [rows, columns, inner]: [usize; 3],
    a: Matrix,
    b: Matrix,
    add: bool,
    to: *mut f32,
    pitch: usize,
    room: usize,
) {
    for (matrix, [down, across]) in [(a, [rows, inner]), (b, [inner, columns])] {
        let [down, across] = if matrix.transposed {
            [across, down]
        } else {
            [down, across]
        };
        assert!(holds(matrix.values.len(), matrix.pitch, [down, across]));
    }
    assert!(holds(room, pitch, [rows, columns]));
    if engine == Engine::Unit && !a.transposed {
        // SAFETY: the matrices have these sides, as was made sure of; the rows are the caller's.
        unsafe { amx::product([rows, columns, inner], a, b, add, to, pitch) };
        return;
    }
    let size = |side: usize| c_int::try_from(side).expect("a side of less than 2^31");
    let flag = |matrix: Matrix| {
        if matrix.transposed {
            TRANSPOSED
        } else {
            AS_IT_IS
        }
    };
    // SAFETY: the matrices lie within what the pointers point to, as was made sure of.
    unsafe {
        sgemm(
            ROW_MAJOR,
            flag(a),
            flag(b),
            size(rows),
            size(columns),
            size(inner),
            1.0,
            a.values.as_ptr(),
            size(a.pitch.max(1)),
            b.values.as_ptr(),
            size(b.pitch.max(1)),
            if add { 1.0 } else { 0.0 },
            to,
            size(pitch),
        );
    }
}

fn holds(room: usize, pitch: usize, [down, across]: [usize; 2]) -> bool {
    across <= pitch && (down == 0 || (down - 1) * pitch + across <= room)
}

const ROW_MAJOR: c_int = 101;
const AS_IT_IS: c_int = 111;
const TRANSPOSED: c_int = 112;

// On a Mac Apple's library decides by itself where it computes.
#[cfg_attr(target_os = "macos", link(name = "Accelerate", kind = "framework"))]
unsafe extern "C" {
    #[cfg_attr(target_os = "linux", link_name = "mlx_shim_sgemm")]
    #[cfg_attr(not(target_os = "linux"), link_name = "cblas_sgemm")]
    fn sgemm(
        order: c_int,
        transpose_a: c_int,
        transpose_b: c_int,
        rows: c_int,
        columns: c_int,
        inner: c_int,
        alpha: f32,
        a: *const f32,
        pitch_a: c_int,
        b: *const f32,
        pitch_b: c_int,
        beta: f32,
        c: *mut f32,
        pitch_c: c_int,
    );
}
