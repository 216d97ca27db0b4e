//! A clip as a folder of numbered PNG files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use tempfile::TempDir;

use super::output::temporary_folder;
use crate::media::tags::{Tags, write_png};
use crate::util::show::Show;
use crate::util::temporary::without_slash;

/// Writes `frame_00000.png`, `frame_00001.png`, ... into a folder.
///
/// A folder that does not exist appears whole. Into one that exists the frames are moved one by one
/// once all are written, and the surplus frames of a longer clip that was there are removed, so that
/// it holds one clip; other files in it are left alone.
pub(super) struct FrameFolder {
    target: PathBuf,
    staging: TempDir,
    frames: u32,
    tags: Option<Tags>,
}

impl FrameFolder {
    pub fn create(target: &Path, tags: Option<&Tags>) -> Result<Self> {
        let staging = temporary_folder(target)?;
        Ok(Self {
            target: without_slash(target),
            staging,
            frames: 0,
            tags: tags.cloned(),
        })
    }

    pub fn push(&mut self, frame: &RgbImage) -> Result<()> {
        let path = self.staging.path().join(frame_name(self.frames));
        let mut file = BufWriter::new(File::create(path)?);
        write_png(&mut file, frame, self.tags.as_ref())?;
        file.flush()?;
        self.frames += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        if self.target.is_dir() {
            self.move_frames()
        } else {
            self.move_folder()
        }
        .with_context(|| format!("cannot put the frames into {}", self.target.shown()))
    }

    fn move_folder(&self) -> Result<()> {
        Ok(fs::rename(self.staging.path(), &self.target)?)
    }

    fn move_frames(&self) -> Result<()> {
        for index in 0..self.frames {
            let name = frame_name(index);
            fs::rename(self.staging.path().join(&name), self.target.join(&name))?;
        }
        for entry in fs::read_dir(&self.target)? {
            let entry = entry?;
            if frame_index(&entry.file_name()).is_some_and(|index| index >= self.frames) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn frame_name(index: u32) -> String {
    format!("frame_{index:05}.png")
}

/// Whether a clip written into a folder replaces or removes files of this name.
pub fn is_frame_name(name: &OsStr) -> bool {
    frame_index(name).is_some()
}

/// The inverse of [`frame_name`]; `None` for any other name.
pub(in crate::media) fn frame_index(name: &OsStr) -> Option<u32> {
    let name = name.to_str()?;
    let index = name
        .strip_prefix("frame_")?
        .strip_suffix(".png")?
        .parse()
        .ok()?;
    (frame_name(index) == name).then_some(index)
}
