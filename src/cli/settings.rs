//! Settings that a file names, as the command line's arguments.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::util::suggest::did_you_mean;
use anyhow::{Result, anyhow, bail, ensure};
use clap::{Arg, Command, value_parser};
use serde_json::Value;

/// What a flag is set to by something else than the command line.
#[derive(Debug)]
pub struct Setting {
    /// The flag's long name, without hyphens.
    pub flag: String,
    /// What sets it, for messages: a variable's name, or a place and a key.
    pub from: String,
    /// The argument that says it; `None` where the flag is to be absent.
    pub argument: Option<OsString>,
}

/// The settings of a table for `command`: a key, with `-` or `_`, is a long flag's name. Texts and
/// numbers are values as they stand, arrays are joined by commas, `true` is a switch's presence,
/// `false` and null are its absence. In a path, a leading `~/` is the home folder, as a shell would
/// have it. `from` is where the table comes from.
///
/// # Errors
/// Names `from`, the key, what it has and what is expected there. Values are left to the flags'
/// own parsers.
pub fn settings(
    command: &Command,
    table: impl IntoIterator<Item = (String, Value)>,
    from: &str,
) -> Result<Vec<Setting>> {
    let mut seen = BTreeSet::new();
    let mut settings = Vec::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        let Some(flag) = flag(command, &name) else {
            let known = command.get_arguments().filter_map(Arg::get_long);
            bail!(
                "{from}: {key:?} is no setting of `{}`{}",
                command.get_bin_name().unwrap_or(command.get_name()),
                did_you_mean(&name, known)
            );
        };
        ensure!(seen.insert(name.clone()), "{from}: {key:?} is there twice");
        let argument = argument(flag, &name, &value)
            .map_err(|expected| anyhow!("{from}: {key} is {value}; expected {expected}"))?;
        settings.push(Setting {
            flag: name,
            from: format!("{from}: {key}"),
            argument,
        });
    }
    Ok(settings)
}

/// [`settings`] as arguments of the command line.
///
/// # Errors
/// As [`settings`].
pub fn arguments(
    command: &Command,
    table: impl IntoIterator<Item = (String, Value)>,
    from: &str,
) -> Result<Vec<OsString>> {
    let settings = settings(command, table, from)?;
    Ok(settings.into_iter().filter_map(|s| s.argument).collect())
}

/// The flag of this name, with a value or without.
fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(name))
}

/// A flag with its value as one argument, so that what begins with a hyphen is no other flag. The
/// error is what was expected.
fn argument(flag: &Arg, name: &str, value: &Value) -> Result<Option<OsString>, &'static str> {
    if !flag.get_action().takes_values() {
        return match value {
            Value::Bool(true) => Ok(Some(format!("--{name}").into())),
            Value::Bool(false) | Value::Null => Ok(None),
            _ => Err("true or false"),
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
    let mut argument = OsString::from(format!("--{name}="));
    match at_home(&text).filter(|_| is_path(flag)) {
        Some(path) => argument.push(path),
        None => argument.push(text),
    }
    Ok(Some(argument))
}

/// The path that `~/` begins, where no shell has seen it.
pub fn at_home(path: &str) -> Option<PathBuf> {
    Some(env::home_dir()?.join(path.strip_prefix("~/")?))
}

fn is_path(flag: &Arg) -> bool {
    flag.get_value_parser().type_id() == value_parser!(PathBuf).type_id()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
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
        let arguments = arguments(&command(), table, "jobs.toml, job 3")?;
        let text = arguments.into_iter().map(OsString::into_string);
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
        let model = format!("--model={}", home.display());
        assert_eq!(read(&table).unwrap(), [&model, "--prompt=~/wan2.2"]);
        assert_eq!(read(&json!({ "model": "~x/y" })).unwrap(), ["--model=~x/y"]);
    }

    #[test]
    fn what_clap_reads_is_what_was_written() {
        let table = json!({ "prompt": "--seed=9", "guide-scale": "-1,2", "no_metadata": true });
        let arguments = arguments(&command(), table.as_object().unwrap().clone(), "x").unwrap();
        let program = [OsString::from("make")].into_iter();
        let matches = command()
            .try_get_matches_from(program.chain(arguments))
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
                "\"guide_scal\" is no setting of `make`; did you mean guide-scale?",
            ),
            (json!({ "place": 1 }), "\"place\" is no setting of `make`"),
            (json!({ "": 1 }), "\"\" is no setting of `make`"),
            (
                json!({ "no-metadata": "yes" }),
                "no-metadata is \"yes\"; expected true or false",
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
}
