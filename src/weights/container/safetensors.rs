//! The header of a safetensors file.

use std::collections::BTreeMap;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::Dtype;
use anyhow::{Context, Result, bail};

use super::encoding::Encoding;
use super::header::{Found, Header};

/// Reads the header of a whole file.
///
/// # Errors
/// When the file is cut off, its header is malformed, or it uses an element type that no model
/// layout has.
pub fn header(file: &[u8]) -> Result<Header> {
    let (header_len, metadata) = SafeTensors::read_metadata(file)
        .context("not a whole safetensors file; download it again")?;
    let data = header_len + 8;
    let tensors = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            Ok(Found {
                encoding: encoding(info.dtype)
                    .with_context(|| format!("the tensor {name} cannot be read"))?,
                name,
                shape: info.shape.clone(),
                start: data + start,
                end: data + end,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Header {
        tensors,
        metadata: metadata
            .metadata()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<BTreeMap<_, _>>(),
    })
}

fn encoding(dtype: Dtype) -> Result<Encoding> {
    Ok(match dtype {
        Dtype::F64 => Encoding::F64,
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::Bf16,
        Dtype::F8_E4M3 => Encoding::F8E4M3,
        Dtype::F8_E5M2 => Encoding::F8E5M2,
        Dtype::I64 => Encoding::I64,
        Dtype::I32 => Encoding::I32,
        Dtype::I16 => Encoding::I16,
        Dtype::I8 => Encoding::I8,
        Dtype::U64 => Encoding::U64,
        Dtype::U32 => Encoding::U32,
        Dtype::U16 => Encoding::U16,
        Dtype::U8 => Encoding::U8,
        Dtype::BOOL => Encoding::Bool,
        other => bail!("it is stored as {other:?}, which is not supported"),
    })
}
