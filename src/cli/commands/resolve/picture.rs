//! Pictures that are no files: from standard input, or the web.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use crate::hub::Hub;
use crate::util::show::Show;
use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cli::commands::again::keep_input;
use crate::cli::commands::launch;
use crate::cli::ui::info;

/// The most bytes that are read of one.
const MOST: u64 = 256 << 20;
/// What standard input's picture is called.
const NAME: &str = "picture";

/// Files of this program's own for pictures that are none, which go when this does.
#[derive(Debug, Default)]
pub(crate) struct Pictures {
    known: Vec<(PathBuf, PathBuf)>,
    folders: Vec<TempDir>,
}

/// Whether a path is an address in the web.
pub(crate) fn is_address(path: &Path) -> bool {
    let text = path.to_string_lossy();
    ["https://", "http://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
}

impl Pictures {
    /// The file of the picture that `flag` names: itself, or one with what is read or fetched.
    ///
    /// # Errors
    /// When it cannot be had, or is larger than any picture.
    pub(crate) fn local(&mut self, flag: &str, source: PathBuf) -> Result<PathBuf> {
        let is_input = source.as_os_str() == "-";
        if !is_input && !is_address(&source) {
            return Ok(source);
        }
        if let Some((_, file)) = self.known.iter().find(|(known, _)| *known == source) {
            return Ok(file.clone());
        }
        let said = || format!("{flag} {}", source.shown());
        let (name, content) = match is_input {
            true => (NAME.to_owned(), input().with_context(said)?),
            false => {
                let text = source.to_string_lossy();
                let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
                let content = hub.address(&text, MOST).with_context(said)?;
                (name_of(&text), content)
            }
        };
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let file = folder.path().join(name);
        let written = File::create(&file).and_then(|mut new| new.write_all(&content));
        written.with_context(|| format!("cannot write {}", file.shown()))?;
        self.folders.push(folder);
        self.known.push((source, file.clone()));
        Ok(file)
    }
}

fn input() -> Result<Vec<u8>> {
    launch::has_input("a picture")?;
    let input = std::io::stdin();
    ensure!(
        !input.is_terminal(),
        "standard input is a terminal; expected a picture\nhint: pipe one in, or name a file"
    );
    info!("reading the picture from standard input");
    let mut content = Vec::new();
    input.lock().take(MOST + 1).read_to_end(&mut content)?;
    ensure!(
        content.len() as u64 <= MOST,
        "it is larger than {} MiB",
        MOST >> 20
    );
    keep_input(&content);
    Ok(content)
}

/// The last part of an address, as a file's name.
fn name_of(address: &str) -> String {
    let path = address.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let last = path.split('/').skip(1).last().unwrap_or_default();
    let is_plain = |c: &char| c.is_alphanumeric() || "-_. ".contains(*c);
    let name: String = last.chars().filter(is_plain).take(100).collect();
    match name.trim_matches(['.', ' ']) {
        "" => NAME.to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gives_a_name() {
        for (address, name) in [
            ("https://a.example/b/cat.jpg?size=1#x", "cat.jpg"),
            ("https://a.example/b/%2e%2e%2fcat", "2e2e2fcat"),
            ("https://a.example/..", "picture"),
            ("https://a.example/", "picture"),
            ("https://a.example", "picture"),
        ] {
            assert_eq!(name_of(address), name);
        }
    }

    #[test]
    fn files_are_themselves() {
        let mut pictures = Pictures::default();
        let path = pictures.local("--image", "a/b.png".into()).unwrap();
        assert_eq!(path, Path::new("a/b.png"));
        assert!(!is_address(Path::new("a/https://b.png")));
    }
}
