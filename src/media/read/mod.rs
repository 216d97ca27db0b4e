//! Reading a clip's frames, one at a time: an MP4, a GIF, a folder of pictures, or an array of NumPy.

mod folder;
mod gif;
mod h264;
mod mp4;
pub mod npy;

use std::io::{BufReader, Read as _, Seek, SeekFrom};
use std::path::Path;

use crate::util::files::open_regular;
use crate::util::show::Show;
use anyhow::{Context, Result, bail};
use image::RgbImage;

/// One frame as 8-bit RGB.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its pixels.
    pub pixels: RgbImage,
    /// Values that were infinite or no number, for which a level stands.
    pub non_finite: usize,
}

impl From<RgbImage> for Frame {
    fn from(pixels: RgbImage) -> Self {
        Self {
            pixels,
            non_finite: 0,
        }
    }
}

/// The most pixels of a frame that is read: 8K and a little more. To analyze one takes some 50 bytes
/// a pixel.
const MAX_PIXELS: u64 = 1 << 25;

/// Gives each frame of the clip at `path` to `each`, in order, and says how many there were. Files
/// are told apart by content:
///
/// * an MP4 with H.264 video: every clip of this program, and those of others as far as OpenH264
///   decodes them (8 bits, 4:2:0, not interlaced);
/// * a GIF;
/// * an array of NumPy, `[frames, height, width, 3]`, floats in [-1, 1] or bytes ([`npy`]);
/// * a folder: `frame_00000.png` and so on if there are such, else all of its PNG, JPEG and WebP files
///   by name, numbers within the names in their order.
///
/// # Errors
/// When it cannot be read, is none of these or is damaged, has no frames or too large ones, or when
/// `each` fails.
pub fn frames(path: &Path, each: &mut dyn FnMut(Frame) -> Result<()>) -> Result<usize> {
    let mut count = 0;
    let mut counted = |frame| {
        count += 1;
        each(frame)
    };
    read(path, &mut counted).with_context(|| format!("cannot read {}", path.shown()))?;
    if count == 0 {
        bail!("cannot read {}: it has no frames", path.shown());
    }
    Ok(count)
}

fn read(path: &Path, each: &mut dyn FnMut(Frame) -> Result<()>) -> Result<()> {
    if path.is_dir() {
        return folder::read(path, each);
    }
    let mut file = BufReader::new(open_regular(path)?);
    let mut start = Vec::new();
    (&mut file).take(12).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    match start.as_slice() {
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => mp4::read(file, each),
        [b'G', b'I', b'F', b'8', ..] => gif::read(file, each),
        _ if npy::is_npy(&start) => npy::read_frames(file, each),
        _ if start.is_empty() => bail!("the file is empty"),
        _ => bail!(
            "its content is no MP4, GIF or NumPy array\nhint: name a clip or a folder of frames"
        ),
    }
}

/// The kinds of files that clips are read from, as [`frames`] tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipKind {
    /// An MP4.
    Mp4,
    /// A GIF.
    Gif,
    /// A folder of pictures.
    Folder,
    /// An array of NumPy.
    Npy,
}

impl std::fmt::Display for ClipKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ClipKind::Mp4 => "MP4",
            ClipKind::Gif => "GIF",
            ClipKind::Folder => "folder",
            ClipKind::Npy => ".npy",
        })
    }
}

/// The kind of clip at `path`; `None` of what is none. A folder is one when it has a clip's frames, or
/// nothing but pictures.
///
/// # Errors
/// When it cannot be read.
pub fn clip_kind(path: &Path) -> Result<Option<ClipKind>> {
    if path.is_dir() {
        return Ok(folder::is_clip(path)?.then_some(ClipKind::Folder));
    }
    let mut start = Vec::new();
    open_regular(path)?.take(12).read_to_end(&mut start)?;
    Ok(match start.as_slice() {
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some(ClipKind::Mp4),
        [b'G', b'I', b'F', b'8', ..] => Some(ClipKind::Gif),
        _ => matches!(npy::kind(path), Ok(Some(npy::Kind::Frames))).then_some(ClipKind::Npy),
    })
}

/// Frames a second that the file at `path` says; `None` of what says none.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn fps(path: &Path, kind: ClipKind) -> Result<Option<f64>> {
    let file = || Ok::<_, anyhow::Error>(BufReader::new(open_regular(path)?));
    let fps = match kind {
        ClipKind::Mp4 => file().and_then(mp4::fps),
        ClipKind::Gif => file().and_then(gif::fps),
        ClipKind::Folder | ClipKind::Npy => Ok(None),
    };
    fps.with_context(|| format!("cannot read {}", path.shown()))
}

/// Refuses frames that are too large to be a clip's.
fn check_size(width: u64, height: u64) -> Result<()> {
    anyhow::ensure!(
        width > 0 && height > 0 && width.saturating_mul(height) <= MAX_PIXELS,
        "its frames are {width}x{height} pixels; expected 1 to {MAX_PIXELS} pixels"
    );
    Ok(())
}
