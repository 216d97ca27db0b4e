//! Float32 matrix products on the matrix unit of newer Xeons (AMX), which multiplies bfloat16.
//!
//! A float32 is the exact sum of three bfloat16, its leading, middle and last eight bits. Of the nine products
//! of two such sums the six largest are taken: those left out are below 2^-21 of the whole, and the result is
//! as near to the exact one as that of a float32 product, but for values below 1e-18, whose last parts the
//! unit takes for zero. Six products on this unit take less than half the
//! time of one in vectors. Instructions, layouts and the request to the kernel: Intel's Architectures Software
//! Developer's Manual, chapter 18 of volume 1, and Linux's Documentation/arch/x86/xstate.rst.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::OnceLock;

use super::blas::Matrix;

/// Rows of a tile, and columns of a tile of sums.
const SIDE: usize = 16;

/// Bfloat16 values in a row of a tile.
const DEPTH: usize = 2 * SIDE;

/// Bfloat16 values that make a float32.
const PARTS: usize = 3;

/// Rows and columns that are summed at once: two tiles each way, which with their sums are all eight.
const BLOCK: usize = 2 * SIDE;

/// Inner values, rows and columns that are packed at once, so that rows and a block of columns stay in a
/// core's cache. Multiples of [`DEPTH`] and [`BLOCK`].
const INNER: usize = 512;
const ROWS: usize = 256;
const COLUMNS: usize = 1024;

/// Sides below which packing takes longer than is won.
const LEAST: usize = 64;

/// 16 rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([[u16; DEPTH]; SIDE]);

const EMPTY: Tile = Tile([[0; DEPTH]; SIDE]);

thread_local! {
    /// What a core has packed of either side.
    static PACKED: RefCell<[Vec<Tile>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Whether a product of these rows, columns and inner values is sooner done here, and can be.
pub(super) fn takes(sides: [usize; 3]) -> bool {
    sides.iter().all(|&side| side >= LEAST) && is_there()
}

/// Whether the processor has the unit, and the system lets the program use it.
pub(super) fn is_there() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    /// Bits of leaf 7: the unit's tiles, and its products of bfloat16.
    const TILES: u32 = 1 << 24;
    const BFLOAT16: u32 = 1 << 22;
    /// "Let this process have tiles": `ARCH_REQ_XCOMP_PERM` and `XFEATURE_XTILEDATA`.
    const REQUEST: [i32; 2] = [0x1023, 18];
    *ANSWER.get_or_init(|| {
        // Whoever asks for another processor's kernels gets its results.
        let usual = std::env::var_os("OPENBLAS_CORETYPE").is_none();
        let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let found = match __cpuid(0).eax {
            7.. => __cpuid_count(7, 0).edx,
            _ => 0,
        };
        // SAFETY: the request changes nothing but what this process may do.
        usual
            && vectors
            && found & (TILES | BFLOAT16) == TILES | BFLOAT16
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST[0], REQUEST[1]) } == 0
    })
}

