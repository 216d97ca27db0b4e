//! All clips of a sweep side by side: the last axis from left to right, the others from top to
//! bottom.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;

use super::spool::Spool;
use super::table::shortened;
use super::{Axis, Done, Outcome};
use crate::diagnose::analyze::page::{failed, font};
use crate::media::clip::{ClipSpec, ClipWriter};
use crate::media::strip::write_png;

const PAPER: Rgb<u8> = Rgb([24, 24, 24]);
const INK: RGBColor = RGBColor(235, 235, 235);
const FAINT: RGBColor = RGBColor(240, 110, 100);
/// Pixels between cells and around them.
const GAP: u32 = 8;
/// Pixels between the frames of a cell.
const BETWEEN: u32 = 2;
/// Pixels of a line of text, of its letters, and of a letter's width.
const LINE: u32 = 18;
const LETTER: u32 = 13;
const ADVANCE: f64 = 7.9;
/// The longer side of a cell.
const SIDE: u32 = 240;
/// A cell is no smaller.
const LEAST_SIDE: u32 = 16;
/// The largest picture of H.264's level 5.2, which the clips' encoder takes.
const LARGEST: (u32, u32) = (3840, 2160);
/// Frames of a cell of the sheet.
const SHOWN: u32 = 3;

/// The clips and where each goes.
#[derive(Debug)]
pub struct Grid<'a> {
    axes: &'a [Axis],
    done: &'a [Done],
    spool: Spool,
    /// The clip's place in the spool, of each run that has one.
    clips: Vec<Option<usize>>,
    cell: (u32, u32),
    /// Pixels left of the cells, for the rows' labels.
    left: u32,
}

impl<'a> Grid<'a> {
    /// Reads the clips of all runs that have one, in `folder`; `None` when none has.
    ///
    /// # Errors
    /// When a clip cannot be read, or there are too many for one picture.
    pub fn read(axes: &'a [Axis], done: &'a [Done], folder: &Path) -> Result<Option<Self>> {
        let outcomes = || done.iter().filter_map(|done| done.result.as_ref().ok());
        let Some(largest) = outcomes().map(|o| (o.width, o.height)).reduce(larger) else {
            return Ok(None);
        };
        let rows = labels_of_rows(axes);
        let letters = rows.iter().flatten().map(|line| line.chars().count()).max();
        let left = match letters {
            Some(letters) => (letters as f64 * ADVANCE) as u32 + 2 * GAP,
            None => GAP,
        };
        let columns = axes.last().map_or(1, |axis| axis.values.len()) as u32;
        let lines = axes.len().saturating_sub(1) as u32;
        let cell = cell(largest, (columns, rows.len() as u32), (left, lines))?;
        let mut spool = Spool::new(folder, cell, PAPER)?;
        let mut clips = Vec::new();
        for outcome in done.iter().map(|done| done.result.as_ref().ok()) {
            if let Some(outcome) = outcome {
                spool.push(&folder.join(&outcome.clip))?;
            }
            let before = clips.iter().flatten().count();
            clips.push(outcome.map(|_| before));
        }
        Ok(Some(Self {
            axes,
            done,
            spool,
            clips,
            cell,
            left,
        }))
    }

