//! All clips of a sweep side by side: the last axis from left to right, in as many rows as it takes,
//! the others from top to bottom.

use std::path::Path;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage, imageops};

use super::spool::Spool;
use super::{Axis, Done, Outcome, Run};
use crate::media::clip::{ClipSpec, ClipWriter};
use crate::media::lettering::{self, drawable, shortened};
use crate::media::strip::write_png;

const PAPER: Rgb<u8> = Rgb([24, 24, 24]);
const INK: Rgb<u8> = Rgb([235, 235, 235]);
const ALARM: Rgb<u8> = Rgb([240, 110, 100]);
/// Pixels between cells and around them.
const GAP: u32 = 8;
/// Pixels between the frames of a cell.
const BETWEEN: u32 = 2;
/// Pixels of a line of text, and of its letters.
const LINE: u32 = 18;
const LETTER: u32 = 13;
/// The longer side of a clip in its cell.
const SIDE: u32 = 240;
/// It is no smaller.
const LEAST_SIDE: u32 = 16;
/// The largest picture of H.264's level 5.2, which the clips' encoder takes.
const LARGEST: (u32, u32) = (3840, 2160);
/// The widths that screens have room for; the clip takes more where it would be too high.
const CLIP_WIDTH: u32 = 1920;
const SHEET_WIDTH: u32 = 2400;
/// Frames of a cell of the sheet.
const SHOWN: u32 = 3;

/// The clips and where each goes.
#[derive(Debug)]
pub struct Grid<'a> {
    done: &'a [Done],
    spool: Spool,
    /// The clip's place in the spool, of each run that has one.
    clips: Vec<Option<usize>>,
    layout: Layout,
}

/// Where cells go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Pixels of a clip.
    clip: (u32, u32),
    /// Clips that begin in a row of their own: those of all values of the last axis.
    values: u32,
    /// Clips side by side.
    columns: u32,
    /// Frames of a clip side by side.
    across: u32,
    /// Lines of text above each.
    lines: u32,
}

impl<'a> Grid<'a> {
    /// Reads the clips of all runs that have one, in `folder`; `None` when none has.
    ///
    /// # Errors
    /// When a clip cannot be read, or there are too many for one picture.
    pub fn read(axes: &[Axis], done: &'a [Done], folder: &Path) -> Result<Option<Self>> {
        let outcomes = || done.iter().filter_map(|done| done.result.as_ref().ok());
        let Some(largest) = outcomes().map(|o| (o.width, o.height)).reduce(larger) else {
            return Ok(None);
        };
        let values = axes.last().map_or(1, |axis| axis.values.len().max(1)) as u32;
        let labels: Vec<Vec<String>> = done.iter().map(|done| label(&done.run)).collect();
        let layout = Layout::of_clip(largest, values, &labels)?;
        let mut spool = Spool::new(folder, layout.clip, PAPER)?;
        let mut clips = Vec::new();
        for outcome in done.iter().map(|done| done.result.as_ref().ok()) {
            if let Some(outcome) = outcome {
                spool.push(&folder.join(&outcome.clip))?;
            }
            let before = clips.iter().flatten().count();
            clips.push(outcome.map(|_| before));
        }
        Ok(Some(Self {
            done,
            spool,
            clips,
            layout,
        }))
    }

