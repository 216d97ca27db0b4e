//! `wan-i2v sweep`: clips over all combinations of some flags' values.

mod given;
mod list;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::batch::sweep::{self, Axis, Done, Grid, Outcome, Run};
use crate::clip::Model;
use crate::diagnose::analyze::{self, page};
use crate::media::picture::Picture;
use crate::pipeline::plan::Settled;
use crate::pipeline::{Interrupted, Job};
use crate::runtime;
use crate::tiny;
use anyhow::{Context, Result, bail};
use clap::{Args, Parser};
use indicatif::MultiProgress;
use serde_json::{Value, json};

use self::given::{Given, NOT_TAKEN, clip_command};
use super::analyze::columns;
use super::args::{Cli, Generate, GenerateArgs, ReportingArgs};
use super::display::print;
use super::signals::{Listener, Stoppable};
use super::stderr::{self, Style, event, say, style};
use super::{report, settings};

/// The exit code of wrong usage, clap's own.
const USAGE: u8 = 2;

/// Makes clips over all combinations of some flags' values, and shows them side by side.
///
/// The folder gets each clip, a sheet and a clip of all clips (grid.png, grid.mp4), their figures
/// (results.csv, results.json) and plots (plots.svg); stdout gets the table. Finished runs are
/// kept: the same command goes on where it was stopped, and one with more values makes only what
/// is missing. All flags of a clip are taken. Exit codes: 0 done, 1 a run failed, 2 wrong usage.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// A flag and the values that it takes, such as steps=6,12,24; every combination of all --vary
    /// is made. Where values have commas, part them by semicolons: guide-scale=2;3,4
    #[arg(long, value_name = "FLAG=VALUES", value_parser = parse_axis, help_heading = "Sweep")]
    vary: Vec<Axis>,

    /// The same as --vary size=...
    #[arg(long, value_name = "WxH,...", help_heading = "Sweep")]
    sizes: Option<String>,

    /// The folder for all that is made
    #[arg(long, value_name = "DIR", required = true, help_heading = "Sweep")]
    output_dir: PathBuf,

    /// List the runs with their memory and time, and make nothing
    #[arg(long, help_heading = "Sweep")]
    dry_run: bool,

    /// Print JSON
    #[arg(long, help_heading = "Sweep")]
    json: bool,

    #[command(flatten)]
    reporting: ReportingArgs,

    #[command(flatten)]
    given: Given,
}

fn parse_axis(text: &str) -> std::result::Result<Axis, String> {
    text.parse().map_err(|error| format!("{error:#}"))
}

impl SweepArgs {
    /// The style that progress is shown in; `None` for what suits stderr.
    pub fn style(&self) -> Option<Style> {
        self.reporting.style()
    }

    /// Makes the sweep, or lists it.
    ///
    /// # Errors
    /// When nothing can be made, or what all runs gave cannot be written. A run that fails is no
    /// error but an exit code.
    pub fn run(self) -> Result<ExitCode> {
        let (dry_run, as_json) = (self.dry_run, self.json);
        let planned = match Sweep::new(self) {
            Ok(sweep) => sweep,
            Err(error) => {
                stderr::error(&format!("{error:#}"), USAGE);
                return Ok(ExitCode::from(USAGE));
            }
        };
        match dry_run {
            true => planned.list(as_json),
            false => planned.make(as_json),
        }
    }
}

/// A sweep whose every command line has been read.
struct Sweep {
    axes: Vec<Axis>,
    runs: Vec<Run>,
    given: Vec<(String, OsString)>,
    folder: PathBuf,
}

impl Sweep {
    /// # Errors
    /// When a flag is not known or cannot be varied, or a value is none of it.
    fn new(args: SweepArgs) -> Result<Self> {
        let sizes = args.sizes.map(|sizes| format!("size={sizes}"));
        let sizes = sizes.map(|sizes| sizes.parse().context("--sizes"));
        let mut axes = args.vary;
        axes.extend(sizes.transpose()?);
        for Axis { flag, .. } in &axes {
            if NOT_TAKEN.contains(&flag.as_str()) {
                bail!("--vary {flag}: this is no setting of a clip that a sweep can vary");
            }
        }
        let sweep = Self {
            runs: sweep::runs(&axes)?,
            axes,
            given: args.given.0,
            folder: args.output_dir,
        };
        for run in &sweep.runs {
            sweep.read(run, &sweep.folder)?;
        }
        Ok(sweep)
    }

