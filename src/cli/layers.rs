//! Settings beside the command line: variables of the environment and a file. What the command
//! line does not say is added to it as further arguments, so that every flag is read in one way.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::util::suggest::did_you_mean;
use anyhow::{Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, ValueHint};

use super::args::Cli;
use super::config::Config;
use super::settings::{Setting, settings};
use super::stderr::{say, warning};

/// What the variables' names begin with.
const PREFIX: &str = "WAN_I2V_";
/// The section of the command without a name.
const GENERATE: &str = "generate";
/// Commands that make or plan clips, and so take the settings of clips.
const OF_CLIPS: [&str; 4] = [GENERATE, "plan", "batch", "sweep"];
/// Flags that go with a model: who names another one means it whole.
pub const PARTS: [&str; 5] = ["high", "low", "vae", "text-encoder", "tokenizer"];

/// Where settings come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct ConfigArgs {
    /// Read settings from this TOML file; flags and WAN_I2V_* variables come first
    /// [default: ~/.config/wan-i2v/config.toml, if it is there]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, hide_short_help = true)]
    config: Option<OsString>,

    /// Read no file of settings
    #[arg(long, conflicts_with = "config", hide_short_help = true)]
    no_config: bool,
}

/// The variables of the environment that are this program's, without their prefix.
pub type Variables = BTreeMap<String, OsString>;

/// This program's variables that are set and not empty.
pub fn variables() -> Variables {
    std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(PREFIX)?.to_owned();
            Some((name, value))
        })
        .collect()
}

/// A command line with every setting.
#[derive(Debug, Default)]
pub struct Layered {
    /// Its arguments, the program's name first.
    pub arguments: Vec<OsString>,
    /// The flags among them that something else sets.
    pub flags: Vec<String>,
    /// What sets something that the command line does not.
    used: Vec<String>,
    /// Variables that set nothing.
    unknown: Vec<String>,
}

impl Layered {
    /// Tells what else than the command line sets something.
    pub fn tell(&self) {
        for text in &self.unknown {
            warning(text);
        }
        if !self.used.is_empty() {
            say!("set by {}", self.used.join("; "));
        }
    }
}

