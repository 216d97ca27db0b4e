//! The frames of all clips at the size that they have in the grid, on disk: a sheet needs one of
//! each clip at a time.

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::media::read;
use crate::util::show::Show;

/// Frames of one size, clip by clip.
#[derive(Debug)]
pub struct Spool {
    file: File,
    cell: (u32, u32),
    paper: image::Rgb<u8>,
    /// Where each clip's frames begin, counted in frames, and how many it has.
    clips: Vec<(u64, u64)>,
    frames: u64,
}

impl Spool {
    /// An empty one for cells of a size, in a file without a name in `folder`.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(folder: &Path, cell: (u32, u32), paper: image::Rgb<u8>) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot write in {}", folder.shown()))?;
        Ok(Self {
            file,
            cell,
            paper,
            clips: Vec::new(),
            frames: 0,
        })
    }

    /// Takes the clip at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or its frames cannot be written.
    pub fn push(&mut self, path: &Path) -> Result<()> {
        let (cell, paper) = (self.cell, self.paper);
        let mut writer = BufWriter::new(&self.file);
        let count = read::frames(path, &mut |frame| {
            Ok(writer.write_all(&fitted(&frame.pixels, cell, paper))?)
        })? as u64;
        writer.flush()?;
        drop(writer);
        self.clips.push((self.frames, count));
        self.frames += count;
        Ok(())
    }

    /// Frames of a clip.
    pub fn count(&self, clip: usize) -> u64 {
        self.clips[clip].1
    }

    /// A frame of a clip; the last one for all beyond.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn frame(&mut self, clip: usize, index: u64) -> Result<RgbImage> {
        let (start, count) = self.clips[clip];
        let (width, height) = self.cell;
        let bytes = 3 * u64::from(width) * u64::from(height);
        let at = (start + index.min(count - 1)) * bytes;
        let mut levels = vec![0; bytes as usize];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut levels)?;
        RgbImage::from_raw(width, height, levels).context("a cell has its size")
    }
}

/// A frame in the middle of a cell: shrunk, or enlarged by a whole factor without smoothing.
fn fitted(frame: &RgbImage, (width, height): (u32, u32), paper: image::Rgb<u8>) -> RgbImage {
    let (w, h) = frame.dimensions();
    let scale = f64::min(
        f64::from(width) / f64::from(w),
        f64::from(height) / f64::from(h),
    );
    let picture = if scale >= 1.0 {
        let factor = scale as u32;
        imageops::resize(frame, w * factor, h * factor, FilterType::Nearest)
    } else {
        let side = |side: u32, most: u32| ((f64::from(side) * scale) as u32).clamp(1, most);
        imageops::resize(frame, side(w, width), side(h, height), FilterType::Triangle)
    };
    let mut cell = RgbImage::from_pixel(width, height, paper);
    let (left, top) = (
        (width - picture.width()) / 2,
        (height - picture.height()) / 2,
    );
    imageops::replace(&mut cell, &picture, left.into(), top.into());
    cell
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn frames_are_fitted_into_the_middle() {
        let (paper, ink) = (Rgb([1, 2, 3]), Rgb([200, 100, 50]));
        for (size, inner) in [
            ((10, 10), (20, 20)),
            ((80, 20), (24, 6)),
            ((7, 3), (21, 9)),
            ((24, 20), (24, 20)),
            ((3000, 1), (24, 1)),
        ] {
            let frame = RgbImage::from_pixel(size.0, size.1, ink);
            let cell = fitted(&frame, (24, 20), paper);
            let shown = cell.pixels().filter(|pixel| **pixel == ink).count();
            assert_eq!(shown, inner.0 * inner.1, "{size:?}");
            assert_eq!(cell.get_pixel(12, 9), &ink);
        }
    }

    #[test]
    fn frames_come_back_in_order_and_the_last_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path(), (16, 16), Rgb([0; 3])).unwrap();
        for (clip, levels) in [("a", &[10_u8, 20][..]), ("b", &[30, 40, 50])] {
            let frames = folder.path().join(clip);
            std::fs::create_dir(&frames).unwrap();
            for (index, &level) in levels.iter().enumerate() {
                let frame = RgbImage::from_pixel(8, 8, Rgb([level; 3]));
                frame
                    .save(frames.join(format!("frame_{index:05}.png")))
                    .unwrap();
            }
            spool.push(&frames).unwrap();
        }
        let mut level = |clip, index| spool.frame(clip, index).unwrap().get_pixel(3, 3)[0];
        assert_eq!([level(0, 0), level(0, 1), level(0, 7)], [10, 20, 20]);
        assert_eq!([level(1, 0), level(1, 2), level(1, 3)], [30, 50, 50]);
    }
}
