//! `wan-i2v sweep`: clips over all combinations of some flags' values. A batch whose jobs are the
//! combinations, with a report of its own.

mod dry_run;
mod outcomes;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::batch::sweep::{self, Axis, Run};
use crate::batch::{self, BatchOptions};
use crate::util::show::chain;
use anyhow::{Context, Result, bail, ensure};
use clap::ColorChoice;
use clap::{Arg, Command};

use self::outcomes::Outcomes;
use super::after::Ended;
use super::group;
use super::many::{self, Checked, Folders, Wanted};
use crate::cli::config::{Layer, Layers, flag};
use crate::cli::flags::{GenerateArgs, SweepArgs, clip_command, command, parse, reason};
use crate::cli::ui::{exit_code, stderr};
use crate::cli::usage::USAGE;
use crate::runtime::Links;

impl SweepArgs {
    /// Makes the sweep, or lists it.
    ///
    /// # Errors
    /// When nothing can be made, or what all runs gave cannot be written. A run that fails is no
    /// error but an exit code.
    pub(super) fn run(mut self, layers: &Layers) -> Result<ExitCode> {
        let links = match self.many.dry_run {
            true => None,
            false => self.group.meet()?,
        };
        if let Some(links) = links.as_ref().filter(|links| links.rank() > 0) {
            let folder = group::folder()?;
            self.many.output_dir = folder.path().to_owned();
            let (outcomes, args) = self.plan(layers)?;
            let wanted = wanted(args, &outcomes);
            return many::serve(wanted, &self.many, &layers.catalogue, links);
        }
        self.after.check()?;
        let ran = self.make(layers, links);
        self.after.all_ended(ran, &self.many.output_dir)
    }

    fn make(&self, layers: &Layers, links: Option<Links>) -> Result<Ended> {
        let (mut outcomes, args) = match self.plan(layers) {
            Ok(planned) => planned,
            Err(error) => {
                stderr::error(&chain(&error), USAGE);
                return Ok((ExitCode::from(USAGE), None));
            }
        };
        outcomes.after = self.after.clone();
        let folder = &self.many.output_dir;
        let mut folders = Folders::default();
        folders.make(folder).context("--output-dir")?;
        let wanted = wanted(args, &outcomes);
        let checked = Checked::new(
            wanted,
            &self.many,
            &layers.catalogue,
            &mut folders,
            &mut outcomes,
        );
        if self.many.dry_run {
            return Ok((dry_run::show(&checked, &outcomes, self.json)?, None));
        }
        let lock = batch::lock(folder)?;
        outcomes.claim_files()?;
        let options = BatchOptions {
            folder,
            lock: &lock,
            capacity: checked.capacity()?,
            every: Some(1),
            fresh: false,
        };
        if let Some(code) = checked.make(options, links, &mut outcomes)? {
            outcomes.interrupted(code);
            return Ok((ExitCode::from(code), Some(outcomes.tally())));
        }
        let good = outcomes.finish(self.json)?;
        Ok((exit_code(good), Some(outcomes.tally())))
    }

    /// The runs, without outcomes, and each run's flags.
    ///
    /// # Errors
    /// When a flag is not known or cannot be varied, or a value is none of it.
    fn plan(&self, layers: &Layers) -> Result<(Outcomes, Vec<GenerateArgs>)> {
        let sizes = self.sizes.as_ref().map(|sizes| format!("size={sizes}"));
        let sizes = sizes.map(|sizes| sizes.parse().context("--sizes"));
        let mut axes = self.vary.clone();
        axes.extend(sizes.transpose()?);
        let (command, all) = (clip_command(), command());
        for Axis { flag: varied, .. } in &mut axes {
            let known = flag(&command, varied).and_then(Arg::get_long);
            ensure!(
                known.is_some() || flag(&all, varied).is_none(),
                "--vary {varied}: this is no setting of a clip that a sweep can vary"
            );
            *varied = known.unwrap_or(varied).to_owned();
        }
        let runs = sweep::runs(&axes)?;
        let folder = &self.many.output_dir;
        let args = runs.iter();
        let args = args.map(|run| read(run, &command, layers, folder));
        let args = args.collect::<Result<Vec<_>>>()?;
        let pictures = args.iter();
        let pictures = pictures.map(|args| args.clip.image.clone());
        Ok((Outcomes::new(axes, runs, folder, pictures.collect()), args))
    }
}

/// The clips of the runs.
fn wanted(args: Vec<GenerateArgs>, outcomes: &Outcomes) -> Vec<Wanted> {
    let wanted = args.into_iter().zip(&outcomes.runs);
    let wanted = wanted.map(|(args, run)| Wanted {
        place: String::new(),
        name: Some(run.name.clone()),
        seed: args.clip.seed,
        args: Ok(Box::new(args)),
    });
    wanted.collect()
}

/// The flags of a run: what is varied, then the settings of all other places.
fn read(run: &Run, command: &Command, layers: &Layers, folder: &Path) -> Result<GenerateArgs> {
    let table = run.settings.iter();
    let table = table.map(|(flag, value)| (flag.clone(), value.as_str().into()));
    let mut top = Layer::of_table(command, table, "--vary")?;
    // What the command line has and is varied too is the varied one; what conflicts is wrong usage.
    let own = layers.command_line.settings.iter();
    let own = own.filter(|setting| !top.has(&setting.flag)).cloned();
    let own: Vec<_> = own.collect();
    top.settings.extend(own);
    let all = std::iter::once(&top).chain(&layers.ambient);
    let (all, _) = layers.presets.beside(command, all)?;
    let mut settings = Layer::merged(command, &all);
    if !settings.has("seed") {
        // Clips of other noise cannot be compared.
        settings.set("seed", "0");
    }
    settings.set("output", folder.join(run.clip()));
    let program = [OsString::from("wan-i2v")].into_iter();
    match parse(program.chain(settings.arguments()), ColorChoice::Never) {
        Ok(cli) => Ok(*cli.generate),
        Err(error) => bail!(reason(&error)),
    }
}