/// Adds to a command line what variables and the file of settings say and it does not. A flag that
/// conflicts with one that comes first is left out.
///
/// A command line that cannot be read, or asks for help, is returned as it is.
///
/// # Errors
/// When a variable or the file has what cannot be read: names it, and the key.
pub fn layered(arguments: Vec<OsString>, variables: &Variables) -> Result<Layered> {
    // A setting may give what has to be given.
    let mut root = Cli::command().mut_args(|arg| arg.required(false));
    let Ok(matches) = root.try_get_matches_from_mut(&arguments) else {
        return Ok(Layered {
            arguments,
            ..Layered::default()
        });
    };
    let (name, matches) = matches.subcommand().unwrap_or((GENERATE, &matches));
    let Some(command) = command_of(&root, name).filter(is_set_by_files) else {
        return Ok(Layered {
            arguments,
            ..Layered::default()
        });
    };
    let mut layers = Vec::new();
    let mut unknown = Vec::new();
    let of_clips = OF_CLIPS.contains(&name);
    if of_clips {
        layers.push(from_variables(&command, variables)?);
        unknown = unknown_variables(&root, variables);
    }
    if let Some(config) = find_config(matches, variables)? {
        layers.extend(from_config(&root, name, &command, config)?);
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
    let mut chosen = Chosen::of(&command, matches);
    let mut added = Vec::new();
    for layer in layers {
        let layer = chosen.choose(&command, layer);
        check(&mut root, &start, &layer)?;
        added.extend(layer);
    }
    // Before the others: these may end in words that are no flags.
    let rest = arguments.get(start.len()..).unwrap_or_default().to_vec();
    added.retain(|setting| setting.argument.is_some());
    Ok(Layered {
        flags: added.iter().map(|setting| setting.flag.clone()).collect(),
        used: used(&added),
        unknown,
        arguments: start
            .into_iter()
            .chain(added.into_iter().filter_map(|setting| setting.argument))
            .chain(rest)
            .collect(),
    })
}

/// What sets something: each place once, with its keys.
fn used(settings: &[Setting]) -> Vec<String> {
    let mut used: Vec<(Option<&str>, Vec<&str>)> = Vec::new();
    for setting in settings {
        let (place, key) = match setting.from.rsplit_once(": ") {
            Some((place, key)) => (Some(place), key),
            None => (None, setting.from.as_str()),
        };
        match used.last_mut() {
            Some((last, keys)) if *last == place => keys.push(key),
            _ => used.push((place, vec![key])),
        }
    }
    used.into_iter()
        .map(|(place, keys)| match place {
            Some(place) => format!("{place}: {}", keys.join(", ")),
            None => keys.join(", "),
        })
        .collect()
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

/// Whether a flag is one that settings can set.
fn is_setting(arg: &Arg) -> bool {
    !["config", "no_config", "help", "version"].contains(&arg.get_id().as_str())
        && arg.get_long().is_some()
}

fn find_config(matches: &ArgMatches, variables: &Variables) -> Result<Option<Config>> {
    let given = ConfigArgs::from_arg_matches(matches)?;
    if given.config.is_some() {
        return Config::find(given.config);
    }
    let off = variables
        .get("NO_CONFIG")
        .map(|value| switch("NO_CONFIG", value));
    if given.no_config || off.transpose()? == Some(true) {
        return Ok(None);
    }
    Config::find(variables.get("CONFIG").cloned())
}

/// The name of the variable that sets a flag, without its prefix.
fn variable_of(flag: &str) -> String {
    flag.replace('-', "_").to_uppercase()
}

fn from_variables(command: &Command, variables: &Variables) -> Result<Vec<Setting>> {
    let mut set = Vec::new();
    for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
        let flag = arg.get_long().unwrap_or_default();
        let name = variable_of(flag);
        let Some(value) = variables.get(&name) else {
            continue;
        };
        let mut argument = OsString::from(format!("--{flag}"));
        let argument = if arg.get_action().takes_values() {
            argument.push("=");
            argument.push(value);
            Some(argument)
        } else {
            switch(&name, value)?.then_some(argument)
        };
        set.push(Setting {
            flag: flag.to_owned(),
            from: format!("{PREFIX}{name}"),
            argument,
        });
    }
    Ok(set)
}

/// A switch's variable.
fn switch(name: &str, value: &OsStr) -> Result<bool> {
    match value.to_string_lossy().to_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => bail!("{PREFIX}{name} is {value:?}; expected 1 or 0"),
    }
}

/// What to say of variables that no flag of any command for clips has.
fn unknown_variables(root: &Command, variables: &Variables) -> Vec<String> {
    let commands = OF_CLIPS.iter().filter_map(|name| command_of(root, name));
    let flags = commands.flat_map(|command| {
        let flags = command.get_arguments().filter_map(Arg::get_long);
        flags.map(variable_of).collect::<Vec<_>>()
    });
    let known: Vec<String> = flags.collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let unknown = variables
        .keys()
        .filter(|name| !known.contains(&name.as_str()));
    unknown
        .map(|name| {
            let prefixed = did_you_mean(name, known.iter().copied())
                .replace("mean ", &format!("mean {PREFIX}"));
            format!("{PREFIX}{name} sets nothing{prefixed}")
        })
        .collect()
}

