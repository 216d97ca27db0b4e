//! GGUF files, versions 2 and 3: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! A file is a magic number, a version and two counts; the metadata; a record for every tensor;
//! padding up to the alignment; the data. Only what stands before the data is read.

mod metadata;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use super::encoding::Encoding;
use super::header::{Found, Header};
use metadata::{Cursor, Kind, Value};

/// What a file starts with.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// The alignment of a file that does not name one.
const DEFAULT_ALIGNMENT: usize = 32;
/// ggml knows four dimensions, but files for ComfyUI hold convolutions with five.
const MAX_DIMENSIONS: usize = 8;
/// ggml's own limit is 63 bytes, and 127 as ComfyUI's converter is built.
const MAX_NAME: usize = 1024;
/// Length of a name's length, number of dimensions, type and offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;

/// Reads the header of a file.
///
/// Shapes are outermost first, as the tensor was before it was written; positions are in the
/// file. The metadata holds numbers, booleans, strings and short arrays of numbers (`[1, 2]`);
/// for longer arrays see [`strings`], [`floats`] and [`integers`].
///
/// # Errors
/// When the file is no GGUF file of these versions, is cut off, contradicts itself, or stores a
/// tensor in a way that [`Encoding`] does not know.
pub fn header(file: &[u8]) -> Result<Header> {
    let (mut cursor, tensors) = Cursor::start(file)?;
    let mut header = Header::default();
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut keys = BTreeSet::new();
    for index in 0..cursor.entries {
        let (key, value) = cursor.entry(index)?;
        ensure!(
            keys.insert(key.clone()),
            "the metadata has the key {key:?} twice; expected it once"
        );
        if key == "general.alignment" {
            alignment = parse_alignment(&value)?;
        }
        if let Some(text) = value.text() {
            header.metadata.insert(key, text);
        }
    }
    cursor.check_count("tensors", tensors, MIN_TENSOR)?;
    let mut names = BTreeSet::new();
    let mut offsets = Vec::new();
    for index in 0..tensors {
        let (found, offset) = tensor(&mut cursor)
            .with_context(|| format!("tensor {} of {tensors} in the header", index + 1))?;
        ensure!(
            names.insert(found.name.clone()),
            "the tensor {:?} is listed twice; expected it once",
            found.name
        );
        header.tensors.push(found);
        offsets.push(offset);
    }
    let data = cursor
        .position()
        .checked_next_multiple_of(alignment)
        .with_context(|| format!("an alignment of {alignment} bytes; expected a small one"))?;
    for (found, offset) in header.tensors.iter_mut().zip(offsets) {
        place(found, offset, data, alignment, file.len())?;
    }
    check_overlap(&header.tensors)?;
    Ok(header)
}

/// The strings of an array in the metadata, such as `tokenizer.ggml.tokens`; `None` without one.
///
/// # Errors
/// When the metadata is damaged, or the key holds something else.
pub fn strings(file: &[u8], key: &str) -> Result<Option<Vec<String>>> {
    let Some(value) = find(file, key)? else {
        return Ok(None);
    };
    value
        .strings()
        .with_context(|| format!("{key}: expected an array of strings"))
        .map(Some)
}

/// The numbers of an array in the metadata as float32, such as `tokenizer.ggml.scores`; `None`
/// without one.
///
/// # Errors
/// When the metadata is damaged, or the key holds something else.
pub fn floats(file: &[u8], key: &str) -> Result<Option<Vec<f32>>> {
    let Some(value) = find(file, key)? else {
        return Ok(None);
    };
    value
        .floats()
        .with_context(|| format!("{key}: expected an array of f32"))
        .map(Some)
}

/// The integers of an array in the metadata, such as `tokenizer.ggml.token_type` or the bytes of
/// `tokenizer.ggml.precompiled_charsmap`; `None` without one.
///
/// # Errors
/// When the metadata is damaged, or the key holds something else.
pub fn integers(file: &[u8], key: &str) -> Result<Option<Vec<i64>>> {
    let Some(value) = find(file, key)? else {
        return Ok(None);
    };
    value
        .integers()
        .with_context(|| format!("{key}: expected an array of integers below 2^63"))
        .map(Some)
}

