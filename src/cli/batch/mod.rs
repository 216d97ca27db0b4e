//! `wan-i2v batch`: the clips of a file of jobs, with what they share loaded and encoded once.

mod jobs;
mod layer;
mod outcome;
mod plan;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::batch::report::Report;
use crate::batch::{self, BatchOptions, Capacity, ClipStatus, Entry, room, table};
use crate::clip::Model;
use crate::pipeline::plan::{Budget, Rates};
use crate::pipeline::{InputCache, Interrupted};
use crate::runtime;
use crate::tiny;
use anyhow::{Context, Result};
use clap::{ArgMatches, Args, Command, FromArgMatches};

use self::jobs::{Common, General, Wanted};
use self::layer::Layer;
use self::outcome::Outcome;
use super::args::{Generate, GenerateArgs};
use super::preview::{PreviewArgs, Screen};
use super::signals::{Listener, Stoppable};
use super::stderr::{self, Style, say};

/// Makes the clips of a file of jobs (docs/batch.md).
///
/// What the clips share is loaded and encoded once: texts, then pictures, then each expert for as
/// many clips as are in flight. Every flag of a clip is a setting of all jobs that do not say
/// otherwise. Each clip's path goes to stdout when it is there. The same command again makes only
/// what is missing. Exit codes: 0 every clip is there, 1 one or more are not, 2 wrong usage, 130
/// stopped by Ctrl-C, 143 by SIGTERM.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// The jobs: .jsonl (an object a line), .csv (names in the first line) or .toml ([[job]] each)
    #[arg(value_name = "JOBS")]
    jobs: PathBuf,

    /// The folder of the clips, made if it is missing
    #[arg(long, value_name = "DIR", help_heading = "Batch")]
    output_dir: PathBuf,

    /// Seeds of jobs that name none: 7, 1..4, or several with commas; a clip each
    /// [default: one that follows from the job's name]
    #[arg(
        long,
        value_name = "SEEDS",
        conflicts_with = "seed",
        help_heading = "Batch"
    )]
    seeds: Option<String>,

    /// Clips in flight: so many share a loading of the experts, and wait in memory meanwhile
    /// [default: 8, or as many as the memory allows]
    #[arg(long, value_name = "N", help_heading = "Batch")]
    jobs_at_once: Option<NonZeroUsize>,

    /// Check everything and say what it will cost, but make nothing
    #[arg(long, help_heading = "Batch")]
    dry_run: bool,

    #[command(flatten)]
    defaults: Defaults,
}

/// The flags of a clip, as settings of all jobs.
#[derive(Debug)]
struct Defaults {
    args: Box<GenerateArgs>,
    flags: Layer,
}