/// The layers of a file for a command, what comes first first: its own section, then, for what
/// makes clips, those of `generate` and what is in no section.
fn from_config(
    root: &Command,
    name: &str,
    command: &Command,
    mut config: Config,
) -> Result<Vec<Vec<Setting>>> {
    let path = config.path.display().to_string();
    let names: Vec<&str> = root
        .get_subcommands()
        .filter(|command| is_set_by_files(command))
        .map(Command::get_name)
        .chain([GENERATE])
        .collect();
    for (section, _) in &config.sections {
        if !names.contains(&section.as_str()) {
            bail!(
                "{path}: [{section}] is no command with settings{}",
                did_you_mean(section, names.iter().copied())
            );
        }
    }
    let mut section = |name: &str| {
        let at = config.sections.iter().position(|(n, _)| n == name)?;
        Some(config.sections.swap_remove(at).1)
    };
    let mut layers = Vec::new();
    if name != GENERATE
        && let Some(table) = section(name)
    {
        layers.push(settings(
            &only_settings(command),
            table,
            &format!("{path}, [{name}]"),
        )?);
    }
    if !OF_CLIPS.contains(&name) {
        return Ok(layers);
    }
    let generate = only_settings(root);
    let own = section(GENERATE).map(|table| (table, format!("{path}, [{GENERATE}]")));
    for (table, from) in own.into_iter().chain([(config.top, path)]) {
        // Of these a command takes what it has.
        let mut layer = settings(&generate, table, &from)?;
        let known = |flag: &str| {
            command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(flag))
        };
        layer.retain(|setting| known(&setting.flag));
        layers.push(layer);
    }
    Ok(layers)
}

/// The command without the flags that settings cannot set.
fn only_settings(command: &Command) -> Command {
    command.clone().mut_args(|arg| match is_setting(&arg) {
        true => arg,
        false => arg.long(None),
    })
}

/// Flags that are settled.
#[derive(Debug)]
struct Chosen {
    /// Those that are set, be it to nothing.
    set: Vec<String>,
    /// Those among them that are present.
    present: Vec<String>,
}

impl Chosen {
    /// What the command line says.
    fn of(command: &Command, matches: &ArgMatches) -> Self {
        let given = command.get_arguments().filter(|arg| {
            matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
        });
        let set: Vec<String> = given.filter_map(Arg::get_long).map(str::to_owned).collect();
        Self {
            present: set.clone(),
            set,
        }
    }

    /// Settles what a further layer sets and the former ones do not, nor rule out.
    fn choose(&mut self, command: &Command, layer: Vec<Setting>) -> Vec<Setting> {
        let flag = |name: &str| {
            command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(name))
        };
        let names = |arg: &Arg, other: &str| {
            let conflicts = command.get_arg_conflicts_with(arg);
            conflicts.iter().any(|arg| arg.get_long() == Some(other))
        };
        let conflict = |a: &str, b: &str| {
            flag(a).is_some_and(|arg| names(arg, b)) || flag(b).is_some_and(|arg| names(arg, a))
        };
        let has_model = self.set.iter().any(|flag| flag == "model");
        let chosen = layer.into_iter().filter(|Setting { flag, .. }| {
            !(self.set.contains(flag)
                || self.present.iter().any(|other| conflict(flag, other))
                || has_model && PARTS.contains(&flag.as_str()))
        });
        let chosen: Vec<Setting> = chosen.collect();
        for setting in &chosen {
            self.set.push(setting.flag.clone());
            if setting.argument.is_some() {
                self.present.push(setting.flag.clone());
            }
        }
        chosen
    }
}

/// Sees to it that a layer can be read, since it is not the command line that is wrong then.
fn check(root: &mut Command, start: &[OsString], layer: &[Setting]) -> Result<()> {
    // Words that a command has to be given are not the layer's.
    let mut relaxed = root
        .clone()
        .mut_subcommands(|command| command.mut_args(|arg| arg.required(false)));
    let mut read = |settings: &[Setting]| {
        let arguments = settings.iter().filter_map(|s| s.argument.as_ref());
        relaxed.try_get_matches_from_mut(start.iter().chain(arguments))
    };
    for setting in layer {
        if let Err(error) = read(std::slice::from_ref(setting)) {
            bail!("{}: {}", setting.from, reason(&error));
        }
    }
    if let (Err(error), Some(first)) = (read(layer), layer.first()) {
        let place = first.from.split(": ").next().unwrap_or_default();
        bail!("{place}: {}", reason(&error));
    }
    Ok(())
}

/// What clap says without what it says of the command line.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let lines: Vec<&str> = lines.collect();
    lines.join("; ").trim_start_matches("error: ").to_owned()
}
