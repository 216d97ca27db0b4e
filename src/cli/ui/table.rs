//! Tables and other text on stdout.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

/// Rows in columns, each as wide as its widest cell; `right` says which are aligned to the right.
pub(crate) fn columns(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match right(column) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Writes to stdout.
///
/// # Errors
/// When nobody reads it any more.
pub(crate) fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")
}

/// Writes a result's path to stdout: its own bytes, whether or not they are valid text.
pub(crate) fn print_path(path: &Path) -> Result<ExitCode> {
    let mut line = path.as_os_str().as_encoded_bytes().to_vec();
    line.push(b'\n');
    std::io::stdout()
        .write_all(&line)
        .context("the path cannot be written to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// The exit code of what went well, or not.
pub(crate) fn exit_code(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
