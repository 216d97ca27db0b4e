//! Settings: one engine for all places where they are made.
//!
//! A setting comes from the first of these that has it: a job (or what a sweep varies), the command
//! line, the `[defaults]` of a job file, environment variables, the config file. Each place is a
//! [`Layer`], and every setting knows its origin. What the command line does not say is added to it as
//! further arguments, so that every flag is read in one way.

mod catalogue;
mod file;
mod layer;
mod presets;

pub(crate) use catalogue::{
    Catalogue, Entry as CatalogueEntry, File as CatalogueFile, Place as CataloguePlace,
    Source as CatalogueSource,
};
pub(crate) use layer::{Layer, at_home, canonical, flag, is_path, repeats};
pub(crate) use presets::{Preset, Presets};

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::util::show::Show;
use crate::util::suggest::did_you_mean;
use anyhow::{Context, Result, bail, ensure};
use clap::{Arg, ArgMatches, Command, FromArgMatches};

use self::file::ConfigFile;
use self::layer::{Origin, names, switch, variable_of};
use super::flags::{self, ConfigArgs, advice, reason};

/// The prefix of the variables.
pub(crate) const PREFIX: &str = "WAN_I2V_";
/// The section of the command without a name.
const GENERATE: &str = "generate";
/// Commands that make or plan clips, and so take the settings of clips.
const OF_CLIPS: [&str; 4] = [GENERATE, "plan", "batch", "sweep"];

/// Flags that change nothing without one of others, and these.
const BESIDE: [(&str, &[&str]); 3] = [
    (
        "group-size",
        &["bits", "high-bits", "low-bits", "text-bits"],
    ),
    ("preview-vae", &["preview"]),
    ("preview-every", &["preview"]),
];
/// Commands whose clips may have such others of their own.
const OF_MANY: [&str; 2] = ["batch", "sweep"];

/// The variables of the environment that are this program's, without their prefix.
pub(crate) type Variables = BTreeMap<String, OsString>;

/// This program's variables that are set and not empty.
pub(crate) fn variables() -> Variables {
    std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(PREFIX)?.to_owned();
            Some((name, value))
        })
        .collect()
}

/// The settings of a command by the places where they are made.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// The command line.
    pub(crate) command_line: Layer,
    /// Variables and the sections of the config file, the strongest first.
    pub(crate) ambient: Vec<Layer>,
    /// The presets that there are.
    pub(crate) presets: Presets,
    /// The models that can be had by a short name.
    pub(crate) catalogue: Catalogue,
}

/// A command line with every setting.
#[derive(Debug, Default)]
pub(crate) struct Layered {
    /// Its arguments, the program's name first.
    pub(crate) arguments: Vec<OsString>,
    /// Where they come from.
    pub(crate) layers: Layers,
    /// Those that are not from the command line.
    added: Layer,
    /// Variables that set nothing, and what may be meant.
    pub(crate) unknown: Vec<String>,
    /// The preset that nobody named, and the name that asks for it.
    pub(crate) found: Option<(String, String)>,
}

