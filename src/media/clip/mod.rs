//! Writing a clip, frame by frame, as a file or folder that appears only when it is complete.

mod gif;
mod h264;
mod mp4;
mod output;
mod png;
mod timing;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;

pub(crate) use output::check_file;
pub use output::{OutputKind, check_writable, frame_files, is_taken, remove_stale};
pub(super) use png::frame_index;
pub use png::is_frame_name;

use super::tags::Tags;

/// What a clip is, beside its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipSpec {
    /// Width of every frame in pixels.
    pub width: u32,
    /// Height of every frame in pixels.
    pub height: u32,
    /// Frames a second; 23.976 and its kin mean the broadcast rates (24000/1001).
    pub fps: f64,
}

/// Writes a clip in the format its path asks for (see [`OutputKind`]).
///
/// Frames go to a temporary name in the destination's folder. [`finish`](Self::finish) puts the
/// clip into place, replacing what was there; without it nothing remains.
pub struct ClipWriter {
    sink: Sink,
    spec: ClipSpec,
    frames: u32,
}

enum Sink {
    Mp4(Box<mp4::Mp4Writer>),
    Gif(gif::GifWriter),
    Frames(png::FrameFolder),
}

impl ClipWriter {
    /// Starts a clip at `path`, whose file has `tags`: of a folder, each frame.
    ///
    /// # Errors
    /// When the path's kind is unknown, its folder is missing or not writable, or the format cannot
    /// hold such a clip (see [`ClipSpec::check`]).
    pub fn create(path: &Path, spec: &ClipSpec, tags: Option<&Tags>) -> Result<Self> {
        let kind = OutputKind::from_path(path)?;
        spec.check(kind)?;
        let rate = timing::FrameRate::new(spec.fps)?;
        let sink = match kind {
            OutputKind::Mp4 => Sink::Mp4(mp4::Mp4Writer::create(path, spec, rate, tags)?.into()),
            OutputKind::Gif => Sink::Gif(gif::GifWriter::create(path, spec, rate, tags)?),
            OutputKind::Frames => Sink::Frames(png::FrameFolder::create(path, tags)?),
        };
        Ok(Self {
            sink,
            spec: *spec,
            frames: 0,
        })
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// When the frame's size is not the clip's, or it cannot be encoded or written.
    pub fn push(&mut self, frame: &RgbImage) -> Result<()> {
        ensure!(
            frame.dimensions() == (self.spec.width, self.spec.height),
            "frame {} is {}x{} pixels, the clip {}x{}",
            self.frames,
            frame.width(),
            frame.height(),
            self.spec.width,
            self.spec.height
        );
        match &mut self.sink {
            Sink::Mp4(mp4) => mp4.push(frame),
            Sink::Gif(gif) => gif.push(frame),
            Sink::Frames(folder) => folder.push(frame),
        }
        .with_context(|| format!("cannot write frame {}", self.frames))?;
        self.frames += 1;
        Ok(())
    }

    /// Completes the clip and puts it into place.
    ///
    /// # Errors
    /// When no frame was pushed, or the clip cannot be written or renamed.
    pub fn finish(self) -> Result<()> {
        ensure!(
            self.frames > 0,
            "a clip needs at least one frame, and none was written"
        );
        match self.sink {
            Sink::Mp4(mp4) => mp4.finish(),
            Sink::Gif(gif) => gif.finish(),
            Sink::Frames(folder) => folder.finish(),
        }
    }
}

impl ClipSpec {
    /// Checks that a clip like this can be written as `kind`, so that it can be refused early.
    ///
    /// # Errors
    /// * MP4: odd sides (H.264 halves the colour planes), under 16 pixels, or over 3840x2160
    ///   (either way up).
    /// * GIF: sides over 65,535, or over 50 frames a second, which viewers slow down.
    /// * Any: a side of zero, or a rate outside 0.1 to 240 frames a second.
    pub fn check(&self, kind: OutputKind) -> Result<()> {
        let Self { width, height, fps } = *self;
        ensure!(
            width > 0 && height > 0,
            "a clip of {width}x{height} pixels has no pixels"
        );
        timing::FrameRate::new(fps)?;
        match kind {
            OutputKind::Mp4 => h264::check_size(width, height),
            OutputKind::Gif => gif::check(width, height, fps),
            OutputKind::Frames => Ok(()),
        }
    }
}