    fn outcomes(&self) -> impl Iterator<Item = &'a Outcome> {
        self.done
            .iter()
            .filter_map(|done| done.result.as_ref().ok())
    }

    /// The page with its labels and empty cells, its sides even.
    fn page(&self, layout: Layout) -> RgbImage {
        let (width, height) = layout.size(self.done.len() as u32);
        let mut page = RgbImage::from_pixel(width, height, PAPER);
        for (run, done) in self.done.iter().enumerate() {
            let (x, y) = layout.corner(run as u32);
            let room = layout.cell().0;
            let write = |page: &mut RgbImage, text: &str, y: u32, colour| {
                let text = shortened(text, LETTER, room);
                lettering::write(page, &text, (x, y), LETTER, colour);
            };
            let top = y - layout.lines * LINE;
            for (line, row) in lines(&label(&done.run), room).iter().zip(0..layout.lines) {
                write(&mut page, line, top + row * LINE, INK);
            }
            if done.result.is_err() {
                write(&mut page, "failed", y + GAP, ALARM);
            }
        }
        page
    }

    /// Writes a sheet with the first, the middle and the last frame of each clip.
    ///
    /// # Errors
    /// When it cannot be drawn or written.
    pub fn write_png(&mut self, path: &Path) -> Result<()> {
        let labels: Vec<Vec<String>> = self.done.iter().map(|done| label(&done.run)).collect();
        let layout = Layout::new(
            self.layout.clip,
            SHOWN,
            self.layout.values,
            SHEET_WIDTH,
            &labels,
        );
        let mut page = self.page(layout);
        for (run, clip) in self.clips.clone().into_iter().enumerate() {
            let Some(clip) = clip else { continue };
            let (x, y) = layout.corner(run as u32);
            let last = self.spool.count(clip) - 1;
            for place in 0..SHOWN {
                let index = last * u64::from(place) / u64::from(SHOWN - 1);
                let frame = self.spool.frame(clip, index)?;
                let x = x + place * (layout.clip.0 + BETWEEN);
                imageops::replace(&mut page, &frame, x.into(), y.into());
            }
        }
        write_png(path, &page, None)
    }

    /// Writes a clip of all clips at the highest rate of any; those that end stay at their last
    /// frame.
    ///
    /// # Errors
    /// When it cannot be drawn or written.
    pub fn write_mp4(&mut self, path: &Path) -> Result<()> {
        let empty = self.page(self.layout);
        let fps = self.outcomes().map(|o| o.fps).fold(0.0, f64::max);
        let rates: Vec<f64> = self.outcomes().map(|o| o.fps).collect();
        let count = rates
            .iter()
            .enumerate()
            .map(|(clip, rate)| (self.spool.count(clip) as f64 * fps / rate).ceil() as u64)
            .max()
            .context("a grid has clips")?;
        let spec = ClipSpec {
            width: empty.width(),
            height: empty.height(),
            fps,
        };
        let mut writer = ClipWriter::create(path, &spec, None)?;
        for index in 0..count {
            let mut page = empty.clone();
            for (run, clip) in self.clips.clone().into_iter().enumerate() {
                let Some(clip) = clip else { continue };
                let (x, y) = self.layout.corner(run as u32);
                // A clip's own frame at this moment.
                let own = (index as f64 * rates[clip] / fps + 1e-9) as u64;
                let frame = self.spool.frame(clip, own)?;
                imageops::replace(&mut page, &frame, x.into(), y.into());
            }
            writer.push(&page)?;
        }
        writer.finish()
    }
}

impl Layout {
    /// That of clips of this size, `values` of them for each group, on a page about so wide: in rows of
    /// about equal length.
    fn new(clip: (u32, u32), across: u32, values: u32, width: u32, labels: &[Vec<String>]) -> Self {
        let one = Self {
            clip,
            values,
            columns: 1,
            across,
            lines: 1,
        };
        let cell = one.cell().0;
        let most = (width.saturating_sub(GAP) / (cell + GAP)).max(1);
        let wanted = labels.iter().map(|label| lines(label, cell).len() as u32);
        Self {
            columns: values.div_ceil(values.div_ceil(most)),
            lines: wanted.max().unwrap_or(0),
            ..one
        }
    }

    /// That of the clip of clips: as large as [`SIDE`] and the largest clip's size allow. Where rows of
    /// so many values each make clips too small, one goes on where another ends.
    fn of_clip(largest: (u32, u32), values: u32, labels: &[Vec<String>]) -> Result<Self> {
        let count = labels.len() as u32;
        let sides = |least| (least..=SIDE).rev().step_by(4);
        let grouped = sides(SIDE / 2).map(|side| (side, values));
        let all = grouped.chain(sides(LEAST_SIDE).map(|side| (side, count)));
        let mut layouts = all.flat_map(|(side, values)| {
            let clip = fitting(largest, side);
            [CLIP_WIDTH, LARGEST.0].map(|width| Self::new(clip, 1, values, width, labels))
        });
        let layout = layouts.find(|layout| {
            let (width, height) = layout.size(count);
            width <= LARGEST.0 && height <= LARGEST.1
        });
        layout.with_context(|| {
            format!(
                "{count} clips are too many for one picture of {}x{} pixels",
                LARGEST.0, LARGEST.1
            )
        })
    }

    /// Pixels of a cell, without its label.
    fn cell(&self) -> (u32, u32) {
        let width = self.across * (self.clip.0 + BETWEEN) - BETWEEN;
        (width, self.clip.1)
    }

    /// Rows of the clips of all values.
    fn rows(&self) -> u32 {
        self.values.div_ceil(self.columns)
    }

