//! The outcomes of a sweep's runs, each and side by side.

use std::path::{Path, PathBuf};

use crate::batch::gallery::{self, Card, State};
use crate::batch::sweep::{self, Axis, Done, Grid, Outcome, Run};
use crate::batch::{Capacity, ClipStatus, Entry};
use crate::clip::Identity;
use crate::diagnose::analyze::{self, page};
use crate::media::picture::Picture;
use crate::pipeline::{Event, EventKind, Progress, Summary};
use crate::runtime::Device;
use crate::util::files::{MAX_JOBS, is_json};
use crate::util::temporary;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cli::commands::many::Client;
use crate::cli::flags::AfterArgs;
use crate::cli::ui::report::Many;
use crate::cli::ui::{columns, info, print, print_json, stderr, terminal};
use crate::util::show::{Show, chain};

/// The files of all runs together.
const FILES: [&str; 5] = [JSON, CSV, PLOTS, SHEET, GRID];
const JSON: &str = "results.json";
const CSV: &str = "results.csv";
const PLOTS: &str = "plots.svg";
const SHEET: &str = "grid.png";
const GRID: &str = "grid.mp4";

/// Hears of every run's end, and measures its clip.
pub(super) struct Outcomes {
    pub(super) axes: Vec<Axis>,
    pub(super) runs: Vec<Run>,
    folder: PathBuf,
    /// The picture of each run.
    pictures: Vec<Option<PathBuf>>,
    /// The identity and device of each clip, as far as they are known.
    identities: Vec<Option<(Identity, Device)>>,
    /// The outcome of each run so far, or why it failed.
    results: Vec<Option<std::result::Result<Outcome, String>>>,
    /// The clips as the gallery shows them.
    cards: Vec<Card>,
    many: Many,
    /// What is done after each clip.
    pub(super) after: AfterArgs,
    /// A command on a clip failed.
    unexecuted: bool,
    /// The figures could not be written, which is reported once until the end.
    unwritten: bool,
}

