//! `wan-i2v doctor`: what works on this machine, a line a check, and a report to attach to an issue.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::clip::Model;
use crate::diagnose::doctor::{Bound, Check, Diagnosis, Machine, Outcome, Settings, examine};
use crate::runtime;
use crate::weights::Sources;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::resolve::model::Models;
use crate::cli::flags::DoctorArgs;
use crate::cli::ui::{exit_code, human_bytes, human_time, info, print, print_json};
use crate::util::show::Show;

impl DoctorArgs {
    /// Makes the checks. The exit code says whether all is well.
    pub(crate) fn run(self) -> Result<ExitCode> {
        // Before minutes have gone by.
        let report = self.report.as_deref().map(open_report).transpose()?;
        let mut models = Models::new(true);
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
        let mut printed = Ok(());
        let diagnosis = examine(&model, bits, &settings, &mut |check| {
            if !self.json && printed.is_ok() {
                printed = print(&(line(check) + "\n"));
            }
        })?;
        printed?;
        let shown = Shown {
            diagnosis: &diagnosis,
            model: &model,
            with_paths: self.with_paths,
        };
        match self.json {
            true => print_json(&shown.json()?)?,
            false => {
                let (facts, verdict) = (facts(&diagnosis.machine), verdict(&diagnosis));
                print(&format!("\n{facts}\n{verdict}\n"))?;
            }
        }
        if let (Some(mut file), Some(path)) = (report, &self.report) {
            let cannot = || format!("--report {}: cannot write it", path.shown());
            file.write_all(shown.markdown().as_bytes())
                .with_context(cannot)?;
            file.persist(path).with_context(cannot)?;
            info!("report: {}", path.shown());
        }
        Ok(exit_code(diagnosis.sound))
    }
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
    if check.outcome == Outcome::Noted {
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
    model: &'a Model,
    with_paths: bool,
}

impl Shown<'_> {
    fn model(&self) -> String {
        match self.model {
            Model::Tiny => "the built-in miniature".into(),
            Model::Disk(sources) if self.with_paths => paths(sources),
            Model::Disk(_) => "one of the user's".into(),
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
        Ok(json)
    }

    fn markdown(&self) -> String {
        let diagnosis = self.diagnosis;
        let mut text = format!(
            "# wan-i2v doctor\n\n{}\n\n```text\n{:<20}{}\n{}```\n",
            verdict(diagnosis),
            "model",
            self.model(),
            facts(&diagnosis.machine)
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
