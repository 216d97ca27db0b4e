//! The flags of a clip as a sweep takes them: as they stand, for the command line of each run.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::cli::args::GenerateArgs;

/// Flags of a clip that a sweep has no use for, or has its own of.
pub const NOT_TAKEN: [&str; 11] = [
    "output",
    "strip",
    "preview",
    "preview-every",
    "dump",
    "resume",
    "checkpoint",
    "checkpoint-every",
    "no-checkpoint",
    "progress",
    "quiet",
];

/// The flags of a clip that were given, as arguments.
#[derive(Clone, Debug)]
pub struct Given(pub Vec<(String, OsString)>);

impl Given {
    /// The flags that are taken.
    fn flags() -> impl Iterator<Item = Arg> {
        let all = clip_command();
        let taken = |arg: &Arg| arg.get_long().is_some_and(|l| !NOT_TAKEN.contains(&l));
        let flags: Vec<Arg> = all
            .get_arguments()
            .filter(|arg| taken(arg))
            .cloned()
            .collect();
        flags.into_iter()
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        // What is varied need not be given beside it.
        command.args(Self::flags().map(|flag| flag.required(false)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut given = Vec::new();
        for flag in Self::flags() {
            let id = flag.get_id().as_str();
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let long = flag.get_long().unwrap_or_default().to_owned();
            let mut argument = OsString::from(format!("--{long}"));
            if flag.get_action().takes_values() {
                argument.push("=");
                argument.extend(matches.get_raw(id).into_iter().flatten());
            }
            given.push((long, argument));
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The command that makes one clip.
pub fn clip_command() -> Command {
    GenerateArgs::augment_args(Command::new("wan-i2v"))
}
