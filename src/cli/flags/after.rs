//! What is done once a clip is complete.

use std::ffi::{OsStr, OsString};

use clap::Args;

/// What stands for the clip's path in `--exec`.
const CLIP: &str = "{}";

/// What is done after a clip.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Afterwards")]
pub(crate) struct AfterArgs {
    /// Notify when the run ends, well or not: through the terminal, the Mac's notifications, or the
    /// bell
    #[arg(long, hide_short_help = true)]
    pub(crate) notify: bool,

    /// Open the finished clip; of many, their folder
    #[arg(long, hide_short_help = true)]
    pub(crate) open: bool,

    /// Run a command on each finished clip, whose path stands for {} in it, or comes last
    ///
    /// No shell is involved: the command is split into words as one would, quotes and backslashes
    /// included, and the path is one word, whatever is in it. What the command prints goes to stderr.
    #[arg(long, hide_short_help = true, value_name = "CMD", value_parser = parse_exec, allow_hyphen_values = true)]
    pub(crate) exec: Option<ExecCommand>,
}

/// A command with a place for a clip's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecCommand {
    program: String,
    arguments: Vec<String>,
}

fn parse_exec(text: &str) -> Result<ExecCommand, String> {
    let words = shlex::split(text).ok_or("a quote or backslash at its end has no partner")?;
    let mut words = words.into_iter();
    let program = words.next().filter(|program| !program.is_empty());
    Ok(ExecCommand {
        program: program.ok_or("it is empty; expected a command, such as 'scp {} host:'")?,
        arguments: words.collect(),
    })
}

impl ExecCommand {
    /// What is run.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// Its arguments for a clip.
    pub(crate) fn arguments(&self, clip: &OsStr) -> Vec<OsString> {
        let is_named = self.arguments.iter().any(|word| word.contains(CLIP));
        let words = self.arguments.iter().map(|word| {
            let parts: Vec<&str> = word.split(CLIP).collect();
            let mut whole = OsString::from(parts[0]);
            for part in &parts[1..] {
                whole.push(clip);
                whole.push(part);
            }
            whole
        });
        words.chain((!is_named).then(|| clip.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, clip: &str) -> Vec<String> {
        let command = parse_exec(text).unwrap();
        let arguments = command.arguments(OsStr::new(clip)).into_iter();
        let arguments = arguments.map(|word| word.into_string().unwrap());
        [command.program().to_owned()]
            .into_iter()
            .chain(arguments)
            .collect()
    }

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        let evil = "a b; $(rm) 'x'.mp4";
        assert_eq!(words("scp {} host:", evil), ["scp", evil, "host:"]);
        assert_eq!(
            words("x --a={} '{} {}'", "c.mp4"),
            ["x", "--a=c.mp4", "c.mp4 c.mp4"]
        );
        assert_eq!(words("mpv --loop", "{}.mp4"), ["mpv", "--loop", "{}.mp4"]);
        for wrong in ["", "  ", "''", "a 'b", "a \\"] {
            assert!(parse_exec(wrong).is_err(), "{wrong:?}");
        }
    }
}
