//! What the user may have meant.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::util::files;
use crate::util::show::Show;
use anyhow::{Error, Result, anyhow};

/// The most names of a folder that are looked at.
const MAX_NAMES: usize = 10_000;

/// A hint, `did you mean NAME?`, with the known name that is most like `name`, or nothing when none is
/// much like it.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(known) => format!("\nhint: did you mean {known}?"),
        None => String::new(),
    }
}

/// As [`did_you_mean`], of a path that leads to nothing: the name most like it in its folder, or
/// that the folder is missing.
pub fn did_you_mean_path(path: &Path) -> String {
    let Some(name) = path.file_name() else {
        return String::new();
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let here = folder.as_os_str().is_empty();
    let Ok(entries) = fs::read_dir(if here { Path::new(".") } else { folder }) else {
        return match folder.exists() {
            true => String::new(),
            false => format!("; there is no folder {}", folder.shown()),
        };
    };
    let names = entries.flatten().take(MAX_NAMES);
    let names: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let known = names.iter().map(String::as_str);
    match nearest(&name.to_string_lossy(), known) {
        Some(known) => format!("\nhint: did you mean {}?", folder.join(known).shown()),
        None => String::new(),
    }
}

/// As [`open`], without waiting for somebody who writes into a pipe: one that nobody has opened to
/// write is empty.
///
/// # Errors
/// As [`open`].
pub fn open_now(path: &Path) -> Result<File> {
    found(path, files::open_now(path))
}

/// Opens a file.
///
/// # Errors
/// When it cannot be opened; where there is none, with the name that may be meant.
pub fn open(path: &Path) -> Result<File> {
    found(path, File::open(path))
}

/// As [`open`], of a regular file alone.
///
/// # Errors
/// As [`open`], and when it is no regular file.
pub fn open_regular(path: &Path) -> Result<File> {
    found(path, files::open_regular(path))
}

fn found(path: &Path, opened: io::Result<File>) -> Result<File> {
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("{error}{}", did_you_mean_path(path)),
        _ => Error::new(error),
    })
}

/// The known name that is most like `name`, or that it begins; nothing where none is much like it.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const BEGINNING: usize = 3;
    let likeness = |known: &str| match name.len() >= BEGINNING && known.starts_with(name) {
        true => 1.0,
        false => strsim::normalized_damerau_levenshtein(name, known),
    };
    let known = known.into_iter();
    known
        .map(|known| (likeness(known), known))
        .filter(|(likeness, _)| *likeness > 0.65)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_alike_is_meant() {
        let flags = ["steps", "strip", "shift", "size"];
        assert_eq!(did_you_mean("stepps", flags), "\nhint: did you mean steps?");
        assert_eq!(did_you_mean("shfit", flags), "\nhint: did you mean shift?");
        assert_eq!(did_you_mean("xyz", flags), "");
        assert_eq!(did_you_mean("", flags), "");
        assert_eq!(did_you_mean("steps", []), "");
        assert_eq!(
            did_you_mean("neg", ["negative-prompt"]),
            "\nhint: did you mean negative-prompt?"
        );
        // Far off.
        for (name, known) in [
            ("lora", "low"),
            ("save", "vae"),
            ("strip", "steps"),
            ("fp", "vae"),
        ] {
            assert_eq!(did_you_mean(name, [known]), "", "{name}");
        }
    }

    #[test]
    fn a_path_is_meant_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("start.png"), "").unwrap();
        fs::write(path(".strat.png"), "").unwrap();
        let meant = format!("\nhint: did you mean {}?", path("start.png").shown());
        assert_eq!(did_you_mean_path(&path("strat.png")), meant);
        assert_eq!(did_you_mean_path(&path("start.jpg")), meant);
        assert_eq!(did_you_mean_path(&path("x")), "");
        assert_eq!(did_you_mean_path(Path::new("/")), "");
        let nowhere = format!("; there is no folder {}", path("a").shown());
        assert_eq!(did_you_mean_path(&path("a/start.png")), nowhere);
    }
}