    /// What the command line of a run says, whose clip goes into `folder`: the flags given, but for
    /// those that are varied, and these.
    fn read(&self, run: &Run, folder: &Path) -> Result<GenerateArgs> {
        let command = clip_command();
        let is_switch = |flag: &str| {
            let mut flags = command.get_arguments();
            flags.any(|arg| arg.get_long() == Some(flag) && !arg.get_action().takes_values())
        };
        let value = |flag: &str, text: &str| match text {
            "true" | "false" if is_switch(flag) => Value::Bool(text == "true"),
            text => Value::from(text),
        };
        let table = run.settings.iter();
        let table = table.map(|(flag, text)| (flag.clone(), value(flag, text)));
        let varied = settings::arguments(&command, table, "--vary")?;
        let is_varied = |flag: &str| run.settings.iter().any(|(varied, _)| varied == flag);
        let kept = self.given.iter().filter(|(flag, _)| !is_varied(flag));
        let mut arguments = vec![OsString::from("wan-i2v")];
        arguments.extend(kept.map(|(_, argument)| argument.clone()));
        // Clips of other noise cannot be compared.
        if !is_varied("seed") && !self.given.iter().any(|(flag, _)| flag == "seed") {
            arguments.push("--seed=0".into());
        }
        let mut output = OsString::from("--output=");
        output.push(folder.join(clip_name(run)));
        arguments.push(output);
        arguments.extend(varied);
        match Cli::try_parse_from(arguments) {
            Ok(cli) => Ok(*cli.generate),
            Err(error) => {
                let text = error.to_string();
                let text = text.split("\n\nUsage").next().unwrap_or_default();
                bail!("{}", text.trim_start_matches("error: ").trim_end())
            }
        }
    }

