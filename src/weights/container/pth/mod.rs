//! PyTorch checkpoints (`.pth`, `.pt`, `.bin`) as `torch.save` writes them since version 1.6.
//!
//! Such a file is a zip archive of uncompressed records below one folder: `data.pkl`, a pickle
//! of the objects saved, and `data/0`, `data/1`, ..., the raw bytes of each storage that tensors
//! view. (Source: pytorch/pytorch, `torch/serialization.py` and `caffe2/serialize/inline_container.cc`.)
//! Nothing is executed and no data is read: the pickle goes through a machine that knows tensors,
//! dictionaries and plain values only, and the result is where each tensor's bytes are.

mod calls;
mod globals;
mod names;
mod pickle;
mod records;
mod unpickler;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::header::{Found, Header};
use pickle::{Pickle, Tensor, Value};
use records::Records;

/// Dimensions of a tensor at most; models have up to five.
const MAX_RANK: usize = 16;

/// Finds the tensors of a checkpoint; `file` is all of it, mapped.
///
/// The dictionary saved may be nested: a tensor's name is its path joined by dots. When only one
/// entry of the outermost dictionary holds tensors and is itself a dictionary (`state_dict`,
/// `model`, `module`, ...), its name is left out. Whatever is neither tensor nor container is
/// skipped, and `metadata` stays empty.
///
/// # Errors
/// When the file is truncated, damaged or of another format; when its pickle asks for anything
/// but dictionaries of tensors; when a tensor is not contiguous or reaches past its storage. The
/// message names the record, the byte of the pickle or the tensor.
pub fn header(file: &[u8]) -> Result<Header> {
    let records = Records::open(file)?;
    let pickle = records.pickle()?;
    let pickle = unpickler::run(&pickle)?;
    let mut header = Header {
        tensors: Vec::new(),
        metadata: Default::default(),
    };
    let mut seen = BTreeSet::new();
    for (name, tensor) in names::collect(&pickle)? {
        let found = locate(&name, tensor, &pickle, &records)
            .with_context(|| format!("the tensor {name:?}"))?;
        ensure!(
            seen.insert(name),
            "two tensors are named {:?}; expected every name once",
            found.name
        );
        header.tensors.push(found);
    }
    Ok(header)
}

/// Where the bytes of `tensor` are.
fn locate(name: &str, tensor: &Tensor, pickle: &Pickle, records: &Records) -> Result<Found> {
    let storage = &pickle.storages[tensor.storage];
    let record = records.storage(storage.key)?;
    let bytes = storage.encoding.map_or(1, |e| e.block_bytes());
    let length = record.end - record.start;
    ensure!(
        storage.elements.checked_mul(bytes) == Some(length),
        "its storage {:?} is a record of {} bytes; expected {} times {bytes}",
        storage.key,
        length,
        storage.elements
    );
    let shape = sizes(pickle.items(tensor.shape), "shape")?;
    let strides = sizes(pickle.items(tensor.strides), "strides")?;
    ensure!(
        is_contiguous(&shape, &strides),
        "of shape {shape:?} has the strides {strides:?}, which are not those of a contiguous \
         tensor; save it again after tensor.contiguous()"
    );
    let place = || {
        let start = tensor
            .offset
            .checked_mul(tensor.encoding.block_bytes())?
            .checked_add(record.start)?;
        let end = start.checked_add(tensor.encoding.byte_len(&shape)?)?;
        (end <= record.end).then_some((start, end))
    };
    let (start, end) = place().with_context(|| {
        format!(
            "of shape {shape:?} from element {} on reaches past its storage of {} bytes",
            tensor.offset, length
        )
    })?;
    Ok(Found {
        name: name.into(),
        encoding: tensor.encoding,
        shape,
        start,
        end,
        // Zero: whoever wrote it computed none.
        record: Some(record).filter(|record| record.crc32 != 0),
    })
}

/// The numbers of a tuple.
fn sizes(values: &[Value], what: &str) -> Result<Vec<usize>> {
    ensure!(
        values.len() <= MAX_RANK,
        "has {} {what}; expected at most {MAX_RANK}",
        values.len()
    );
    let size = |value: &Value| match value {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    };
    values
        .iter()
        .map(|v| size(v).with_context(|| format!("has {what} that are no counts")))
        .collect()
}

/// Whether elements follow each other in row-major order; the stride of a dimension of one
/// element says nothing.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    if shape.len() != strides.len() {
        return false;
    }
    if shape.contains(&0) {
        return true;
    }
    let mut expected = Some(1_usize);
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && expected != Some(stride) {
            return false;
        }
        expected = expected.and_then(|e| e.checked_mul(size));
    }
    true
}
