//! `wan-i2v analyze`: what is wrong with a clip, for people and for scripts.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::clip::metadata::Metadata;
use crate::diagnose::analyze::page::{self, Pictures, Player};
use crate::diagnose::analyze::{self, Report, Status};
use crate::media::picture::Picture;
use crate::media::{Fit, Resize, strip};
use anyhow::{Result, ensure};

use crate::cli::flags::AnalyzeArgs;
use crate::cli::ui::{columns, exit_code, print, print_json};
use crate::util::files::real;
use crate::util::show::{Show, visible};

impl AnalyzeArgs {
    /// Prints the verdicts and writes the pages; fails when there is an alarm.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if let Some(html) = &self.html {
            self.check_place("--html", html)?;
            page::check(html)?;
        }
        if let Some(png) = &self.png {
            self.check_place("--png", png)?;
            strip::check(png)?;
        }
        let picture = self.image.as_deref().map(Picture::open).transpose()?;
        let (resize, fit) = self.ways();
        let report = analyze::file(&self.file, picture.as_ref().map(|p| (p, resize, fit)))?;
        self.write_pages(&report)?;
        match self.json {
            true => print_json(&report)?,
            false => print(&self.table(&report))?,
        }
        Ok(exit_code(!report.alarm))
    }

    /// Refuses to replace what is analyzed.
    fn check_place(&self, flag: &str, path: &Path) -> Result<()> {
        let whole = |path: &Path| path.canonicalize().ok();
        let (place, clip) = (whole(path), whole(&self.file));
        let is_input =
            place.is_some() && (place == clip || place == self.image.as_deref().and_then(whole));
        let is_frame = clip.is_some_and(|clip| clip.is_dir() && real(path).parent() == Some(&clip));
        ensure!(
            !(is_input || is_frame && path.exists()),
            "{flag} {}: would replace what is analyzed\nhint: choose another name",
            path.shown()
        );
        Ok(())
    }

    /// As asked for, or as the clip's own record says.
    fn ways(&self) -> (Resize, Fit) {
        let recorded = Metadata::read(&self.file).map(|made| made.settings);
        let (resize, fit) = recorded.map_or_else(|_| Default::default(), |of| (of.resize, of.fit));
        (self.resize.unwrap_or(resize), self.fit.unwrap_or(fit))
    }

    fn write_pages(&self, report: &Report) -> Result<()> {
        if self.html.is_none() && self.png.is_none() {
            return Ok(());
        }
        let pictures = Pictures::of(&self.file, report)?;
        let name = self.name();
        if let Some(path) = &self.html {
            let player = Player::of(&self.file, path)?;
            let html = page::html(&name, report, &pictures, player.as_ref())?;
            page::write(path, &html)?;
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
        visible(&name.to_string_lossy(), " ")
    }

    /// For people.
    fn table(&self, report: &Report) -> String {
        let mut text = format!("{}: {}\n\n", self.name(), report.headline());
        if self.frames {
            text += &columns(&report.rows(), |_| true);
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
