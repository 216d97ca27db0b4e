//! From a file of jobs to clips: every setting goes the way that it would go on a command line.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::batch::seeds::{seed_of_name, seeds};
use crate::batch::table::{Jobs, Settings, Written};
use crate::batch::template::{Fields, check_name};
use anyhow::{Context, Result, bail, ensure};
use clap::{Command, CommandFactory, Parser};
use serde_json::Value;

use super::layer::{Layer, flag};
use crate::cli::args::{Cli, GenerateArgs};

/// What a clip is called where nobody says otherwise.
const OUTPUT: &str = "{name}_{seed}.mp4";
/// Settings that are prompts, or say where one is.
const PROMPTS: [&str; 2] = ["prompt", "negative-prompt"];
/// Flags that name what is written, by templates, in the batch's folder.
const TEMPLATES: [&str; 4] = ["output", "strip", "preview", "dump"];
/// Flags that are no single job's.
const OF_ALL: [&str; 10] = [
    "config",
    "no-config",
    "progress",
    "quiet",
    "resume",
    "checkpoint",
    "checkpoint-every",
    "no-checkpoint",
    "device",
    "memory-budget",
];

/// A clip that a job asks for.
#[derive(Debug)]
pub struct Wanted {
    /// Where the job is written.
    pub place: String,
    /// The job's name.
    pub name: Option<String>,
    /// The seed.
    pub seed: Option<u64>,
    /// The settings; or why there are none.
    pub args: Result<Box<GenerateArgs>>,
}

/// What is said of all jobs.
#[derive(Debug)]
pub struct Common<'a> {
    /// What the command line says.
    pub command_line: General<'a>,
    /// What variables and the file of settings say.
    pub elsewhere: General<'a>,
    /// The file of the jobs.
    pub file: &'a Path,
    /// The folder of the clips.
    pub folder: &'a Path,
}

/// Settings of all jobs from one place.
#[derive(Debug)]
pub struct General<'a> {
    /// The flags of a clip.
    pub flags: Layer,
    /// The seeds.
    pub seeds: Option<&'a str>,
}

impl General<'_> {
    fn seeds(&self) -> Option<Value> {
        let seeds = self.seeds.map(Value::from);
        seeds.or_else(|| self.flags.value("seed").map(Value::from))
    }
}

/// A job with its settings in place, but no clip yet.
struct Described {
    place: String,
    index: usize,
    name: Option<String>,
    seeds: Option<Value>,
    settings: Layer,
}