/// `a b`, or with `add` that and what is there, of `[rows, columns, inner]`, to rows of `to` that are `pitch`
/// values apart. Where a value is infinite the result is no number.
///
/// # Safety
/// [`is_there`], `a` is not transposed, the matrices have these sides, and the rows lie within memory that
/// nobody else writes to or reads meanwhile.
pub(super) unsafe fn product(
    [rows, columns, inner]: [usize; 3],
    a: Matrix,
    b: Matrix,
    add: bool,
    to: *mut f32,
    pitch: usize,
) {
    let mut sums = [[0.0; BLOCK]; BLOCK];
    // SAFETY: the unit is there, which no processor has without these vectors; the rows are the caller's.
    PACKED.with_borrow_mut(|[packed_a, packed_b]| unsafe {
        configure();
        for (first_column, width) in parts(columns, COLUMNS) {
            for (first, depth) in parts(inner, INNER) {
                let tiles = depth.div_ceil(DEPTH) * PARTS;
                let add = add || first > 0;
                let packed_b = room(packed_b, width, tiles);
                if b.transposed {
                    let from = &b.values[first_column * b.pitch + first..];
                    pack_rows(from, b.pitch, [width, depth], packed_b, true);
                } else {
                    let from = &b.values[first * b.pitch + first_column..];
                    pack_columns(from, b.pitch, [depth, width], packed_b);
                }
                for (first_row, height) in parts(rows, ROWS) {
                    let packed_a = room(packed_a, height, tiles);
                    let from = &a.values[first_row * a.pitch + first..];
                    pack_rows(from, a.pitch, [height, depth], packed_a, false);
                    let to = to.add(first_row * pitch + first_column);
                    for (column, width) in parts(width, BLOCK) {
                        for (row, height) in parts(height, BLOCK) {
                            let [a, b] = [(&*packed_a, row), (&*packed_b, column)]
                                .map(|(packed, at)| packed[at / SIDE * tiles..].split_at(tiles));
                            sum([a.0, a.1], [b.0, b.1], &mut sums);
                            let to = to.add(row * pitch + column);
                            write(&sums[..height], width, add, to, pitch);
                        }
                    }
                }
            }
        }
        asm!("tilerelease", options(nostack));
    });
}

/// `count` in parts of `most`: where each begins, and its length.
fn parts(count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count)
        .step_by(most)
        .map(move |start| (start, most.min(count - start)))
}

/// Room for so many tiles of each 16 of `lines`, in whole blocks.
fn room(packed: &mut Vec<Tile>, lines: usize, tiles: usize) -> &mut [Tile] {
    let count = lines.next_multiple_of(BLOCK) / SIDE * tiles;
    if packed.len() < count {
        packed.resize(count, EMPTY);
    }
    &mut packed[..count]
}

/// The three parts of float32 values, each in the upper half of a word.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(values: __m512) -> [__m512i; PARTS] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let leading =
        |values| _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(values), upper));
    let rest = _mm512_sub_ps(values, leading(values));
    let last = _mm512_sub_ps(rest, leading(rest));
    [
        _mm512_castps_si512(values),
        _mm512_castps_si512(rest),
        _mm512_castps_si512(last),
    ]
}

/// Up to 16 values from `at` on, zeros behind the first `count`.
#[inline]
#[target_feature(enable = "avx512f")]
fn line(from: &[f32], at: usize, count: usize) -> __m512 {
    let count = count.min(SIDE);
    if count == 0 {
        return _mm512_setzero_ps();
    }
    let from = &from[at..at + count];
    // SAFETY: what is masked is not read.
    unsafe { _mm512_maskz_loadu_ps(mask(count), from.as_ptr()) }
}

/// A bit for each of the first `count` of 16 values.
fn mask(count: usize) -> u16 {
    ((1_u32 << count) - 1) as u16
}

/// Packs rows of `depth` values: for each 16 rows, for each 32 values, a tile for each part; `turned` with
/// pairs of values instead of rows.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_rows(from: &[f32], pitch: usize, [rows, depth]: [usize; 2], to: &mut [Tile], turned: bool) {
    let tiles = depth.div_ceil(DEPTH) * PARTS;
    let upper_halves: [u16; DEPTH] = std::array::from_fn(|i| 2 * i as u16 + 1);
    let upper_halves = words(&upper_halves);
    for (band, to) in to.chunks_exact_mut(tiles).enumerate() {
        for ((start, count), to) in parts(depth, DEPTH).zip(to.as_chunks_mut::<PARTS>().0) {
            for row in 0..SIDE {
                let row_of_all = band * SIDE + row;
                let (at, count) = (
                    row_of_all * pitch + start,
                    if row_of_all < rows { count } else { 0 },
                );
                let near = split(line(from, at, count));
                let far = split(line(from, at + SIDE, count.saturating_sub(SIDE)));
                for part in 0..PARTS {
                    let both = _mm512_permutex2var_epi16(near[part], upper_halves, far[part]);
                    keep(&mut to[part].0[row], both);
                }
            }
            if turned {
                for tile in to {
                    turn(tile);
                }
            }
        }
    }
}

