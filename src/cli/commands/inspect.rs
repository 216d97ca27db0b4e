//! `wan-i2v inspect`: what a model or a part of one is.

use std::fmt::Write as _;

use crate::hub::pull::Heads;
use crate::hub::{Hub, RepoId};
use crate::tiny;
use crate::weights::Files;
use crate::weights::inspect::Report;
use crate::weights::layout::Layout;
use anyhow::{Context, Result, ensure};

use super::resolve::model::{self, Place};
use crate::cli::flags::InspectArgs;
use crate::cli::ui::{columns, human_bytes, human_count, info, print, print_json};

impl InspectArgs {
    /// Prints what the source is. True when this program can run it.
    pub(crate) fn run(self) -> Result<bool> {
        let report = self.report()?;
        match self.json {
            true => print_json(&report)?,
            false => print(&table(&report))?,
        }
        Ok(report.runs)
    }

    fn report(&self) -> Result<Report> {
        let part = self.part;
        if self.source.as_os_str() == "tiny" {
            let layout = Layout::of_folder(&Files::embedded_root(tiny::FILES))?;
            return Ok(Report::of(&layout));
        }
        let (hub, repo) = match model::find(&self.source, "PATH")? {
            Place::Here(path) if self.files.is_empty() => {
                return Ok(Report::of(&Layout::of_path(&path, part)?));
            }
            Place::Here(_) => (
                Box::new(Hub::from_env(crate::cli::ui::stderr::warning)?),
                self.repository()?,
            ),
            Place::Hub(hub, repo) => (hub, repo),
        };
        let heads = Heads::fetch(&hub, &repo, &self.files)
            .with_context(|| format!("{}, and the hub", model::nowhere(&self.source, "PATH")))?;
        info!(
            "{repo}: read the heads of {} files of {} ({})",
            heads.selection.files.len(),
            human_bytes(heads.selection.bytes()),
            human_bytes(heads.fetched)
        );
        heads.report(part)
    }

    /// The repository whose files are named.
    fn repository(&self) -> Result<RepoId> {
        let text = self.source.to_string_lossy();
        ensure!(
            !self.source.exists(),
            "{text} is on the disk: name the file itself, {text}/{}",
            self.files.join(" ")
        );
        text.parse()
    }
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut rows = vec![vec![
        "part".to_owned(),
        "layout".into(),
        "stored as".into(),
        "parameters".into(),
        "size".into(),
        "files".into(),
        "dimensions".into(),
    ]];
    for part in &report.parts {
        rows.push(vec![
            part.part.to_string(),
            part.layout.clone(),
            part.storage(),
            human_count(part.parameters),
            human_bytes(part.bytes),
            part.files.to_string(),
            part.dimensions(),
        ]);
    }
    let mut text = columns(&rows, |_| false);
    let _ = writeln!(
        text,
        "tokenizer: {}; boundary {}; {} parameters, {}",
        report.tokenizer.as_deref().unwrap_or("none"),
        report.boundary,
        human_count(report.parameters),
        human_bytes(report.bytes)
    );
    for problem in &report.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    let _ = writeln!(
        text,
        "{}",
        if report.runs {
            "wan-i2v can run this model"
        } else {
            "wan-i2v cannot make clips with this alone"
        }
    );
    text
}