    /// Pixels of the page of so many clips, its sides even.
    fn size(&self, count: u32) -> (u32, u32) {
        let (width, height) = self.cell();
        let across = GAP + self.columns * (width + GAP);
        let rows = count.div_ceil(self.values) * self.rows();
        let down = GAP + rows * (self.lines * LINE + height + GAP);
        (across.next_multiple_of(2), down.next_multiple_of(2))
    }

    /// The upper left corner of a run's clip, beneath its label.
    fn corner(&self, run: u32) -> (u32, u32) {
        let (width, height) = self.cell();
        let (group, value) = (run / self.values, run % self.values);
        let row = group * self.rows() + value / self.columns;
        let label = self.lines * LINE;
        (
            GAP + value % self.columns * (width + GAP),
            GAP + label + row * (label + height + GAP),
        )
    }
}

/// What is said of a run, the last axis first: where there is no room, the others are cut.
fn label(run: &Run) -> Vec<String> {
    let settings = run.settings.iter().rev();
    settings
        .map(|(flag, value)| drawable(&format!("{flag} {value}")))
        .collect()
}

/// The parts of a label in lines of a width, as many parts in each as there is room for.
fn lines(label: &[String], width: u32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in label {
        let joined = lines.last().map(|line| format!("{line}, {part}"));
        match (joined, lines.last_mut()) {
            (Some(joined), Some(line)) if lettering::width(&joined, LETTER) <= width => {
                *line = joined;
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

fn larger(a: (u32, u32), b: (u32, u32)) -> (u32, u32) {
    (a.0.max(b.0), a.1.max(b.1))
}

/// A clip's size in its cell: shrunk, or enlarged by a whole factor, even.
fn fitting((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let scale = f64::from(side) / f64::from(width.max(height));
    let scale = if scale >= 1.0 { scale.floor() } else { scale };
    // A factor may be a trace too small.
    let even = |side: u32| (((f64::from(side) * scale + 1e-9) as u32) & !1).max(2);
    (even(width), even(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(count: usize) -> Vec<Vec<String>> {
        vec![vec!["steps 12".into(), "guide-scale 3.5".into()]; count]
    }

    fn of_clip(largest: (u32, u32), values: u32, groups: u32) -> Layout {
        Layout::of_clip(largest, values, &labels((values * groups) as usize)).unwrap()
    }

    #[test]
    fn a_page_of_clips_is_a_clip() {
        assert_eq!(of_clip((64, 64), 3, 2).clip, (192, 192));
        assert_eq!(of_clip((1280, 720), 3, 2).clip, (240, 134));
        for (values, groups) in [(1, 1), (7, 1), (40, 1), (1, 60), (30, 30), (1000, 1)] {
            let layout = of_clip((832, 480), values, groups);
            let (width, height) = layout.size(values * groups);
            assert!(width <= LARGEST.0 && height <= LARGEST.1, "{layout:?}");
            assert!(width % 2 == 0 && height % 2 == 0);
            let (x, y) = layout.corner(values * groups - 1);
            assert!(x + layout.cell().0 < width && y + layout.cell().1 < height);
        }
        // No column of sixty small clips.
        assert_eq!(of_clip((832, 480), 1, 60).clip, (240, 138));
    }

    /// Many values of one axis go into several rows, as many in each, of a width that a screen has.
    #[test]
    fn many_values_wrap() {
        let layout = of_clip((832, 480), 16, 1);
        assert_eq!((layout.columns, layout.rows()), (6, 3));
        assert!(layout.size(16).0 <= CLIP_WIDTH);
        let corners: Vec<_> = (0..16).map(|run| layout.corner(run)).collect();
        let mut places = corners.clone();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 16);
        assert_eq!((corners[6].0, corners[6].1 > corners[5].1), (GAP, true));
        // Three frames of each: two and two of four.
        let sheet = Layout::new(layout.clip, SHOWN, 4, SHEET_WIDTH, &labels(4));
        assert_eq!((sheet.columns, sheet.rows()), (2, 2));
        // The next group begins a row of its own.
        let layout = of_clip((832, 480), 8, 2);
        assert_eq!(layout.columns, 4);
        assert_eq!(layout.corner(8).0, GAP);
    }

    #[test]
    fn every_cell_says_all_that_is_varied() {
        let axes = ["seed=1,2", "steps=6,12"].map(|axis| axis.parse().unwrap());
        let runs = crate::batch::sweep::runs(&axes).unwrap();
        let label = label(&runs[1]);
        assert_eq!(label, ["steps 12", "seed 1"]);
        assert_eq!(lines(&label, 240), ["steps 12, seed 1"]);
        assert_eq!(lines(&label, 70), ["steps 12", "seed 1"]);
    }
}
