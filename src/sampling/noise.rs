//! Noise as PyTorch's CPU generator draws it, so that a seed means the same picture here and there.

use std::f64::consts::TAU;

use rand_mt::Mt;

/// Elements that are transformed together. Fewer than this many take another path.
const GROUP: usize = 16;

/// `count` numbers of the standard normal distribution, equal to
/// `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))` in float32.
///
/// Equal means within 2e-6: PyTorch evaluates the transform in float32, with functions that depend
/// on the machine it runs on; here it is float64, rounded once at the end.
///
/// As in PyTorch only the low 32 bits of `seed` count, a shape matters by its element count alone,
/// and more numbers from one seed do not merely continue fewer ones.
///
/// Source: PyTorch `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_fill`),
/// `aten/src/ATen/core/DistributionsHelper.h` (`normal_distribution`) and `MT19937RNGEngine.h`.
pub fn randn(seed: u64, count: usize) -> Vec<f32> {
    let mut generator = Mt::new(seed as u32);
    if count < GROUP {
        return few(&mut generator, count);
    }
    // All uniforms are drawn before any is transformed, then, if the last group is short, those of
    // the last 16 elements once more, in place of some that were transformed already.
    let mut values: Vec<f32> = Vec::with_capacity(count);
    values.extend((0..count).map(|_| uniform24(&mut generator)));
    let mut groups = values.chunks_exact_mut(GROUP);
    groups.by_ref().for_each(box_muller);
    if !groups.into_remainder().is_empty() {
        let last = &mut values[count - GROUP..];
        last.fill_with(|| uniform24(&mut generator));
        box_muller(last);
    }
    values
}

/// Turns a group of uniforms into normal numbers: the cosine and sine of element `i` and `i + 8`
/// replace the two.
fn box_muller(group: &mut [f32]) {
    let (first, second) = group.split_at_mut(GROUP / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - f64::from(*a)).ln()).sqrt();
        let (sin, cos) = (TAU * f64::from(*b)).sin_cos();
        *a = (radius * cos) as f32;
        *b = (radius * sin) as f32;
    }
}

/// The path for fewer than 16 numbers: one by one, from double precision uniforms, where each pair
/// of uniforms gives two numbers in a row.
fn few(generator: &mut Mt, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let angle = TAU * uniform53(generator);
        let radius = (-2.0 * (-uniform53(generator)).ln_1p()).sqrt();
        let (sin, cos) = angle.sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    values
}

/// A uniform number in [0, 1) with the 24 bits that a float32 holds.
fn uniform24(generator: &mut Mt) -> f32 {
    const STEP: f32 = 1.0 / (1 << 24) as f32;
    (generator.next_u32() & ((1 << 24) - 1)) as f32 * STEP
}

/// A uniform number in [0, 1) with the 53 bits that a float64 holds, high word first.
fn uniform53(generator: &mut Mt) -> f64 {
    const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
    let high = u64::from(generator.next_u32());
    let low = u64::from(generator.next_u32());
    ((high << 32 | low) & ((1 << 53) - 1)) as f64 * STEP
}
