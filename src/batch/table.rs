//! Files of jobs: JSON lines, CSV and TOML, as tables of settings.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::util::files::{MAX_JOBS, read_stream};
use crate::util::show::Show;

/// Settings by name.
pub type Settings = Map<String, Value>;

/// What a file of jobs says.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Settings of all jobs that do not say otherwise; TOML's `[defaults]`.
    pub defaults: Settings,
    /// The jobs, in order.
    pub jobs: Vec<Written>,
}

/// A job as it is written.
#[derive(Debug)]
pub struct Written {
    /// Where: `jobs.csv, line 3`.
    pub place: String,
    /// What; or why that cannot be read.
    pub settings: Result<Settings>,
}

/// Reads a file of jobs, by its extension. A job that cannot be read leaves the others as they are,
/// but in TOML, where one mistake spoils the file.
///
/// # Errors
/// When the file cannot be read, is of another kind, or has no job.
pub fn read(path: &Path) -> Result<Jobs> {
    let text = read_stream(path, MAX_JOBS)
        .with_context(|| format!("cannot read the jobs {}", path.shown()))?;
    parse(path, &text)
}

/// As [`read`], of the content of the file at `path`.
///
/// # Errors
/// As there.
pub fn parse(path: &Path, text: &[u8]) -> Result<Jobs> {
    let name = path.shown();
    let text = str::from_utf8(text)
        .ok()
        .with_context(|| format!("{name}: is not text in UTF-8"))?;
    // What some editors put first.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let jobs = match extension.as_deref() {
        Some("jsonl" | "ndjson") => json_lines(text, &name.to_string()),
        Some("csv") => csv(text, &name.to_string())?,
        Some("toml") => toml(text).with_context(|| name.to_string())?.placed(path),
        _ => bail!("{name}: expected a file of jobs that ends in .jsonl, .csv or .toml"),
    };
    ensure!(!jobs.jobs.is_empty(), "{name}: there is no job in it");
    Ok(jobs)
}

fn json_lines(text: &str, name: &str) -> Jobs {
    let lines = text.lines().zip(1..);
    let jobs = lines.filter(|(line, _)| !line.trim().is_empty());
    Jobs {
        jobs: jobs
            .map(|(line, number)| Written {
                place: format!("{name}, line {number}"),
                settings: object(line),
            })
            .collect(),
        ..Jobs::default()
    }
}

fn object(line: &str) -> Result<Settings> {
    match serde_json::from_str(line) {
        Ok(Value::Object(settings)) => Ok(settings),
        Ok(_) => bail!("expected a JSON object with settings, such as {{\"prompt\": \"...\"}}"),
        Err(error) => bail!("this is no JSON: {}", error.to_string().shown()),
    }
}

/// A job a line under a line of names; what is empty is not said.
fn csv(text: &str, name: &str) -> Result<Jobs> {
    let header = text.lines().next().unwrap_or_default();
    // Spreadsheets of half of Europe write semicolons.
    let semicolons = header.contains(';') && !header.contains(',');
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if semicolons { b';' } else { b',' })
        .trim(csv::Trim::Headers)
        .from_reader(text.as_bytes());
    let headers = reader.headers().with_context(|| name.to_owned())?.clone();
    let mut jobs = Vec::new();
    for record in reader.records() {
        let (line, settings) = match record {
            Ok(record) => {
                let line = record.position().map(csv::Position::line);
                let cells = headers.iter().zip(record.iter());
                let said = cells.filter(|(_, cell)| !cell.trim().is_empty());
                let settings: Settings = said
                    .map(|(key, cell)| (key.to_owned(), cell.into()))
                    .collect();
                // A line of nothing but separators.
                if settings.is_empty() {
                    continue;
                }
                (line, Ok(settings))
            }
            Err(error) => {
                let line = error.position().map(csv::Position::line);
                let problem = match error.kind() {
                    csv::ErrorKind::UnequalLengths {
                        expected_len, len, ..
                    } => anyhow::anyhow!(
                        "there are {len} cells, the first line names {expected_len}\nhint: put a cell \
                         with a comma into double quotes"
                    ),
                    _ => anyhow::anyhow!("{}", error.to_string().shown()),
                };
                (line, Err(problem))
            }
        };
        jobs.push(Written {
            place: format!("{name}, line {}", line.unwrap_or_default()),
            settings,
        });
    }
    Ok(Jobs {
        jobs,
        ..Jobs::default()
    })
}

