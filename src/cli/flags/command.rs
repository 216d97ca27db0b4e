//! The command line as clap reads it: the flags' definitions, arranged alike in all commands.

use clap::builder::StyledStr;
use clap::error::Error;
use clap::{Arg, ArgAction, ColorChoice, Command, CommandFactory, FromArgMatches, ValueHint};

use super::{Cli, foreign};

/// The commands by what they are for.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Make clips", &["batch", "sweep", "launch"]),
    ("Models", &["models", "pull", "convert", "inspect"]),
    ("Look", &["plan", "presets", "show", "analyze", "compare"]),
    ("Machine", &["doctor", "tune"]),
    ("Shell", &["completions", "man"]),
];

/// Headings of flags in their order; a command's own come first.
const HEADINGS: [&str; 14] = [
    "Sweep",
    "Many clips",
    "Doctor",
    "Tuning",
    "Input",
    "Model",
    "Output",
    "Sampling",
    "Machine",
    "Stopping and resuming",
    "Progress",
    "Afterwards",
    "Settings",
    "About",
];

/// Flags and operands whose value is a folder.
const FOLDERS: [&str; 4] = ["output_dir", "dump", "folder", "target"];

/// The program's command line.
pub(crate) fn command() -> Command {
    let version = Arg::new("version").short('V').long("version");
    let version = version.action(ArgAction::Version).help_heading("About");
    let root = Cli::command().disable_version_flag(true);
    let version = version.help("Print the version; --version with MLX's and the device");
    let root = root.arg(version.hide_short_help(true));
    let order: Vec<String> = (root.get_arguments())
        .map(|arg| arg.get_id().to_string())
        .collect();
    in_order(root, &order).mut_subcommands(|command| in_order(command, &order))
}

/// A command of some of the clip's flags, arranged as the program's.
pub(super) fn arranged(command: Command) -> Command {
    in_order(command, &[])
}

/// Reads a command line.
///
/// # Errors
/// When it cannot be read, or asks for help or the version, which is the error's text then.
pub(crate) fn parse<I, T>(arguments: I, colours: ColorChoice) -> Result<Cli, Error>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let mut command = grouped(command()).color(colours);
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The commands in groups in place of clap's list.
fn grouped(root: Command) -> Command {
    let header = *root.get_styles().get_header();
    let (mut short, mut long) = (format!("{header}Commands:{header:#}"), String::new());
    for (group, names) in GROUPS {
        short += &format!("\n  {group:<12}{}", names.join(", "));
        let gap = if long.is_empty() { "" } else { "\n\n" };
        long += &format!("{gap}{header}{group}:{header:#}");
        for name in names {
            let command = root.find_subcommand(name);
            let about = command.and_then(Command::get_about);
            let about = about.map(StyledStr::to_string).unwrap_or_default();
            long += &format!("\n  {name:<13}{about}");
        }
    }
    root.before_help(short)
        .before_long_help(long)
        .help_template(
            "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}",
        )
        .override_usage(
            "wan-i2v [OPTIONS] --image <PATH> --prompt <TEXT>\n       wan-i2v <COMMAND> --help",
        )
        .mut_subcommands(|command| command.hide(true))
}

/// The command with its flags by heading, those of a clip in the clip's `order`.
fn in_order(command: Command, order: &[String]) -> Command {
    let help = Arg::new("help").short('h').long("help");
    let help = help.action(ArgAction::Help).help_heading("About");
    let help = help.help("Print help; -h the short one, --help all of it");
    let command = command.disable_help_flag(true).arg(help);
    let mut places: Vec<(Option<usize>, usize, String)> = (command.get_arguments())
        .map(|arg| {
            let id = arg.get_id().to_string();
            let heading = arg.get_help_heading().unwrap_or_default();
            let heading = match arg.is_positional() {
                true => None,
                false => HEADINGS
                    .iter()
                    .position(|known| *known == heading)
                    .or(Some(HEADINGS.len())),
            };
            let own = order.len();
            let place = order.iter().position(|known| *known == id).unwrap_or(own);
            (heading, place, id)
        })
        .collect();
    places.sort_by_key(|(heading, place, _)| (*heading, *place));
    let ids = places.into_iter().enumerate();
    // What is changed goes to the end. Places of the clip's flags are the same in all commands, for those
    // that clap itself hands down to them.
    ids.fold(command, |command, (index, (heading, place, id))| {
        let own = if place < order.len() { 0 } else { index };
        let place = heading.map_or(0, |heading| (heading + 1) * 1000) + place + own;
        command.mut_arg(id, |arg| fitted(arg).display_order(place))
    })
}