    fn outcomes(&self) -> impl Iterator<Item = &'a Outcome> {
        self.done
            .iter()
            .filter_map(|done| done.result.as_ref().ok())
    }

    /// Columns and rows.
    fn cells(&self) -> (u32, u32) {
        let columns = self.axes.last().map_or(1, |axis| axis.values.len());
        (columns as u32, (self.done.len() / columns.max(1)) as u32)
    }

    /// Pixels of `across` frames side by side.
    fn width(&self, across: u32) -> u32 {
        across * (self.cell.0 + BETWEEN) - BETWEEN
    }

    /// The upper left corner of a run's cell, of `across` frames side by side.
    fn corner(&self, run: usize, across: u32) -> (u32, u32) {
        let (columns, _) = self.cells();
        let run = run as u32;
        (
            self.left + run % columns * (self.width(across) + GAP),
            LINE + GAP + run / columns * (self.cell.1 + GAP),
        )
    }

    /// The page with its labels and empty cells of `across` frames side by side, its sides even.
    fn page(&self, across: u32) -> Result<RgbImage> {
        let (columns, rows) = self.cells();
        let width = self.left + columns * (self.width(across) + GAP);
        let height = LINE + GAP + rows * (self.cell.1 + GAP);
        let mut page =
            RgbImage::from_pixel(width.next_multiple_of(2), height.next_multiple_of(2), PAPER);
        let cell = self.width(across);
        if let Some(axis) = self.axes.last() {
            for (value, run) in axis.values.iter().zip(0..) {
                let (x, _) = self.corner(run, across);
                let most = (f64::from(cell) / ADVANCE) as usize;
                let text = format!("{} {}", axis.flag, shortened(value));
                let text = match text.chars().count() > most {
                    // The value alone, as far as there is room.
                    true => value.chars().take(most).collect(),
                    false => text,
                };
                write(&mut page, &text, (x, GAP / 2), INK)?;
            }
        }
        for (lines, row) in labels_of_rows(self.axes).iter().zip(0..) {
            let (_, y) = self.corner((row * columns) as usize, across);
            for (line, number) in lines.iter().zip(0..) {
                write(&mut page, line, (GAP, y + number * LINE), INK)?;
            }
        }
        for (run, done) in self.done.iter().enumerate() {
            if done.result.is_err() {
                let (x, y) = self.corner(run, across);
                write(&mut page, "failed", (x + GAP, y + GAP), FAINT)?;
            }
        }
        Ok(page)
    }

    /// Writes a sheet with the first, the middle and the last frame of each clip.
    ///
    /// # Errors
    /// When it cannot be drawn or written.
    pub fn write_png(&mut self, path: &Path) -> Result<()> {
        let mut page = self.page(SHOWN)?;
        for (run, clip) in self.clips.clone().into_iter().enumerate() {
            let Some(clip) = clip else { continue };
            let (x, y) = self.corner(run, SHOWN);
            let last = self.spool.count(clip) - 1;
            for place in 0..SHOWN {
                let index = last * u64::from(place) / u64::from(SHOWN - 1);
                let frame = self.spool.frame(clip, index)?;
                imageops::replace(
                    &mut page,
                    &frame,
                    (x + place * (self.cell.0 + BETWEEN)).into(),
                    y.into(),
                );
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
        let empty = self.page(1)?;
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
                let (x, y) = self.corner(run, 1);
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

/// The lines of each row's label: all axes but the last one.
fn labels_of_rows(axes: &[Axis]) -> Vec<Vec<String>> {
    let mut labels = vec![Vec::new()];
    for axis in &axes[..axes.len().saturating_sub(1)] {
        labels = labels
            .iter()
            .flat_map(|label| {
                axis.values.iter().map(|value| {
                    let line = format!("{} {}", axis.flag, shortened(value));
                    label.iter().cloned().chain([line]).collect()
                })
            })
            .collect();
    }
    labels
}

fn larger(a: (u32, u32), b: (u32, u32)) -> (u32, u32) {
    (a.0.max(b.0), a.1.max(b.1))
}

/// The size of a cell: about [`SIDE`], less where all cells would not fit into a clip, even; as high
/// as a row's label of so many lines, `left` pixels wide.
fn cell(
    largest: (u32, u32),
    (columns, rows): (u32, u32),
    (left, lines): (u32, u32),
) -> Result<(u32, u32)> {
    let room = |most: u32, taken: u32, cells: u32| {
        (most.saturating_sub(taken) / cells).saturating_sub(GAP)
    };
    let most = (
        room(LARGEST.0, left, columns),
        room(LARGEST.1, LINE + GAP, rows),
    );
    ensure!(
        most.0 >= LEAST_SIDE && most.1 >= LEAST_SIDE.max(lines * LINE),
        "{columns} columns and {rows} rows of clips are too many for one picture of {}x{} pixels",
        LARGEST.0,
        LARGEST.1
    );
    let (width, height) = (f64::from(largest.0), f64::from(largest.1));
    let scale = [
        f64::from(SIDE) / width.max(height),
        f64::from(most.0) / width,
        f64::from(most.1) / height,
    ];
    let scale = scale.into_iter().fold(f64::INFINITY, f64::min);
    let scale = if scale >= 1.0 { scale.floor() } else { scale };
    let even = |side: f64| (((side * scale) as u32) & !1).max(2);
    Ok((even(width), even(height).max(lines * LINE)))
}

/// Writes a line of text with its upper left corner at `(x, y)`; what has no room is left out.
fn write(page: &mut RgbImage, text: &str, (x, y): (u32, u32), colour: RGBColor) -> Result<()> {
    font();
    let size = page.dimensions();
    let area = BitMapBackend::with_buffer(page.as_mut(), size).into_drawing_area();
    let style = ("sans-serif", LETTER).into_font().color(&colour);
    area.draw_text(text, &style, (x as i32, y as i32))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_fit_into_a_clip() {
        let left = (100, 1);
        assert_eq!(cell((64, 64), (3, 2), left).unwrap(), (192, 192));
        assert_eq!(cell((1280, 720), (3, 2), left).unwrap(), (240, 134));
        // A label of three lines has room.
        assert_eq!(cell((128, 16), (3, 2), (100, 3)).unwrap(), (128, 54));
        for (columns, rows) in [(40, 1), (1, 60), (30, 30)] {
            let (width, height) = cell((832, 480), (columns, rows), (150, 1)).unwrap();
            assert!(150 + columns * (width + GAP) <= LARGEST.0);
            assert!(LINE + GAP + rows * (height + GAP) <= LARGEST.1);
            assert!(width % 2 == 0 && height % 2 == 0);
        }
        assert!(cell((64, 64), (1, 500), (0, 0)).is_err());
    }

    #[test]
    fn rows_are_all_combinations_but_of_the_last_axis() {
        let axes = ["a=1,2", "b=x", "c=5,6,7"].map(|axis| axis.parse().unwrap());
        let expected = [["a 1", "b x"], ["a 2", "b x"]];
        assert_eq!(labels_of_rows(&axes), expected);
        let none: [[String; 0]; 1] = [[]];
        assert_eq!(labels_of_rows(&axes[2..]), none);
    }
}