impl Outcomes {
    pub(super) fn new(
        axes: Vec<Axis>,
        runs: Vec<Run>,
        folder: &Path,
        pictures: Vec<Option<PathBuf>>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            pictures,
            identities: vec![None; runs.len()],
            results: vec![None; runs.len()],
            cards: (runs.iter().map(|run| Card::new(run.name.clone(), None))).collect(),
            many: Many::new(runs.iter().map(|run| run.name.clone()).collect()),
            after: AfterArgs::default(),
            unexecuted: false,
            unwritten: false,
            axes,
            runs,
        }
    }

    /// Why a run failed.
    pub(super) fn error(&self, number: usize) -> Option<&str> {
        self.results[number]
            .as_ref()?
            .as_ref()
            .err()
            .map(String::as_str)
    }

    fn count(&self, failed: bool) -> usize {
        let results = self.results.iter().flatten();
        results.filter(|result| result.is_err() == failed).count()
    }

    fn done(&self) -> Vec<Done> {
        let results = self.runs.iter().zip(&self.results);
        let done = results.filter_map(|(run, result)| {
            Some(Done {
                run: run.clone(),
                result: result.clone()?,
            })
        });
        done.collect()
    }

    /// Measures a clip that was made, and writes its outcome down.
    fn measure(&self, number: usize, summary: &Summary) -> Result<Outcome> {
        let run = &self.runs[number];
        let (identity, _) = self.identities[number]
            .clone()
            .context("the clip is not of this sweep")?;
        let picture = self.pictures[number].as_deref();
        let picture = picture.map(Picture::open).transpose()?;
        let clip = self.folder.join(run.clip());
        let report = analyze::file(
            &clip,
            picture
                .as_ref()
                .map(|picture| (picture, summary.settings.resize, summary.settings.fit)),
        )?;
        let outcome = Outcome::of(run, identity, summary, &report)?;
        let record = self.folder.join(run.record());
        temporary::remove_stale(&record);
        outcome.write(&record)?;
        Ok(outcome)
    }

    fn made(&mut self, number: usize, summary: &Summary) {
        let (folder, run) = (&self.folder, &self.runs[number]);
        if let Some((_, device)) = &self.identities[number] {
            let clip = folder.join(run.clip());
            self.many.made(number, summary, *device, &clip);
            self.unexecuted |= !self.after.exec_one(&self.many, number, &clip);
        }
        match self.measure(number, summary) {
            Ok(outcome) => self.results[number] = Some(Ok(outcome)),
            Err(error) => self.fail(number, &chain(&error)),
        }
        self.write();
    }

    /// Checks that the files of all runs that are there are a sweep's, and removes what one that was
    /// killed has left of them.
    ///
    /// # Errors
    /// When something else has such a name.
    pub(super) fn claim_files(&self) -> Result<()> {
        let results = self.folder.join(JSON);
        let is_own = is_json(&results, MAX_JOBS, |results| results["axes"].is_array());
        for path in FILES.map(|name| self.folder.join(name)) {
            ensure!(
                is_own || !path.exists(),
                "{}: no sweep has made this, and it would be replaced\nhint: move it away, or choose \
                 another --output-dir",
                path.shown()
            );
            temporary::remove_stale(&path);
        }
        gallery::claim(&self.folder)
    }

    /// Refuses to replace a picture that a clip is made from, or a record that no sweep has made.
    fn check_replaces(&self, record: &Path, picture: Option<&Path>) -> Result<()> {
        let picture = picture.and_then(|picture| picture.canonicalize().ok());
        let files = FILES.map(|name| self.folder.join(name));
        for path in files.iter().map(PathBuf::as_path).chain([record]) {
            ensure!(
                picture.is_none() || path.canonicalize().ok() != picture,
                "{}: is the clip's picture, and would be replaced\nhint: choose another --output-dir",
                path.shown()
            );
        }
        let is_record = |record: &Value| record["metrics"].is_object();
        ensure!(
            !record.exists() || is_json(record, MAX_JOBS, is_record),
            "{}: no sweep has made this, and it would be replaced\nhint: move it away, or choose \
             another --output-dir",
            record.shown()
        );
        Ok(())
    }

    fn write_figures(&self) -> Result<()> {
        let done = self.done();
        // First: it tells the other files' origin.
        let json = terminal::json(&self.json(&done))?;
        page::write(&self.folder.join(JSON), &json)?;
        page::write(&self.folder.join(CSV), &sweep::csv(&self.axes, &done)?)?;
        let flags: Vec<&str> = self.axes.iter().map(|axis| axis.flag.as_str()).collect();
        let title = format!("sweep of {}", flags.join(", "));
        let cards = self.cards.iter().zip(&self.results).map(|(card, result)| {
            let mut card = card.clone();
            card.state = match result {
                Some(Ok(_)) => State::Done,
                Some(Err(why)) => State::Failed(why.clone()),
                None => State::Missing,
            };
            card
        });
        gallery::write(&self.folder, &title, &cards.collect::<Vec<_>>())
    }

    /// Puts the figures on disk; that they cannot be is an error at the end.
    fn write(&mut self) {
        if let Err(error) = self.write_figures()
            && !self.unwritten
        {
            self.unwritten = true;
            let console = &self.many.console;
            console.suspend(|| stderr::warning(&chain(&error)));
        }
    }

    /// Reports how a sweep that was interrupted stands.
    pub(super) fn interrupted(&self, code: u8) {
        let text = format!(
            "the sweep was interrupted; {} of {} clips exist\nhint: the same command makes the others",
            self.count(false),
            self.runs.len()
        );
        stderr::error(&text, code);
    }

    /// Writes and prints what all runs gave; returns whether none failed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(&self, as_json: bool) -> Result<bool> {
        let done = self.done();
        self.write_figures()?;
        let grid = self.write_pictures(&done)?;
        match as_json {
            true => print_json(&self.json(&done))?,
            false => {
                let ends = done.iter().map(|done| match &done.result {
                    Ok(outcome) => outcome.metrics.alarms.join(", "),
                    Err(error) => format!("failed: {}", error.replace('\n', " ")),
                });
                print(&table(sweep::rows(&self.axes, &done), ends))?;
            }
        }
        let page = gallery::path(&self.folder);
        match grid {
            true => {
                let [sheet, grid] = [SHEET, GRID].map(|name| self.folder.join(name));
                let (sheet, grid) = (sheet.shown(), grid.shown());
                info!(
                    "side by side: {sheet}, {grid}; to look at: {}",
                    page.shown()
                );
            }
            false => info!("to look at: {}", page.shown()),
        }
        let failed = self.count(true);
        if failed > 0 {
            let text = format!("{failed} of {} runs failed", self.runs.len());
            stderr::error(&text, 1);
        }
        Ok(failed == 0 && !self.unexecuted)
    }

    /// How many runs there are of each kind.
    pub(super) fn tally(&self) -> String {
        format!("{} made, {} failed", self.count(false), self.count(true))
    }

    fn json(&self, done: &[Done]) -> Value {
        let runs = done.iter().map(|Done { run, result }| match result {
            Ok(outcome) => json!({ "name": run.name, "outcome": outcome }),
            Err(error) => {
                json!({ "name": run.name, "settings": run.settings, "error": error })
            }
        });
        let axes = self.axes.iter();
        let axes = axes.map(|axis| json!({ "flag": axis.flag, "values": axis.values }));
        json!({
            "schema": sweep::SCHEMA,
            "axes": axes.collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
        })
    }

    /// Returns whether there is a grid.
    fn write_pictures(&self, done: &[Done]) -> Result<bool> {
        let at = |name: &str| self.folder.join(name);
        page::write(&at(PLOTS), &sweep::svg(&self.axes, done)?)?;
        // The clips are what counts.
        match Grid::read(&self.axes, done, &self.folder) {
            Ok(Some(mut grid)) => {
                grid.write_png(&at(SHEET))?;
                grid.write_mp4(&at(GRID))?;
                return Ok(true);
            }
            Ok(None) => {}
            Err(error) => stderr::warning(&format!("no grid: {}", chain(&error))),
        }
        Ok(false)
    }
}

