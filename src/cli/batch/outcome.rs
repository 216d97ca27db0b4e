//! How a batch goes: the report on disk, paths on stdout, a table at the end.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::batch::Entry;
use crate::batch::report::{ClipReport, Report, Status};
use crate::pipeline::{Event, EventKind, Progress, Summary};
use crate::runtime::Device;
use indicatif::MultiProgress;
use serde_json::json;

use super::jobs::Wanted;
use crate::cli::display::human_time;
use crate::cli::report;
use crate::cli::stderr::{self, Style, event, line, style};

/// Characters of an error that the table shows.
const SHOWN: usize = 60;

/// Hears of every clip's end, and keeps the report.
pub struct Outcome {
    report: Report,
    folder: PathBuf,
    /// Where each clip's output is and where it is computed, as far as that is known.
    clips: Vec<Option<(PathBuf, Device)>>,
    /// Told of everything else.
    inner: Box<dyn Progress>,
    console: MultiProgress,
    start: Instant,
    /// Whether a path could not be told.
    unheard: bool,
    /// Whether the report could not be written, which is told once.
    unwritten: bool,
}

impl Outcome {
    pub fn new(jobs: &Path, folder: &Path) -> Self {
        let console = MultiProgress::new();
        Self {
            report: Report::new(jobs, Vec::new()),
            folder: folder.to_owned(),
            clips: Vec::new(),
            inner: report::reporter(console.clone(), Vec::new()),
            console,
            start: Instant::now(),
            unheard: false,
            unwritten: false,
        }
    }

    /// Takes a clip up; returns its number.
    pub fn add(&mut self, clip: &Wanted) -> usize {
        self.clips.push(None);
        self.report.clips.push(ClipReport {
            place: clip.place.clone(),
            name: clip.name.clone(),
            seed: clip.seed,
            output: None,
            status: Status::Pending,
            error: None,
            seconds: None,
            digest: None,
            bytes: None,
        });
        self.clips.len() - 1
    }

    /// What a clip will be.
    pub fn describe(&mut self, number: usize, output: &Path, entry: &Entry) {
        self.clips[number] = Some((entry.output().to_owned(), entry.device()));
        let clip = &mut self.report.clips[number];
        clip.output = Some(output.to_owned());
        clip.digest = Some(entry.digest());
    }

    /// A clip is there from before.
    pub fn there(&mut self, number: usize, before: Option<&ClipReport>) {
        let bytes = self.bytes(number);
        let clip = &mut self.report.clips[number];
        clip.status = Status::There;
        clip.seconds = before.and_then(|before| before.seconds);
        clip.bytes = bytes;
    }

    /// A clip cannot be made.
    pub fn fail(&mut self, number: usize, error: &str) {
        let clip = &mut self.report.clips[number];
        clip.status = Status::Failed;
        clip.error = Some(error.to_owned());
        match style() {
            Style::Json => event(
                "clip_end",
                json!({
                    "clip": number + 1,
                    "name": self.name(number),
                    "status": "failed",
                    "place": self.report.clips[number].place,
                    "error": error,
                }),
            ),
            _ => {
                let place = &self.report.clips[number].place;
                let text = match error.starts_with(place) {
                    true => format!("failed: {error}"),
                    false => format!("failed: {}{error}", self.label(number)),
                };
                self.console.suspend(|| line(&text));
            }
        }
    }

    /// The clips and how they stand.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Where bars are.
    pub fn console(&self) -> MultiProgress {
        self.console.clone()
    }

    /// What the clip is called where it is talked of.
    pub fn name(&self, number: usize) -> String {
        let clip = &self.report.clips[number];
        match (&clip.output, &clip.name) {
            (Some(output), _) => output.display().to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => clip.place.clone(),
        }
    }

    /// `3/10 cat_7.mp4: `.
    pub fn label(&self, number: usize) -> String {
        format!(
            "{}/{} {}: ",
            number + 1,
            self.report.clips.len(),
            self.name(number)
        )
    }