    /// Makes all clips, one after the other, and then what shows them together.
    fn make(&self, as_json: bool) -> Result<ExitCode> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("--output-dir {}", self.folder.display()))?;
        let listener = Listener::start()?;
        let mut done: Vec<Done> = Vec::new();
        for (run, number) in self.runs.iter().zip(1..) {
            self.tell(run, number);
            let result = match self.make_one(run, number == 1, &listener) {
                Ok(outcome) => Ok(outcome),
                Err(error) if error.is::<Interrupted>() => {
                    let code = listener.exit_code().unwrap_or(1);
                    let text = format!(
                        "{error:#} in run {number} of {}; the same command goes on there",
                        self.runs.len()
                    );
                    stderr::error(&text, code);
                    return Ok(ExitCode::from(code));
                }
                Err(error) => {
                    stderr::warning(&format!("run {} failed: {error:#}", run.name));
                    Err(format!("{error:#}"))
                }
            };
            let run = run.clone();
            done.push(Done { run, result });
            self.write_figures(&done)?;
        }
        self.write_pictures(&done)?;
        let failed = done.iter().filter(|done| done.result.is_err()).count();
        print(&match as_json {
            true => self.results(&done)?,
            false => {
                let ends = done.iter().map(|done| match &done.result {
                    Ok(outcome) => outcome.metrics.alarms.join(", "),
                    Err(error) => format!("failed: {}", error.replace('\n', " ")),
                });
                let ends: Vec<String> = [String::new()].into_iter().chain(ends).collect();
                table(&sweep::rows(&self.axes, &done), &ends)
            }
        })?;
        if failed > 0 {
            let text = format!("{failed} of {} runs failed", self.runs.len());
            stderr::error(&text, 1);
        }
        Ok(exit_code(failed > 0))
    }

    fn tell(&self, run: &Run, number: usize) {
        let count = self.runs.len();
        match style() {
            Style::Json => event(
                "run",
                json!({ "run": number, "runs": count, "name": run.name }),
            ),
            _ => say!("run {number} of {count}: {}", run.name),
        }
    }

    /// Makes one clip, unless it is there.
    fn make_one(&self, run: &Run, is_first: bool, listener: &Listener) -> Result<Outcome> {
        let folder = self.folder.as_path();
        let Generate {
            request,
            machine,
            resume,
            open,
        } = self.read(run, folder)?.into_request()?;
        if request.model == Model::Tiny && is_first {
            say!("{}", tiny::NOTICE);
        }
        let (image, resize) = (
            request.image.clone(),
            request.options.resize.unwrap_or_default(),
        );
        let output = request.output.clone();
        let job = Job::prepare(request)?;
        for warning in job.warnings() {
            stderr::warning(&warning);
        }
        let device = machine.device()?;
        let budget = machine.budget(device);
        let Settled {
            memory, forecast, ..
        } = job.fit(device, budget, None)?;
        if is_first {
            stderr::warn_of_shortage(device, forecast.peak_bytes);
        }
        let identity = job.identity(device, &memory)?;
        let record = folder.join(record_name(run));
        if let Some(outcome) = Outcome::finished(&record, folder, &identity) {
            say!("it is there already");
            return Ok(outcome);
        }
        runtime::limit_memory(budget.bytes)?;
        let mut start = resume.start(&output, &identity, &open)?;
        report::start(job.settings(), device, &output);
        start.tell(false);
        let mut progress = Stoppable {
            inner: &mut *report::reporter(MultiProgress::new(), Vec::new()),
            listener,
        };
        let from = start.from.as_ref();
        let summary =
            job.run_saved(device, memory, Some(&mut start.keeper), from, &mut progress)?;
        start.keeper.finish();
        report::finish(&summary, device, &output);
        let picture = Picture::open(&image)?;
        let report = analyze::file(&output, Some((&picture, resize)))?;
        let outcome = Outcome::of(run, clip_name(run), identity, &summary, &report)?;
        outcome.write(&record)?;
        Ok(outcome)
    }

    fn write_figures(&self, done: &[Done]) -> Result<()> {
        let csv = sweep::csv(&self.axes, done);
        page::write(&self.folder.join("results.csv"), &csv)?;
        page::write(&self.folder.join("results.json"), &self.results(done)?)
    }

    fn results(&self, done: &[Done]) -> Result<String> {
        let runs = done.iter().map(|Done { run, result }| match result {
            Ok(outcome) => json!({ "name": run.name, "outcome": outcome }),
            Err(error) => {
                json!({ "name": run.name, "settings": run.settings, "error": error })
            }
        });
        let axes = self.axes.iter();
        let axes = axes.map(|axis| json!({ "flag": axis.flag, "values": axis.values }));
        let results = json!({
            "schema": sweep::SCHEMA,
            "axes": axes.collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&results)? + "\n")
    }

    fn write_pictures(&self, done: &[Done]) -> Result<()> {
        let at = |name: &str| self.folder.join(name);
        page::write(&at("plots.svg"), &sweep::svg(&self.axes, done)?)?;
        // The clips are what counts.
        match Grid::read(&self.axes, done, &self.folder) {
            Ok(Some(mut grid)) => {
                grid.write_png(&at("grid.png"))?;
                grid.write_mp4(&at("grid.mp4"))?;
                say!("{}: all clips side by side", at("grid.mp4").display());
            }
            Ok(None) => {}
            Err(error) => stderr::warning(&format!("no grid: {error:#}")),
        }
        Ok(())
    }
}

/// Aligned columns with a text behind each row.
fn table(rows: &[Vec<String>], ends: &[String]) -> String {
    let columns = columns(rows);
    let lines = columns.lines().zip(ends);
    let lines = lines.map(|(line, end)| format!("{line}  {end}").trim_end().to_owned() + "\n");
    lines.collect()
}

fn exit_code(failed: bool) -> ExitCode {
    match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn clip_name(run: &Run) -> String {
    format!("{}.mp4", run.name)
}

fn record_name(run: &Run) -> String {
    format!("{}.json", run.name)
}