/// Adds to a command line what variables and the config file say and it does not. A flag that
/// conflicts with one of a stronger place is left out.
///
/// A command line that cannot be read, or asks for help, is returned as it is.
///
/// # Errors
/// When a variable or the file has what cannot be read: names it, and the key.
pub(crate) fn layered(arguments: Vec<OsString>, variables: &Variables) -> Result<Layered> {
    let bare = |arguments| Layered {
        arguments,
        ..Layered::default()
    };
    // A setting may give what has to be given.
    let mut root = flags::command().mut_args(|arg| arg.required(false));
    let Ok(matches) = root.try_get_matches_from_mut(&arguments) else {
        return Ok(bare(arguments));
    };
    let (name, matches) = matches.subcommand().unwrap_or((GENERATE, &matches));
    let Some(command) = command_of(&root, name) else {
        return Ok(bare(arguments));
    };
    let command_line = Layer::of_command_line(&command, matches);
    if !is_set_by_files(&command) {
        ensure_heard(&command_line, &command_line)?;
        return Ok(bare(arguments));
    }
    let mut ambient = Vec::new();
    let mut unknown = Vec::new();
    if OF_CLIPS.contains(&name) {
        let value = |name: &str| variables.get(name);
        ambient.push(Layer::of_variables(&command, PREFIX, value)?);
        unknown = unknown_variables(&root, variables);
    }
    let mut presets = Presets::new(serde_json::Map::new(), "")?;
    let mut catalogue = Catalogue::new(serde_json::Map::new(), "")?;
    if let Some(mut file) = find_file(matches, variables)? {
        if let Some(users) = file.sections.remove("presets") {
            presets = Presets::new(users, &file.path.shown().to_string())?;
        }
        if let Some(users) = file.sections.remove("models") {
            catalogue = Catalogue::new(users, &file.path.shown().to_string())?;
        }
        ambient.extend(of_file(&root, name, &command, file)?);
    }

    let own = match name {
        GENERATE => None,
        name => Some(OsStr::new(name)),
    };
    let start: Vec<OsString> = [arguments.first().map(OsString::as_os_str), own]
        .into_iter()
        .flatten()
        .map(OsStr::to_owned)
        .collect();
    let all = std::iter::once(&command_line).chain(&ambient);
    let (all, found) = presets.beside(&command, all)?;
    let (mut merged, mut added) = (command_line.clone(), Layer::default());
    // The first one is the command line itself.
    for layer in all.iter().skip(1) {
        let open = merged.leaves_open(&command, layer);
        check(&mut root, &start, &open)?;
        merged.settings.extend(open.settings.iter().cloned());
        added.settings.extend(open.settings);
    }
    if !OF_MANY.contains(&name) {
        ensure_heard(&command_line, &merged)?;
    }
    // Before the others: these may end in words that are no flags.
    let rest = arguments.get(start.len()..).unwrap_or_default().to_vec();
    Ok(Layered {
        arguments: start
            .into_iter()
            .chain(added.arguments())
            .chain(rest)
            .collect(),
        layers: Layers {
            command_line,
            ambient,
            presets,
            catalogue,
        },
        added,
        unknown,
        found,
    })
}

impl Layered {
    /// The places besides the command line that set something, each once, with its keys.
    pub(crate) fn used(&self) -> Option<String> {
        let mut used: Vec<(Option<&str>, Vec<&str>)> = Vec::new();
        for setting in self.added.settings.iter().filter(|s| s.is_present()) {
            let (place, key) = match &setting.origin {
                Origin::CommandLine => continue,
                Origin::Variable(name) => (None, name),
                Origin::Key { place, key } => (Some(place.as_str()), key),
            };
            match used.last_mut() {
                Some((last, keys)) if *last == place => keys.push(key),
                _ => used.push((place, vec![key])),
            }
        }
        let places = used.into_iter().map(|(place, keys)| match place {
            Some(place) => format!("{place}: {}", keys.join(", ")),
            None => keys.join(", "),
        });
        let places: Vec<String> = places.collect();
        (!places.is_empty()).then(|| places.join("; "))
    }
}

/// Refuses a flag of the command line that changes nothing without others that no place has.
fn ensure_heard(command_line: &Layer, merged: &Layer) -> Result<()> {
    for (flag, others) in BESIDE {
        let is_heard = others.iter().any(|other| merged.has(other));
        let names: Vec<String> = others.iter().map(|other| format!("--{other}")).collect();
        ensure!(
            is_heard || !command_line.has(flag),
            "--{flag} changes nothing without {}{}\nhint: give {} as well, or leave --{flag} out",
            if names.len() > 1 { "one of " } else { "" },
            names.join(", "),
            names[0]
        );
    }
    Ok(())
}

/// The command that settings call by this name.
fn command_of(root: &Command, name: &str) -> Option<Command> {
    let command = match name {
        GENERATE => root,
        name => root.find_subcommand(name)?,
    };
    Some(command.clone())
}

