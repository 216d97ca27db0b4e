//! How a batch goes: the report on disk, paths on stdout, a table at the end.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::batch::gallery::{self, Card, State};
use crate::batch::report::{ClipReport, Report, Status};
use crate::batch::{Capacity, ClipStatus, Entry};
use crate::pipeline::{Event, EventKind, Progress, Summary};
use crate::runtime::Device;
use anyhow::Result;
use serde_json::json;

use crate::cli::commands::many::{Client, Wanted};
use crate::cli::flags::AfterArgs;
use crate::cli::ui::report::Many;
use crate::cli::ui::{
    Style, columns_within, event, human_time, print_path, stderr, style, terminal,
};
use crate::util::show::{Show, chain};

/// Characters of an error that the table shows.
const SHOWN: usize = 60;

/// Receives every clip's end, and keeps the report.
pub(crate) struct Outcome {
    report: Report,
    /// The clips as the gallery shows them.
    cards: Vec<Card>,
    /// What an earlier batch in the folder reports, by output.
    before: HashMap<PathBuf, ClipReport>,
    /// Clips that exist are made again.
    pub(crate) fresh: bool,
    /// What is done after each clip.
    pub(crate) after: AfterArgs,
    folder: PathBuf,
    /// Where each clip's output is and where it is computed, as far as that is known.
    clips: Vec<Option<(PathBuf, Device)>>,
    many: Many,
    start: Instant,
    /// A path could not be printed, or a command on a clip failed.
    unprinted: bool,
    unexecuted: bool,
    /// The report could not be written, which is reported once.
    unwritten: bool,
    /// The gallery could not, likewise.
    unshown: bool,
}