fn find<'a>(file: &'a [u8], wanted: &str) -> Result<Option<Value<'a>>> {
    let (mut cursor, _) = Cursor::start(file)?;
    for index in 0..cursor.entries {
        let (key, value) = cursor.entry(index)?;
        if key == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn parse_alignment(value: &Value) -> Result<usize> {
    let text = match value {
        Value::Number(Kind::U32, _) => value.text(),
        _ => None,
    };
    let text = text.context("general.alignment is no u32; expected a power of two as u32")?;
    text.parse()
        .ok()
        .filter(|alignment: &usize| alignment.is_power_of_two())
        .with_context(|| format!("general.alignment is {text}; expected a power of two"))
}

/// A tensor without its place, and its offset in the data.
fn tensor(cursor: &mut Cursor) -> Result<(Found, u64)> {
    let name = cursor.name("the name", MAX_NAME)?;
    let rest = |cursor: &mut Cursor| {
        let dimensions = usize::try_from(cursor.u32("the number of dimensions")?)?;
        ensure!(
            dimensions <= MAX_DIMENSIONS,
            "{dimensions} dimensions; expected at most {MAX_DIMENSIONS}"
        );
        let mut shape = (0..dimensions)
            .map(|_| {
                let dimension = cursor.u64("a dimension")?;
                usize::try_from(dimension)
                    .with_context(|| format!("a dimension of {dimension} is too large"))
            })
            .collect::<Result<Vec<_>>>()?;
        // The file has the innermost first.
        shape.reverse();
        let encoding = encoding(cursor.u32("the type")?)?;
        Ok((encoding, shape, cursor.u64("the offset")?))
    };
    let (encoding, shape, offset) = rest(cursor).with_context(|| format!("{name:?}"))?;
    let found = Found {
        name,
        encoding,
        shape,
        start: 0,
        end: 0,
        record: None,
    };
    Ok((found, offset))
}

/// Sets where the tensor lies.
fn place(
    found: &mut Found,
    offset: u64,
    data: usize,
    alignment: usize,
    file_len: usize,
) -> Result<()> {
    let Found {
        name,
        encoding,
        shape,
        ..
    } = &*found;
    let bytes = encoding.byte_len(shape).with_context(|| {
        format!(
            "the tensor {name:?} has shape {shape:?} as {}; expected an innermost dimension that \
             is a multiple of {}, and a size that a file can have",
            encoding.name(),
            encoding.block_elements()
        )
    })?;
    let offset = usize::try_from(offset).ok();
    ensure!(
        offset.is_none_or(|offset| offset.is_multiple_of(alignment)),
        "the tensor {name:?} starts at byte {} of the data; expected a multiple of the alignment, \
         {alignment}",
        offset.unwrap_or_default()
    );
    let start = offset.and_then(|offset| data.checked_add(offset));
    let end = start.and_then(|start| start.checked_add(bytes));
    match (start, end) {
        (Some(start), Some(end)) if end <= file_len => (found.start, found.end) = (start, end),
        _ => bail!(
            "the tensor {name:?} lies behind the end of the file: {bytes} bytes at position \
             {data} + {}, but the file has {file_len}; it is cut off, download it again",
            offset.unwrap_or(usize::MAX)
        ),
    }
    Ok(())
}

fn check_overlap(tensors: &[Found]) -> Result<()> {
    let mut order: Vec<&Found> = tensors.iter().filter(|t| t.end > t.start).collect();
    order.sort_by_key(|t| t.start);
    for pair in order.windows(2) {
        let [a, b] = pair else { continue };
        ensure!(
            a.end <= b.start,
            "the tensors {:?} (bytes {} to {}) and {:?} (bytes {} to {}) overlap; the file is \
             damaged, download it again",
            a.name,
            a.start,
            a.end,
            b.name,
            b.start,
            b.end
        );
    }
    Ok(())
}

/// The encoding of a type number (ggml-org/ggml, include/ggml.h, `ggml_type`).
fn encoding(number: u32) -> Result<Encoding> {
    let unsupported = match number {
        0 => return Ok(Encoding::F32),
        1 => return Ok(Encoding::F16),
        2 => return Ok(Encoding::Q4_0),
        3 => return Ok(Encoding::Q4_1),
        6 => return Ok(Encoding::Q5_0),
        7 => return Ok(Encoding::Q5_1),
        8 => return Ok(Encoding::Q8_0),
        10 => return Ok(Encoding::Q2K),
        11 => return Ok(Encoding::Q3K),
        12 => return Ok(Encoding::Q4K),
        13 => return Ok(Encoding::Q5K),
        14 => return Ok(Encoding::Q6K),
        20 => return Ok(Encoding::Iq4Nl),
        23 => return Ok(Encoding::Iq4Xs),
        24 => return Ok(Encoding::I8),
        25 => return Ok(Encoding::I16),
        26 => return Ok(Encoding::I32),
        27 => return Ok(Encoding::I64),
        28 => return Ok(Encoding::F64),
        30 => return Ok(Encoding::Bf16),
        39 => return Ok(Encoding::Mxfp4),
        40 => return Ok(Encoding::Nvfp4),
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        31..=33 => "a repacked Q4_0",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36..=38 => "a repacked IQ4_NL",
        41 => "Q1_0",
        _ => "unknown",
    };
    bail!(
        "stored as type {number} ({unsupported}), which is not supported\nhint: take a file with F32, \
         F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4, NVFP4, Q3_K or Q2_K"
    )
}
