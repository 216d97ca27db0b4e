//! From a job file to clips: every setting goes the way that it would go on a command line.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf, is_separator};

use crate::batch::seeds::{seed_of_name, seeds};
use crate::batch::table::{self, Settings, Written};
use crate::batch::template::{Fields, check_name};
use anyhow::{Context, Result, bail, ensure};
use clap::{Command, FromArgMatches};
use serde_json::Value;

use crate::cli::commands::many::Wanted;
use crate::cli::commands::resolve::picture::is_address;
use crate::cli::config::{Layer, Layers, canonical, flag, is_path, repeats};
use crate::cli::flags::{self, Cli, GenerateArgs, job_command, parse_lora, reason};
use crate::util::show::Show;

/// The default name of a clip.
const OUTPUT: &str = "{name}_{seed}.mp4";
/// Settings that are prompts, or say where one is.
const PROMPTS: [&str; 2] = ["prompt", "negative-prompt"];
/// Flags that name what is written, by templates, in the batch's folder.
const TEMPLATES: [&str; 4] = ["output", "strip", "preview", "dump"];
/// Flags that are no single job's.
const OF_ALL: [&str; 19] = [
    "machines",
    "yes",
    "allow-sleep",
    "no-retry",
    "exec",
    "notify",
    "open",
    "config",
    "no-config",
    "progress",
    "quiet",
    "verbose",
    "resume",
    "checkpoint",
    "checkpoint-every",
    "no-checkpoint",
    "device",
    "memory-budget",
    "no-tune",
];

/// The jobs of a file, and the settings of all of them from elsewhere.
#[derive(Debug)]
pub(super) struct Jobs<'a> {
    /// The command line's settings, and those of variables and the config file.
    pub(super) layers: &'a Layers,
    /// The job file.
    pub(super) file: &'a Path,
    /// The folder of the clips.
    pub(super) folder: &'a Path,
}

/// A job with its settings in place, but no clip yet.
struct Described {
    place: String,
    index: usize,
    name: Option<String>,
    settings: Layer,
}

