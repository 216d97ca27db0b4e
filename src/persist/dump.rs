//! Intermediate tensors as `.npy` files, for comparison with a reference.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mlx_rs::Array;
use tempfile::NamedTempFile;

use crate::runtime::to_host;
use crate::util::npy::Header;
use crate::util::show::Show;

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
        let cannot = || format!("--dump {}: cannot write there", folder.shown());
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

    /// Writes a schedule's timesteps, as integers where they are.
    ///
    /// # Errors
    /// As [`Self::integers`].
    pub fn timesteps(&self, timesteps: &[f64]) -> Result<()> {
        let name = "timesteps";
        if timesteps.iter().all(|t| t.fract() == 0.0) {
            let integers: Vec<i64> = timesteps.iter().map(|&t| t as i64).collect();
            return self.integers(name, &integers);
        }
        let values: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        self.array(name, &Array::from_slice(&values, &[values.len() as i32]))
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
    pub fn writer<T: Number>(&self, name: &str, shape: &[u64]) -> Result<DumpWriter<T>> {
        let path = self.folder.join(format!("{name}.npy"));
        let create = || {
            let file = NamedTempFile::new_in(&self.folder)?;
            let mut inner = BufWriter::new(file.reopen()?);
            Header::write(&mut inner, T::DESCR, shape)?;
            std::io::Result::Ok((file, inner))
        };
        let (file, inner) = create().with_context(|| format!("cannot write {}", path.shown()))?;
        Ok(DumpWriter {
            inner,
            file,
            path,
            missing: shape.iter().product(),
            elements: PhantomData,
        })
    }
}

/// A type of elements that is written.
pub trait Number: bytemuck::NoUninit {
    /// NumPy's name for it.
    const DESCR: &str;
}

impl Number for f32 {
    const DESCR: &str = "<f4";
}

impl Number for i64 {
    const DESCR: &str = "<i8";
}

/// A `.npy` file being written; it appears under its name when finished.
#[derive(Debug)]
pub struct DumpWriter<T> {
    inner: BufWriter<File>,
    file: NamedTempFile,
    path: PathBuf,
    /// Values that have not come yet.
    missing: u64,
    elements: PhantomData<T>,
}

impl<T: Number> DumpWriter<T> {
    /// Appends values in row-major order.
    ///
    /// # Errors
    /// When the disk is full or gone, or more values come than the shape holds.
    pub fn push(&mut self, values: &[T]) -> Result<()> {
        // Every machine that MLX runs on is little-endian, as the header says.
        let bytes = bytemuck::cast_slice(values);
        let mut write = || {
            let missing = self.missing.checked_sub(values.len() as u64);
            self.missing = missing.ok_or(ErrorKind::InvalidInput)?;
            self.inner.write_all(bytes)
        };
        write().with_context(|| format!("cannot write {}", self.path.shown()))
    }

    /// Writes the last values out and gives the file its name.
    ///
    /// # Errors
    /// When the disk is full or gone, or fewer values came than the shape holds.
    pub fn finish(self) -> Result<()> {
        let close = || {
            if self.missing > 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.inner.into_inner()?;
            self.file.persist(&self.path)?;
            std::io::Result::Ok(())
        };
        close().with_context(|| format!("cannot write {}", self.path.shown()))
    }
}