/// Exchanges a tile's rows and pairs of columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(Tile(tile): &mut Tile) {
    let mut rows = [_mm512_setzero_si512(); SIDE];
    for (row, from) in rows.iter_mut().zip(&*tile) {
        *row = words(from);
    }
    // Squares of two, of four, of eight and of sixteen pairs, one after another.
    let mut fours = rows;
    for i in (0..SIDE).step_by(4) {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        let [ab, cd] = [_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)];
        fours[i] = _mm512_unpacklo_epi64(ab, cd);
        fours[i + 1] = _mm512_unpackhi_epi64(ab, cd);
        let [ab, cd] = [_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)];
        fours[i + 2] = _mm512_unpacklo_epi64(ab, cd);
        fours[i + 3] = _mm512_unpackhi_epi64(ab, cd);
    }
    for i in 0..4 {
        let [a, b, c, d] = [fours[i], fours[i + 4], fours[i + 8], fours[i + 12]];
        let even = [
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0x88>(c, d),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        ];
        keep(&mut tile[i], _mm512_shuffle_i32x4::<0x88>(even[0], even[1]));
        keep(
            &mut tile[i + 4],
            _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]),
        );
        keep(
            &mut tile[i + 8],
            _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]),
        );
        keep(
            &mut tile[i + 12],
            _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]),
        );
    }
}

