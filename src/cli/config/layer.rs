//! Settings of flags from one place, and which of several places' settings count.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::util::suggest::did_you_mean;
use anyhow::{Result, anyhow, bail, ensure};
use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::Value;

use crate::cli::flags::{ResumeFrom, advice, parse_lora};

/// Flags that go with a model: who names another one means it whole.
#[rustfmt::skip]
const PARTS: [&str; 10] = [
    "high", "low", "transformer", "vae", "text-encoder", "image-encoder", "tokenizer", "lora", "lora-high",
    "lora-low",
];

/// A flag that one place sets.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Its long name, without hyphens.
    pub(crate) flag: String,
    /// Its state.
    state: State,
    /// Who sets it.
    pub(crate) origin: Origin,
}

/// The state of a flag.
#[derive(Clone, Debug)]
enum State {
    Value(OsString),
    /// A switch.
    On,
    Off,
}

/// Who sets a flag.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    CommandLine,
    /// An environment variable, by its name.
    Variable(String),
    /// A key in a file.
    Key {
        place: String,
        key: String,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::Variable(name) => f.write_str(name),
            Self::Key { place, key } => write!(f, "{place}: {key}"),
        }
    }
}

impl Setting {
    /// Whether the flag is to be present.
    pub(super) fn is_present(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// One argument, so that a value that begins with a hyphen is no other flag; `None` where
    /// the flag is to be absent.
    pub(super) fn argument(&self) -> Option<OsString> {
        let mut argument = OsString::from(format!("--{}", self.flag));
        match &self.state {
            State::Value(value) => {
                argument.push("=");
                argument.push(value);
            }
            State::On => {}
            State::Off => return None,
        }
        Some(argument)
    }
}

/// The settings of one place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    pub(crate) settings: Vec<Setting>,
    /// Whether it applies to every run, as variables and the config file are: parts of a model in
    /// it are meant for the model that it names, and no other.
    is_ambient: bool,
}

impl Layer {
    /// The flags of `command` that a command line has.
    pub(crate) fn of_command_line(command: &Command, matches: &ArgMatches) -> Self {
        let mut layer = Self::default();
        for arg in command.get_arguments() {
            let (id, Some(flag)) = (arg.get_id().as_str(), arg.get_long()) else {
                continue;
            };
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let mut push = |state| {
                layer.settings.push(Setting {
                    flag: flag.to_owned(),
                    state,
                    origin: Origin::CommandLine,
                });
            };
            match matches.get_raw(id) {
                Some(values) if arg.get_action().takes_values() => {
                    values.for_each(|value| push(State::Value(value.to_owned())));
                }
                _ => push(State::On),
            }
        }
        layer
    }

    /// The settings of a table for `command`: a key, with `-` or `_`, is a long flag's name. Texts
    /// and numbers are values as they stand, arrays are joined by commas, `true` is a switch's
    /// presence, `false` its absence; null says nothing. In a path, a leading `~/` is the home folder,
    /// as a shell would have it. `place` is where the table comes from.
    ///
    /// # Errors
    /// Names `place`, the key, what it has and what is expected there. Values are left to the flags'
    /// own parsers.
    pub(crate) fn of_table(
        command: &Command,
        table: impl IntoIterator<Item = (String, Value)>,
        place: &str,
    ) -> Result<Self> {
        let mut seen = BTreeSet::new();
        let mut layer = Self::default();
        for (key, value) in table {
            let name = canonical(command, &key);
            let Some(arg) = flag(command, &name) else {
                let known = command.get_arguments().filter(|arg| is_setting(arg));
                let hint = match advice(&name) {
                    Some(advice) => format!("\nhint: {advice}"),
                    None => did_you_mean(&name, known.filter_map(Arg::get_long)),
                };
                bail!(
                    "{place}: {key:?} is no setting of `{}`{hint}",
                    command.get_bin_name().unwrap_or(command.get_name()),
                );
            };
            ensure!(seen.insert(name.clone()), "{place}: {key:?} is there twice");
            // What can be repeated is once for each item.
            let values = match &value {
                Value::Array(items) if repeats(arg) => items.as_slice(),
                one => std::slice::from_ref(one),
            };
            for one in values {
                let state = state(arg, one).map_err(|expected| {
                    anyhow!("{place}: {key} is {value}; expected {expected}")
                })?;
                let Some(state) = state else {
                    continue;
                };
                layer.settings.push(Setting {
                    flag: name.clone(),
                    state,
                    origin: Origin::Key {
                        place: place.to_owned(),
                        key: key.clone(),
                    },
                });
            }
        }
        Ok(layer)
    }

