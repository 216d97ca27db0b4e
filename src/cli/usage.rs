//! Wrong usage in this program's words: what was found and what is expected, then the command that was
//! meant, where that can be told.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, Error, ErrorKind};
use clap::{Arg, ArgMatches, Command, value_parser};

use super::config::{self, Layer, Layered, is_path};
use super::flags::{self, Cli, advice, context, reason};
use super::ui::{Colours, stderr, terminal};
use crate::util::quote::quoted;
use crate::util::show::chain;
use crate::util::suggest::nearest;

/// The operand that takes what belongs to no flag.
const WORDS: &str = "words";
/// Flags whose values are texts.
const TEXTS: [&str; 2] = ["prompt", "negative-prompt"];
/// Ends of pictures' names.
const PICTURES: [&str; 11] = [
    "png", "jpg", "jpeg", "webp", "gif", "tif", "tiff", "bmp", "heic", "heif", "avif",
];
/// What other programs call making a clip.
const MAKE: [&str; 7] = ["generate", "gen", "run", "make", "create", "i2v", "video"];

/// The exit code of wrong usage, clap's own.
pub(crate) const USAGE: u8 = 2;

/// Reads a command line, and what the settings of other places add to it.
///
/// # Errors
/// The exit code, where it is wrong, which is said, or asks for help, which is shown.
pub(crate) fn read(arguments: Vec<OsString>) -> Result<(Cli, Layered), ExitCode> {
    let asked = Colours::asked(&arguments);
    let refused = |text: &str, code: u8| {
        stderr::error(text, code);
        ExitCode::from(code)
    };
    let layered = config::layered(arguments, &config::variables()).map_err(|error| {
        terminal::set_colours(asked);
        refused(&chain(&error), USAGE)
    })?;
    let colours = Colours::asked(&layered.arguments);
    terminal::set_colours(colours);
    match flags::parse(&layered.arguments, colours.into()) {
        Ok(cli) => Ok((cli, layered)),
        Err(error) if error.use_stderr() => {
            Err(refused(&explained(&error, &layered.arguments), USAGE))
        }
        Err(help) => Err(match terminal::show_help(&help) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refused(&chain(&error), 1),
        }),
    }
}

/// What is wrong with a command line that clap has refused, and a hint.
fn explained(error: &Error, arguments: &[OsString]) -> String {
    let root = flags::command();
    let named = arguments.get(1).and_then(|name| name.to_str());
    let command = named.and_then(|name| root.find_subcommand(name));
    let own = command.unwrap_or(&root);
    let is_surplus = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand
    );
    // Where a command would stand, a word is one.
    let word = context(error, ContextKind::InvalidSubcommand);
    let flag = context(error, ContextKind::InvalidArg).filter(|_| is_surplus);
    let found = word.or(flag).unwrap_or_default();
    if !found.is_empty() && !found.starts_with('-') {
        return surplus(&found, &root, own, arguments);
    }
    let said = reason(error);
    let name = match command {
        Some(command) => format!("wan-i2v {}", command.get_name()),
        None => "wan-i2v".to_owned(),
    };
    let flag = found.trim_start_matches('-');
    let flag = flag.split('=').next().unwrap_or_default();
    let hint = advice(flag).map(str::to_owned);
    let hint = hint
        .or_else(|| of_flag(flag, &root, own))
        .filter(|_| is_surplus);
    let hint = hint.or(match error.kind() {
        ErrorKind::MissingRequiredArgument if command.is_none() => Some(
            "such as wan-i2v --image start.png --prompt 'what happens'; all flags: wan-i2v --help"
                .into(),
        ),
        ErrorKind::MissingRequiredArgument | ErrorKind::UnknownArgument
            if named == Some("launch") && !arguments.iter().any(|word| word == "--") =>
        {
            Some("put -- before what the machines are to do: wan-i2v launch --hosts a,b -- -i start.png -p '...'".into())
        }
        ErrorKind::MissingRequiredArgument | ErrorKind::UnknownArgument => {
            Some(format!("all flags: {name} --help"))
        }
        _ => None,
    });
    match hint {
        Some(hint) => format!("{said}\nhint: {hint}"),
        None => said,
    }
}

/// The flag of the command that may be meant, or whose flag it is.
fn of_flag(flag: &str, root: &Command, own: &Command) -> Option<String> {
    let longs = |command: &Command| -> Vec<String> {
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
        shown.filter_map(Arg::get_long).map(str::to_owned).collect()
    };
    let known = longs(own);
    if let Some(known) = nearest(flag, known.iter().map(String::as_str)) {
        return Some(format!("did you mean --{known}?"));
    }
    let mut others = [root].into_iter().chain(root.get_subcommands());
    let other = others.find(|command| longs(command).iter().any(|long| long == flag))?;
    let name = match other.get_name() {
        "wan-i2v" => "a clip (wan-i2v without a command)".to_owned(),
        name => format!("wan-i2v {name}"),
    };
    Some(format!("--{flag} is a flag of {name}"))
}

