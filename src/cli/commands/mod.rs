//! The commands: a file or a folder for each.

mod after;
mod again;
mod analyze;
mod awake;
mod batch;
mod compare;
mod convert;
mod doctor;
mod generate;
mod group;
mod inspect;
mod launch;
mod many;
mod models;
mod place;
mod plan;
mod presets;
mod preview;
mod pull;
mod resolve;
mod shell;
mod show;
mod sweep;
mod tune;

pub(crate) use again::GoOn;
pub(crate) use group::LOST;

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::config::Layers;
use super::flags::{Cli, Command};
use super::ui::{bus, exit_code, print_path};

/// Does what the command line says; `layers` are its settings by the places where they are made.
pub(crate) fn run(cli: Cli, layers: &Layers) -> Result<ExitCode> {
    // They settle the style, which for launch is that of what it starts.
    if !matches!(cli.command, Some(Command::Launch(_))) {
        bus::install_handlers().context("cannot listen for signals")?;
    }
    match (cli.command, cli.generate) {
        (Some(Command::Inspect(args)), _) => args.run().map(exit_code),
        (Some(Command::Convert(args)), _) => print_path(&args.run()?).map(|()| ExitCode::SUCCESS),
        (Some(Command::Pull(args)), _) => {
            print_path(&args.run(&layers.catalogue)?).map(|()| ExitCode::SUCCESS)
        }
        (Some(Command::Plan(args)), _) => args.run(&layers.catalogue),
        (Some(Command::Models(args)), _) => args
            .run(&layers.catalogue, &layers.presets)
            .map(|()| ExitCode::SUCCESS),
        (Some(Command::Presets(args)), _) => args.run(&layers.presets).map(|()| ExitCode::SUCCESS),
        (Some(Command::Analyze(args)), _) => args.run(),
        (Some(Command::Compare(args)), _) => args.run(),
        (Some(Command::Batch(args)), _) => args.run(layers),
        (Some(Command::Launch(args)), _) => args.run(),
        (Some(Command::Doctor(args)), _) => args.run(&layers.catalogue),
        (Some(Command::Tune(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Show(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Completions(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Man(args)), _) => args.run().map(|()| ExitCode::SUCCESS),
        (Some(Command::Sweep(args)), _) => args.run(layers),
        (None, args) => args.run(&layers.catalogue),
    }
}
