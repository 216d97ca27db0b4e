//! Files to install next to the program: completions of its command line, and man pages.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;

use crate::cli::flags::{CompletionsArgs, ManArgs, command};
use crate::cli::ui::{print_path, print_raw};
use crate::util::show::Show;
use crate::util::temporary;

impl CompletionsArgs {
    /// Prints them.
    pub(crate) fn run(self) -> Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "wan-i2v", &mut text);
        // clap_complete 4.6 calls the program by two names in bash's script, if there is a hyphen in it.
        let text = String::from_utf8(text)?.replace("wan__subcmd__i2v__", "wan__i2v__");
        print_raw(text.as_bytes())
    }
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
