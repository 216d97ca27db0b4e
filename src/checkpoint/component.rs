//! One part of a checkpoint as a strict source of tensors.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use mlx_rs::{Array, Dtype as MlxDtype};

use super::files::Files;
use super::safetensors::{Dtype, Entry, TensorStore};
use crate::backend::Backend;
use crate::model::{Role, TensorSource, TensorSpec};

/// How many missing or unexpected tensors an error lists.
const MAX_LISTED: usize = 8;

/// A part of a checkpoint (an expert, the VAE, the text encoder) with its files mapped.
#[derive(Debug)]
pub struct Component {
    store: TensorStore,
    backend: Backend,
}

impl Component {
    /// Maps the files of `folder` and reads their headers.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub fn open(folder: &Path, backend: Backend) -> Result<Self> {
        Self::new(folder.into(), backend)
    }

    /// As [`Self::open`], from wherever the files are.
    pub(super) fn new(files: Files, backend: Backend) -> Result<Self> {
        Ok(Self {
            store: TensorStore::new(files)?,
            backend,
        })
    }

    /// Checks by header that the files hold exactly the tensors of `specs`, with their shapes
    /// and a float dtype; those of `optional` may be there too.
    ///
    /// # Errors
    /// Lists what is missing, unexpected or of another shape, with the nearest names.
    pub fn check(&self, specs: &[TensorSpec], optional: &[&str]) -> Result<()> {
        let entries = self.store.entries();
        let expected: BTreeMap<&str, &TensorSpec> =
            specs.iter().map(|s| (s.name.as_str(), s)).collect();
        let extra: Vec<&str> = entries
            .keys()
            .map(String::as_str)
            .filter(|name| !expected.contains_key(name) && !optional.contains(name))
            .collect();
        let mut problems = Vec::new();
        for spec in specs {
            match entries.get(&spec.name) {
                // Only where it is shown: between two layouts it is thousands times thousands.
                None => problems.push(match nearest(&spec.name, shown(&extra, problems.len())) {
                    Some(near) => format!(
                        "missing: {} {:?} (nearest name in the file: {near})",
                        spec.name, spec.shape
                    ),
                    None => format!("missing: {} {:?}", spec.name, spec.shape),
                }),
                Some(entry) => problems.extend(self.header_problem(&spec.name, entry, &spec.shape)),
            }
        }
        problems.extend(
            extra
                .iter()
                .map(|name| format!("unexpected: {name} {:?}", entries[*name].shape)),
        );
        if problems.is_empty() {
            return Ok(());
        }
        let more = problems.len().saturating_sub(MAX_LISTED);
        let mut list = problems[..problems.len() - more].join("\n  ");
        if more > 0 {
            list += &format!("\n  and {more} more");
        }
        bail!(
            "{}: the tensors do not fit the configuration in config.json ({} expected, {} \
             found):\n  {list}",
            self.store.files(),
            specs.len(),
            entries.len()
        )
    }

    fn header_problem(&self, name: &str, entry: &Entry, shape: &[i32]) -> Option<String> {
        let found: Vec<i64> = entry.shape.iter().map(|&d| d as i64).collect();
        let expected: Vec<i64> = shape.iter().map(|&d| i64::from(d)).collect();
        if found != expected {
            return Some(format!("{name} has shape {found:?}; expected {expected:?}"));
        }
        if mlx_dtype(entry.dtype).is_none() {
            return Some(format!(
                "{name} is stored as {:?}; expected F32, F16 or BF16",
                entry.dtype
            ));
        }
        None
    }
}

impl TensorSource for Component {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array> {
        let folder = self.store.files();
        let Some(entry) = self.store.entries().get(name) else {
            bail!("{folder}: the tensor {name} is missing");
        };
        if let Some(problem) = self.header_problem(name, entry, shape) {
            bail!("{folder}: {problem}");
        }
        let bytes = self.store.bytes(entry);
        ensure!(
            all_finite(entry.dtype, bytes),
            "{folder}: the tensor {name} holds a value that is not finite (NaN or infinite); \
             the file is damaged, download it again"
        );
        let stored = to_array(bytes, shape, entry.dtype)?;
        let dtype = match role {
            Role::Matmul => self.backend.precision.matmul_dtype(),
            Role::Exact => MlxDtype::Float32,
            Role::Table => return Ok(stored),
        };
        let array = stored.as_dtype(dtype)?;
        // Now, so that the stored copy goes before the next tensor comes.
        array.eval()?;
        Ok(array)
    }
}

fn mlx_dtype(dtype: Dtype) -> Option<MlxDtype> {
    match dtype {
        Dtype::F32 => Some(MlxDtype::Float32),
        Dtype::F16 => Some(MlxDtype::Float16),
        Dtype::BF16 => Some(MlxDtype::Bfloat16),
        _ => None,
    }
}

fn to_array(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let (Some(mlx), size) = (mlx_dtype(dtype), dtype.bitsize() / 8) else {
        bail!("cannot convert {dtype:?}");
    };
    let elements = shape.iter().map(|&d| d as usize).product::<usize>();
    ensure!(
        elements * size == bytes.len(),
        "a tensor of shape {shape:?} and {} bytes is not {dtype:?}",
        bytes.len()
    );
    // MLX reads through a typed pointer, and older writers did not align the data.
    let copy: Vec<u64>;
    let data = if (bytes.as_ptr() as usize).is_multiple_of(size) {
        bytes.as_ptr()
    } else {
        copy = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        copy.as_ptr().cast()
    };
    // SAFETY: `data` points at the shape's elements, aligned, and MLX copies them.
    Ok(unsafe { Array::from_raw_data(data.cast::<c_void>(), shape, mlx) })
}

/// True when no element has an all-ones exponent.
fn all_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    let all16 = |exponent: u16| {
        !bytes
            .chunks_exact(2)
            .any(|c| u16::from_le_bytes([c[0], c[1]]) & exponent == exponent)
    };
    match dtype {
        Dtype::F16 => all16(0x7c00),
        Dtype::BF16 => all16(0x7f80),
        _ => !bytes
            .chunks_exact(4)
            .any(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) & 0x7f80_0000 == 0x7f80_0000),
    }
}

/// The candidates, while there is room in the list.
fn shown<'a, 'b>(candidates: &'a [&'b str], listed: usize) -> &'a [&'b str] {
    if listed < MAX_LISTED { candidates } else { &[] }
}

/// The candidate most like `name`, when one is like it at all.
fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|c| (strsim::jaro_winkler(name, c), *c))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
