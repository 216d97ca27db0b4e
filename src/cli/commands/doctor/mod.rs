//! `wan-i2v doctor`: what works on this machine, in ten lines or a line a check, and a report to
//! attach to an issue.

mod around;
mod machines;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::clip::Model;
use crate::diagnose::doctor::{
    Bound, Check, Diagnosis, Group, Heard, Machine, Outcome, Settings, examine,
};
use crate::runtime;
use crate::weights::Sources;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use self::around::Around;
use super::resolve::model::Models;
use crate::cli::config::Catalogue;
use crate::cli::flags::DoctorArgs;
use crate::cli::ui::{exit_code, human_bytes, human_time, info, print, print_json, stderr};
use crate::util::show::Show;

impl DoctorArgs {
    /// Makes the checks. The exit code says whether all is well.
    pub(crate) fn run(self, catalogue: &Catalogue) -> Result<ExitCode> {
        if let Some(links) = self.group.meet()? {
            return machines::measure(links, self.json).map(|()| ExitCode::SUCCESS);
        }
        // Before minutes have gone by.
        let report = self.report.as_deref().map(open_report).transpose()?;
        let mut models = Models::new(true, catalogue);
        let (model, bits) = models.resolve(self.model)?;
        let device = self.machine.device()?;
        let budget = self.machine.budget(device);
        let settings = Settings {
            device,
            budget,
            quick: self.quick,
            has_weights: !models.has_heads(),
        };
        runtime::limit_memory(settings.budget.bytes)?;
        let around = Around::look(device, budget, self.machine.kept()?, self.hub)?;
        let mut printed = Ok(());
        let mut summary = Summary::default();
        let diagnosis = examine(&model, bits, &settings, &mut |heard| {
            let text = match (heard, self.json, self.verbose) {
                (_, true, _) | (Heard::Machine(_), _, true) => String::new(),
                (Heard::Machine(machine), ..) => named("machine", &in_short(machine)),
                (Heard::Check(check), _, true) => line(check) + "\n",
                (Heard::Check(check), ..) => summary.add(check),
            };
            if printed.is_ok() && !text.is_empty() {
                printed = print(&text);
            }
        })?;
        printed?;
        let shown = Shown {
            diagnosis: &diagnosis,
            around: &around,
            model: &model,
            with_paths: self.with_paths,
        };
        match (self.json, self.verbose) {
            (true, _) => print_json(&shown.json()?)?,
            (false, verbose) => {
                let rest: String = around.lines().iter().map(|(k, v)| named(k, v)).collect();
                let verdict = verdict(&diagnosis);
                let verdict = if diagnosis.sound {
                    verdict + "\n"
                } else {
                    String::new()
                };
                print(&match verbose {
                    true => format!("\n{}{verdict}", shown.facts()),
                    false => format!("{}{rest}{verdict}", summary.finished()),
                })?;
            }
        }
        if let (Some(mut file), Some(path)) = (report, &self.report) {
            let cannot = || format!("--report {}: cannot write it", path.shown());
            file.write_all(shown.markdown().as_bytes())
                .with_context(cannot)?;
            file.persist(path).with_context(cannot)?;
            info!("report: {}", path.shown());
        }
        if let Some(failure) = failure(&diagnosis).filter(|_| !self.json) {
            stderr::error(&failure, 1);
        }
        Ok(exit_code(diagnosis.sound))
    }
}

/// Names in front of what was found have so many columns.
const NAMES: usize = 11;

fn named(name: &str, text: &str) -> String {
    format!("{name:<NAMES$}{text}\n")
}

/// The machine in a line.
fn in_short(machine: &Machine) -> String {
    format!(
        "{}, {}, {} for a run; MLX {} on the {} in {}",
        machine.chip,
        human_bytes(machine.memory),
        human_bytes(machine.budget),
        machine.mlx,
        machine.device,
        machine.precision
    )
}

/// Checks of one group after the other, in a line each.
#[derive(Default)]
struct Summary {
    group: Option<Group>,
    checks: Vec<Check>,
}

impl Summary {
    /// Takes a check; returns the line of the group before it, when that is done.
    fn add(&mut self, check: &Check) -> String {
        let before = match self.group == Some(check.group) {
            true => String::new(),
            false => self.finished(),
        };
        self.group = Some(check.group);
        self.checks.push(check.clone());
        before
    }

