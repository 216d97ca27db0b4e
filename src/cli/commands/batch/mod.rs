//! `wan-i2v batch`: the clips of a job file, with what they share loaded and encoded once.

mod dry_run;
mod jobs;
mod outcome;

use std::process::ExitCode;

use crate::batch::report::Report;
use crate::batch::{self, BatchOptions, gallery, table};
use anyhow::{Context, Result};

use self::jobs::Jobs;
use self::outcome::Outcome;
use super::after::Ended;
use super::group;
use super::many::{self, Checked, Folders, Wanted};
use crate::cli::config::Layers;
use crate::cli::flags::{BatchArgs, ResumeFrom};
use crate::cli::ui::exit_code;
use crate::runtime::Links;

impl BatchArgs {
    /// Makes the clips, or says what they will cost.
    ///
    /// # Errors
    /// When what is said of all jobs is wrong; what is wrong with one is reported.
    pub(super) fn run(self, layers: &Layers) -> Result<ExitCode> {
        let links = match self.many.dry_run {
            true => None,
            false => self.generate.group.meet()?,
        };
        if let Some(links) = links.as_ref().filter(|links| links.rank() > 0) {
            return self.serve(layers, links);
        }
        let after = self.generate.after.clone();
        after.check()?;
        let folder = self.many.output_dir.clone();
        after.all_ended(self.make(layers, links), &folder)
    }

    /// Makes what rank 0 hands out, in a folder that vanishes.
    fn serve(mut self, layers: &Layers, links: &Links) -> Result<ExitCode> {
        let folder = group::folder()?;
        self.many.output_dir = folder.path().to_owned();
        let wanted = self.wanted(layers)?;
        many::serve(wanted, &self.many, &layers.catalogue, links)
    }

    fn wanted(&self, layers: &Layers) -> Result<Vec<Wanted>> {
        let jobs = Jobs {
            layers,
            file: &self.jobs,
            folder: &self.many.output_dir,
        };
        let mut wanted = jobs.clips(table::read(&self.jobs)?)?;
        jobs::part(&mut wanted);
        Ok(wanted)
    }

    fn make(self, layers: &Layers, links: Option<Links>) -> Result<Ended> {
        let resume = &self.generate.resume;
        resume.check_for_many()?;
        let folder = &self.many.output_dir;
        let wanted = self.wanted(layers)?;
        let mut folders = Folders::default();
        folders.make(folder).context("--output-dir")?;
        // No job has one of its own.
        self.generate.clip.machine.device()?;
        let fresh = resume.resume == ResumeFrom::Never;
        let mut outcome = Outcome::new(&self.jobs, folder, &wanted);
        outcome.after = self.generate.after.clone();
        outcome.fresh = fresh;
        let checked = Checked::new(
            wanted,
            &self.many,
            &layers.catalogue,
            &mut folders,
            &mut outcome,
        );
        if self.many.dry_run {
            return Ok((dry_run::show(&checked, &outcome)?, None));
        }
        let lock = batch::lock(folder)?;
        Report::claim(folder)?;
        gallery::claim(folder)?;
        let options = BatchOptions {
            folder,
            lock: &lock,
            capacity: checked.capacity()?,
            every: resume.every(),
            fresh,
        };
        let stopped = checked.make(options, links, &mut outcome)?;
        let text = Some(outcome.tally());
        Ok(match stopped {
            None => (exit_code(outcome.finish()), text),
            Some(code) => {
                outcome.interrupted(code);
                (ExitCode::from(code), text)
            }
        })
    }
}