/// Packs `depth` rows: for each 16 columns, for each 32 rows, a tile for each part, whose rows are pairs of
/// rows.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_columns(from: &[f32], pitch: usize, [depth, columns]: [usize; 2], to: &mut [Tile]) {
    let tiles = depth.div_ceil(DEPTH) * PARTS;
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for (band, to) in to.chunks_exact_mut(tiles).enumerate() {
        let count = columns.saturating_sub(band * SIDE);
        for (start, to) in (0..depth).step_by(DEPTH).zip(to.as_chunks_mut::<PARTS>().0) {
            for pair in 0..SIDE {
                let row = start + 2 * pair;
                let count_at = |row: usize| if row < depth { count } else { 0 };
                let even = split(line(from, row * pitch + band * SIDE, count_at(row)));
                let odd = split(line(
                    from,
                    (row + 1) * pitch + band * SIDE,
                    count_at(row + 1),
                ));
                for part in 0..PARTS {
                    let odd = _mm512_and_si512(odd[part], upper);
                    let both = _mm512_or_si512(_mm512_srli_epi32::<16>(even[part]), odd);
                    keep(&mut to[part].0[pair], both);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn words(from: &[u16; DEPTH]) -> __m512i {
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn keep(to: &mut [u16; DEPTH], words: __m512i) {
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
}

/// Has the unit's eight tiles be of 16 rows of 64 bytes.
///
/// # Safety
/// The unit must be there.
unsafe fn configure() {
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    const WHOLE: Configuration = {
        let mut whole = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let mut tile = 0;
        while tile < 8 {
            whole.row_bytes[tile] = 2 * DEPTH as u16;
            whole.rows[tile] = SIDE as u8;
            tile += 1;
        }
        whole
    };
    // SAFETY: as the caller says; the operand is 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, readonly)) };
}

/// Writes sums, or adds them to what is there.
///
/// # Safety
/// The rows must lie within memory that is the caller's.
#[target_feature(enable = "avx512f")]
unsafe fn write(sums: &[[f32; BLOCK]], width: usize, add: bool, to: *mut f32, pitch: usize) {
    for (row, sums) in sums.iter().enumerate() {
        for (start, count) in parts(width, SIDE) {
            let mask = mask(count);
            // SAFETY: as the caller says; what is masked is neither read nor written.
            unsafe {
                let to = to.add(row * pitch + start);
                let sums = _mm512_loadu_ps(sums[start..][..SIDE].as_ptr());
                let all = match add {
                    true => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sums),
                    false => sums,
                };
                _mm512_mask_storeu_ps(to, mask, all);
            }
        }
    }
}

/// Sums the products of two bands of rows with two bands of columns, as they are packed.
///
/// # Safety
/// The unit must be configured. The second of each two slices may be longer than the first.
unsafe fn sum(
    [a, below]: [&[Tile]; 2],
    [b, beside]: [&[Tile]; 2],
    sums: &mut [[f32; BLOCK]; BLOCK],
) {
    let steps = a.len() / PARTS;
    assert!(
        [below, b, beside]
            .iter()
            .all(|tiles| tiles.len() >= steps * PARTS)
    );
    // SAFETY: as the caller says; each step reads the next three tiles of each band, and the sums' four tiles
    // are quarters of the array.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            // Leading and leading.
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm5, [{below} + {row}]",
            "tileloadd tmm7, [{beside} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            // Leading and middle.
            "tileloadd tmm6, [{b} + {row} + 1024]",
            "tileloadd tmm7, [{beside} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            // Leading and last.
            "tileloadd tmm6, [{b} + {row} + 2048]",
            "tileloadd tmm7, [{beside} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            // Middle and middle.
            "tileloadd tmm4, [{a} + {row} + 1024]",
            "tileloadd tmm5, [{below} + {row} + 1024]",
            "tileloadd tmm6, [{b} + {row} + 1024]",
            "tileloadd tmm7, [{beside} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            // Middle and leading.
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{beside} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            // Last and leading.
            "tileloadd tmm4, [{a} + {row} + 2048]",
            "tileloadd tmm5, [{below} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 3072", "add {b}, 3072", "add {below}, 3072", "add {beside}, 3072",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            "tilestored [{sums} + {sums_row} + 2048], tmm2",
            "tilestored [{sums} + {sums_row} + 2112], tmm3",
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            below = inout(reg) below.as_ptr() => _,
            beside = inout(reg) beside.as_ptr() => _,
            steps = inout(reg) steps => _,
            sums = in(reg) sums,
            row = in(reg) 64_usize,
            sums_row = in(reg) size_of::<[f32; BLOCK]>(),
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use rand_mt::Mt;

    use super::*;

    #[test]
    fn it_is_as_exact_as_a_float32_product() {
        if !is_there() {
            eprintln!("skipped: this processor has no such unit");
            return;
        }
        let mut random = Mt::new(7);
        let mut filled = |count: usize| -> Vec<f32> {
            let value = |_| random.next_u32() as f32 / 2.0_f32.powi(31) - 1.0;
            (0..count).map(value).collect()
        };
        for [rows, columns, inner] in [[1, 1, 1], [37, 45, 70], [300, 40, 600], [33, 1100, 64]] {
            let (a, b) = (filled(rows * inner), filled(inner * columns));
            let there = filled(rows * columns);
            for (transposed, add) in [(false, false), (true, false), (false, true)] {
                let pitch = if transposed { inner } else { columns };
                let b_matrix = Matrix {
                    transposed,
                    ..Matrix::new(&b, pitch)
                };
                let mut ours = there.clone();
                let a_matrix = Matrix::new(&a, inner);
                let sides = [rows, columns, inner];
                // SAFETY: the unit is there, and the matrices have these sides.
                unsafe { product(sides, a_matrix, b_matrix, add, ours.as_mut_ptr(), columns) };
                for (i, found) in ours.iter().enumerate() {
                    let (row, column) = (i / columns, i % columns);
                    let mut sum = f64::from(there[i]) * f64::from(u8::from(add));
                    for k in 0..inner {
                        let b = b[if transposed {
                            column * inner + k
                        } else {
                            k * columns + column
                        }];
                        sum += f64::from(a[row * inner + k]) * f64::from(b);
                    }
                    let off = (f64::from(*found) - sum).abs() / (inner as f64).sqrt();
                    assert!(off < 1e-6, "{sides:?} {transposed} {add}: {off}");
                }
            }
        }
    }
}
