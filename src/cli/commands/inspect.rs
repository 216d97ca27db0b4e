//! `wan-i2v inspect`: what a model or a part of one is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::hub::pull::Heads;
use crate::hub::{Hub, Outcome, RepoId, Verified, verify};
use crate::tiny;
use crate::weights::Files;
use crate::weights::adapter::{Description, describe};
use crate::weights::inspect::Report;
use crate::weights::layout::Layout;
use crate::weights::store::Location;
use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::resolve::model::{self, Place};
use crate::cli::flags::InspectArgs;
use crate::cli::ui::{columns, human_bytes, human_count, info, print, print_json};
use crate::util::show::Show;

impl InspectArgs {
    /// Prints what the source is. True when this program can run it and, where that was to be
    /// verified, no file differs from what is known of it.
    pub(crate) fn run(self) -> Result<bool> {
        let adapters = self.adapters()?;
        if !adapters.is_empty() {
            match self.json {
                true => print_json(&adapters)?,
                false => print(
                    &adapters
                        .iter()
                        .map(described)
                        .collect::<Vec<_>>()
                        .join("\n"),
                )?,
            }
            return Ok(true);
        }
        let (report, verified) = match self.layout()? {
            Found::Here(layout) => {
                let mut begin =
                    |file: &str, bytes| info!("verifying {file} ({})", human_bytes(bytes));
                let verified = self.verify.then(|| verify(&layout, &mut begin));
                (Report::of_whole(&layout), verified)
            }
            Found::Hub(hub, repo) => (self.fetched(&hub, &repo)?, None),
        };
        let intact = verified
            .iter()
            .flatten()
            .all(|file| file.wrong().count() == 0);
        let runs = report.runs;
        let all = Inspected { report, verified };
        if self.json {
            print_json(&all)?;
        } else {
            let verified = all.verified.as_deref().map(verified_table);
            print(&(verified.unwrap_or_default() + &table(&all.report)))?;
        }
        Ok(runs && intact)
    }

    /// What adapters there are, if it is a file or folder of them.
    fn adapters(&self) -> Result<Vec<Description>> {
        let locations = match (self.source.is_dir(), self.source.is_file()) {
            (true, _) => Location::all_in(&Files::from(self.source.as_path()))?,
            (_, true) => vec![Location::at(&self.source)?],
            _ => Vec::new(),
        };
        // What cannot be read the model's report tells of.
        let found = locations
            .iter()
            .map(|location| describe(location).ok().flatten());
        let found: Vec<_> = found.collect();
        match found.iter().all(Option::is_some) {
            true => Ok(found.into_iter().flatten().collect()),
            false => Ok(Vec::new()),
        }
    }

    /// Where the model is.
    fn layout(&self) -> Result<Found> {
        if self.source.as_os_str() == "tiny" {
            let mut layout = Layout::of_folder(&Files::embedded_root(tiny::FILES))?;
            if let Some(part) = self.part {
                layout.keep(part);
            }
            return Ok(Found::Here(Box::new(layout)));
        }
        let (hub, repo) = match model::find(&self.source, "PATH")? {
            Place::Here(path) if self.files.is_empty() => {
                let layout = Layout::of_path(&path, self.part)?;
                return Ok(Found::Here(Box::new(layout)));
            }
            Place::Here(_) => (
                Box::new(Hub::from_env(crate::cli::ui::stderr::warning)?),
                self.repository()?,
            ),
            Place::Hub(hub, repo) => (hub, repo),
        };
        ensure!(
            !self.verify,
            "--verify: found the files of {repo} on the hub alone; expected a model on this disk\n\
             hint: wan-i2v pull {repo}"
        );
        Ok(Found::Hub(hub, repo))
    }