impl Outcome {
    /// Of clips that are not checked yet.
    pub(crate) fn new(jobs: &Path, folder: &Path, wanted: &[Wanted]) -> Self {
        let clips = wanted.iter().map(|clip| ClipReport {
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
        let clips: Vec<ClipReport> = clips.collect();
        let cards = clips.iter().map(|clip| Card::new(name(clip), clip.seed));
        Self {
            cards: cards.collect(),
            many: Many::new(clips.iter().map(name).collect()),
            report: Report::new(jobs, clips),
            before: Report::read(folder)
                .map_or(Vec::new(), |report| report.clips)
                .into_iter()
                .filter_map(|clip| Some((clip.output.clone()?, clip)))
                .collect(),
            fresh: false,
            after: AfterArgs::default(),
            folder: folder.to_owned(),
            clips: wanted.iter().map(|_| None).collect(),
            start: Instant::now(),
            unprinted: false,
            unexecuted: false,
            unwritten: false,
            unshown: false,
        }
    }

    /// The clips and how they stand.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// The name of a clip in messages.
    pub(crate) fn name(&self, number: usize) -> String {
        name(&self.report.clips[number])
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
        let printed = self.many.console.suspend(|| print_path(&output));
        self.unprinted |= printed.is_err();
        self.many.made(number, summary, device, &output);
        self.unexecuted |= !self.after.exec_one(&self.many, number, &output);
    }

    /// How many clips there are of each kind.
    pub(crate) fn tally(&self) -> String {
        let count = |status| self.report.count(status);
        let (made, there, failed) = (
            count(Status::Made),
            count(Status::There),
            count(Status::Failed),
        );
        format!("{made} made, {there} there before, {failed} failed")
    }

    fn bytes(&self, number: usize) -> Option<u64> {
        let (output, _) = self.clips[number].as_ref()?;
        Some(crate::batch::bytes(output))
    }

    /// Puts the report and the gallery on disk.
    fn write(&mut self) {
        self.report.seconds = self.start.elapsed().as_secs_f64();
        if let Err(error) = self.report.write(&self.folder)
            && !self.unwritten
        {
            self.unwritten = true;
            let text = format!("the report: {}", chain(&error));
            self.many.console.suspend(|| stderr::warning(&text));
        }
        for (card, clip) in self.cards.iter_mut().zip(&self.report.clips) {
            card.state = match (clip.status, &clip.error) {
                (Status::Made | Status::There, _) => State::Done,
                (Status::Failed, why) => State::Failed(why.clone().unwrap_or_default()),
                (Status::Pending, _) => State::Missing,
            };
        }
        let title = self.report.jobs.file_name().unwrap_or_default();
        let title = title.to_string_lossy();
        if let Err(error) = gallery::write(&self.folder, &title, &self.cards)
            && !self.unshown
        {
            self.unshown = true;
            let text = format!("the gallery: {}", chain(&error));
            self.many.console.suspend(|| stderr::warning(&text));
        }
    }

    /// Reports the end; returns whether every clip exists and was printed.
    pub(crate) fn finish(mut self) -> bool {
        self.report.complete = true;
        (self.unwritten, self.unshown) = (false, false);
        self.write();
        let report = &self.report;
        let count = |status| report.count(status);
        let (made, there, failed) = (
            count(Status::Made),
            count(Status::There),
            count(Status::Failed),
        );
        let good = made + there == report.clips.len()
            && !(self.unprinted || self.unexecuted || self.unwritten);
        let path = Report::path(&self.folder);
        if style() == Style::Json {
            event(
                "batch_end",
                json!({
                    "report": path.to_string_lossy(),
                    "gallery": gallery::path(&self.folder).to_string_lossy(),
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
        let mut text = self.tally();
        let _ = write!(text, " in {}; {}", human_time(report.seconds), path.shown());
        if !self.unshown {
            let _ = write!(
                text,
                "; to look at: {}",
                gallery::path(&self.folder).shown()
            );
        }
        match good {
            true => stderr::success(&text),
            false => stderr::note(&text),
        }
        if self.unprinted {
            stderr::error("paths could not be written to stdout", 1);
        }
        good
    }

    /// Reports an interrupted batch.
    pub(crate) fn interrupted(mut self, code: u8) {
        self.write();
        let count = |status| self.report.count(status);
        let text = format!(
            "the batch was interrupted; {} of {} clips exist\nhint: the same command makes the others",
            count(Status::Made) + count(Status::There),
            self.report.clips.len()
        );
        stderr::error(&text, code);
    }
}

impl Client for Outcome {
    fn status(&mut self, number: usize, entry: &Entry) -> Result<ClipStatus> {
        let output = entry.output();
        let output = output.strip_prefix(&self.folder).unwrap_or(output);
        self.clips[number] = Some((entry.output().to_owned(), entry.device()));
        let clip = &mut self.report.clips[number];
        clip.output = Some(output.to_owned());
        clip.digest = Some(entry.digest());
        self.many.rename(number, name(clip));
        self.cards[number].name = name(clip);
        self.cards[number].fill(entry, &self.folder);
        let before = self.before.get(output);
        let status = match self.fresh {
            true => ClipStatus::Missing,
            false => entry.status(before)?,
        };
        if status == ClipStatus::UpToDate {
            clip.status = Status::There;
            clip.seconds = before.and_then(|before| before.seconds);
            clip.bytes = Some(crate::batch::bytes(entry.output()));
        } else {
            entry.check_replaces(before, status)?;
        }
        Ok(status)
    }

    fn fail(&mut self, number: usize, error: &str) {
        let clip = &mut self.report.clips[number];
        clip.status = Status::Failed;
        clip.error = Some(error.to_owned());
        let text = match error.starts_with(&clip.place) {
            true => format!("failed: {error}"),
            false => format!("failed: {}{error}", self.many.label(number)),
        };
        self.many.failed(number, &clip.place, error, &text);
    }

    fn begin(&mut self, capacity: Capacity) {
        let count = |status| self.report.count(status);
        let (there, failed) = (count(Status::There), count(Status::Failed));
        let fields = json!({
            "jobs": self.report.jobs.to_string_lossy(),
            "output_dir": self.folder.to_string_lossy(),
        });
        self.many.begin(there, failed, capacity.at_once, fields);
        self.write();
    }

    fn reporter(&self) -> &Many {
        &self.many
    }
}

impl Progress for Outcome {
    fn on_event(&mut self, event: &Event<'_>) {
        self.many.on_event(event);
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
    let rows = report.clips.iter().map(|clip| {
        let rest = match (&clip.error, clip.seconds) {
            (Some(error), _) => {
                let line = error.lines().next().unwrap_or_default();
                match line.chars().count() > SHOWN {
                    true => line.chars().take(SHOWN).chain(['…']).collect(),
                    false => line.to_owned(),
                }
            }
            (None, Some(seconds)) => human_time(seconds),
            (None, None) => String::new(),
        };
        vec![name(clip), clip.status.to_string(), rest]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let table = columns_within(terminal::stderr_width(), &rows, |_| false);
    table.trim_end().to_owned()
}

/// The name of a clip in messages.
fn name(clip: &ClipReport) -> String {
    match (&clip.output, &clip.name) {
        (Some(output), _) => output.shown().to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => clip.place.clone(),
    }
}
