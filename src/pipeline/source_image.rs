//! A job's picture, which need not be in memory while the job waits.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::media::picture::Picture;
use crate::util::hex::to_hex;
use crate::util::show::Show;

/// A picture's size and hashes, and its pixels while they are kept.
#[derive(Clone, Debug)]
pub(super) struct SourceImage {
    path: PathBuf,
    size: (usize, usize),
    file_hash: String,
    pixel_hash: OnceCell<String>,
    picture: Option<Picture>,
}

impl SourceImage {
    /// Reads a picture.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let picture = Picture::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: (picture.width(), picture.height()),
            file_hash: picture.sha256().unwrap_or_default().to_owned(),
            pixel_hash: OnceCell::new(),
            picture: Some(picture),
        })
    }

    /// Width and height.
    pub(super) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The hash of its file.
    pub(super) fn file_hash(&self) -> &str {
        &self.file_hash
    }

    /// The hash of its pixels and its width.
    pub(super) fn pixel_hash(&self) -> &str {
        self.pixel_hash.get_or_init(|| {
            let Some(picture) = &self.picture else {
                return String::new();
            };
            let mut pixels = Sha256::new();
            pixels.update(picture.width().to_le_bytes());
            let values = picture.pixels();
            let values = values.as_slice().unwrap_or_default();
            pixels.update(bytemuck::cast_slice(values));
            to_hex(&pixels.finalize())
        })
    }

    /// Drops the pixels; they are read again when they are wanted.
    pub(super) fn forget(&mut self) {
        self.pixel_hash();
        self.picture = None;
    }

    /// Takes the pixels, reading them again if they were dropped.
    ///
    /// # Errors
    /// When they have to be read again, and cannot be or are not the same any more.
    pub(super) fn take(&mut self) -> Result<Picture> {
        self.pixel_hash();
        if let Some(picture) = self.picture.take() {
            return Ok(picture);
        }
        let picture = Picture::open(&self.path)?;
        ensure!(
            picture.sha256() == Some(&self.file_hash),
            "the picture {} has been replaced since it was checked; run it again",
            self.path.shown()
        );
        Ok(picture)
    }
}
