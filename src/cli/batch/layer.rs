//! Settings of a clip from one place, and which of them go before others'.

use std::ffi::{OsStr, OsString};

use crate::batch::table::Settings;
use anyhow::Result;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory};

use crate::cli::args::Cli;
use crate::cli::layers::PARTS;
use crate::cli::settings::{Setting, settings};

/// Arguments by the flag that they are of; `None` for a switch that is off.
#[derive(Clone, Debug, Default)]
pub struct Layer(Vec<(String, Option<OsString>)>);

impl Layer {
    /// The flags of a clip that a command line gives.
    pub fn of_command_line(matches: &ArgMatches) -> Self {
        let command = Cli::command();
        let mut layer = Self::default();
        for flag in command.get_arguments() {
            let (id, Some(long)) = (flag.get_id().as_str(), flag.get_long()) else {
                continue;
            };
            let known = matches.try_contains_id(id).is_ok();
            if !known || matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            if !flag.get_action().takes_values() {
                layer.set(long, None);
            } else if let Some(values) = matches.get_raw(id) {
                values.for_each(|value| layer.set(long, Some(value)));
            }
        }
        layer
    }

    /// The settings of a table; null says nothing.
    ///
    /// # Errors
    /// As [`settings`].
    pub fn of_settings(command: &Command, table: Settings, place: &str) -> Result<Self> {
        let is_off: Vec<String> = table
            .iter()
            .filter(|(_, value)| value.as_bool() == Some(false))
            .map(|(key, _)| key.replace('_', "-"))
            .collect();
        let said = settings(command, table, place)?.into_iter();
        let said = said
            .filter(|Setting { flag, argument, .. }| argument.is_some() || is_off.contains(flag));
        Ok(Self(said.map(|s| (s.flag, s.argument)).collect()))
    }

    /// Sets a flag, or the switch that has no value.
    pub fn set(&mut self, long: &str, value: Option<&OsStr>) {
        let mut argument = OsString::from(format!("--{long}"));
        if let Some(value) = value {
            argument.push("=");
            argument.push(value);
        }
        self.0.retain(|(name, _)| name != long);
        self.0.push((long.to_owned(), Some(argument)));
    }

    /// The value of a flag.
    pub fn value(&self, long: &str) -> Option<String> {
        let (_, argument) = self.0.iter().find(|(name, _)| name == long)?;
        let text = argument.as_ref()?.to_string_lossy();
        let (_, value) = text.split_once('=')?;
        Some(value.to_owned())
    }

    /// Parts it into the flags that are among `names`, and the others.
    pub fn partition(self, names: &[String]) -> (Self, Self) {
        let (those, others) = self
            .0
            .into_iter()
            .partition(|(name, _)| names.contains(name));
        (Self(those), Self(others))
    }

    /// This one with another on top: what is said there, and what conflicts with it, goes here.
    pub fn under(&self, command: &Command, top: Self) -> Self {
        let mut both = self.clone();
        both.0.retain(|(name, _)| {
            let said = |(other, argument): &(String, Option<OsString>)| {
                name == other || argument.is_some() && conflict(command, name, other)
            };
            !top.0.iter().any(said)
        });
        both.0.extend(top.0);
        both
    }

    /// This one for what names a model, which is meant whole then: without parts of another.
    pub fn without_parts_of_another(&self, top: &Self) -> Self {
        let mut own = self.clone();
        if top.value("model").is_some() {
            own.0.retain(|(name, _)| !PARTS.contains(&name.as_str()));
        }
        own
    }

    /// The arguments of a command line.
    pub fn into_arguments(self) -> impl Iterator<Item = OsString> {
        self.0.into_iter().filter_map(|(_, argument)| argument)
    }
}

/// The flag of this name.
pub fn flag<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|a| a.get_long() == Some(long))
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
