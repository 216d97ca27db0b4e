//! Two clips, frame by frame.

use std::path::Path;
use std::sync::mpsc::sync_channel;

use anyhow::{Result, bail, ensure};
use image::imageops::FilterType;
use image::{Rgb, RgbImage, imageops};
use rayon::prelude::*;
use serde::Serialize;

use crate::clip::metadata::Metadata;
use crate::media::metrics::{mean_square, psnr_of_mean_square, ssim};
use crate::media::read::{self, ClipKind, Frame};
use crate::media::strip::{self, Tile, Title, titled};
use crate::util::show::Show;

/// Frames that are measured together, and that wait for their like.
const BATCH: usize = 8;
/// By how many seconds, and by which share of it, the times of the same frames may differ: a GIF keeps
/// hundredths of a second.
const TIME: (f64, f64) = (0.02, 0.01);
/// The largest level.
const PEAK: f64 = 255.0;
/// Frames on a strip besides the one that differs most.
const SHOWN: usize = 5;

/// What one clip is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// The kind of its file.
    pub kind: ClipKind,
    /// Pixels per row of its first frame.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Frames.
    pub frames: usize,
    /// Frames a second, if the file or its metadata says.
    pub fps: Option<f64>,
}

/// How far two frames are apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FrameRow {
    /// Its number, from 0.
    pub frame: usize,
    /// In decibels; nothing of equal frames.
    pub psnr: Option<f64>,
    /// Structural similarity, 1 for equal frames; nothing of sides below 11 pixels.
    pub ssim: Option<f64>,
    /// The largest difference of two levels, of 255.
    pub largest: u8,
    /// Where that is, from the left and from the top.
    pub at: [u32; 2],
    #[serde(skip)]
    mean_square: f64,
}

/// A setting that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its flag, or a few words.
    pub name: String,
    /// The first clip's.
    pub a: String,
    /// The second's.
    pub b: String,
}

/// How far two clips are apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Clips {
    /// The clips.
    pub sides: [Side; 2],
    /// The frames that both have, in order; none where sizes differ.
    pub frames: Vec<FrameRow>,
    /// Of all of those, from the mean of their squared differences; nothing when they are equal.
    pub psnr: Option<f64>,
    /// The mean of theirs.
    pub ssim: Option<f64>,
    /// Whether both have the same frames, byte for byte.
    pub equal: bool,
    /// The settings in which they differ, where both keep theirs.
    pub settings: Option<Vec<Setting>>,
    /// The difference of levels that is allowed, as a share of 255.
    pub tolerance: f64,
    /// Whether they have as many frames of one size and rate, each within the tolerance.
    pub inside: bool,
    /// All of this in a sentence.
    pub verdict: String,
}

/// The kinds of two paths that are clips; `None` when one is not, or both are arrays, which are
/// compared as such.
///
/// # Errors
/// When one cannot be read, or one is a clip and the other is not there.
pub fn kinds(a: &Path, b: &Path) -> Result<Option<[ClipKind; 2]>> {
    let kind = |path: &Path| match path.exists() && !is_tiny(path) {
        true => read::clip_kind(path),
        false => Ok(None),
    };
    let (a, b) = match (kind(a)?, kind(b)?) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) if !b.exists() && !is_tiny(b) => {
            bail!("B: {}: no such file or folder", b.shown())
        }
        (None, Some(_)) if !a.exists() && !is_tiny(a) => {
            bail!("A: {}: no such file or folder", a.shown())
        }
        _ => return Ok(None),
    };
    Ok(Some([a, b]).filter(|kinds| *kinds != [ClipKind::Npy; 2]))
}

/// Whether it is the built-in model's name.
fn is_tiny(path: &Path) -> bool {
    path.as_os_str() == "tiny"
}