    /// Everything is checked; the clips are about to be made.
    pub fn begin(&mut self, at_once: usize) {
        let names = (0..self.clips.len()).map(|number| self.name(number));
        self.inner = report::reporter(self.console.clone(), names.collect());
        let count = |status| self.report.count(status);
        let (there, failed) = (count(Status::There), count(Status::Failed));
        if style() == Style::Json {
            event(
                "batch_start",
                json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "jobs": self.report.jobs.to_string_lossy(),
                    "output_dir": self.folder.to_string_lossy(),
                    "clips": self.clips.len(),
                    "there": there,
                    "failed": failed,
                    "jobs_at_once": at_once,
                }),
            );
        } else {
            let mut text = format!("{} clips", self.clips.len());
            if there > 0 {
                let _ = write!(text, ", {there} of them there already");
            }
            if failed > 0 {
                let _ = write!(text, ", {failed} that cannot be made");
            }
            if there + failed < self.clips.len() {
                let _ = write!(text, "; up to {at_once} in flight at once");
            }
            stderr::note(&text);
        }
        self.write();
    }

    fn made(&mut self, number: usize, summary: &Summary) {
        let Some((output, device)) = self.clips[number].clone() else {
            return;
        };
        let bytes = self.bytes(number);
        let clip = &mut self.report.clips[number];
        clip.status = Status::Made;
        clip.seconds = Some(summary.seconds);
        clip.bytes = bytes;
        self.write();
        let mut path = output.clone().into_os_string().into_encoded_bytes();
        path.push(b'\n');
        let told = self
            .console
            .suspend(|| std::io::stdout().write_all(&path).is_ok());
        self.unheard |= !told;
        if style() == Style::Json {
            let mut fields = report::made(summary, device, &output);
            if let Some(fields) = fields.as_object_mut() {
                fields.insert("clip".into(), (number + 1).into());
                fields.insert("name".into(), self.name(number).into());
                fields.insert("status".into(), "made".into());
            }
            event("clip_end", fields);
        } else {
            let phases = summary.phases.iter();
            let phases: Vec<String> = phases
                .map(|phase| format!("{} {}", phase.phase, time(phase.seconds)))
                .collect();
            let text = format!("{}made: {}", self.label(number), phases.join(", "));
            self.console.suspend(|| stderr::note(&text));
        }
    }

    fn bytes(&self, number: usize) -> Option<u64> {
        let (output, _) = self.clips[number].as_ref()?;
        Some(crate::batch::bytes(output))
    }

    /// Puts the report on disk.
    fn write(&mut self) {
        self.report.seconds = self.start.elapsed().as_secs_f64();
        if let Err(error) = self.report.write(&self.folder)
            && !self.unwritten
        {
            self.unwritten = true;
            let text = format!("the report: {error:#}");
            self.console.suspend(|| stderr::warning(&text));
        }
    }

    /// Tells how it went. Whether everything is there and was told.
    pub fn finish(mut self) -> bool {
        self.report.complete = true;
        self.unwritten = false;
        self.write();
        let report = &self.report;
        let count = |status| report.count(status);
        let (made, there, failed) = (
            count(Status::Made),
            count(Status::There),
            count(Status::Failed),
        );
        let good = made + there == report.clips.len() && !self.unheard && !self.unwritten;
        let path = Report::path(&self.folder);
        if style() == Style::Json {
            event(
                "batch_end",
                json!({
                    "report": path.to_string_lossy(),
                    "made": made,
                    "there": there,
                    "failed": failed,
                    "seconds": report.seconds,
                    "exit_code": i32::from(!good),
                }),
            );
            return good;
        }
        stderr::note(&table(report));
        let mut text = format!("{made} made, {there} there before, {failed} failed");
        let _ = write!(text, " in {}; {}", time(report.seconds), path.display());
        stderr::note(&text);
        if self.unheard {
            line("error: paths could not be written to stdout");
        }
        good
    }

    /// Tells how a batch that was interrupted stands.
    pub fn interrupted(mut self, code: u8) {
        self.write();
        let count = |status| self.report.count(status);
        let text = format!(
            "the batch was interrupted; {} of {} clips are there, and the same command goes on \
             with the others",
            count(Status::Made) + count(Status::There),
            self.report.clips.len()
        );
        stderr::error(&text, code);
    }
}

impl Progress for Outcome {
    fn on_event(&mut self, event: &Event<'_>) {
        self.inner.on_event(event);
        match (event.clip, event.kind) {
            (Some(clip), EventKind::Made(summary)) => self.made(clip, summary),
            (Some(clip), EventKind::Failed(error)) => {
                self.fail(clip, error);
                self.write();
            }
            _ => {}
        }
    }
}

/// The clips, a line each.
fn table(report: &Report) -> String {
    let name = |clip: &ClipReport| match (&clip.output, &clip.name) {
        (Some(output), _) => output.display().to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => clip.place.clone(),
    };
    let width = report.clips.iter().map(|clip| name(clip).chars().count());
    let width = width.max().unwrap_or(0).min(SHOWN);
    let lines = report.clips.iter().map(|clip| {
        let rest = match (&clip.error, clip.seconds) {
            (Some(error), _) => {
                let line = error.lines().next().unwrap_or_default();
                match line.chars().count() > SHOWN {
                    true => line.chars().take(SHOWN).chain(['…']).collect(),
                    false => line.to_owned(),
                }
            }
            (None, Some(seconds)) => time(seconds),
            (None, None) => String::new(),
        };
        let line = format!("{:<width$}  {:<7}  {rest}", name(clip), clip.status);
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn time(seconds: f64) -> String {
    human_time(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}