/// `[[job]]` for each, `[defaults]` for all.
fn toml(text: &str) -> Result<Jobs> {
    let table: toml::Table = toml::from_str(text)?;
    let mut jobs = Jobs::default();
    for (key, value) in table {
        match (key.as_str(), serde_json::to_value(value)?) {
            ("defaults", Value::Object(settings)) => jobs.defaults = settings,
            ("job", Value::Array(written)) => {
                jobs.jobs = written
                    .into_iter()
                    .map(|job| Written {
                        place: String::new(),
                        settings: match job {
                            Value::Object(settings) => Ok(settings),
                            _ => Err(anyhow::anyhow!("expected a table of settings")),
                        },
                    })
                    .collect();
            }
            ("job" | "defaults", _) => bail!("expected [defaults] once, and [[job]] for each job"),
            _ => bail!("{key:?} stands alone; settings go under [defaults] or [[job]]"),
        }
    }
    Ok(jobs)
}

impl Jobs {
    fn placed(mut self, path: &Path) -> Self {
        for (job, number) in self.jobs.iter_mut().zip(1..) {
            job.place = format!("{}, job {number}", path.shown());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_as(name: &str, text: &str) -> Result<Jobs> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn settings(jobs: &Jobs) -> Vec<Value> {
        let jobs = jobs.jobs.iter();
        jobs.map(|job| match &job.settings {
            Ok(settings) => settings.clone().into(),
            Err(error) => error.to_string().into(),
        })
        .collect()
    }

    #[test]
    fn the_three_kinds_say_the_same() {
        let expected = vec![
            json!({ "prompt": "a, \"b\"", "steps": 4 }),
            json!({ "prompt": "c" }),
        ];
        let jsonl = "{\"prompt\": \"a, \\\"b\\\"\", \"steps\": 4}\n\n{\"prompt\": \"c\"}\n";
        let jobs = read_as("a.jsonl", jsonl).unwrap();
        assert_eq!(settings(&jobs), expected);
        assert!(jobs.jobs[1].place.ends_with("a.jsonl, line 3"));
        let toml = "[defaults]\nseed = 7\n[[job]]\nprompt = 'a, \"b\"'\nsteps = 4\n\
                    [[job]]\nprompt = 'c'";
        let jobs = read_as("a.toml", toml).unwrap();
        assert_eq!(settings(&jobs), expected);
        assert_eq!(jobs.defaults["seed"], 7);
        assert!(jobs.jobs[1].place.ends_with("a.toml, job 2"));
        // Text alone, in either dialect.
        let expected = vec![
            json!({ "prompt": "a, \"b\"", "steps": "4" }),
            json!({ "prompt": "c" }),
        ];
        for csv in [
            "\u{feff}prompt, steps\r\n\"a, \"\"b\"\"\",4\r\n,\r\nc,\r\n",
            "prompt;steps\n\"a, \"\"b\"\"\";4\nc;",
        ] {
            let jobs = read_as("a.CSV", csv).unwrap();
            assert_eq!(settings(&jobs), expected);
        }
    }

    #[test]
    fn a_bad_job_leaves_the_others() {
        let jobs = read_as("a.jsonl", "[]\n{\"a\": 1}\n{\"a\"").unwrap();
        let read = settings(&jobs);
        assert!(read[0].as_str().unwrap().contains("JSON object"));
        assert_eq!(read[1], json!({ "a": 1 }));
        assert!(read[2].as_str().unwrap().contains("no JSON"));
        let jobs = read_as("a.csv", "a,b\n1,2\n1,2,3\n3,4").unwrap();
        let read = settings(&jobs);
        assert_eq!(read.len(), 3);
        assert!(read[1].as_str().unwrap().contains("3 cells"));
        assert!(jobs.jobs[2].place.ends_with("a.csv, line 4"));
    }

    #[test]
    fn files_of_no_jobs_are_refused() {
        for (name, text, part) in [
            ("a.txt", "x", ".jsonl, .csv or .toml"),
            ("a.jsonl", "\n", "no job"),
            ("a.csv", "prompt\n", "no job"),
            ("a.toml", "[defaults]", "no job"),
            ("a.toml", "prompt = 1", "under [defaults] or [[job]]"),
            ("a.toml", "[job]\nprompt = 1", "[[job]] for each"),
            ("a.toml", "[[job]\n", "TOML parse error at line 1"),
        ] {
            let error = format!("{:#}", read_as(name, text).unwrap_err());
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
    }
}
