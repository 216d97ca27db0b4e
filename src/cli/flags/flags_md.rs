//! `docs/flags.md`, written from clap's own definitions and kept current by a test.

use std::fmt::Write as _;
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};

use super::{command, foreign};

const INTRODUCTION: &str = "\
# Flags

Generated from the program's own definitions; don't edit. `UPDATE_DOCS=1 cargo test flags_md` writes it again.

`wan-i2v -h` shows what is used most, `--help` everything. Every flag of a clip can also be set by a variable
(`WAN_I2V_STEPS` for `--steps`) or in `~/.config/wan-i2v/config.toml`; the command line comes first, then the
variable, then the config file, then what the model recommends, then the built-in default
([settings](terminal.md#settings)). In a batch a job comes before the command line ([batch](batch.md#the-jobs)).
";

const FOREIGN: &str = "
## Names from other programs

What Wan's `generate.py`, diffusers, ComfyUI, mlx-video and musubi-tuner call a flag is taken where it means exactly the
same: on the command line, in variables, config files and jobs, with `-` or `_`. Help and completions show this program's own
names.

| flag | other names |
| --- | --- |
";

/// One flag or operand as a row of a table.
#[derive(PartialEq)]
struct Row {
    name: String,
    meaning: String,
    default: String,
}

impl Row {
    fn new(arg: &Arg) -> Self {
        let text = |text: Option<&StyledStr>| text.map(ToString::to_string).unwrap_or_default();
        let long = arg.get_long_help().or_else(|| arg.get_help());
        let (meaning, stated) = split_default(&text(long));
        let given: Vec<_> = match arg.is_hide_default_value_set() {
            true => Vec::new(),
            false => arg.get_default_values().iter().collect(),
        };
        let default = match given.first() {
            // A switch's "false" says nothing.
            Some(value) if arg.get_action().takes_values() => value.to_string_lossy().into_owned(),
            _ => stated,
        };
        Self {
            name: cell(&name(arg)),
            meaning: cell(&meaning),
            default: cell(&default),
        }
    }
}

/// Help without its "[default: ...]", and what that names.
fn split_default(help: &str) -> (String, String) {
    match help
        .split_once("[default: ")
        .and_then(|(before, after)| Some((before, after.split_once(']')?)))
    {
        Some((before, (default, after))) => (
            format!("{}{}", before.trim_end(), after.trim_end()),
            default.to_owned(),
        ),
        None => (help.to_owned(), String::new()),
    }
}

/// Text fit for a table's cell: one line, bars escaped, sentences of separate paragraphs parted.
fn cell(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        line.replace('|', "\\|").replace('*', "\\*")
    });
    paragraphs.collect::<Vec<_>>().join(". ")
}

/// `-i`, `--image PATH`.
fn name(arg: &Arg) -> String {
    let value = match arg.get_action() {
        ArgAction::SetTrue | ArgAction::Count => None,
        _ => Some(value_names(arg)),
    };
    let Some(long) = arg.get_long() else {
        let value = value.unwrap_or_default();
        return match arg.is_required_set() {
            true => format!("`{value}`"),
            false => format!("`[{value}]`"),
        };
    };
    let short = arg.get_short().map(|short| format!("`-{short}`, "));
    let value = value.map(|value| format!(" {value}"));
    format!(
        "{}`--{long}{}`",
        short.unwrap_or_default(),
        value.unwrap_or_default()
    )
}

/// The choices where there are some, else the value's name.
fn value_names(arg: &Arg) -> String {
    let choices: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| value.get_name().to_owned())
        .collect();
    if !choices.is_empty() {
        return choices.join("|");
    }
    let names = arg.get_value_names().unwrap_or_default();
    names
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The rows of `command` under their headings, in the order of its help.
fn sections(command: &Command) -> Vec<(String, Vec<Row>)> {
    let mut sections: Vec<(String, Vec<Row>)> = Vec::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        if ["help", "version"].contains(&arg.get_id().as_str()) {
            continue;
        }
        let heading = arg.get_help_heading().unwrap_or("");
        let row = Row::new(arg);
        match sections.iter_mut().find(|(known, _)| known == heading) {
            Some((_, rows)) => rows.push(row),
            None => sections.push((heading.to_owned(), vec![row])),
        }
    }
    sections
}

fn table<'a>(text: &mut String, rows: impl IntoIterator<Item = &'a Row>) {
    text.push_str("\n| flag | meaning | default |\n| --- | --- | --- |\n");
    for row in rows {
        let _ = writeln!(text, "| {} | {} | {} |", row.name, row.meaning, row.default);
    }
}

/// The whole document. What a command shares with a clip is listed by name only.
fn document() -> String {
    let mut root = command().disable_help_subcommand(true);
    root.build();
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## wan-i2v\n");
    let clip = sections(&root);
    for (heading, rows) in &clip {
        let _ = write!(text, "\n### {heading}\n");
        table(&mut text, rows);
    }
    for command in root
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let _ = write!(text, "\n## wan-i2v {}\n", command.get_name());
        if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
            let _ = write!(text, "\n{}\n", about.to_string().trim());
        }
        let rows: Vec<Row> = sections(command)
            .into_iter()
            .flat_map(|(_, rows)| rows)
            .collect();
        let (shared, own): (Vec<_>, Vec<_>) = rows
            .iter()
            .partition(|row| clip.iter().any(|(_, rows)| rows.contains(row)));
        if !own.is_empty() {
            table(&mut text, own);
        }
        if !shared.is_empty() {
            let names: Vec<&str> = shared
                .iter()
                .filter_map(|row| row.name.split_once("--")?.1.split([' ', '`']).next())
                .collect();
            let _ = write!(text, "\nAs for a clip: `--{}`.\n", names.join("`, `--"));
        }
    }
    text.push_str(FOREIGN);
    for (flag, names) in foreign::ALIASES {
        let _ = writeln!(text, "| `--{flag}` | `--{}` |", names.join("`, `--"));
    }
    text
}

#[test]
fn flags_md_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/flags.md");
    let text = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs/flags.md can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "docs/flags.md is not what the flags' definitions say\n\
         hint: UPDATE_DOCS=1 cargo test flags_md writes it again"
    );
}
