//! `wan-i2v analyze`: what is wrong with a clip, for people and for scripts.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::clip::metadata::Metadata;
use crate::diagnose::analyze::page::{self, Pictures};
use crate::diagnose::analyze::{self, Report, Status};
use crate::media::picture::Picture;
use crate::media::{Resize, strip};
use anyhow::Result;
use clap::Args;

use super::display::print;
use super::show::visible;

/// Measures a clip's frames and says which symptoms of a broken model it shows, and from where.
///
/// Exit codes: 0 no alarm, 1 an alarm or a file that cannot be read, 2 wrong usage.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// A clip (.mp4, .gif), a folder of frames, or a dump's frames or latents (.npy)
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The picture that the clip starts with: is the first frame that picture?
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,

    /// How that picture was resized [default: as the clip's file says, or lanczos]
    #[arg(long, value_name = "lanczos|bicubic", value_parser = parse_resize, requires = "image")]
    resize: Option<Resize>,

    /// Print JSON (docs/analyze.md)
    #[arg(long)]
    json: bool,

    /// Also print the figures of every frame
    #[arg(long, conflicts_with = "json")]
    frames: bool,

    /// Write one page with film strip, plots and spectra, which needs nothing else
    #[arg(long, value_name = "PATH")]
    html: Option<PathBuf>,

    /// Write a sheet with the same as a picture
    #[arg(long, value_name = "PATH")]
    png: Option<PathBuf>,
}

impl AnalyzeArgs {
    /// Prints the verdicts and writes the pages; fails when there is an alarm.
    pub fn run(self) -> Result<ExitCode> {
        if let Some(html) = &self.html {
            page::check(html)?;
        }
        if let Some(png) = &self.png {
            strip::check(png)?;
        }
        let picture = self.image.as_deref().map(Picture::open).transpose()?;
        let resize = self.resize();
        let report = analyze::file(&self.file, picture.as_ref().map(|p| (p, resize)))?;
        self.write_pages(&report)?;
        let text = match self.json {
            true => serde_json::to_string_pretty(&report)? + "\n",
            false => self.table(&report),
        };
        print(&text)?;
        Ok(match report.alarm {
            false => ExitCode::SUCCESS,
            true => ExitCode::FAILURE,
        })
    }

    /// As asked for, or as the clip's own record says.
    fn resize(&self) -> Resize {
        let recorded = || Some(Metadata::read(&self.file).ok()?.settings.resize);
        self.resize.or_else(recorded).unwrap_or(Resize::Lanczos)
    }

    fn write_pages(&self, report: &Report) -> Result<()> {
        if self.html.is_none() && self.png.is_none() {
            return Ok(());
        }
        let pictures = Pictures::of(&self.file, report)?;
        let name = self.name();
        if let Some(path) = &self.html {
            page::write(path, &page::html(&name, report, &pictures)?)?;
        }
        if let Some(path) = &self.png {
            strip::write_png(path, &page::sheet(&name, report, &pictures)?, None)?;
        }
        Ok(())
    }

    /// The file's own name: a report may go to others.
    fn name(&self) -> String {
        let path = self
            .file
            .canonicalize()
            .unwrap_or_else(|_| self.file.clone());
        let name = path.file_name().unwrap_or(path.as_os_str());
        visible(&name.to_string_lossy())
    }

    /// For people.
    fn table(&self, report: &Report) -> String {
        let mut text = format!("{}: {}\n\n", self.name(), report.headline());
        if self.frames {
            text += &columns(&report.rows());
            text.push('\n');
        }
        for verdict in &report.verdicts {
            let (name, found) = (verdict.symptom.name(), verdict.found());
            let _ = writeln!(text, "{name:<18}{found:<24}{}", verdict.text);
        }
        let alarms = report.verdicts.iter().filter(|v| v.status == Status::Alarm);
        for verdict in alarms {
            let _ = writeln!(text, "\n{}: likely causes", verdict.symptom.name());
            for cause in &verdict.causes {
                let _ = writeln!(text, "  - {cause}");
            }
        }
        text
    }
}

/// Rows of right-aligned cells.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let cells = rows.first().map_or(0, Vec::len);
    let width = |cell: usize| rows.iter().map(|row| row[cell].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..cells).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:>width$}"))
            .collect();
        let _ = writeln!(text, "{}", line.join("  "));
    }
    text
}

fn parse_resize(text: &str) -> std::result::Result<Resize, String> {
    match text {
        "lanczos" => Ok(Resize::Lanczos),
        "bicubic" => Ok(Resize::Bicubic),
        _ => Err("expected lanczos or bicubic".into()),
    }
}