    /// The settings of environment variables, by `value` of the flags' names in capitals.
    ///
    /// # Errors
    /// Names the variable of a switch that is neither on nor off.
    pub(super) fn of_variables<'a>(
        command: &Command,
        prefix: &str,
        value: impl Fn(&str) -> Option<&'a OsString>,
    ) -> Result<Self> {
        let mut layer = Self::default();
        for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
            let flag = arg.get_long().unwrap_or_default();
            let mut set = names(arg).map(variable_of);
            let set = set.find_map(|name| Some((value(&name)?, name)));
            let Some((value, name)) = set else {
                continue;
            };
            let states = match (arg.get_action().takes_values(), switch(value)) {
                // What can be repeated is once for each line.
                (true, _) if repeats(arg) => {
                    let lines = value.as_bytes().split(|byte| *byte == b'\n');
                    let lines = lines.filter(|line| !line.is_empty());
                    lines
                        .map(|line| State::Value(OsStr::from_bytes(line).into()))
                        .collect()
                }
                (true, _) => vec![State::Value(value.clone())],
                (false, Some(true)) => vec![State::On],
                (false, Some(false)) => vec![State::Off],
                (false, None) => bail!("{prefix}{name} is {value:?}; expected 1 or 0"),
            };
            layer
                .settings
                .extend(states.into_iter().map(|state| Setting {
                    flag: flag.to_owned(),
                    state,
                    origin: Origin::Variable(format!("{prefix}{name}")),
                }));
        }
        Ok(layer.ambient())
    }

    /// The layer as one that applies to every run.
    pub(super) fn ambient(self) -> Self {
        Self {
            is_ambient: true,
            ..self
        }
    }

    /// Whether it sets a flag, be it to nothing.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.settings.iter().any(|setting| setting.flag == flag)
    }

    /// The value of a flag.
    pub(crate) fn value(&self, flag: &str) -> Option<&OsStr> {
        let mut settings = self.settings.iter();
        match &settings.find(|setting| setting.flag == flag)?.state {
            State::Value(value) => Some(value),
            State::On | State::Off => None,
        }
    }

    /// The values of a flag that can be repeated.
    pub(crate) fn values(&self, flag: &str) -> impl Iterator<Item = &OsStr> {
        self.settings
            .iter()
            .filter_map(move |setting| match &setting.state {
                State::Value(value) if setting.flag == flag => Some(value.as_os_str()),
                _ => None,
            })
    }

    /// Sets a flag to a value.
    pub(crate) fn set(&mut self, flag: &str, value: impl Into<OsString>) {
        self.remove(flag);
        self.settings.push(Setting {
            flag: flag.to_owned(),
            state: State::Value(value.into()),
            origin: Origin::CommandLine,
        });
    }

    /// Removes what is said of a flag.
    pub(crate) fn remove(&mut self, flag: &str) {
        self.settings.retain(|setting| setting.flag != flag);
    }

    /// The arguments of a command line.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = OsString> {
        self.settings.iter().filter_map(Setting::argument)
    }

    /// The settings of `command` in a weaker layer that this one neither sets nor rules out.
    pub(super) fn leaves_open(&self, command: &Command, weaker: &Self) -> Self {
        let is_whole = weaker.is_ambient && self.has("model");
        let is_open = |setting: &&Setting| {
            let flag = setting.flag.as_str();
            let mut present = self.settings.iter();
            let is_ruled_out = self.has(flag)
                || is_whole && PARTS.contains(&flag)
                || present.any(|other| other.is_present() && conflict(command, flag, &other.flag));
            self::flag(command, flag).is_some() && !is_ruled_out
        };
        Self {
            settings: weaker.settings.iter().filter(is_open).cloned().collect(),
            is_ambient: weaker.is_ambient,
        }
    }

    /// The settings of `command` of several layers, the strongest first. A setting counts unless a
    /// stronger layer has its flag or one that conflicts with it.
    pub(crate) fn merged<'a>(
        command: &Command,
        layers: impl IntoIterator<Item = &'a Self>,
    ) -> Self {
        let mut merged = Self::default();
        for layer in layers {
            let open = merged.leaves_open(command, layer);
            merged.settings.extend(open.settings);
        }
        merged
    }
}

