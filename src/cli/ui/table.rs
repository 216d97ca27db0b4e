//! Tables, and how a command ends.

use std::process::ExitCode;

use textwrap::core::display_width;
use textwrap::{Options, WordSplitter};

use super::terminal::stdout_width;
use super::wrap::shortened;
use crate::util::show::visible;

/// Columns of a cell that others are aligned to: one of a million would fill every row.
const MAX_WIDTH: usize = 200;
/// Columns below which no text is made narrower.
const MIN_WIDTH: usize = 12;
/// What stands between columns.
const GAP: &str = "  ";

/// Rows in columns for stdout, each as wide as its widest cell; `right` says which are aligned to the
/// right. Where the terminal is narrower, see [`columns_within`].
pub(crate) fn columns(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    columns_within(stdout_width(), rows, right)
}

/// As [`columns`], in so many columns of a terminal: texts break between words, or lose the middle of
/// one, and what does not fit then goes below, after the first column once more.
pub(crate) fn columns_within(
    most: Option<usize>,
    rows: &[Vec<String>],
    right: impl Fn(usize) -> bool,
) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| visible(cell, "\\u{a}")).collect())
        .collect();
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = display_width(cell).max(*width).min(MAX_WIDTH);
        }
    }
    let mut all: Vec<usize> = (0..widths.len()).collect();
    let Some(most) = most.filter(|&most| total(&widths, &all) > most) else {
        return band(&rows, &widths, &all, &right, false);
    };
    // Of those that are empty a heading says nothing.
    let is_empty = |at: usize| {
        let cells = rows.iter().skip(1).filter_map(|row| row.get(at));
        rows.len() > 1 && cells.clone().all(String::is_empty)
    };
    all.retain(|&at| at == 0 || !is_empty(at));
    let natural = widths.clone();
    // A character at a time, of the widest text.
    while total(&widths, &all) > most {
        let least = |at| if at == 0 { most / 2 } else { MIN_WIDTH };
        let texts = (0..widths.len()).filter(|&at| !right(at) && widths[at] > least(at));
        let Some(widest) = texts.max_by_key(|&at| widths[at]) else {
            break;
        };
        widths[widest] -= 1;
    }
    if total(&widths, &all) > most {
        let first = natural[0].min(most / 2).max(1);
        let beside = most.saturating_sub(first + GAP.len()).max(MIN_WIDTH);
        let others = natural[1..].iter().enumerate();
        let others = others.map(|(at, &width)| match right(at + 1) {
            true => width,
            false => width.min(beside),
        });
        widths = [first].into_iter().chain(others).collect();
    }
    let mut text = String::new();
    let mut rest = all.as_slice();
    while let Some((&next, _)) = rest.split_first() {
        let mut shown = if next == 0 { vec![] } else { vec![0] };
        let mut count = 0;
        for &at in rest {
            shown.push(at);
            if count > 0 && total(&widths, &shown) > most {
                shown.pop();
                break;
            }
            count += 1;
        }
        rest = &rest[count..];
        if !text.is_empty() {
            text.push('\n');
        }
        text += &band(&rows, &widths, &shown, &right, true);
    }
    text
}

fn total(widths: &[usize], columns: &[usize]) -> usize {
    let gaps = GAP.len() * columns.len().saturating_sub(1);
    columns.iter().map(|&at| widths[at]).sum::<usize>() + gaps
}

/// Some of the columns. Cells that are `tight` keep to their widths.
fn band(
    rows: &[Vec<String>],
    widths: &[usize],
    columns: &[usize],
    right: &impl Fn(usize) -> bool,
    tight: bool,
) -> String {
    let mut text = String::new();
    for row in rows {
        let cells = columns.iter().filter_map(|&at| Some((at, row.get(at)?)));
        let cells: Vec<(usize, Vec<String>)> = cells
            .map(|(at, cell)| match tight {
                // By which the others are found.
                true if at == 0 => (at, vec![shortened(cell, widths[0])]),
                true => (at, lines(cell, widths[at])),
                false => (at, vec![cell.clone()]),
            })
            .collect();
        let height = cells
            .iter()
            .map(|(_, lines)| lines.len())
            .max()
            .unwrap_or(1);
        for line in 0..height {
            let cells = cells.iter().map(|(at, lines)| {
                let cell = lines.get(line).map_or("", String::as_str);
                // The standard library's own padding ends at 65,535, and counts characters.
                let padding = " ".repeat(widths[*at].saturating_sub(display_width(cell)));
                match right(*at) {
                    true => padding + cell,
                    false => format!("{cell}{padding}"),
                }
            });
            text.push_str(cells.collect::<Vec<_>>().join(GAP).trim_end());
            text.push('\n');
        }
    }
    text
}

/// The lines of a cell of this width.
fn lines(cell: &str, width: usize) -> Vec<String> {
    let options = Options::new(width)
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation);
    let lines = textwrap::wrap(cell, options);
    lines.iter().map(|line| shortened(line, width)).collect()
}

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

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        let row = |row: &&[&str]| row.iter().map(|&cell| cell.to_owned()).collect();
        rows.iter().map(row).collect()
    }

    #[test]
    fn a_cell_of_any_length_leaves_the_others_as_they_are() {
        let row = |first: &str| vec![first.to_owned(), "b".to_owned()];
        let table = [row(&"x".repeat(70_000)), row("a\n\u{1b}")];
        let text = columns_within(None, &table, |_| false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "x".repeat(70_000) + "  b");
        assert_eq!(
            lines[1],
            format!("a\\u{{a}}\\u{{1b}}{}  b", " ".repeat(188))
        );
        assert_eq!(lines.len(), 2);
        assert_eq!(
            columns_within(None, &rows(&[&["1"], &["22"]]), |_| true),
            " 1\n22\n"
        );
    }

    #[test]
    fn texts_break_between_words_and_names_lose_their_middle() {
        let table = rows(&[
            &["part", "dimensions", "bytes"],
            &["high-noise", "40 blocks of 5120, 40 heads", "12"],
            &[
                "transformer/blocks.12.attn1.to_q.weight",
                "[5120, 5120]",
                "3456",
            ],
        ]);
        let text = columns_within(Some(44), &table, |column| column == 2);
        assert_eq!(
            text,
            "part                    dimensions     bytes\n\
             high-noise              40 blocks of      12\n\
             \x20                       5120, 40\n\
             \x20                       heads\n\
             transfo…n1.to_q.weight  [5120, 5120]    3456\n"
        );
        assert!(columns_within(Some(20), &table, |_| false).contains("\n\n"));
    }

    #[test]
    fn numbers_are_whole_and_go_below() {
        let table = rows(&[
            &["run", "psnr", "ssim", "flicker"],
            &["a", "31.25", "0.9123", "0.0123456"],
        ]);
        for width in 0..60 {
            let text = columns_within(Some(width), &table, |column| column > 0);
            for number in ["31.25", "0.9123", "0.0123456"] {
                assert!(text.split_whitespace().any(|word| word == number), "{text}");
            }
            let wide = text
                .lines()
                .any(|line| line.chars().count() > width.max(14));
            assert!(!wide, "{width}: {text}");
        }
        assert_eq!(
            columns_within(Some(20), &table, |column| column > 0),
            "run   psnr    ssim\na    31.25  0.9123\n\nrun    flicker\na    0.0123456\n"
        );
    }
}
