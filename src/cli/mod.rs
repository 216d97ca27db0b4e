//! The command line, in layers that import downwards alone: `flags` (what clap reads) <- `config`
//! (settings of all places) <- `commands` (what is done) -> `ui` (what is seen).

mod commands;
mod config;
mod flags;
mod ui;
mod usage;

use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::anyhow;
use signal_hook::low_level;

use self::commands::{GoOn, LOST};
use self::flags::GroupArgs;
use self::ui::{Style, stderr};
use crate::runtime::{
    RankLost, is_abandoned, prepare_environment, prepare_host_file, start_threads,
};
use crate::util::show::Show as _;

/// Where the system refuses the program, or a library that cannot do without, a thread.
const NO_THREAD: &str = "the system allows no further thread\nhint: raise the limit of processes, such as \
                         with ulimit -u";

/// The message of a panic, kept back from the terminal until it is known that nobody caught it: the
/// tokenizer's library panics on damaged files, which becomes an ordinary error.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// What `scripts/licenses` writes.
const LICENSES: &str = include_str!("../../THIRD-PARTY.txt");

/// Runs the program. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 another machine is lost, 101 an error of the program,
/// 130 stopped by Ctrl-C, 143 by SIGTERM.
pub fn main() -> ExitCode {
    prepare_environment();
    let arguments: Vec<_> = std::env::args_os().collect();
    // Before settings, which are a clip's, are put beside it.
    if arguments
        .get(1..)
        .is_some_and(|flags| flags == ["--licenses"])
    {
        return match ui::print(LICENSES) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let (cli, layered) = match usage::read(arguments) {
        Ok(read) => read,
        Err(code) => return code,
    };
    if let Some(file) = cli.group().and_then(|group| group.machines.as_deref()) {
        prepare_host_file(file);
    }
    if let Some(reporting) = cli.reporting() {
        if cli.group().is_some_and(GroupArgs::serves) {
            stderr::set_style(Style::Quiet);
        }
        if let Some(style) = reporting.style() {
            stderr::set_style(style);
        }
        if reporting.verbose {
            stderr::set_verbose();
        }
    }
    for text in &layered.unknown {
        stderr::warning(text);
    }
    if let Some((preset, name)) = &layered.found {
        let name = name.as_str().shown();
        ui::info!(
            "taking preset {preset}, as the name {name} asks for it (--preset none: the model's settings)"
        );
    }
    if let Some(used) = layered.used() {
        stderr::detail(&format!("set by {used}"));
    }
    panic::set_hook(Box::new(|info: &PanicHookInfo| {
        if let Ok(mut message) = PANIC.lock() {
            *message = Some(info.to_string());
        }
    }));
    match panic::catch_unwind(|| {
        start_threads().map_err(|_| anyhow!(NO_THREAD))?;
        commands::run(cli, &layered.layers)
    }) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => match error.downcast::<GoOn>() {
            Ok(next) => next.execute(),
            Err(error) => {
                let code = if error.is::<RankLost>() { LOST } else { 1 };
                stderr::error(&ui::with_advice(&error), code);
                if is_abandoned() {
                    low_level::exit(code.into());
                }
                ExitCode::from(code)
            }
        },
        Err(_) => {
            let message = PANIC.lock().ok().and_then(|mut m| m.take());
            let message = message.unwrap_or_default();
            if message.contains("failed to spawn thread") {
                stderr::error(NO_THREAD, 1);
                return ExitCode::FAILURE;
            }
            let text = format!(
                "a bug in wan-i2v: {message}\nhint: please report it at {}",
                env!("CARGO_PKG_REPOSITORY")
            );
            stderr::error(&text, 101);
            ExitCode::from(101)
        }
    }
}