    /// The line of the last group.
    fn finished(&mut self) -> String {
        let checks = std::mem::take(&mut self.checks);
        let Some(group) = self.group.take() else {
            return String::new();
        };
        let count = |outcome| checks.iter().filter(|c| c.outcome == outcome).count();
        let name = match group {
            Group::Kernel => "kernels",
            Group::Vae => "VAE",
            Group::Guidance => "guidance",
            Group::Clip => "miniature",
        };
        let (noted, skipped) = (count(Outcome::Noted), count(Outcome::Skipped));
        let counted = checks.len() - noted - skipped;
        let mut text = match (group, checks.as_slice()) {
            (Group::Clip, [clip]) if clip.outcome == Outcome::Passed => {
                "its clip is the known one".to_owned()
            }
            (Group::Clip, _) => "its clip is not the known one".to_owned(),
            (_, [skip]) if skipped == 1 => format!("skipped: {}", skip.detail),
            _ => format!("{} of {counted} are right", count(Outcome::Passed)),
        };
        if skipped > 0 && checks.len() > 1 {
            let _ = write!(text, ", {skipped} skipped");
        }
        if noted > 0 {
            let _ = write!(text, "; {noted} notes (-v)");
        }
        named(name, &text)
    }
}

/// The first failure, how many there are, and what to do.
fn failure(diagnosis: &Diagnosis) -> Option<String> {
    let of = |check: &&Check| check.outcome == Outcome::Failed;
    let first = diagnosis.checks.iter().find(of)?;
    let count = diagnosis.count(Outcome::Failed);
    let found = match (measured(first), first.detail.as_str()) {
        (Some(measured), "") => measured,
        (Some(measured), detail) => format!("{measured}; {detail}"),
        (None, detail) => detail.to_owned(),
    };
    let others = match count {
        1 => String::new(),
        _ => format!(" ({} more failed; -v shows them)", count - 1),
    };
    let hint = match first.group {
        Group::Kernel => {
            "--device cpu may compute what the GPU does not; an issue with a report \
             (wan-i2v doctor --report FILE) helps others"
        }
        Group::Vae => "wan-i2v inspect MODEL --verify tells whether the VAE's file is whole",
        Group::Guidance => "wan-i2v inspect MODEL shows which files are taken for which part",
        Group::Clip => {
            "kernels may be wrong that are not checked: attach --report FILE to an issue"
        }
    };
    Some(format!(
        "{}: {}: {found}{others}\nhint: {hint}",
        first.group, first.name
    ))
}

/// A file that takes the report's name when it is whole.
fn open_report(path: &Path) -> Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    NamedTempFile::new_in(folder)
        .with_context(|| format!("--report {}: cannot write there", path.shown()))
}

/// A check in a line.
fn line(check: &Check) -> String {
    let mut text = format!("{:<8}{:<10}{}", check.outcome, check.group, check.name);
    if let Some(measured) = measured(check) {
        let _ = write!(text, ": {measured}");
    }
    if !check.detail.is_empty() {
        let _ = write!(text, "; {}", check.detail);
    }
    if (check.outcome, check.group) == (Outcome::Noted, Group::Kernel) {
        text += "; runs here do not compute like this";
    }
    text
}

/// The measured value and its bound.
fn measured(check: &Check) -> Option<String> {
    let measured = number(check.measured?);
    Some(match check.bound {
        Some(Bound::AtMost(0.0)) if measured == "0" => "exact".into(),
        Some(Bound::AtMost(most)) => format!("{measured} (at most {})", number(most)),
        Some(Bound::AtLeast(least)) => format!("{measured} (at least {})", number(least)),
        None => measured,
    })
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (0.01..1e4).contains(&size) => {
            let digits = if size < 1.0 { 3 } else { 2 };
            let text = format!("{value:.digits$}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.1e}"),
    }
}

/// The machine's facts, a line each.
fn facts(machine: &Machine) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or("not known".into(), human_bytes);
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<20}{value}");
    };
    fact("wan-i2v", &machine.program);
    fact(
        "system",
        &format!("{}, {} cores", machine.system, machine.cores),
    );
    fact("device", &format!("{}: {}", machine.device, machine.chip));
    fact(
        "MLX",
        &format!(
            "{}, {}, products in {}",
            machine.mlx,
            if machine.metal {
                "with Metal"
            } else {
                "no Metal"
            },
            machine.precision
        ),
    );
    fact("memory", &human_bytes(machine.memory));
    if machine.metal {
        fact(
            "recommended by Metal",
            &bytes(machine.recommended_working_set),
        );
        fact("largest buffer", &bytes(machine.largest_buffer));
    }
    let why = if machine.explicit_budget {
        " (--memory-budget)"
    } else {
        ""
    };
    fact(
        "would take",
        &format!("{}{why}", human_bytes(machine.budget)),
    );
    for part in &machine.model {
        let value = format!(
            "{}, {}, {}; {} in memory",
            part.layout,
            part.stored_as,
            part.dimensions,
            human_bytes(part.memory)
        );
        fact(&part.part.to_string(), &value);
    }
    text
}

