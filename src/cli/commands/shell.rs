//! Files to install next to the program: completions of its command line, and man pages.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::flags::{CompletionsArgs, ManArgs, command};
use crate::cli::ui::{print_path, print_raw};
use crate::util::show::Show;
use crate::util::temporary;

impl CompletionsArgs {
    /// Prints them.
    pub(crate) fn run(self) -> Result<()> {
        let (mut command, mut text) = (command(), Vec::new());
        clap_complete::generate(self.shell, &mut command, "wan-i2v", &mut text);
        let text = mended(self.shell, &command, String::from_utf8(text)?);
        print_raw(text.as_bytes())
    }
}

/// The script without the faults of clap_complete 4.6.
fn mended(shell: Shell, command: &Command, text: String) -> String {
    match shell {
        // A program with a hyphen has two names there.
        Shell::Bash => text.replace("wan__subcmd__i2v__", "wan__i2v__"),
        // A flag whose value is being typed is refused, as one without a value.
        Shell::Fish => {
            let asked = "    argparse -s (__fish_wan_i2v_global_optspecs) -- $cmd";
            let end = " 2>/dev/null\n    or return\n";
            let again = format!("{asked} 2>/dev/null\n    or {} ''{end}", asked.trim());
            text.replace(&format!("{asked}{end}"), &again) + &operands(command)
        }
        _ => text,
    }
}

/// For fish, the words that commands' operands may be.
fn operands(command: &Command) -> String {
    let mut lines = String::new();
    for command in command.get_subcommands() {
        for operand in command.get_positionals() {
            let words: Vec<_> = (operand.get_possible_values().into_iter())
                .map(|word| word.get_name().to_owned())
                .collect();
            if !words.is_empty() {
                lines += &format!(
                    "complete -c wan-i2v -n \"__fish_wan_i2v_using_subcommand {}\" -f -a \"{}\"\n",
                    command.get_name(),
                    words.join(" ")
                );
            }
        }
    }
    lines
}

impl ManArgs {
    /// Writes them.
    pub(crate) fn run(self) -> Result<()> {
        // The long version is of this machine.
        let mut root = command().disable_help_subcommand(true);
        root = root.long_version(None);
        root.build();
        match self.folder {
            None => print_raw(&page(root)?),
            Some(folder) => write(root, &folder)
                .with_context(|| format!("cannot write man pages into {}", folder.shown())),
        }
    }
}

fn write(root: Command, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let commands: Vec<Command> = root.get_subcommands().cloned().collect();
    for command in [root].into_iter().chain(commands) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = folder.join(format!("{name}.1"));
        let mut file = temporary::file(&path)?;
        file.write_all(&page(command)?)?;
        file.persist(&path)?;
        print_path(&path)?;
    }
    Ok(())
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(page)
}
