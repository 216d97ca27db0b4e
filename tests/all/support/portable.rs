//! Random weights that Rust and `scripts/golden/portable.py` make alike, to the last bit.

/// The values of tensor `name` of `component` in case `case`, row-major.
pub fn weights(case: &str, component: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let (offset, scale) = rule(name, shape);
    uniform(&format!("{case}/{component}/{name}"), shape)
        .map(|u| offset + scale * u)
        .collect()
}

/// Input `name` of case `case`: uniform in [-scale, scale).
pub fn input(case: &str, name: &str, shape: &[usize], scale: f32) -> Vec<f32> {
    uniform(&format!("{case}/input/{name}"), shape)
        .map(|u| scale * u)
        .collect()
}

/// Offset and scale by the tensor's name, so that activations keep to sensible sizes.
fn rule(name: &str, shape: &[usize]) -> (f32, f32) {
    if name.ends_with(".alpha") {
        (6.0, 2.0)
    } else if name.contains("gamma") || name.contains("magnitude") {
        (1.0, 0.2)
    } else if name.contains("scale_shift_table") {
        (0.0, 0.3)
    } else if name.contains("relative_attention_bias")
        || name.contains("shared.")
        || name.contains("embed_tokens.")
    {
        (0.0, 1.0)
    } else if shape.len() == 1 && name.ends_with("weight") {
        (1.0, 0.2)
    } else if shape.len() == 1 {
        (0.0, 0.1)
    } else {
        let fan_in: usize = shape[1..].iter().product();
        (0.0, (3.0 / fan_in as f64).sqrt() as f32)
    }
}

/// Uniform in [-1, 1) with 24 bits: FNV-1a of the key starts a splitmix64 sequence.
fn uniform(key: &str, shape: &[usize]) -> impl Iterator<Item = f32> {
    let start = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let count: usize = shape.iter().product();
    (0..count as u64).map(move |i| {
        let mut z = start.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / 8_388_608.0 - 1.0
    })
}