impl Args for Defaults {
    fn augment_args(command: Command) -> Command {
        GenerateArgs::augment_args(command)
            .mut_arg("image", |arg| arg.required(false))
            .mut_arg("prompt", |arg| arg.required(false))
            .mut_arg("output", |arg| {
                arg.value_name("TEMPLATE").help(
                    "What clips are called in the folder, with {name}, {seed}, {index}, {take}, \
                     {image}; as --strip, --preview and --dump [default: {name}_{seed}.mp4]",
                )
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Defaults {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            args: Box::new(GenerateArgs::from_arg_matches(matches)?),
            flags: Layer::of_command_line(matches),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A clip that can be made.
pub(super) struct Ready {
    entry: Entry,
    standing: ClipStatus,
    preview: Option<(PreviewArgs, Screen)>,
    is_tiny: bool,
}

impl BatchArgs {
    /// The style that progress is shown in; `None` for what suits stderr.
    pub fn style(&self) -> Option<Style> {
        self.defaults.args.style()
    }

    /// Makes the clips, or says what they will cost. `elsewhere` names the flags that are not from
    /// the command line.
    ///
    /// # Errors
    /// When what is said of all jobs is wrong; what is wrong with one is reported.
    pub fn run(self, elsewhere: &[String]) -> Result<ExitCode> {
        self.defaults.args.resume.check_for_many()?;
        let folder = &self.output_dir;
        let written = table::read(&self.jobs)?;
        let seeds = self.seeds.as_deref();
        let has_own = !elsewhere.iter().any(|flag| flag == "seeds");
        let (set, given) = self.defaults.flags.clone().partition(elsewhere);
        let common = Common {
            command_line: General {
                flags: given,
                seeds: seeds.filter(|_| has_own),
            },
            elsewhere: General {
                flags: set,
                seeds: seeds.filter(|_| !has_own),
            },
            file: &self.jobs,
            folder,
        };
        let mut wanted = common.clips(written)?;
        jobs::part(&mut wanted);

        let mut folders = Folders::default();
        folders.make(folder).context("--output-dir")?;
        let device = self.defaults.args.machine.device()?;
        let budget = self.defaults.args.machine.budget(device);
        let rates = match self.dry_run {
            true => Some(Rates::of_machine(device, false)?),
            false => None,
        };
        let before = Report::read(folder);
        let anew = self.defaults.args.resume.is_never();
        let mut outcome = Outcome::new(&self.jobs, folder);
        let mut ready = Vec::new();
        let mut stock = InputCache::default();
        let numbers: Vec<usize> = wanted.iter().map(|clip| outcome.add(clip)).collect();
        for (number, clip) in numbers.into_iter().zip(wanted) {
            let prepared = prepare(clip, budget, rates.as_ref(), &mut stock, &mut folders);
            let stands = prepared.and_then(|mut clip| {
                let entry = &clip.entry;
                let output = entry
                    .output()
                    .strip_prefix(folder)
                    .unwrap_or(entry.output());
                outcome.describe(number, output, entry);
                let known = before.as_ref().and_then(|report| report.clip(output));
                if !anew {
                    clip.standing = entry.standing(known)?;
                }
                if clip.standing == ClipStatus::UpToDate {
                    if !self.dry_run {
                        entry.tidy();
                    }
                    outcome.there(number, known);
                }
                Ok(clip)
            });
            match stands {
                Ok(clip) => ready.push((number, clip)),
                Err(error) => outcome.fail(number, &format!("{error:#}")),
            }
        }
        drop(stock);
        let asked = self.jobs_at_once.map(NonZeroUsize::get);
        let todo = ready
            .iter()
            .filter(|(_, clip)| clip.standing != ClipStatus::UpToDate);
        let room = room(todo.map(|(_, clip)| &clip.entry), asked, budget);
        if let Some(rates) = &rates {
            folders.remove();
            return plan::show(&ready, &outcome, room?, budget, rates);
        }
        let room = room?;
        runtime::limit_memory(budget.bytes)?;
        self.make(ready, outcome, room)
    }

    fn make(
        self,
        ready: Vec<(usize, Ready)>,
        mut outcome: Outcome,
        room: Capacity,
    ) -> Result<ExitCode> {
        outcome.begin(room.at_once);
        if let Some((_, clip)) = ready.first() {
            stderr::warn_of_shortage(clip.entry.device(), room.peak_bytes);
        }
        if ready.iter().any(|(_, clip)| clip.is_tiny) {
            say!("{}", tiny::NOTICE);
        }
        let mut clips = Vec::new();
        for (number, mut clip) in ready {
            let saved = match clip.standing {
                ClipStatus::UpToDate => continue,
                ClipStatus::Resumable(_) => true,
                ClipStatus::Missing => false,
            };
            for warning in clip.entry.job().warnings() {
                stderr::warning(&format!("{}{warning}", outcome.label(number)));
            }
            if let Some((preview, screen)) = clip.preview
                && let Err(error) = preview.attach(clip.entry.job_mut(), screen, outcome.console())
            {
                outcome.fail(number, &format!("{error:#}"));
                continue;
            }
            clips.push((number, clip.entry, saved));
        }
        let resume = &self.defaults.args.resume;
        let terms = BatchOptions {
            folder: &self.output_dir,
            room,
            every: resume.every(),
            anew: resume.is_never(),
        };
        let listener = Listener::start()?;
        let ran = batch::run(
            clips,
            terms,
            &mut Stoppable {
                inner: &mut outcome,
                listener: &listener,
            },
        );
        match ran {
            Ok(()) => Ok(match outcome.finish() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }),
            Err(error) if error.is::<Interrupted>() => {
                let code = listener.exit_code().unwrap_or(1);
                outcome.interrupted(code);
                Ok(ExitCode::from(code))
            }
            Err(error) => Err(error),
        }
    }
}

/// Checks all that can be checked of a clip before a model is loaded.
fn prepare(
    clip: Wanted,
    budget: Budget,
    rates: Option<&Rates>,
    stock: &mut InputCache,
    folders: &mut Folders,
) -> Result<Ready> {
    let place = clip.place;
    let make = || -> Result<_> {
        let args = clip.args?;
        for path in args.written() {
            folders.make(path.parent().unwrap_or(Path::new("")))?;
        }
        let preview = args.beside.preview.clone();
        let Generate {
            request, machine, ..
        } = args.into_request()?;
        let screen = preview.screen(&request)?;
        Ok(Ready {
            is_tiny: request.model == Model::Tiny,
            entry: Entry::prepare(request, machine.device()?, budget, rates, stock)?,
            standing: ClipStatus::Missing,
            preview: screen.map(|screen| (preview, screen)),
        })
    };
    make().map_err(|error| match error.to_string().starts_with(&place) {
        true => error,
        false => error.context(place),
    })
}

/// Folders that were made for clips.
#[derive(Debug, Default)]
struct Folders(Vec<PathBuf>);

impl Folders {
    fn make(&mut self, folder: &Path) -> Result<()> {
        let missing: Vec<_> = folder
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .map(Path::to_owned)
            .collect();
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        self.0.extend(missing.into_iter().rev());
        Ok(())
    }

    /// Removes those that are empty.
    fn remove(self) {
        for folder in self.0.into_iter().rev() {
            // What has something in it stays.
            let _ = fs::remove_dir(folder);
        }
    }
}
