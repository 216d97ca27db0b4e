//! NumPy's files, mapped.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::tensor::Tensor;
use crate::util::npy::{Element, Header};
use crate::util::show::Show;
use crate::weights::container::encoding::Encoding;
use crate::weights::{Bytes, Files};

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
            .with_context(|| format!("{} cannot be read", self.path.shown()))
    }

    fn read(&self) -> Result<Tensor<'_>> {
        let mut rest: &[u8] = &self.map;
        let header = Header::read(&mut rest)?;
        let encoding = encoding(header.element()?);
        let sides = header.shape.iter().map(|&side| usize::try_from(side));
        let mut shape = sides.collect::<Result<Vec<_>, _>>()?;
        let wanted = encoding
            .byte_len(&shape)
            .context("its shape is too large")?;
        ensure!(
            rest.len() == wanted,
            "its shape {shape:?} of {} takes {wanted} bytes; it holds {}",
            encoding.name(),
            rest.len()
        );
        if !header.fortran_order || shape.len() < 2 {
            return Ok(Tensor::plain(&self.name, encoding, &shape, rest));
        }
        // Column by column, as NumPy writes transposed arrays.
        shape.reverse();
        let axes: Vec<usize> = (0..shape.len()).rev().collect();
        Tensor::plain(&self.name, encoding, &shape, rest).permuted(&axes)
    }
}

fn encoding(element: Element) -> Encoding {
    match element {
        Element::F16 => Encoding::F16,
        Element::F32 => Encoding::F32,
        Element::F64 => Encoding::F64,
        Element::Int(1) => Encoding::I8,
        Element::Int(2) => Encoding::I16,
        Element::Int(4) => Encoding::I32,
        Element::Int(_) => Encoding::I64,
        Element::Uint(1) => Encoding::U8,
        Element::Uint(2) => Encoding::U16,
        Element::Uint(4) => Encoding::U32,
        Element::Uint(_) => Encoding::U64,
        Element::Bool => Encoding::Bool,
    }
}