/// What is wrong with words that belong to no flag.
fn surplus(found: &str, root: &Command, own: &Command, arguments: &[OsString]) -> String {
    let first = arguments
        .get(1)
        .is_some_and(|first| first.to_string_lossy() == found);
    let commands = root.get_subcommands().map(Command::get_name);
    if first
        && !found.contains(['.', ' ', '/'])
        && let Some(command) = nearest(found, commands)
    {
        return format!("there is no command {found}\nhint: did you mean wan-i2v {command}?");
    }
    let said = format!("{found:?} belongs to no flag");
    match meant(root, own, arguments) {
        Some((command, true)) => {
            format!("{said}; a text of several words needs quotes\nhint: {command}")
        }
        _ if root.find_subcommand(found).is_some() => {
            format!("the command {found} is not in front\nhint: wan-i2v {found} ...")
        }
        Some((command, false)) => format!("{said}\nhint: {command}"),
        None if own.get_name() == root.get_name() => format!(
            "{said}, and is no command\nhint: wan-i2v --image PICTURE --prompt 'TEXT' makes a clip; all \
             commands: wan-i2v --help"
        ),
        None => format!("{said}\nhint: all flags: wan-i2v {} --help", own.get_name()),
    }
}

/// The command line of `own` with its surplus words where they seem to belong, and whether they
/// continue a text.
fn meant(root: &Command, own: &Command, arguments: &[OsString]) -> Option<(String, bool)> {
    let is_root = own.get_name() == root.get_name();
    let flags = own
        .get_arguments()
        .filter(|arg| arg.get_id() != "version" && arg.get_id() != "help");
    let flags = flags.cloned().map(|arg| arg.required(false));
    let words = Arg::new(WORDS)
        .num_args(0..)
        .value_parser(value_parser!(OsString));
    if !own.get_arguments().any(|arg| arg.get_id() == "prompt") {
        return None;
    }
    // Without commands, whose names may be words of a prompt.
    let mut command = Command::new("wan-i2v").args(flags).arg(words);
    let given = arguments.iter().skip(usize::from(!is_root));
    let matches = command.try_get_matches_from_mut(given).ok()?;
    let matches = &matches;
    let command = &command;
    let indices = matches.indices_of(WORDS)?;
    let words = matches.get_many::<OsString>(WORDS)?;
    let words: Vec<(usize, String)> = indices
        .zip(words.map(|word| word.to_string_lossy().into_owned()))
        .collect();
    let mut layer = Layer::of_command_line(command, matches);
    let (mut words, continues) = continued(command, matches, words, &mut layer);
    if words
        .first()
        .is_some_and(|first| MAKE.contains(&first.as_str()))
        && arguments.len() > 2
    {
        words.remove(0);
    }
    for flag in ["image", "last-image"] {
        let at = words.iter().position(|word| is_picture(word));
        if let Some(at) = at.filter(|_| !layer.has(flag)) {
            layer.set(flag, words.remove(at));
        }
    }
    if !words.is_empty() {
        // One word alone is hardly a prompt.
        let is_prompt = words.len() > 1 || words[0].contains(' ') || layer.has("image");
        if layer.has("prompt") || !is_prompt {
            return None;
        }
        layer.set("prompt", words.join(" "));
    }
    let mut line = vec!["wan-i2v".to_owned()];
    if !is_root {
        line.push(own.get_name().to_owned());
    }
    for operand in command
        .get_positionals()
        .filter(|arg| arg.get_id() != WORDS)
    {
        let values = matches
            .get_raw(operand.get_id().as_str())
            .into_iter()
            .flatten();
        line.extend(values.map(|value| quoted(&value.to_string_lossy())));
    }
    if !layer.has("image") && is_root {
        line.push("--image PICTURE".to_owned());
    }
    let first = ["image", "last-image", "prompt", "negative-prompt"];
    layer.settings.sort_by_key(|setting| {
        first
            .iter()
            .position(|flag| *flag == setting.flag)
            .unwrap_or(first.len())
    });
    for argument in layer.arguments() {
        let argument = argument.to_string_lossy().into_owned();
        line.push(match argument.split_once('=') {
            Some((flag, value)) if !value.starts_with('-') => format!("{flag} {}", quoted(value)),
            Some((flag, value)) => format!("{flag}={}", quoted(value)),
            None => argument,
        });
    }
    Some((line.join(" "), continues))
}

/// Joins words to the text, or to the path, that they follow; the others are left.
fn continued(
    command: &Command,
    matches: &ArgMatches,
    mut words: Vec<(usize, String)>,
    layer: &mut Layer,
) -> (Vec<String>, bool) {
    let mut continues = false;
    for arg in command.get_arguments() {
        let Some(flag) = arg.get_long().filter(|flag| layer.has(flag)) else {
            continue;
        };
        let Some(last) = matches
            .indices_of(arg.get_id().as_str())
            .and_then(Iterator::last)
        else {
            continue;
        };
        let start = words.iter().position(|(at, _)| *at == last + 1);
        let Some(start) = start.filter(|_| TEXTS.contains(&flag) || is_path(arg)) else {
            continue;
        };
        let count = (words[start..].iter().zip(last + 1..))
            .take_while(|((at, _), expected)| at == expected)
            .count();
        let value = layer
            .value(flag)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let following: Vec<&str> = words[start..start + count]
            .iter()
            .map(|(_, word)| word.as_str())
            .collect();
        let whole = format!("{value} {}", following.join(" "));
        // A path in two goes on to its ending.
        if TEXTS.contains(&flag)
            || Path::new(&value).extension().is_none() && Path::new(&whole).extension().is_some()
        {
            words.drain(start..start + count);
            layer.set(flag, whole);
            continues = true;
        }
    }
    (words.into_iter().map(|(_, word)| word).collect(), continues)
}

/// Whether a word is a picture's name or address.
fn is_picture(word: &str) -> bool {
    let end = Path::new(word)
        .extension()
        .map(|end| end.to_string_lossy().to_lowercase());
    end.is_some_and(|end| PICTURES.contains(&end.as_str())) || word.starts_with("https://")
}
