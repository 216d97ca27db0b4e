//! Intermediate tensors as `.npy` files, for comparison with a reference.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mlx_rs::Array;
use npyz::{WriteOptions, WriterBuilder};
use tempfile::NamedTempFile;

use crate::runtime::to_host;

/// A folder that intermediates are written to.
#[derive(Debug)]
pub struct Dump {
    folder: PathBuf,
}

impl Dump {
    /// Makes sure that `folder` exists and can be written to.
    ///
    /// # Errors
    /// When it cannot be created or written to.
    pub fn create(folder: &Path) -> Result<Self> {
        let cannot = || format!("--dump {}: cannot write there", folder.display());
        fs::create_dir_all(folder).with_context(cannot)?;
        NamedTempFile::new_in(folder).with_context(cannot)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Writes a float array as float32, `{name}.npy`. Evaluates it.
    ///
    /// # Errors
    /// When it cannot be evaluated or written.
    pub fn array(&self, name: &str, array: &Array) -> Result<()> {
        let shape: Vec<u64> = array.shape().iter().map(|&d| d as u64).collect();
        let mut writer = self.writer(name, &shape)?;
        writer.push(&to_host(array)?)?;
        writer.finish()
    }

    /// Writes integers, `{name}.npy`, as int64.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn integers(&self, name: &str, values: &[i64]) -> Result<()> {
        let mut writer = self.writer(name, &[values.len() as u64])?;
        writer.push(values)?;
        writer.finish()
    }

    /// Starts `{name}.npy` of a shape that is known before its values are.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn writer<T: npyz::AutoSerialize>(
        &self,
        name: &str,
        shape: &[u64],
    ) -> Result<DumpWriter<T>> {
        let path = self.folder.join(format!("{name}.npy"));
        let create = || {
            let file = NamedTempFile::new_in(&self.folder)?;
            let inner = WriteOptions::new()
                .default_dtype()
                .shape(shape)
                .writer(BufWriter::new(file.reopen()?))
                .begin_nd()?;
            std::io::Result::Ok((file, inner))
        };
        let (file, inner) = create().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(DumpWriter { inner, file, path })
    }
}

/// A `.npy` file being written; it appears under its name when finished.
pub struct DumpWriter<T: npyz::Serialize> {
    inner: npyz::NpyWriter<T, BufWriter<File>>,
    file: NamedTempFile,
    path: PathBuf,
}

impl<T: npyz::Serialize + Copy> DumpWriter<T> {
    /// Appends values in row-major order.
    ///
    /// # Errors
    /// When the disk is full or gone.
    pub fn push(&mut self, values: &[T]) -> Result<()> {
        self.inner
            .extend(values.iter().copied())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes the last values out and gives the file its name.
    ///
    /// # Errors
    /// When the disk is full or gone, or fewer values came than the shape holds.
    pub fn finish(self) -> Result<()> {
        let Self { inner, file, path } = self;
        let close = || {
            inner.finish()?;
            file.persist(&path)?;
            std::io::Result::Ok(())
        };
        close().with_context(|| format!("cannot write {}", path.display()))
    }
}
