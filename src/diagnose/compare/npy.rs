//! NumPy's files, mapped.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::tensor::Tensor;
use crate::weights::container::encoding::Encoding;
use crate::weights::{Bytes, Files};

/// What every such file begins with.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// One array.
#[derive(Debug)]
pub struct Npy {
    name: String,
    path: PathBuf,
    map: Bytes,
}

impl Npy {
    /// Maps a file; its array is named after it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let (files, file) = Files::holding(path);
        Ok(Self {
            name: file.strip_suffix(".npy").unwrap_or(&file).to_owned(),
            path: path.to_owned(),
            map: files.map(&file)?,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The array.
    ///
    /// # Errors
    /// When the file is damaged, or its elements are no numbers.
    pub fn tensor(&self) -> Result<Tensor<'_>> {
        self.read()
            .with_context(|| format!("{} cannot be read", self.path.display()))
    }

    fn read(&self) -> Result<Tensor<'_>> {
        let mut rest: &[u8] = &self.map;
        let header = NpyHeader::from_reader(&mut rest).context("not a whole .npy file")?;
        let encoding = encoding(&header.dtype())?;
        let mut shape = header
            .shape()
            .iter()
            .map(|&side| usize::try_from(side))
            .collect::<Result<Vec<_>, _>>()?;
        let wanted = encoding
            .byte_len(&shape)
            .context("its shape is too large")?;
        ensure!(
            rest.len() == wanted,
            "its shape {shape:?} of {} takes {wanted} bytes; it holds {}",
            encoding.name(),
            rest.len()
        );
        if header.order() == Order::C || shape.len() < 2 {
            return Ok(Tensor::plain(&self.name, encoding, &shape, rest));
        }
        // Column by column, as NumPy writes transposed arrays.
        shape.reverse();
        let axes: Vec<usize> = (0..shape.len()).rev().collect();
        Tensor::plain(&self.name, encoding, &shape, rest).permuted(&axes)
    }
}

fn encoding(dtype: &DType) -> Result<Encoding> {
    let DType::Plain(kind) = dtype else {
        bail!("its elements are {}, not numbers", dtype.descr());
    };
    ensure!(
        kind.endianness() != Endianness::Big,
        "its elements are {kind}, in big-endian order; save it again as little-endian"
    );
    Ok(match (kind.type_char(), kind.num_bytes()) {
        (TypeChar::Float, Some(2)) => Encoding::F16,
        (TypeChar::Float, Some(4)) => Encoding::F32,
        (TypeChar::Float, Some(8)) => Encoding::F64,
        (TypeChar::Int, Some(1)) => Encoding::I8,
        (TypeChar::Int, Some(2)) => Encoding::I16,
        (TypeChar::Int, Some(4)) => Encoding::I32,
        (TypeChar::Int, Some(8)) => Encoding::I64,
        (TypeChar::Uint, Some(1)) => Encoding::U8,
        (TypeChar::Uint, Some(2)) => Encoding::U16,
        (TypeChar::Uint, Some(4)) => Encoding::U32,
        (TypeChar::Uint, Some(8)) => Encoding::U64,
        (TypeChar::Bool, _) => Encoding::Bool,
        _ => bail!("its elements are {kind}; expected real numbers or integers"),
    })
}