/// Compares the clips at `a` and `b`; `done` hears how many frames are.
///
/// # Errors
/// When one cannot be read.
pub fn compare(
    [a, b]: [&Path; 2],
    kinds: [ClipKind; 2],
    tolerance: f64,
    done: &mut dyn FnMut(usize),
) -> Result<Clips> {
    let (mut rows, mut waiting) = (Vec::new(), Vec::new());
    let mut sizes = [(0, 0); 2];
    let mut same_size = true;
    let counts = pairs([a, b], &mut |frame, pair| {
        let found = [0, 1].map(|side| pair[side].pixels.dimensions());
        if frame == 0 {
            sizes = found;
        }
        same_size &= found[0] == found[1];
        if same_size {
            waiting.push((frame, pair));
        }
        if waiting.len() == BATCH {
            rows.extend(measured(&mut waiting)?);
            done(rows.len());
        }
        Ok(())
    })?;
    rows.extend(measured(&mut waiting)?);
    if !same_size {
        rows.clear();
    }
    let records = [a, b].map(|path| Metadata::read(path).ok());
    let side = |place: usize| -> Result<Side> {
        let recorded = records[place].as_ref().map(|record| record.settings.fps);
        Ok(Side {
            kind: kinds[place],
            width: sizes[place].0,
            height: sizes[place].1,
            frames: counts[place],
            fps: read::fps([a, b][place], kinds[place])?.or(recorded),
        })
    };
    let sides = [side(0)?, side(1)?];
    let settings = match &records {
        [Some(a), Some(b)] => Some(a.differences(b)),
        _ => None,
    };
    let settings = settings.map(|differences| {
        let differences = differences.iter().map(|difference| {
            let [a, b] = difference.values();
            let name = difference.name().to_owned();
            Setting { name, a, b }
        });
        differences.collect()
    });
    let mean = |value: &dyn Fn(&FrameRow) -> Option<f64>| {
        let values: Option<Vec<f64>> = rows.iter().map(value).collect();
        let values = values.filter(|values| !values.is_empty())?;
        Some(values.iter().sum::<f64>() / values.len() as f64)
    };
    let psnr = mean(&|row| Some(row.mean_square)).map(psnr_of_mean_square);
    let mut made = Clips {
        psnr: psnr.filter(|psnr| psnr.is_finite()),
        ssim: mean(&|row| row.ssim),
        equal: same_size && counts[0] == counts[1] && rows.iter().all(|row| row.largest == 0),
        frames: rows,
        sides,
        settings,
        tolerance,
        inside: false,
        verdict: String::new(),
    };
    made.judge(same_size);
    Ok(made)
}

impl Clips {
    /// The frame that differs most.
    pub fn worst(&self) -> Option<&FrameRow> {
        let differing = self.frames.iter().filter(|row| row.largest > 0);
        differing.max_by(|a, b| a.mean_square.total_cmp(&b.mean_square))
    }

    /// The largest difference of levels in any frame.
    pub fn largest(&self) -> Option<&FrameRow> {
        // The first of several.
        self.frames.iter().rev().max_by_key(|row| row.largest)
    }

    fn judge(&mut self, same_size: bool) {
        let [a, b] = &self.sides;
        let differing = self.frames.iter().filter(|row| row.largest > 0);
        let (count, first) = (differing.clone().count(), differing.clone().next());
        let largest = self.largest().map_or(0, |row| row.largest);
        let within = f64::from(largest) <= self.tolerance * PEAK;
        let rates = a.fps.zip(b.fps);
        let all = self.frames.len();
        let rates = rates.filter(|rates| {
            let (a, b) = (all as f64 / rates.0, all as f64 / rates.1);
            (a - b).abs() > TIME.0.max(TIME.1 * a)
        });
        let frames = match (all, a.frames == b.frames) {
            (1, true) => "the frame is".into(),
            (1, false) => "the one frame that both have is".into(),
            (_, true) => format!("all {all} frames are"),
            (_, false) => format!("all {all} frames that both have are"),
        };
        let what = match first {
            None => format!("{frames} the same, byte for byte"),
            Some(first) => format!(
                "{count} of {all} frames differ, from frame {} on; {}",
                first.frame,
                in_words(self.psnr)
            ),
        };
        self.inside = false;
        self.verdict = if !same_size {
            let size = |side: &Side| format!("{}x{}", side.width, side.height);
            match (size(a), size(b)) {
                (a, b) if a == b => {
                    "different: the frames change their size, so that their pixels have no like"
                        .into()
                }
                (a, b) => format!(
                    "different: the frames are {a} pixels in A and {b} in B, so that their pixels have no \
                     like"
                ),
            }
        } else if a.frames != b.frames {
            format!(
                "different: A has {} frames and B has {}; {what}",
                a.frames, b.frames
            )
        } else if let Some((a, b)) = rates {
            format!("different: A plays {a:.2} frames a second and B {b:.2}; {what}")
        } else if count == 0 {
            self.inside = true;
            format!("equal: {what}")
        } else if within {
            self.inside = true;
            format!(
                "alike: no level differs by more than {largest} of 255, which --tolerance {} allows; {what}",
                self.tolerance
            )
        } else {
            format!("different: {what}")
        };
    }
}