/// The flag of `command` of this name, or of another for the same, that settings can set.
pub(crate) fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut flags = command.get_arguments().filter(|arg| is_setting(arg));
    flags.find(|arg| names(arg).any(|known| known == name))
}

/// Every name of a flag, without hyphens in front.
pub(super) fn names(arg: &Arg) -> impl Iterator<Item = &str> {
    let others = arg.get_all_aliases().unwrap_or_default();
    arg.get_long().into_iter().chain(others)
}

/// The long name of the flag that a key of a table means; the key with hyphens where it means none.
pub(crate) fn canonical(command: &Command, key: &str) -> String {
    let name = key.replace('_', "-");
    let known = flag(command, &name).and_then(Arg::get_long);
    known.map_or(name.clone(), str::to_owned)
}

/// Whether settings can set an argument.
pub(super) fn is_setting(arg: &Arg) -> bool {
    !["config", "no_config", "help", "version"].contains(&arg.get_id().as_str())
        && arg.get_long().is_some()
}

/// Whether a flag's value is a path.
pub(crate) fn is_path(flag: &Arg) -> bool {
    let kinds = [
        value_parser!(PathBuf),
        ValueParser::from(value_parser!(ResumeFrom)),
        ValueParser::from(parse_lora),
    ];
    let kind = flag.get_value_parser().type_id();
    kinds.iter().any(|path| path.type_id() == kind)
}

/// Whether a flag may be there several times.
pub(crate) fn repeats(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::Append)
}

/// The path that `~/` begins, where no shell has seen it.
pub(crate) fn at_home(path: &str) -> Option<PathBuf> {
    Some(env::home_dir()?.join(path.strip_prefix("~/")?))
}

/// The name of the variable that sets a flag, without its prefix.
pub(super) fn variable_of(flag: &str) -> String {
    flag.replace('-', "_").to_uppercase()
}

