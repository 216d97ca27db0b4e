//! Arguments in, progress and results out. Everything else is the library's.

mod analyze;
mod args;
mod batch;
mod bus;
mod compare;
mod config;
mod display;
mod doctor;
#[cfg(test)]
mod flags_md;
mod graphics;
mod layers;
mod outputs;
mod plan;
mod preview;
mod prompt;
mod report;
mod resume;
mod settings;
mod shell;
mod show;
mod signals;
mod source;
mod stderr;
mod sweep;
mod tools;
mod values;

use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use crate::clip::Model;
use crate::pipeline::plan::Settled;
use crate::pipeline::{Interrupted, Job};
use crate::runtime;
use crate::tiny;
use anyhow::{Context, Result};
use clap::Parser;
use indicatif::MultiProgress;

use args::{Cli, Command, Generate, GenerateArgs};
use signals::{Listener, Stoppable};
use stderr::say;

/// What a panic said, kept back from the terminal until it is known that nobody caught it: the
/// tokenizer's library panics on damaged files, which becomes an ordinary error.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// The exit code of wrong usage, clap's own.
const USAGE: u8 = 2;

/// Runs the program. Exit codes: 0 done, 1 failed, 2 wrong usage, 101 an error of the program,
/// 130 stopped by Ctrl-C, 143 by SIGTERM.
pub fn main() -> ExitCode {
    let given = std::env::args_os().collect();
    let layered = match layers::layered(given, &layers::variables()) {
        Ok(layered) => layered,
        Err(error) => {
            stderr::error(&format!("{error:#}"), USAGE);
            return ExitCode::from(USAGE);
        }
    };
    let cli = Cli::parse_from(&layered.arguments);
    if let Some(style) = cli.style() {
        stderr::set_style(style);
    }
    layered.tell();
    panic::set_hook(Box::new(|info: &PanicHookInfo| {
        if let Ok(mut message) = PANIC.lock() {
            *message = Some(info.to_string());
        }
    }));
    match panic::catch_unwind(|| run(cli, &layered.flags)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            stderr::error(&format!("{error:#}"), 1);
            ExitCode::FAILURE
        }
        Err(_) => {
            let message = PANIC.lock().ok().and_then(|mut m| m.take());
            let message = message.unwrap_or_default();
            let text = format!("this is a mistake in wan-i2v, please report it: {message}");
            stderr::error(&text, 101);
            ExitCode::from(101)
        }
    }
}

/// `elsewhere` names the flags that are not from the command line.
fn run(cli: Cli, elsewhere: &[String]) -> Result<ExitCode> {
    bus::explain().context("cannot listen for signals")?;
    match (cli.command, cli.generate) {
        (Some(Command::Inspect(args)), _) => Ok(match args.run()? {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }),
        (Some(Command::Convert(args)), _) => print_path(args.run()?),
        (Some(Command::Pull(args)), _) => print_path(args.run()?),
        (Some(Command::Plan(args)), _) => plan::run(*args),
        (Some(Command::Analyze(args)), _) => args.run(),
        (Some(Command::Compare(args)), _) => args.run(),
        (Some(Command::Batch(args)), _) => args.run(elsewhere),
        (Some(Command::Doctor(args)), _) => args.run(),
        (Some(Command::Show(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Completions(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Man(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Sweep(args)), _) => args.run(),
        (None, args) => generate(*args),
    }
}

fn generate(args: GenerateArgs) -> Result<ExitCode> {
    let preview = args.beside.preview.clone();
    let Generate {
        request,
        machine,
        resume,
        open,
    } = args.into_request()?;
    let screen = preview.screen(&request)?;
    let output = request.output.clone();
    let (is_tiny, dumps) = (request.model == Model::Tiny, request.dump.is_some());
    let mut job = Job::prepare(request)?;
    let console = MultiProgress::new();
    if let Some(screen) = screen {
        preview.attach(&mut job, screen, console.clone())?;
    }
    if is_tiny {
        say!("{}", tiny::NOTICE);
    }
    for warning in job.warnings() {
        stderr::warning(&warning);
    }
    let device = machine.device()?;
    let budget = machine.budget(device);
    let Settled {
        memory, forecast, ..
    } = job.fit(device, budget, None)?;
    stderr::warn_of_shortage(device, forecast.peak_bytes);
    runtime::limit_memory(budget.bytes)?;
    let mut start = resume.start(&output, &job.identity(device, &memory)?, &open)?;
    let output = start.output.clone();
    if let Some(seed) = start.seed().filter(|_| open.seed) {
        job.reseed(seed, output.clone());
    }
    report::start(job.settings(), device, &output);
    start.tell(dumps);
    let listener = Listener::start()?;
    let mut progress = Stoppable {
        inner: &mut *report::reporter(console, Vec::new()),
        listener: &listener,
    };
    let ran = job.run_saved(
        device,
        memory,
        Some(&mut start.keeper),
        start.from.as_ref(),
        &mut progress,
    );
    let summary = match ran {
        Ok(summary) => summary,
        Err(error) if error.is::<Interrupted>() => {
            let code = listener.exit_code().unwrap_or(1);
            stderr::error(&format!("{error:#}; {}", start.hint()), code);
            return Ok(ExitCode::from(code));
        }
        Err(error) => {
            if start.keeper.latest().is_some_and(|(_, step)| step > 0) {
                say!("{}", start.hint());
            }
            return Err(error);
        }
    };
    start.keeper.finish();
    report::finish(&summary, device, &output);
    print_path(output).context("the clip is complete")
}

/// Writes a result's path to stdout: its own bytes, whether or not they are valid text.
fn print_path(path: PathBuf) -> Result<ExitCode> {
    let mut line = path.into_os_string().into_encoded_bytes();
    line.push(b'\n');
    std::io::stdout()
        .write_all(&line)
        .context("the path cannot be written to stdout")?;
    Ok(ExitCode::SUCCESS)
}
