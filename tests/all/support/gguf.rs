//! Writes GGUF files, with quantizers that are simple instead of good.

use half::{bf16, f16};
use wan_i2v::weights::container::encoding::Encoding;

use super::layouts::{decode, encode};

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    F32(f32),
    Text(&'static str),
    Strings(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    /// Type number and bytes as they are.
    Raw(u32, Vec<u8>),
}

/// A tensor as the file holds it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// ggml's type number.
    pub kind: u32,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of `values` in an encoding that [`quantize`] knows.
    pub fn new(name: &str, shape: &[usize], encoding: Encoding, values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let bytes = quantize(encoding, values);
        assert_eq!(encoding.byte_len(shape), Some(bytes.len()));
        Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind: kind(encoding),
            bytes,
        }
    }
}

/// A file of version 3 with the default alignment.
pub fn file(metadata: &[(&str, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    push_len(&mut out, tensors.len());
    push_len(&mut out, metadata.len());
    for (key, value) in metadata {
        push_text(&mut out, key);
        push_value(&mut out, value);
    }
    let mut data = Vec::new();
    for tensor in tensors {
        push_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &dimension in tensor.shape.iter().rev() {
            push_len(&mut out, dimension);
        }
        out.extend(tensor.kind.to_le_bytes());
        push_len(&mut out, data.len());
        data.extend(&tensor.bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// `values` as blocks of one of the encodings below. Rows have to be whole blocks.
pub fn quantize(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    let block = match encoding {
        Encoding::F32 => |v: &[f32]| v[0].to_le_bytes().to_vec(),
        Encoding::F16 => |v: &[f32]| f16::from_f32(v[0]).to_le_bytes().to_vec(),
        Encoding::Bf16 => |v: &[f32]| bf16::from_f32(v[0]).to_le_bytes().to_vec(),
        Encoding::Q8_0 => q8_0,
        Encoding::Q4_0 => q4_0,
        Encoding::Q4K => |v: &[f32]| q45_k(v, 15.0),
        Encoding::Q5K => |v: &[f32]| q45_k(v, 31.0),
        Encoding::Q6K => q6_k,
        Encoding::Iq4Nl => iq4_nl,
        Encoding::Mxfp4 => mxfp4,
        Encoding::Nvfp4 => nvfp4,
        other => panic!("no quantizer for {}", other.name()),
    };
    let blocks = values.chunks_exact(encoding.block_elements());
    assert!(blocks.remainder().is_empty());
    blocks.flat_map(block).collect()
}

fn q8_0(values: &[f32]) -> Vec<u8> {
    let (mut out, scale) = rounded(largest(values) / 127.0);
    out.extend(
        values
            .iter()
            .map(|v| level(*v, scale, -127.0, 127.0) as i8 as u8),
    );
    out
}

fn q4_0(values: &[f32]) -> Vec<u8> {
    let (mut out, scale) = rounded(largest(values) / 7.5);
    let q = |i: usize| (level(values[i], scale, -8.0, 7.0) + 8.0) as u8;
    out.extend((0..16).map(|i| q(i) | q(i + 16) << 4));
    out
}

/// The nearest of ggml's uneven levels.
fn iq4_nl(values: &[f32]) -> Vec<u8> {
    const LEVELS: [f32; 16] = [
        -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0,
        69.0, 89.0, 113.0,
    ];
    let (mut out, scale) = rounded(largest(values) / 113.0);
    let distance = |i: usize, level: usize| (values[i] - scale * LEVELS[level]).abs();
    let q = |i: usize| -> u8 {
        let near = (0..16).min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
        near.unwrap() as u8
    };
    out.extend((0..16).map(|i| q(i) | q(i + 16) << 4));
    out
}

fn mxfp4(values: &[f32]) -> Vec<u8> {
    let power = (largest(values) / 6.0).log2().ceil().max(-126.0);
    let q = |i: usize| float4(values[i] / power.exp2());
    let numbers = (0..16).map(|i| q(i) | q(i + 16) << 4);
    std::iter::once((power + 127.0) as u8)
        .chain(numbers)
        .collect()
}

fn nvfp4(values: &[f32]) -> Vec<u8> {
    let groups = values.chunks(16);
    let scales: Vec<f32> = groups.map(|group| largest(group) / 6.0).collect();
    let mut out = encode(Encoding::F8E4M3, &scales);
    let scales = decode(Encoding::F8E4M3, &out);
    for (group, scale) in values.chunks(16).zip(scales) {
        let q = |i: usize| float4(group[i] / scale.max(1e-9));
        out.extend((0..8).map(|i| q(i) | q(i + 8) << 4));
    }
    out
}

/// The nearest float4.
fn float4(value: f32) -> u8 {
    const LEVELS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let distance = |level: usize| (value.abs() - LEVELS[level]).abs();
    let near = (0..8).min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
    near.unwrap() as u8 | u8::from(value < 0.0) << 3
}

/// Q4_K where the highest level is 15, Q5_K where it is 31.
fn q45_k(values: &[f32], top: f32) -> Vec<u8> {
    let groups: Vec<(f32, f32)> = values.chunks(32).map(|v| range(v, top)).collect();
    let (mut out, scale) = rounded(largest(&groups.iter().map(|g| g.0).collect::<Vec<_>>()) / 63.0);
    let (bytes, min) = rounded(largest(&groups.iter().map(|g| g.1).collect::<Vec<_>>()) / 63.0);
    out.extend(bytes);
    let six = |value, unit| level(value, unit, 0.0, 63.0) as u8;
    let s: Vec<u8> = groups.iter().map(|g| six(g.0, scale)).collect();
    let m: Vec<u8> = groups.iter().map(|g| six(g.1, min)).collect();
    out.extend((0..4).map(|i| s[i] | s[i + 4] >> 4 << 6));
    out.extend((0..4).map(|i| m[i] | m[i + 4] >> 4 << 6));
    out.extend((4..8).map(|i| s[i] & 15 | m[i] << 4));
    let q = |i: usize| {
        let (s, m) = (scale * f32::from(s[i / 32]), min * f32::from(m[i / 32]));
        level(values[i] + m, s, 0.0, top) as u8
    };
    if top > 15.0 {
        let fifth = |i: usize| {
            (0..8)
                .map(|group| (q(32 * group + i) >> 4) << group)
                .sum::<u8>()
        };
        out.extend((0..32).map(fifth));
    }
    out.extend((0..128).map(|i| q(i + i / 32 * 32) & 15 | q(i + i / 32 * 32 + 32) << 4));
    out
}

fn q6_k(values: &[f32]) -> Vec<u8> {
    let groups: Vec<f32> = values.chunks(16).map(|v| largest(v) / 31.0).collect();
    let (bytes, scale) = rounded(largest(&groups) / 127.0);
    let s: Vec<u8> = groups
        .iter()
        .map(|g| level(*g, scale, 0.0, 127.0) as u8)
        .collect();
    let q = |i: usize| {
        let scale = scale * f32::from(s[i / 16]);
        (level(values[i], scale, -32.0, 31.0) + 32.0) as u8
    };
    let lower = |i: usize| {
        let i = i + i / 64 * 64;
        q(i) & 15 | q(i + 64) << 4
    };
    let upper = |i: usize| {
        let i = i + i / 32 * 96;
        (0..4)
            .map(|part| q(i + 32 * part) >> 4 << (2 * part))
            .sum::<u8>()
    };
    let out = (0..128).map(lower).chain((0..64).map(upper));
    out.chain(s.iter().copied()).chain(bytes).collect()
}

/// A scale as float16: its bytes and value.
fn rounded(scale: f32) -> (Vec<u8>, f32) {
    let scale = f16::from_f32(scale);
    (scale.to_le_bytes().to_vec(), scale.to_f32())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// The scale and the minimum below zero that take `values` to 0..=top.
fn range(values: &[f32], top: f32) -> (f32, f32) {
    let low = values.iter().fold(0.0_f32, |m, v| m.min(*v));
    let high = values.iter().fold(0.0_f32, |m, v| m.max(*v));
    ((high - low) / top, -low)
}

fn level(value: f32, scale: f32, low: f32, high: f32) -> f32 {
    if scale == 0.0 {
        return 0.0;
    }
    (value / scale).round().clamp(low, high)
}

/// ggml's number of an encoding.
pub fn kind(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F32 => 0,
        Encoding::F16 => 1,
        Encoding::Bf16 => 30,
        Encoding::Q8_0 => 8,
        Encoding::Q4_0 => 2,
        Encoding::Q4K => 12,
        Encoding::Q5K => 13,
        Encoding::Q6K => 14,
        Encoding::Iq4Nl => 20,
        Encoding::Mxfp4 => 39,
        Encoding::Nvfp4 => 40,
        other => panic!("no type number for {}", other.name()),
    }
}

fn push_len(out: &mut Vec<u8>, length: usize) {
    out.extend((length as u64).to_le_bytes());
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_len(out, text.len());
    out.extend(text.as_bytes());
}

fn push_value(out: &mut Vec<u8>, value: &Value) {
    let number = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes(), bytes].concat();
    let array = |kind: u32, count: usize, bytes: Vec<u8>| {
        let kinds = [9_u32.to_le_bytes(), kind.to_le_bytes()].concat();
        [kinds, (count as u64).to_le_bytes().to_vec(), bytes].concat()
    };
    out.extend(match value {
        Value::U32(v) => number(4, &v.to_le_bytes()),
        Value::F32(v) => number(6, &v.to_le_bytes()),
        Value::Text(v) => {
            let mut bytes = Vec::new();
            push_text(&mut bytes, v);
            number(8, &bytes)
        }
        Value::Strings(v) => {
            let mut bytes = Vec::new();
            v.iter().for_each(|text| push_text(&mut bytes, text));
            array(8, v.len(), bytes)
        }
        Value::Floats(v) => array(6, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Value::Ints(v) => array(5, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Value::Raw(kind, bytes) => number(*kind, bytes),
    });
}