/// Whether a text switches on or off.
pub(super) fn switch(text: &OsStr) -> Option<bool> {
    match text.to_string_lossy().trim().to_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The state that a value of a table gives a flag; `None` where it says nothing. The error is what was
/// expected.
fn state(flag: &Arg, value: &Value) -> Result<Option<State>, &'static str> {
    if !flag.get_action().takes_values() {
        let is_on = match value {
            Value::Null => return Ok(None),
            Value::Bool(is_on) => Some(*is_on),
            // A table of text alone has no other way to say so.
            Value::String(text) => switch(text.as_ref()),
            _ => None,
        };
        return match is_on.ok_or("true or false")? {
            true => Ok(Some(State::On)),
            false => Ok(Some(State::Off)),
        };
    }
    let text = match value {
        Value::Null => return Ok(None),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(scalar).collect();
            items.map(|items| items.join(","))
        }
        other => scalar(other),
    };
    let text = text.ok_or("a text, a number or an array of them")?;
    Ok(Some(State::Value(match at_home(&text) {
        Some(path) if is_path(flag) => path.into(),
        _ => text.into(),
    })))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn conflict(command: &Command, one: &str, other: &str) -> bool {
    let excludes = |one: &str, other: &str| {
        flag(command, one).is_some_and(|one| {
            let excluded = command.get_arg_conflicts_with(one);
            excluded.iter().any(|arg| arg.get_long() == Some(other))
        })
    };
    excludes(one, other) || excludes(other, one)
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;
    use serde_json::json;

    use super::*;

    fn command() -> Command {
        let value = |name: &'static str| Arg::new(name).long(name);
        Command::new("make").args([
            value("prompt"),
            value("guide-scale"),
            value("seed"),
            value("shift"),
            value("no-metadata").action(ArgAction::SetTrue),
            value("model").value_parser(value_parser!(PathBuf)),
            Arg::new("place"),
        ])
    }

    fn read(table: &Value) -> Result<Vec<String>> {
        let table = table.as_object().unwrap().clone();
        let layer = Layer::of_table(&command(), table, "jobs.toml, job 3")?;
        let text = layer.arguments().map(OsString::into_string);
        Ok(text.map(Result::unwrap).collect())
    }

    #[test]
    fn settings_become_arguments() {
        let table = json!({
            "guide_scale": [3.5, "4"],
            "no-metadata": true,
            "prompt": "--a \"cat\", \n一只猫",
            "seed": 18_446_744_073_709_551_615_u64,
            "shift": -0.5,
        });
        let expected = [
            "--guide-scale=3.5,4",
            "--no-metadata",
            "--prompt=--a \"cat\", \n一只猫",
            "--seed=18446744073709551615",
            "--shift=-0.5",
        ];
        assert_eq!(read(&table).unwrap(), expected);
        let nothing = json!({ "no_metadata": false, "prompt": null, "seed": [], "shift": "" });
        assert_eq!(read(&nothing).unwrap(), ["--seed=", "--shift="]);
    }

    #[test]
    fn a_path_may_begin_at_home() {
        let table = json!({ "model": "~/wan2.2", "prompt": "~/wan2.2" });
        let home = env::home_dir().unwrap().join("wan2.2");
        let model = format!("--model={}", home.to_str().unwrap());
        assert_eq!(read(&table).unwrap(), [&model, "--prompt=~/wan2.2"]);
        assert_eq!(read(&json!({ "model": "~x/y" })).unwrap(), ["--model=~x/y"]);
    }

    #[test]
    fn what_clap_reads_is_what_was_written() {
        let table = json!({ "prompt": "--seed=9", "guide-scale": "-1,2", "no_metadata": true });
        let table = table.as_object().unwrap().clone();
        let layer = Layer::of_table(&command(), table, "x").unwrap();
        let program = [OsString::from("make")].into_iter();
        let matches = command()
            .try_get_matches_from(program.chain(layer.arguments()))
            .unwrap();
        let text = |id: &str| matches.get_one::<String>(id).map(String::as_str);
        assert_eq!(text("prompt"), Some("--seed=9"));
        assert_eq!(text("guide-scale"), Some("-1,2"));
        assert_eq!(text("seed"), None);
        assert!(matches.get_flag("no-metadata"));
    }

    #[test]
    fn errors_name_the_place_the_key_and_what_is_expected() {
        for (table, expected) in [
            (
                json!({ "guide_scal": 1 }),
                "\"guide_scal\" is no setting of `make`\nhint: did you mean guide-scale?",
            ),
            (json!({ "place": 1 }), "\"place\" is no setting of `make`"),
            (json!({ "": 1 }), "\"\" is no setting of `make`"),
            (
                json!({ "no-metadata": "maybe" }),
                "no-metadata is \"maybe\"; expected true or false",
            ),
            (
                json!({ "prompt": true }),
                "prompt is true; expected a text, a number or an array of them",
            ),
            (
                json!({ "prompt": { "a": 1 } }),
                "prompt is {\"a\":1}; expected a text, a number or an array of them",
            ),
            (
                json!({ "seed": [1, [2]] }),
                "seed is [1,[2]]; expected a text, a number or an array of them",
            ),
            (
                json!({ "guide-scale": 1, "guide_scale": 1 }),
                "\"guide_scale\" is there twice",
            ),
        ] {
            let error = read(&table).unwrap_err().to_string();
            assert_eq!(error, format!("jobs.toml, job 3: {expected}"));
        }
    }

    #[test]
    fn a_stronger_layer_rules_out_what_conflicts_and_parts_of_another_model() {
        let command = command()
            .arg(Arg::new("vae").long("vae"))
            .arg(Arg::new("size").long("size").conflicts_with("area"))
            .arg(Arg::new("area").long("area"));
        let layer = |table: Value| {
            let table = table.as_object().unwrap().clone();
            Layer::of_table(&command, table, "x").unwrap()
        };
        let job = layer(json!({ "area": 1, "model": "m", "no-metadata": false }));
        let own = layer(json!({ "vae": "v", "no-metadata": true }));
        let config = layer(json!({ "vae": "w", "size": 2, "seed": 3, "prompt": "p" })).ambient();
        let merged = |layers: &[&Layer]| -> Vec<OsString> {
            Layer::merged(&command, layers.iter().copied())
                .arguments()
                .collect()
        };
        assert_eq!(
            merged(&[&job, &config]),
            ["--area=1", "--model=m", "--prompt=p", "--seed=3"]
        );
        assert_eq!(merged(&[&job, &own]), ["--area=1", "--model=m", "--vae=v"]);
        let expected = [
            "--no-metadata",
            "--vae=v",
            "--prompt=p",
            "--seed=3",
            "--size=2",
        ];
        assert_eq!(merged(&[&own, &config]), expected);
    }
}