/// The flag with its other names, and with what a shell may complete.
fn fitted(arg: Arg) -> Arg {
    let takes_values = arg.get_action().takes_values();
    let arg = match arg.get_long().map(str::to_owned) {
        Some(long) => {
            // A switch of that name is another flag.
            let is_meant = takes_values || long == "overwrite";
            let foreign = if is_meant {
                foreign::aliases(&long)
            } else {
                &[]
            };
            let names = foreign.iter().map(|name| (*name).to_owned());
            let names: Vec<String> = names.chain([long.clone()]).collect();
            let with_bars = names.iter().map(|name| name.replace('-', "_"));
            let all: Vec<String> = names.iter().cloned().chain(with_bars).collect();
            let mut all: Vec<String> = all.into_iter().filter(|name| *name != long).collect();
            all.sort();
            all.dedup();
            arg.aliases(all)
        }
        None => arg,
    };
    let hint = match arg.get_value_hint() {
        _ if FOLDERS.contains(&arg.get_id().as_str()) => ValueHint::DirPath,
        ValueHint::AnyPath | ValueHint::FilePath => ValueHint::FilePath,
        _ => ValueHint::Other,
    };
    match takes_values && arg.get_possible_values().is_empty() {
        true => arg.value_hint(hint),
        false => arg,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn commands() -> Vec<Command> {
        let mut root = command();
        root.build();
        let all = root.get_subcommands().cloned();
        let all: Vec<Command> = all.filter(|command| command.get_name() != "help").collect();
        [root].into_iter().chain(all).collect()
    }

    #[test]
    fn every_command_is_in_one_group() {
        let grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        let root = Cli::command();
        let all: Vec<&str> = root.get_subcommands().map(Command::get_name).collect();
        assert_eq!(grouped, all, "in the order of flags::Command");
    }

    #[test]
    fn flags_have_one_heading_and_one_order_in_all_commands() {
        let commands = commands();
        let flags = |command: &Command| -> Vec<(String, String)> {
            // What clap hands down comes last here, and is shown in its place.
            let all = command.get_arguments();
            let flags = all.filter(|arg| !arg.is_positional() && !arg.is_global_set());
            let heading = |arg: &Arg| arg.get_help_heading().unwrap_or_default().to_owned();
            flags
                .map(|arg| (heading(arg), arg.get_id().to_string()))
                .collect()
        };
        let clip = flags(&commands[0]);
        for command in &commands {
            let name = command.get_name();
            let mut last = None;
            for (heading, flag) in flags(command) {
                let place = HEADINGS.iter().position(|known| *known == heading);
                assert!(place.is_some(), "{name}: {flag}: {heading}");
                assert!(place >= last, "{name}: {flag} under {heading}");
                last = place;
            }
            let own = flags(command);
            let shared: Vec<_> = own.iter().filter(|flag| clip.contains(flag)).collect();
            let expected: Vec<_> = clip.iter().filter(|flag| own.contains(flag)).collect();
            assert_eq!(shared, expected, "{name}");
        }
    }

    /// A conversion always puts adapters into the weights.
    #[test]
    fn what_changes_nothing_is_not_offered() {
        for command in commands() {
            let has = |flag: &str| command.get_arguments().any(|arg| arg.get_id() == flag);
            let converts = command.get_name() == "convert";
            assert_eq!(has("lora_merge"), has("lora") && !converts, "{command}");
        }
    }

    /// One screen of a terminal, with room for the prompt.
    #[test]
    fn short_help_is_one_screen() {
        for command in commands() {
            let name = command.get_name().to_owned();
            let command = if name == "wan-i2v" {
                grouped(super::command())
            } else {
                command
            };
            let text = command.term_width(80).render_help().to_string();
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.len() <= 40, "{name}: {} lines\n{text}", lines.len());
            assert!(
                lines.iter().all(|line| line.chars().count() <= 80),
                "{name}: {text}"
            );
        }
    }

    /// In this program's words, and with what is expected.
    #[test]
    fn hostile_values_are_refused_without_rust_s_own_words() {
        const OWN: [&str; 10] = [
            "digit",
            "float literal",
            "integer from",
            "too large to fit",
            "too small to fit",
            "empty string",
            "entity not",
            "ErrorKind",
            "ParseInt",
            "not in",
        ];
        const HOSTILE: [&str; 19] = [
            "",
            " ",
            "x",
            "-",
            "-1",
            "1.5.5",
            "1e999",
            "-inf",
            "NaN",
            "0x10",
            "\u{663}",
            "½",
            "1,",
            ",1",
            "1,2,3",
            "99999999999999999999999",
            "1x",
            "x1",
            "..",
        ];
        let mut refused = 0;
        let mut root = command().mut_args(|arg| arg.required(false));
        root = root.mut_subcommands(|command| command.mut_args(|arg| arg.required(false)));
        for command in commands() {
            let start = Some("wan-i2v").into_iter();
            let own = Some(command.get_name()).filter(|name| *name != "wan-i2v");
            let start: Vec<&str> = start.chain(own).collect();
            for flag in command
                .get_arguments()
                .filter(|arg| arg.get_action().takes_values())
            {
                let Some(long) = flag.get_long() else {
                    continue;
                };
                for value in HOSTILE {
                    let argument = format!("--{long}={value}");
                    let line = start.iter().copied().chain([argument.as_str()]);
                    let Err(error) = root.try_get_matches_from_mut(line) else {
                        continue;
                    };
                    let said = crate::cli::flags::reason(&error);
                    let is_own = OWN.iter().any(|own| said.contains(own));
                    assert!(!is_own && said.contains(&format!("--{long}")), "{said}");
                    assert!(
                        said.contains("expected")
                            || said.contains("nearest")
                            || value.trim().is_empty(),
                        "{said}"
                    );
                    refused += 1;
                }
            }
        }
        assert!(refused > 500, "{refused}");
    }

    #[test]
    fn help_speaks_in_the_imperative_and_ends_no_summary_with_a_full_stop() {
        let mut seen = BTreeSet::new();
        for command in commands() {
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            let first = about.split(' ').next().unwrap_or_default().to_owned();
            let is_short = about.len() <= 66;
            assert!(
                is_short && !about.ends_with('.') && !first.ends_with('s'),
                "{about}"
            );
            seen.insert(first);
        }
        assert!(seen.len() > 8, "{seen:?}");
    }
}