fn is_set_by_files(command: &Command) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == "config")
}

fn find_file(matches: &ArgMatches, variables: &Variables) -> Result<Option<ConfigFile>> {
    let args = ConfigArgs::from_arg_matches(matches)?;
    if args.config.is_some() {
        return ConfigFile::find(args.config);
    }
    let off = variables.get("NO_CONFIG").map(|value| {
        let off = switch(value);
        off.with_context(|| format!("{PREFIX}NO_CONFIG is {value:?}; expected 1 or 0"))
    });
    if args.no_config || off.transpose()? == Some(true) {
        return Ok(None);
    }
    ConfigFile::find(variables.get("CONFIG").cloned())
}

/// The variables that no flag of any command for clips has, and what may be meant.
fn unknown_variables(root: &Command, variables: &Variables) -> Vec<String> {
    let commands = OF_CLIPS.iter().filter_map(|name| command_of(root, name));
    let flags: Vec<Arg> = commands
        .flat_map(|command| command.get_arguments().cloned().collect::<Vec<_>>())
        .collect();
    let known: Vec<String> = flags.iter().flat_map(names).map(variable_of).collect();
    let unknown = variables.keys().filter(|name| !known.contains(name));
    let own = flags.iter().filter_map(Arg::get_long).map(variable_of);
    let own: Vec<String> = own.collect();
    unknown
        .map(|name| {
            let hint = match advice(&name.to_lowercase()) {
                Some(advice) => format!("\nhint: {advice}"),
                None => did_you_mean(name, own.iter().map(String::as_str))
                    .replace("mean ", &format!("mean {PREFIX}")),
            };
            format!("{PREFIX}{name} sets nothing{hint}")
        })
        .collect()
}

/// The layers of a file for a command, the strongest first: its own section, then, for what makes
/// clips, those of `generate` and what is in no section.
fn of_file(
    root: &Command,
    name: &str,
    command: &Command,
    mut file: ConfigFile,
) -> Result<Vec<Layer>> {
    let path = file.path.shown().to_string();
    let names: Vec<&str> = root
        .get_subcommands()
        .filter(|command| is_set_by_files(command))
        .map(Command::get_name)
        .chain([GENERATE])
        .collect();
    if let Some(section) = file.sections.keys().find(|s| !names.contains(&s.as_str())) {
        bail!(
            "{path}: [{section}] is no command with settings{}",
            did_you_mean(section, names.iter().copied())
        );
    }
    let mut layers = Vec::new();
    let mut section = |name: &str, command: &Command| -> Result<()> {
        if let Some(table) = file.sections.remove(name) {
            layers.push(Layer::of_table(command, table, &format!("{path}, [{name}]"))?.ambient());
        }
        Ok(())
    };
    if name != GENERATE {
        section(name, command)?;
    }
    if OF_CLIPS.contains(&name) {
        // Of these a command takes what it has.
        section(GENERATE, root)?;
        layers.push(Layer::of_table(root, file.top, &path)?.ambient());
    }
    Ok(layers)
}

/// Sees to it that a layer can be read, since it is not the command line that is wrong then.
fn check(root: &mut Command, start: &[OsString], layer: &Layer) -> Result<()> {
    // Words that a command requires are not the layer's.
    let mut relaxed = root
        .clone()
        .mut_subcommands(|command| command.mut_args(|arg| arg.required(false)));
    let mut read = |arguments: Vec<OsString>| {
        relaxed.try_get_matches_from_mut(start.iter().cloned().chain(arguments))
    };
    for setting in &layer.settings {
        if let Err(error) = read(setting.argument().into_iter().collect()) {
            bail!("{}: {}", setting.origin, reason(&error));
        }
    }
    if let (Err(error), Some(first)) = (read(layer.arguments().collect()), layer.settings.first()) {
        match &first.origin {
            Origin::Key { place, .. } => bail!("{place}: {}", reason(&error)),
            origin => bail!("{origin}: {}", reason(&error)),
        }
    }
    Ok(())
}