    /// What the heads of the hub's files say.
    fn fetched(&self, hub: &Hub, repo: &RepoId) -> Result<Report> {
        let heads = Heads::fetch(hub, repo, &self.files)
            .with_context(|| format!("{}, and the hub", model::nowhere(&self.source, "PATH")))?;
        info!(
            "{repo}: read the heads of {} files of {} ({})",
            heads.selection.files.len(),
            human_bytes(heads.selection.bytes()),
            human_bytes(heads.fetched)
        );
        heads.report(self.part)
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

/// An adapter, a line a fact.
fn described(adapter: &Description) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    let list = |values: Vec<String>| values.join(", ");
    row("adapter", adapter.path.clone());
    let forms = adapter.forms.iter();
    row(
        "form",
        list(
            forms
                .map(|(form, count)| format!("{form} of {count} layers"))
                .collect(),
        ),
    );
    if !adapter.ranks.is_empty() {
        let ranks = list(adapter.ranks.iter().map(usize::to_string).collect());
        let alphas = match adapter.alphas.as_slice() {
            [] => "alpha as the rank".into(),
            alphas => format!(
                "alpha {}",
                list(alphas.iter().map(f64::to_string).collect())
            ),
        };
        row("rank", format!("{ranks}; {alphas}"));
    }
    let width = adapter
        .width
        .map(|width| format!(" of {width}"))
        .unwrap_or_default();
    row("blocks", format!("{}{width}", adapter.blocks));
    if adapter.image_branch > 0 {
        row(
            "",
            format!("{} layers of Wan2.1's image branch", adapter.image_branch),
        );
    }
    let stored = adapter.stored_as.iter();
    let stored = list(
        stored
            .map(|(name, count)| format!("{count} in {name}"))
            .collect(),
    );
    row(
        "tensors",
        format!("{stored}; {}", human_bytes(adapter.bytes)),
    );
    row(
        "expert",
        match (adapter.both_experts, adapter.expert) {
            (true, _) => "both, by its tensors' names".into(),
            (_, Some(expert)) => format!("{expert}, by its name"),
            (_, None) => "not said: --lora gives it to both".into(),
        },
    );
    row(
        "made for",
        match adapter.fits.is_empty() {
            true => "no published model with such layers is known".into(),
            false => adapter.fits.join("; "),
        },
    );
    text
}

/// A model, on the disk or not.
enum Found {
    Here(Box<Layout>),
    Hub(Box<Hub>, RepoId),
}

/// All that is printed.
#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    report: Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Vec<Verified>>,
}

/// What was verified, what could not be and why, and what is wrong.
fn verified_table(files: &[Verified]) -> String {
    let folder = common_folder(files);
    let name = |file: &'_ Verified| {
        let path = Path::new(&file.path);
        path.strip_prefix(folder)
            .unwrap_or(path)
            .shown()
            .to_string()
    };
    let heading = ["file", "size", "hash", "checksums", "values"].map(str::to_owned);
    let mut rows = vec![heading.to_vec()];
    let (mut wrong, mut problems) = (0, String::new());
    for file in files {
        let cell = |outcome: &Outcome| match outcome {
            Outcome::Right(what) => what.clone(),
            Outcome::Wrong(_) => "WRONG".into(),
            Outcome::Unknown(why) => format!("- ({why})"),
        };
        let mut row = vec![name(file), human_bytes(file.bytes)];
        row.extend([&file.hash, &file.checksums, &file.values].map(cell));
        rows.push(row);
        wrong += usize::from(file.wrong().count() > 0);
        for what in file.wrong() {
            let _ = writeln!(problems, "problem: {}: {what}", name(file));
        }
    }
    let verdict = match wrong {
        0 => "no file differs from what is known of it".to_owned(),
        _ => format!(
            "{wrong} of {} files are not what they should be",
            files.len()
        ),
    };
    format!(
        "in {}:\n{}{problems}{verdict}\n\n",
        folder.shown(),
        columns(&rows, |_| false)
    )
}

/// The folder that all files lie in.
fn common_folder(files: &[Verified]) -> &Path {
    let mut paths = files.iter().map(|file| Path::new(&file.path));
    let first = paths.next().and_then(Path::parent);
    let mut folder = first.unwrap_or(Path::new(""));
    for path in paths {
        while !path.starts_with(folder) {
            folder = folder.parent().unwrap_or(Path::new(""));
        }
    }
    folder
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
        "{}tokenizer: {}; {}{} parameters, {}",
        report
            .model
            .map_or(String::new(), |model| format!("{model}; ")),
        report.tokenizer.as_deref().unwrap_or("none"),
        report
            .boundary
            .map_or(String::new(), |boundary| format!("boundary {boundary}; ")),
        human_count(report.parameters),
        human_bytes(report.bytes)
    );
    let kept: BTreeSet<&str> = report
        .parts
        .iter()
        .flat_map(|part| part.kept_as.keys())
        .map(String::as_str)
        .collect();
    if !kept.is_empty() {
        let kept: Vec<&str> = kept.into_iter().collect();
        let _ = writeln!(text, "in memory as it is: {}", kept.join(", "));
    }
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