/// What a PSNR means to somebody who looks.
fn in_words(psnr: Option<f64>) -> String {
    let Some(psnr) = psnr else {
        return "nothing is to be seen".into();
    };
    let words = match psnr {
        45.0.. => "nobody sees that",
        35.0.. => "hardly to be seen, as between two encodings of one clip",
        28.0.. => "to be seen by looking closely",
        20.0.. => "clearly to be seen",
        _ => "the pictures are different ones",
    };
    format!("PSNR {psnr:.1} dB: {words}")
}

/// Gives the frames that both have, one of each, and says how many each has.
fn pairs(
    [a, b]: [&Path; 2],
    each: &mut dyn FnMut(usize, [Frame; 2]) -> Result<()>,
) -> Result<[usize; 2]> {
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(BATCH);
        let other = scope.spawn(move || read::frames(a, &mut |frame| Ok(send.send(frame)?)));
        let mut index = 0;
        let read = read::frames(b, &mut |frame| {
            if let Ok(ours) = receive.recv() {
                each(index, [ours, frame])?;
            }
            index += 1;
            Ok(())
        });
        if read.is_ok() {
            receive.iter().for_each(drop);
        }
        drop(receive);
        let other = other
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What ended the one ended the other, too.
        let b = read?;
        Ok([other?, b])
    })
}

/// Measures pairs of frames of one size and forgets them.
fn measured(pairs: &mut Vec<(usize, [Frame; 2])>) -> Result<Vec<FrameRow>> {
    let rows = pairs
        .par_iter()
        .map(|(frame, [a, b])| row(*frame, &a.pixels, &b.pixels));
    let rows = rows.collect();
    pairs.clear();
    rows
}

fn row(frame: usize, a: &RgbImage, b: &RgbImage) -> Result<FrameRow> {
    let mean_square = mean_square(a, b)?;
    let levels = a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b));
    // The first of several.
    let most = levels
        .enumerate()
        .rev()
        .max_by_key(|(_, difference)| *difference);
    let (place, largest) = most.unwrap_or_default();
    let pixel = (place / 3) as u32;
    Ok(FrameRow {
        frame,
        psnr: (mean_square > 0.0).then(|| psnr_of_mean_square(mean_square)),
        // The window has 11 pixels.
        ssim: match mean_square {
            0.0 => Some(1.0),
            _ => ssim(a, b).ok(),
        },
        largest,
        at: [pixel % a.width(), pixel / a.width()],
        mean_square,
    })
}

/// Some frames of both, the one that differs most among them, and beneath each the difference.
///
/// # Errors
/// When the clips have no frames of one size, or cannot be read any more.
pub fn strip([a, b]: [&Path; 2], names: [&str; 2], made: &Clips) -> Result<RgbImage> {
    let count = made.frames.len();
    ensure!(
        count > 0,
        "frames of different sizes have no picture of their difference"
    );
    let mut wanted: Vec<usize> = (0..SHOWN).map(|i| i * (count - 1) / (SHOWN - 1)).collect();
    wanted.extend(made.worst().map(|row| row.frame));
    let largest = made.largest().map_or(0, |row| row.largest);
    // As strong as it can be without loss.
    let times = 255 / largest.max(8);
    let mut rows: [Vec<Tile>; 3] = Default::default();
    pairs([a, b], &mut |frame, [a, b]| {
        if wanted.contains(&frame) {
            let mut difference = a.pixels.clone();
            for (level, other) in difference.iter_mut().zip(b.pixels.iter()) {
                *level = level.abs_diff(*other).saturating_mul(times);
            }
            let tile = |picture: &RgbImage| Tile {
                number: frame as u32,
                picture: strip::fit(picture, FilterType::Nearest),
            };
            let tiles = [&a.pixels, &b.pixels, &difference].map(tile);
            for (row, tile) in rows.iter_mut().zip(tiles) {
                row.push(tile);
            }
        }
        Ok(())
    })?;
    let titles = [
        format!("A: {}", names[0]),
        format!("B: {}", names[1]),
        match times {
            1 => "the difference".into(),
            _ => format!("the difference, {times} times as strong"),
        },
    ];
    let parts = rows.iter().zip(titles).map(|(tiles, facts)| {
        let title = Title {
            prompt: Some(facts),
            facts: String::new(),
        };
        titled(&strip::page(tiles), &title)
    });
    let parts: Vec<RgbImage> = parts.collect();
    let height = parts.iter().map(RgbImage::height).sum();
    let mut page = RgbImage::from_pixel(parts[0].width(), height, Rgb([24; 3]));
    let mut top = 0;
    for part in &parts {
        imageops::replace(&mut page, part, 0, top);
        top += i64::from(part.height());
    }
    Ok(page)
}
