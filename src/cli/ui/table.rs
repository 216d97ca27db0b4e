//! Tables, and how a command ends.

use std::process::ExitCode;

use crate::util::show::visible;

/// Rows in columns, each as wide as its widest cell; `right` says which are aligned to the right.
pub(crate) fn columns(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| visible(cell, "\\u{a}")).collect())
        .collect();
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width).min(MAX_WIDTH);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| {
            // The standard library's own padding ends at 65,535.
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            match right(column) {
                true => padding + cell,
                false => format!("{cell}{padding}"),
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Characters of a cell that others are aligned to: one of a million would fill every row.
const MAX_WIDTH: usize = 200;

/// The exit code of what went well, or not.
pub(crate) fn exit_code(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_of_any_length_leaves_the_others_as_they_are() {
        let row = |first: &str| vec![first.to_owned(), "b".to_owned()];
        let text = columns(&[row(&"x".repeat(70_000)), row("a\n\u{1b}")], |_| false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "x".repeat(70_000) + "  b");
        assert_eq!(
            lines[1],
            format!("a\\u{{a}}\\u{{1b}}{}  b", " ".repeat(188))
        );
        assert_eq!(lines.len(), 2);
        let numbers = [["1"], ["22"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&numbers, |_| true), " 1\n22\n");
    }
}
