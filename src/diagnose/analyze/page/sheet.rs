//! A report as one picture: verdicts, film strip, charts, spectra.

use anyhow::{Context, Result};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use plotters::prelude::*;

use super::super::report::Report;
use super::super::verdict::Status;
use super::chart::{self, failed};
use super::charts;
use super::pictures::Pictures;

const PAPER: RGBColor = RGBColor(24, 24, 24);
const INK: RGBColor = RGBColor(235, 235, 235);
const ALARM: RGBColor = RGBColor(240, 110, 100);
const NOTE: RGBColor = RGBColor(240, 190, 90);
const FINE: RGBColor = RGBColor(120, 200, 130);
const FAINT: RGBColor = RGBColor(160, 160, 160);

/// Width of the page in pixels: four charts.
const WIDTH: u32 = 4 * chart::SIZE.0;
/// Pixels of a line of text.
const LINE: u32 = 20;
const GAP: u32 = 12;

/// The page of what is called `name`.
///
/// # Errors
/// When it cannot be drawn.
pub fn page(name: &str, report: &Report, pictures: &Pictures) -> Result<RgbImage> {
    let mut parts = vec![text(name, report)?, fitted(&pictures.strip)];
    let mut row = Vec::new();
    for chart in charts::of(report, pictures) {
        row.push(chart.pixels(PAPER, INK)?);
    }
    for (_, spectrum) in &pictures.spectra {
        let side = chart::SIZE.1 - 2 * GAP;
        let picture = imageops::resize(&spectrum.picture(), side, side, FilterType::Triangle);
        let mut cell = blank(chart::SIZE.0, chart::SIZE.1);
        imageops::replace(
            &mut cell,
            &picture,
            i64::from((chart::SIZE.0 - side) / 2),
            GAP.into(),
        );
        row.push(cell);
    }
    for cells in row.chunks(4) {
        let mut line = blank(WIDTH, chart::SIZE.1);
        for (cell, place) in cells.iter().zip(0_i64..) {
            imageops::replace(&mut line, cell, place * i64::from(chart::SIZE.0), 0);
        }
        parts.push(line);
    }
    let height = parts.iter().map(RgbImage::height).sum();
    let mut page = blank(WIDTH, height);
    let mut top = 0;
    for part in &parts {
        imageops::replace(&mut page, part, 0, top);
        top += i64::from(part.height());
    }
    Ok(page)
}

fn blank(width: u32, height: u32) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb([PAPER.0, PAPER.1, PAPER.2]))
}

/// The strip, shrunk to the page if need be.
fn fitted(strip: &RgbImage) -> RgbImage {
    let (width, height) = strip.dimensions();
    match width <= WIDTH {
        true => strip.clone(),
        false => imageops::resize(strip, WIDTH, height * WIDTH / width, FilterType::Triangle),
    }
}

/// Heading and verdicts.
fn text(name: &str, report: &Report) -> Result<RgbImage> {
    chart::font();
    let height = (report.verdicts.len() as u32 + 1) * LINE + 3 * GAP;
    let mut levels = vec![0; (3 * WIDTH * height) as usize];
    let area = BitMapBackend::with_buffer(&mut levels, (WIDTH, height)).into_drawing_area();
    area.fill(&PAPER).map_err(failed)?;
    let write = |text: &str, x: u32, y: u32, size: u32, colour: RGBColor| {
        let style = ("sans-serif", size).into_font().color(&colour);
        area.draw_text(text, &style, (x as i32, y as i32))
            .map_err(failed)
    };
    write(&format!("{name}: {}", report.headline()), GAP, GAP, 18, INK)?;
    for (verdict, line) in report.verdicts.iter().zip(1..) {
        let y = 2 * GAP + line * LINE;
        let colour = match verdict.status {
            Status::Ok => FINE,
            Status::Note => NOTE,
            Status::Alarm => ALARM,
            Status::Unknown => FAINT,
        };
        write(verdict.symptom.name(), GAP, y, 14, INK)?;
        write(&verdict.found(), 170, y, 14, colour)?;
        write(&verdict.text, 400, y, 14, FAINT)?;
    }
    drop(area);
    RgbImage::from_raw(WIDTH, height, levels).context("the text has a size of its own")
}