fn verdict(diagnosis: &Diagnosis) -> String {
    let count = |outcome| diagnosis.count(outcome);
    let counts = format!(
        "{} passed, {} failed, {} skipped, {} noted",
        count(Outcome::Passed),
        count(Outcome::Failed),
        count(Outcome::Skipped),
        count(Outcome::Noted)
    );
    match diagnosis.sound {
        true if count(Outcome::Skipped) == 0 => format!("all is well: {counts}"),
        true => format!("what was looked at is well: {counts}"),
        false => format!("something is wrong: {counts}"),
    }
}

/// What leaves this machine.
struct Shown<'a> {
    diagnosis: &'a Diagnosis,
    around: &'a Around,
    model: &'a Model,
    with_paths: bool,
}

impl Shown<'_> {
    fn facts(&self) -> String {
        let mut text = facts(&self.diagnosis.machine);
        for (name, found) in self.around.lines() {
            let _ = writeln!(text, "{name:<20}{}", self.clean(&found));
        }
        text
    }

    fn model(&self) -> String {
        match self.model {
            Model::Tiny => "the built-in miniature".into(),
            Model::Disk(sources) if self.with_paths => paths(sources),
            Model::Disk(_) => "one of the user's".into(),
            Model::Published(family) => family.name.into(),
        }
    }

    fn clean(&self, text: &str) -> String {
        match self.with_paths {
            true => text.to_owned(),
            false => without_paths(text),
        }
    }

    fn json(&self) -> Result<Value> {
        let mut json = serde_json::to_value(self.diagnosis)?;
        for check in json["checks"].as_array_mut().into_iter().flatten() {
            let detail = check["detail"].as_str().unwrap_or_default();
            check["detail"] = json!(self.clean(detail));
        }
        json["model"] = json!(self.model());
        json["around"] = serde_json::to_value(self.around)?;
        if let Some(trouble) = json["around"]["hub"]["trouble"].as_str() {
            json["around"]["hub"]["trouble"] = json!(self.clean(trouble));
        }
        Ok(json)
    }

    fn markdown(&self) -> String {
        let diagnosis = self.diagnosis;
        let mut text = format!(
            "# wan-i2v doctor\n\n{}\n\n```text\n{:<20}{}\n{}```\n",
            verdict(diagnosis),
            "model",
            self.model(),
            self.facts()
        );
        let failed = |check: &&Check| check.outcome == Outcome::Failed;
        let rest = diagnosis.checks.iter().filter(|check| !failed(check));
        let ordered: Vec<&Check> = diagnosis.checks.iter().filter(failed).chain(rest).collect();
        text += "\n| | | check | measured | time | |\n| --- | --- | --- | --- | --- | --- |\n";
        for check in ordered {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                check.outcome,
                check.group,
                check.name,
                measured(check).unwrap_or_default(),
                human_time(check.seconds),
                self.clean(&check.detail)
                    .replace('|', "\\|")
                    .replace('\n', " ")
            );
        }
        text
    }
}

fn paths(sources: &Sources) -> String {
    let parts = sources.parts.iter().flatten();
    let all = sources.model.iter().chain(parts).chain(&sources.tokenizer);
    let all: Vec<String> = all.map(|path| path.shown().to_string()).collect();
    all.join(", ")
}

/// `text` without the words that look like paths.
fn without_paths(text: &str) -> String {
    let is_path = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric() && !"/~.".contains(c));
        word.contains(['/', '\\']) && word.len() > 1 && word != "K/V"
    };
    let words: Vec<&str> = text
        .split(' ')
        .map(|word| if is_path(word) { "<path>" } else { word })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_left_out() {
        assert_eq!(
            without_paths("cannot open /home/ann/models/vae.pth: (in ~/wan2.2): it is not there"),
            "cannot open <path> (in <path> it is not there"
        );
        assert_eq!(
            without_paths("cosine 0.9981, 3 of 40 rows"),
            "cosine 0.9981, 3 of 40 rows"
        );
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (38.126, "38.13"),
            (25.0, "25"),
            (3.2e-7, "3.2e-7"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(f64::INFINITY), "inf");
    }
}