impl Common<'_> {
    /// The clips that the jobs stand for, in order.
    ///
    /// # Errors
    /// When what is said of all jobs is wrong.
    pub fn clips(&self, jobs: Jobs) -> Result<Vec<Wanted>> {
        let command = Cli::command();
        let place = format!("{}, [defaults]", self.file.display());
        let mut defaults = jobs.defaults;
        ensure!(
            !defaults.contains_key("name"),
            "{place}: a name is a job's own"
        );
        let file_seeds = take_seeds(&mut defaults, &place)?;
        let seeds = self.command_line.seeds().or(file_seeds);
        let seeds = seeds.or_else(|| self.elsewhere.seeds());
        let defaults = self.layer(&command, defaults, &place)?;
        let defaults = defaults.under(&command, self.command_line.flags.clone());

        let digits = jobs.jobs.len().to_string().len();
        let described: Vec<_> = (jobs.jobs.into_iter().zip(1..))
            .map(|(written, index)| {
                let place = written.place.clone();
                self.describe(&command, written, index, &defaults, seeds.as_ref())
                    .map_err(|error| (place, error))
            })
            .collect();
        let mut unnamed = BTreeMap::new();
        let mut clips = Vec::new();
        for described in described {
            match described {
                Ok(job) => self.expand(job, digits, &mut unnamed, &mut clips),
                Err((place, error)) => clips.push(Wanted {
                    place,
                    name: None,
                    seed: None,
                    args: Err(error),
                }),
            }
        }
        Ok(clips)
    }

    fn describe(
        &self,
        command: &Command,
        written: Written,
        index: usize,
        defaults: &Layer,
        default_seeds: Option<&Value>,
    ) -> Result<Described> {
        let place = written.place;
        let mut settings = written.settings.with_context(|| place.clone())?;
        let name = match settings.remove("name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(other) => bail!("{place}: name is {other}; expected a text"),
        };
        if let Some(name) = &name {
            check_name(name).with_context(|| place.clone())?;
        }
        let own = take_seeds(&mut settings, &place)?;
        let settings = self.layer(command, settings, &place)?;
        let said = defaults.under(command, settings);
        let elsewhere = self.elsewhere.flags.without_parts_of_another(&said);
        Ok(Described {
            index,
            name,
            seeds: own.or_else(|| default_seeds.cloned()),
            settings: elsewhere.under(command, said),
            place,
        })
    }

    /// Settings as arguments, with paths of what is read as they are seen from the file.
    fn layer(&self, command: &Command, settings: Settings, place: &str) -> Result<Layer> {
        let mut settings = settings;
        for (key, value) in &mut settings {
            let name = key.replace('_', "-");
            ensure!(
                !OF_ALL.contains(&name.as_str()),
                "{place}: {key} is for the whole batch; give --{name} on the command line"
            );
            let Some(flag) = flag(command, &name) else {
                continue;
            };
            if !flag.get_action().takes_values() {
                // A table of text alone has no other way to say so.
                match value.as_str().map(str::trim) {
                    Some("true" | "yes" | "1") => *value = true.into(),
                    Some("false" | "no" | "0") => *value = false.into(),
                    _ => {}
                }
            }
            if PROMPTS.contains(&name.as_str())
                && let Some(text) = value.as_str()
            {
                ensure!(
                    text != "-",
                    "{place}: {key} is \"-\"; jobs have no standard input: give the text, or @FILE"
                );
                let file = text.strip_prefix('@');
                if let Some(file) = file.filter(|file| !file.starts_with(['@', '~'])) {
                    let there = self.file.parent().unwrap_or(Path::new("")).join(file);
                    *value = format!("@{}", there.display()).into();
                }
            }
            let is_path = flag.get_value_parser().type_id() == TypeId::of::<PathBuf>();
            if is_path
                && !TEMPLATES.contains(&name.as_str())
                && let Some(path) = value.as_str().filter(|path| !path.starts_with("~/"))
            {
                let there = self.file.parent().unwrap_or(Path::new("")).join(path);
                // A model may be the hub's, or the built-in one.
                if name != "model" || there.exists() {
                    *value = there.to_string_lossy().into();
                }
            }
        }
        Layer::of_settings(command, settings, place)
    }

    /// A job's clips: one for each seed.
    fn expand(
        &self,
        job: Described,
        digits: usize,
        unnamed: &mut BTreeMap<String, usize>,
        clips: &mut Vec<Wanted>,
    ) {
        let image = job.settings.value("image").unwrap_or_default();
        let stem = Path::new(&image).file_stem().unwrap_or_default();
        let stem = stem.to_string_lossy().into_owned();
        let name = job.name.clone().unwrap_or_else(|| {
            let count = unnamed.entry(stem.clone()).or_default();
            *count += 1;
            match *count {
                1 => stem.clone(),
                count => format!("{stem}-{count}"),
            }
        });
        let named = match &job.seeds {
            Some(named) => seeds(named).with_context(|| format!("{}: seed", job.place)),
            None => Ok(vec![seed_of_name(&name)]),
        };
        let seeds = match named {
            Ok(seeds) => seeds,
            Err(error) => {
                clips.push(Wanted {
                    place: job.place,
                    name: Some(name),
                    seed: None,
                    args: Err(error),
                });
                return;
            }
        };
        for (seed, take) in seeds.into_iter().zip(1..) {
            let fields = Fields {
                name: &name,
                seed,
                index: job.index,
                digits,
                take,
                image: &stem,
            };
            let args = self.parse(&job.settings, &fields);
            clips.push(Wanted {
                place: job.place.clone(),
                name: Some(name.clone()),
                seed: Some(seed),
                args: args.with_context(|| job.place.clone()),
            });
        }
    }

    fn parse(&self, settings: &Layer, fields: &Fields<'_>) -> Result<Box<GenerateArgs>> {
        let mut settings = settings.clone();
        settings.set("seed", Some(OsStr::new(&fields.seed.to_string())));
        for flag in TEMPLATES {
            let default = (flag == "output").then(|| OUTPUT.to_owned());
            let Some(template) = settings.value(flag).or(default) else {
                continue;
            };
            if flag == "preview" && template == "-" {
                continue;
            }
            let path = fields.path(&template, self.folder);
            let path = path.with_context(|| format!("--{flag}"))?;
            settings.set(flag, Some(path.as_os_str()));
        }
        let program = [OsString::from("wan-i2v")].into_iter();
        match Cli::try_parse_from(program.chain(settings.into_arguments())) {
            Ok(cli) => Ok(cli.generate),
            Err(error) => bail!(message(&error)),
        }
    }
}

/// The first paragraph of what clap says.
fn message(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines = text.lines().take_while(|line| {
        !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    let lines: Vec<&str> = lines
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ")
}

fn take_seeds(settings: &mut Settings, place: &str) -> Result<Option<Value>> {
    let own: Vec<Value> = ["seed", "seeds"]
        .into_iter()
        .filter_map(|key| settings.remove(key))
        .filter(|value| !value.is_null())
        .collect();
    ensure!(own.len() < 2, "{place}: there are both seed and seeds");
    Ok(own.into_iter().next())
}

/// Has no two clips write one file, nor one of them a picture that another begins with; the first
/// one stays.
pub fn part(clips: &mut [Wanted]) {
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let pictures: BTreeSet<PathBuf> = clips
        .iter()
        .filter_map(|clip| clip.args.as_ref().ok()?.picture()?.canonicalize().ok())
        .collect();
    for clip in clips {
        let Ok(args) = &clip.args else { continue };
        let mut problem = None;
        for path in args.written() {
            // Where capital letters make no difference, they are the same.
            let path: PathBuf = path.components().collect();
            let key = path.to_string_lossy().to_lowercase();
            if path
                .canonicalize()
                .is_ok_and(|path| pictures.contains(&path))
            {
                problem = Some(format!("{} is the picture of a job", path.display()));
            } else if let Some(other) = taken.get(&key) {
                problem = Some(format!(
                    "{} is also what {other} makes; give the job a name of its own, or more fields \
                     to --output",
                    path.display()
                ));
            }
            taken.entry(key).or_insert_with(|| clip.place.clone());
        }
        if let Some(problem) = problem {
            clip.args = Err(anyhow::anyhow!("{}: {problem}", clip.place));
        }
    }
}
