//! The header of a safetensors file.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use ::safetensors::SafeTensorError;
use ::safetensors::tensor::{Dtype, Metadata};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, de};

use super::encoding::Encoding;
use super::header::{Found, Header};

/// Reads the header of a whole file.
///
/// # Errors
/// When the file is cut off, its header is malformed, or it uses an element type that no model
/// layout has.
pub fn header(file: &[u8]) -> Result<Header> {
    const WHOLE: &str = "not a whole safetensors file\nhint: download it again";
    let text = text(file).context(WHOLE)?;
    check_names(&text)?;
    let metadata: Metadata = serde_json::from_slice(&text)
        .map_err(SafeTensorError::InvalidHeaderDeserialization)
        .context(WHOLE)?;
    let data = LENGTH + text.len();
    if data.checked_add(metadata.data_len()) != Some(file.len()) {
        return Err(SafeTensorError::MetadataIncompleteBuffer).context(WHOLE);
    }
    let tensors = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            Ok(Found {
                encoding: encoding(info.dtype)
                    .with_context(|| format!("the tensor {name:?} cannot be read"))?,
                name,
                shape: info.shape.clone(),
                start: data + start,
                end: data + end,
                record: None,
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

/// A copy of the header: the file is mapped, and who changes it meanwhile must not change a text that
/// has been found to be UTF-8. One that is too long to be a model's is refused.
fn text(file: &[u8]) -> Result<Vec<u8>> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
        bail!(SafeTensorError::HeaderTooSmall);
    };
    let length = u64::from_le_bytes(*length);
    let Some(text) = usize::try_from(length).ok().and_then(|l| rest.get(..l)) else {
        bail!(SafeTensorError::InvalidHeaderLength);
    };
    ensure!(
        text.len() <= MAX_HEADER,
        "its header has {length} bytes; expected at most {MAX_HEADER}"
    );
    Ok(text.to_vec())
}

/// Refuses a header that has a name twice: which of the two tensors a reader takes would be up to the
/// reader.
fn check_names(text: &[u8]) -> Result<()> {
    // What is no header at all the library names.
    let twice = serde_json::from_slice::<Names>(text);
    if let Ok(Names { twice: Some(name) }) = twice {
        bail!("its header is damaged: {name:?} stands there twice");
    }
    Ok(())
}

/// Bytes of the header's length.
const LENGTH: usize = 8;
/// The longest header that is read, in bytes. That of A14B's expert has 0.14 MB.
const MAX_HEADER: usize = 8 << 20;

/// The names of a header.
struct Names {
    /// One that stands there more than once.
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with a tensor for each name")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let (mut seen, mut twice) = (HashSet::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    map.next_value::<de::IgnoredAny>()?;
                    if let Some(name) = seen.replace(name) {
                        twice = Some(name);
                    }
                }
                Ok(Names { twice })
            }
        }
        deserializer.deserialize_map(Visitor)
    }
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
        // An exponent alone, which only scales have.
        Dtype::U8 | Dtype::F8_E8M0 => Encoding::U8,
        Dtype::BOOL => Encoding::Bool,
        Dtype::F4 => bail!(
            "it is of a model in float4 of a kind that is not read\nhint: take the model in fp16, bf16, \
             fp8 (scaled) or as GGUF instead"
        ),
        other => bail!("it is stored as {other:?}, which is not supported"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn a_name_that_stands_there_twice_is_refused() {
        let tensor = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let once = header(&file(&format!(r#"{{"a":{tensor}}}"#))).unwrap();
        assert_eq!(once.tensors.len(), 1);
        let twice = file(&format!(r#"{{"a":{tensor},"a":{tensor}}}"#));
        let error = format!("{:#}", header(&twice).unwrap_err());
        assert!(error.contains(r#""a" stands there twice"#), "{error}");
    }

    #[test]
    fn a_header_longer_than_any_model_s_is_refused() {
        let long = file(&format!("{{}}{}", " ".repeat(MAX_HEADER)));
        let error = format!("{:#}", header(&long).unwrap_err());
        assert!(error.contains("expected at most 8388608"), "{error}");
    }
}
