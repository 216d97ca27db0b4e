//! A report as one picture: verdicts, film strip, charts, spectra.

use anyhow::Result;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use plotters::style::RGBColor;

use super::super::report::Report;
use super::super::verdict::Status;
use super::chart;
use super::charts;
use super::pictures::Pictures;
use crate::media::lettering::{drawable, shortened, write};

const PAPER: Rgb<u8> = Rgb([24, 24, 24]);
const INK: Rgb<u8> = Rgb([235, 235, 235]);
const ALARM: Rgb<u8> = Rgb([240, 110, 100]);
const NOTE: Rgb<u8> = Rgb([240, 190, 90]);
const FINE: Rgb<u8> = Rgb([120, 200, 130]);
const FAINT: Rgb<u8> = Rgb([160, 160, 160]);

/// Charts side by side.
const ACROSS: usize = 4;
/// Pixels of a line of text.
const LINE: u32 = 20;
const GAP: u32 = 12;
/// Pixels of a part's title.
const TITLE: u32 = LINE + 2 * GAP;

/// The page of what is called `name`.
///
/// # Errors
/// When it cannot be drawn.
pub fn page(name: &str, report: &Report, pictures: &Pictures) -> Result<RgbImage> {
    // As wide as the charts, or as the strip, which keeps its pixels.
    let width = (ACROSS as u32 * chart::SIZE.0).max(pictures.strip.width());
    let mut cells = Vec::new();
    let colour = |Rgb([r, g, b])| RGBColor(r, g, b);
    for chart in charts::of(report, pictures) {
        cells.push(chart.pixels(colour(PAPER), colour(INK))?);
    }
    let figures = rows(&cells, width);
    let spectra = pictures.spectra.iter().map(|(frame, spectrum)| {
        let side = chart::SIZE.1 - 2 * GAP;
        let picture = imageops::resize(&spectrum.picture(), side, side, FilterType::Triangle);
        let mut cell = blank(chart::SIZE.0, chart::SIZE.1 + LINE);
        write(&mut cell, &format!("frame {frame}"), (GAP, 0), 13, INK);
        imageops::replace(&mut cell, &picture, GAP.into(), LINE.into());
        cell
    });
    let spectra = rows(&spectra.collect::<Vec<_>>(), width);
    let mut parts = vec![text(name, report, width)];
    let titled = [
        (pictures.title(report), &pictures.strip),
        (
            "Figures by frame; red lines: where something was found; in spectra, a period of 8 pixels",
            &figures,
        ),
        (
            "Spectra: power in decibels; no frequency in the middle, half a cycle per pixel at the edges",
            &spectra,
        ),
    ];
    for (title, part) in titled.into_iter().filter(|(_, part)| part.height() > 0) {
        let mut line = blank(width, TITLE);
        write(&mut line, title, (GAP, 2 * GAP), 15, INK);
        parts.push(line);
        parts.push(part.clone());
    }
    let height = parts.iter().map(RgbImage::height).sum();
    let mut page = blank(width, height);
    let mut top = 0;
    for part in &parts {
        imageops::replace(&mut page, part, 0, top);
        top += i64::from(part.height());
    }
    Ok(page)
}

fn blank(width: u32, height: u32) -> RgbImage {
    RgbImage::from_pixel(width, height, PAPER)
}

/// Pictures of one size in rows.
fn rows(cells: &[RgbImage], width: u32) -> RgbImage {
    let (across, down) = cells.first().map_or((0, 0), RgbImage::dimensions);
    let mut page = blank(width, cells.len().div_ceil(ACROSS) as u32 * down);
    for (cell, place) in cells.iter().zip(0_u32..) {
        let (x, y) = (place % ACROSS as u32 * across, place / ACROSS as u32 * down);
        imageops::replace(&mut page, cell, x.into(), y.into());
    }
    page
}

/// Heading and verdicts.
fn text(name: &str, report: &Report, width: u32) -> RgbImage {
    let height = (report.verdicts.len() as u32 + 1) * LINE + 3 * GAP;
    let mut page = blank(width, height);
    let mut line = |text: &str, (x, y): (u32, u32), size: u32, colour: Rgb<u8>| {
        let text = shortened(&drawable(text), size, width - x - GAP);
        write(&mut page, &text, (x, y), size, colour);
    };
    let heading = format!("{name}: {}", report.headline());
    line(&heading, (GAP, GAP), 18, INK);
    for (verdict, row) in report.verdicts.iter().zip(1..) {
        let y = 2 * GAP + row * LINE;
        let colour = match verdict.status {
            Status::Ok => FINE,
            Status::Note => NOTE,
            Status::Alarm => ALARM,
            Status::Unknown => FAINT,
        };
        line(verdict.symptom.name(), (GAP, y), 14, INK);
        line(&verdict.found(), (180, y), 14, colour);
        line(&verdict.text, (410, y), 14, FAINT);
    }
    page
}