impl Client for Outcomes {
    fn status(&mut self, number: usize, entry: &Entry) -> Result<ClipStatus> {
        let run = &self.runs[number];
        let record = self.folder.join(run.record());
        let finished = Outcome::finished(&record, &self.folder, entry.identity());
        self.identities[number] = Some((entry.identity().clone(), entry.device()));
        self.pictures[number] = entry.job().image().map(Path::to_owned);
        self.check_replaces(&record, entry.job().image())?;
        self.cards[number].fill(entry, &self.folder);
        let Some(outcome) = finished else {
            let status = entry.unfinished()?;
            entry.check_replaces(None, status)?;
            return Ok(status);
        };
        info!("{}: made already", run.name);
        self.results[number] = Some(Ok(outcome));
        Ok(ClipStatus::UpToDate)
    }

    fn fail(&mut self, number: usize, error: &str) {
        let name = &self.runs[number].name;
        let text = format!("warning: run {name} failed: {error}");
        self.many.failed(number, name, error, &text);
        self.results[number] = Some(Err(error.to_owned()));
    }

    fn begin(&mut self, capacity: Capacity) {
        let fields = json!({ "output_dir": self.folder.to_string_lossy() });
        let (there, failed) = (self.count(false), self.count(true));
        self.many.begin(there, failed, capacity.at_once, fields);
    }

    fn reporter(&self) -> &Many {
        &self.many
    }
}

impl Progress for Outcomes {
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

/// Columns of figures, with a text at the end of each row but the heading.
pub(super) fn table(mut rows: Vec<Vec<String>>, ends: impl Iterator<Item = String>) -> String {
    let count = rows.first().map_or(0, Vec::len);
    for (row, end) in rows.iter_mut().skip(1).zip(ends) {
        row.push(end);
    }
    columns(&rows, |column| column < count)
}