impl Jobs<'_> {
    /// The clips that the jobs stand for, in order.
    ///
    /// # Errors
    /// When what is said of all jobs is wrong.
    pub(super) fn clips(&self, jobs: table::Jobs) -> Result<Vec<Wanted>> {
        let command = job_command();
        let place = format!("{}, [defaults]", self.file.shown());
        ensure!(
            !jobs.defaults.contains_key("name"),
            "{place}: a name is a job's own"
        );
        let defaults = self.layer(&command, jobs.defaults, &place)?;

        // One for all jobs: to build it takes longer than to parse with it.
        let mut parser = flags::command();
        let digits = jobs.jobs.len().to_string().len();
        let described: Vec<_> = (jobs.jobs.into_iter().zip(1..))
            .map(|(written, index)| {
                let place = written.place.clone();
                self.describe(&command, written, index, &defaults)
                    .map_err(|error| (place, error))
            })
            .collect();
        let mut unnamed = BTreeMap::new();
        let mut clips = Vec::new();
        for described in described {
            match described {
                Ok(job) => self.expand(job, digits, &mut parser, &mut unnamed, &mut clips),
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
        let job = self.layer(command, settings, &place)?;
        let all = [&job, &self.layers.command_line, defaults];
        let all = all.into_iter().chain(&self.layers.ambient);
        let beside = self.layers.presets.beside(command, all);
        let (layers, _) = beside.with_context(|| place.clone())?;
        Ok(Described {
            index,
            name,
            settings: Layer::merged(command, &layers),
            place,
        })
    }

    /// A table's settings, with paths of what is read as they are seen from the file.
    fn layer(&self, command: &Command, mut settings: Settings, place: &str) -> Result<Layer> {
        for (key, value) in &mut settings {
            let name = canonical(command, key);
            ensure!(
                !OF_ALL.contains(&name.as_str()),
                "{place}: {key} is for the whole batch\nhint: give --{name} on the command line"
            );
            let here = |path: &str| self.file.parent().unwrap_or(Path::new("")).join(path);
            if flag(command, &name).is_some_and(repeats) {
                let items = match value {
                    Value::Array(items) => items.as_mut_slice(),
                    one => std::slice::from_mut(one),
                };
                for item in items {
                    let text = item.as_str().unwrap_or_default();
                    // What is not there may be the hub's.
                    let path = parse_lora(text)
                        .ok()
                        .map(|lora| here(&lora.source.to_string_lossy()));
                    if !text.starts_with("~/") && path.is_some_and(|path| path.exists()) {
                        *item = here(text).to_string_lossy().into();
                    }
                }
                continue;
            }
            let Some(text) = value.as_str() else { continue };
            ensure!(
                !(text == "-" && name.ends_with("image")),
                "{place}: {key} is \"-\"; jobs have no standard input: name a file"
            );
            if PROMPTS.contains(&name.as_str()) {
                ensure!(
                    text != "-",
                    "{place}: {key} is \"-\"; jobs have no standard input: give the text, or @FILE"
                );
                let file = text.strip_prefix('@');
                if let Some(file) = file.filter(|file| !file.starts_with(['@', '~'])) {
                    *value = format!("@{}", here(file).to_string_lossy()).into();
                }
            } else if flag(command, &name).is_some_and(is_path)
                && !TEMPLATES.contains(&name.as_str())
                && !text.starts_with("~/")
                && !is_address(Path::new(text))
                // A model may be the hub's, or the built-in one.
                && (name != "model" || here(text).exists())
            {
                *value = here(text).to_string_lossy().into();
            }
        }
        let layer = Layer::of_table(command, settings, place)?;
        ensure!(
            !(layer.has("seed") && layer.has("seeds")),
            "{place}: there are both seed and seeds"
        );
        Ok(layer)
    }

    /// A job's clips: one for each seed.
    fn expand(
        &self,
        job: Described,
        digits: usize,
        parser: &mut Command,
        unnamed: &mut BTreeMap<String, usize>,
        clips: &mut Vec<Wanted>,
    ) {
        let image = job.settings.value("image").unwrap_or(OsStr::new("clip"));
        let image = image.to_owned();
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
        let seed = job.settings.value("seeds").or(job.settings.value("seed"));
        let named = match seed {
            Some(named) => {
                seeds(&named.to_string_lossy()).with_context(|| format!("{}: seed", job.place))
            }
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
            let args = self.parse(parser, &job.settings, &fields);
            clips.push(Wanted {
                place: job.place.clone(),
                name: Some(name.clone()),
                seed: Some(seed),
                args: args.with_context(|| job.place.clone()),
            });
        }
    }

    fn parse(
        &self,
        parser: &mut Command,
        settings: &Layer,
        fields: &Fields<'_>,
    ) -> Result<Box<GenerateArgs>> {
        let mut settings = settings.clone();
        settings.remove("seeds");
        settings.set("seed", fields.seed.to_string());
        for flag in TEMPLATES {
            let default = (flag == "output").then_some(OsStr::new(OUTPUT));
            let Some(template) = settings.value(flag).or(default) else {
                continue;
            };
            let template = template.to_string_lossy();
            if flag == "preview" && template == "-" {
                continue;
            }
            let path = fields.path(&template, self.folder);
            let path = path.with_context(|| format!("--{flag}"))?;
            settings.set(flag, path);
        }
        let program = [OsString::from("wan-i2v")].into_iter();
        let parsed = parser
            .try_get_matches_from_mut(program.chain(settings.arguments()))
            .and_then(|matches| Cli::from_arg_matches(&matches));
        match parsed {
            Ok(cli) => Ok(cli.generate),
            Err(error) => bail!(reason(&error)),
        }
    }
}

/// Has no two clips write one file, nor one of them a picture that another begins with, nor a file in a
/// folder's place; the first one stays.
pub(super) fn part(clips: &mut [Wanted]) {
    // The first job that writes a path, with whether it is a file, and that writes in a folder.
    let mut taken: BTreeMap<PathBuf, (String, bool)> = BTreeMap::new();
    let mut above: BTreeMap<PathBuf, String> = BTreeMap::new();
    let pictures: BTreeSet<PathBuf> = clips
        .iter()
        .filter_map(|clip| {
            clip.args
                .as_ref()
                .ok()?
                .clip
                .image
                .as_ref()?
                .canonicalize()
                .ok()
        })
        .collect();
    for clip in clips {
        let Ok(args) = &clip.args else { continue };
        let mut problem = None;
        for path in args.output.written() {
            let is_file = is_file(path);
            let path: PathBuf = path.components().collect();
            // Where capital letters make no difference, they are the same.
            let key = PathBuf::from(path.to_string_lossy().to_lowercase());
            let folders = || key.ancestors().skip(1);
            if path
                .canonicalize()
                .is_ok_and(|path| pictures.contains(&path))
            {
                problem = Some(format!("{} is the picture of a job", path.shown()));
            } else if let Some((other, _)) = taken.get(&key) {
                problem = Some(format!(
                    "{} is also what {other} makes\nhint: give the job a name of its own, or more fields \
                     to --output",
                    path.shown()
                ));
            } else if let Some((other, _)) = folders()
                .filter_map(|folder| taken.get(folder))
                .find(|(_, is_file)| *is_file)
            {
                problem = Some(format!(
                    "{} lies in a file that {other} makes",
                    path.shown()
                ));
            } else if is_file && let Some(other) = above.get(&key) {
                problem = Some(format!(
                    "{} is a file, and {other} makes a folder of that name",
                    path.shown()
                ));
            }
            let place = || clip.place.clone();
            for folder in folders() {
                above.entry(folder.to_owned()).or_insert_with(place);
            }
            taken.entry(key).or_insert_with(|| (place(), is_file));
        }
        if let Some(problem) = problem {
            clip.args = Err(anyhow::anyhow!("{}: {problem}", clip.place));
        }
    }
}

/// Whether a clip or a strip of this name is a file.
fn is_file(path: &Path) -> bool {
    let is_folder = path.to_string_lossy().ends_with(is_separator) || path.is_dir();
    let end = path.extension().and_then(OsStr::to_str);
    let end = end.map(str::to_lowercase);
    !is_folder && matches!(end.as_deref(), Some("mp4" | "gif" | "png"))
}
