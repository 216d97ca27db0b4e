//! A clip on one page: its frames side by side in rows, with their numbers.

mod digits;

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::clip::check_file;
use super::lettering::{drawable, shortened, width, write};
use super::tags::{self, Tags};
use crate::util::show::Show;
use crate::util::temporary;

/// The most frames at even distances; the clip's last one may come on top.
const SHOWN: u32 = 25;
/// The longer side of a frame on the page, in pixels: about this, for small frames that are
/// enlarged, and exactly this for large ones.
const SIDE: u32 = 240;
/// The page is about as wide as this at most, in pixels.
const WIDTH: u32 = 1600;
/// Pixels between frames and around them.
const GAP: u32 = 4;
/// Pixels of the page for a dot of a digit.
const DOT: u32 = 2;

/// Pixels of a title's letters and of its line, and across what the prompt has at least beside the
/// rest.
const LETTER: u32 = 15;
const LINE: u32 = 20;
const LEAST: u32 = 240;

const PAPER: Rgb<u8> = Rgb([24, 24, 24]);
const INK: Rgb<u8> = Rgb([235, 235, 235]);
const FAINT: Rgb<u8> = Rgb([160, 160, 160]);

/// Draws a film strip of a clip while its frames are made, and keeps nothing of them but small
/// pictures.
///
/// Up to 25 frames are shown at even distances, the first and the last one always.
#[derive(Debug)]
pub struct FilmStrip {
    target: PathBuf,
    frames: u32,
    next: u32,
    tiles: Vec<Tile>,
    tags: Option<Tags>,
    title: Option<Title>,
}

/// What stands above the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Title {
    /// What happens in the clip; nothing where the clip's file keeps it to itself.
    pub prompt: Option<String>,
    /// The rest in a few words.
    pub facts: String,
}

/// A picture on the page with its number.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub number: u32,
    pub picture: RgbImage,
}

impl FilmStrip {
    /// A strip of a clip of `frames` frames, to be written to `target` as PNG with
    /// `tags`.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(target: &Path, frames: u32, tags: Option<Tags>) -> Result<Self> {
        check(target)?;
        Ok(Self {
            tags,
            title: None,
            target: target.to_owned(),
            frames,
            next: 0,
            tiles: Vec::new(),
        })
    }

    /// The strip with a line above it.
    #[must_use]
    pub fn titled(self, title: Title) -> Self {
        Self {
            title: Some(title),
            ..self
        }
    }

    /// Takes the clip's next frame.
    pub fn push(&mut self, frame: &RgbImage) {
        let number = self.next;
        self.next += 1;
        if shows(number, self.frames, SHOWN) {
            self.tiles.push(Tile {
                number,
                picture: fit(frame, FilterType::Nearest),
            });
        }
    }

    /// Writes the strip; it appears under its name when it is complete.
    ///
    /// # Errors
    /// When there was no frame, or it cannot be written.
    pub fn finish(self) -> Result<()> {
        ensure!(!self.tiles.is_empty(), "a film strip needs a frame");
        let mut page = page(&self.tiles);
        if let Some(title) = &self.title {
            page = titled(&page, title);
        }
        write_png(&self.target, &page, self.tags.as_ref())
    }
}

/// A picture with its title above: in one line, or in two where both have no room side by side.
pub(crate) fn titled(picture: &RgbImage, title: &Title) -> RgbImage {
    let across = picture.width();
    let room = across.saturating_sub(4 * GAP);
    let facts = shortened(&title.facts, LETTER, room);
    let own = width(&facts, LETTER);
    let left = 2 * GAP;
    let prompt = title.prompt.as_deref().map(drawable);
    let (lines, place) = match &prompt {
        Some(_) if own + LEAST > room => (2, (left, LINE)),
        Some(_) => (1, (left + room - own, 0)),
        None => (1, (left, 0)),
    };
    let band = lines * LINE + 2 * GAP;
    let mut page = RgbImage::from_pixel(across, picture.height() + band, PAPER);
    imageops::replace(&mut page, picture, 0, band.into());
    let top = GAP + 2;
    write(&mut page, &facts, (place.0, top + place.1), LETTER, FAINT);
    if let Some(prompt) = prompt {
        let room = if lines == 1 {
            room - own - 4 * GAP
        } else {
            room
        };
        let prompt = shortened(&prompt, LETTER, room);
        write(&mut page, &prompt, (left, top), LETTER, INK);
    }
    page
}

/// Whether a page of `count` pictures shows this one, when it shows `most` and no more than a film
/// strip does at even distances. The first and the last one are always shown.
pub(crate) fn shows(index: u32, count: u32, most: u32) -> bool {
    let gaps = most.clamp(2, SHOWN) - 1;
    let distance = count.saturating_sub(1).div_ceil(gaps).max(1);
    index.is_multiple_of(distance) || index + 1 == count
}

/// Checks that a PNG can be put at `path`, without leaving a trace.
///
/// # Errors
/// When its name does not end in `.png`, or nothing can be created there.
pub fn check(path: &Path) -> Result<()> {
    check_file(path, "a PNG", "png")
}

/// Writes a picture as PNG; it appears under its name when it is complete.
///
/// # Errors
/// When it cannot be written.
pub fn write_png(path: &Path, picture: &RgbImage, tags: Option<&Tags>) -> Result<()> {
    let cannot = || format!("cannot write {}", path.shown());
    let mut writer = BufWriter::new(temporary::file(path)?);
    tags::write_png(&mut writer, picture, tags).with_context(cannot)?;
    let file = writer.into_inner().with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}

/// A picture as the bytes of a PNG.
pub(crate) fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tags::write_png(&mut bytes, picture, None)?;
    Ok(bytes)
}

/// The picture at the size that it has on the page: large ones shrunk, small ones enlarged by a
/// whole factor.
pub(crate) fn fit(picture: &RgbImage, enlarge: FilterType) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longer = width.max(height).max(1);
    if longer <= SIDE {
        let factor = SIDE / longer;
        return imageops::resize(picture, width * factor, height * factor, enlarge);
    }
    let side = |side: u32| (side * SIDE / longer).max(1);
    imageops::resize(picture, side(width), side(height), FilterType::Triangle)
}

/// Lays tiles of one size out in rows of about equal length.
pub(crate) fn page(tiles: &[Tile]) -> RgbImage {
    let (width, height) = tiles
        .first()
        .map_or((1, 1), |tile| tile.picture.dimensions());
    let (column, row) = (width + GAP, height + digits::HEIGHT * DOT + 3 * GAP);
    let count = tiles.len().max(1) as u32;
    let most = (WIDTH / column).max(1);
    let rows = count.div_ceil(most);
    let columns = count.div_ceil(rows);
    let mut page = RgbImage::from_pixel(columns * column + GAP, rows * row + GAP, PAPER);
    for (tile, place) in tiles.iter().zip(0..) {
        let left = place % columns * column + GAP;
        let top = place / columns * row + GAP;
        imageops::replace(&mut page, &tile.picture, left.into(), top.into());
        digits::draw(&mut page, tile.number, (left, top + height + GAP), DOT, INK);
    }
    page
}
