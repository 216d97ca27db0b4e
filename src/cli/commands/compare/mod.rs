//! `wan-i2v compare`: how far two sets of tensors, or two clips, are apart, as a table or as JSON.

mod clips;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::diagnose::compare::{Comparison, Input, Progress, Row, clips as pictures, compare};
use crate::weights::PartName;
use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::resolve::model;
use crate::cli::flags::CompareArgs;
use crate::cli::ui::{Transfer, columns, print, print_json, stderr};
use crate::util::show::{Show, chain};

/// The exit code of what cannot be compared.
const TROUBLE: u8 = 2;

impl CompareArgs {
    /// Prints the comparison. The exit code says whether the two agree.
    pub(crate) fn run(self) -> Result<ExitCode> {
        // As diff does it: what could not be compared is not what differs.
        Ok(match self.compare() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                stderr::error(&chain(&error), TROUBLE);
                ExitCode::from(TROUBLE)
            }
        })
    }

    fn compare(&self) -> Result<bool> {
        if let Some(kinds) = pictures::kinds(&self.a, &self.b)? {
            return self.compare_clips(kinds);
        }
        ensure!(
            self.png.is_none(),
            "--png: shows two clips, and A and B are not both clips\nhint: leave it out"
        );
        let a = open(&self.a, "A")?;
        let b = open(&self.b, "B")?;
        let mut transfer = Transfer::default();
        let made = compare(&a, &b, self.tolerance, &mut |progress| match progress {
            Progress::Total(bytes) => transfer.start("comparing", bytes),
            Progress::Read(bytes) => transfer.advance(bytes),
        })?;
        transfer.finish();
        if self.json {
            let mut report = serde_json::to_value(&made)?;
            report["a"] = json!(self.a);
            report["b"] = json!(self.b);
            print_json(&report)?;
        } else {
            let most = if self.all { usize::MAX } else { self.most };
            print(&table(&made, most, self.tolerance.is_some()))?;
        }
        Ok(made.inside)
    }
}

fn open(path: &Path, what: &str) -> Result<Input> {
    if path.as_os_str() == "tiny" {
        return Input::tiny();
    }
    Input::open(&model::local(path, what)?).with_context(|| what.to_owned())
}

/// What the columns say, for who has not read of them.
const LEGEND: &str = "\
\nerror is the largest difference (max) as a share of the tensor's largest value; up to the\n\
tolerance, rounding explains it; 1.00e-2 is 0.01, and - is a figure that does not exist\n\n";

/// The comparison for people; `given` tells whether they chose the tolerance.
fn table(made: &Comparison, most: usize, given: bool) -> String {
    let head = [
        "tensor",
        "shape",
        "stored",
        "max",
        "mean",
        "relative",
        "cosine",
        "error",
        "tolerance",
        "first",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(shown(made, most).into_iter().map(cells));
    let hidden = made.rows.len().saturating_sub(rows.len() - 1);
    let mut text = match made.rows.is_empty() {
        true => String::new(),
        false => columns(&rows, |column| (3..=8).contains(&column)),
    };
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} more that are no worse (--all)");
    }
    if !text.is_empty() {
        text += LEGEND;
    }
    for tensor in &made.unmatched {
        let name = full_name(tensor.part, &tensor.name);
        let _ = writeln!(text, "{name}: {}", tensor.problem);
    }
    for row in &made.rows {
        text += &not_finite(row);
    }
    if let Some(departs) = &made.departs {
        let _ = writeln!(
            text,
            "first departs: {}, {}",
            departs.name.shown(),
            departs.stage
        );
    }
    text + &verdict(made, given)
}

/// The worst rows, in the comparison's order.
fn shown(made: &Comparison, most: usize) -> Vec<&Row> {
    let mut worst: Vec<usize> = (0..made.rows.len()).collect();
    worst.sort_by(|&a, &b| made.rows[b].excess().total_cmp(&made.rows[a].excess()));
    let mut kept: BTreeSet<usize> = worst.into_iter().take(most).collect();
    // Whatever is worse, where two runs part is what is looked for.
    let first = made.departs.as_ref().map(|departs| &departs.name);
    let first = first.and_then(|name| made.rows.iter().position(|row| row.name == *name));
    kept.extend(first.filter(|_| most > 0));
    kept.into_iter().map(|place| &made.rows[place]).collect()
}

fn cells(row: &Row) -> Vec<String> {
    let difference = &row.difference;
    let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
    let [a, b] = &row.stored;
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    vec![
        full_name(row.part, &row.name),
        format!("[{}]", shape.join(", ")),
        if a == b {
            a.clone()
        } else {
            format!("{a}, {b}")
        },
        number(difference.max),
        number(difference.mean),
        or_dash(difference.relative.map(number)),
        or_dash(difference.cosine.map(|cosine| format!("{cosine:.6}"))),
        match difference.unequal {
            0 => number(difference.error),
            _ => "not finite".into(),
        },
        number(row.tolerance),
        match &difference.first {
            Some(place) => format!("{place:?}"),
            None => String::new(),
        },
    ]
}

fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        _ => format!("{value:.2e}"),
    }
}

fn full_name(part: Option<PartName>, name: &str) -> String {
    match part {
        Some(part) => format!("{part}: {}", name.shown()),
        None => name.shown().to_string(),
    }
}

/// The values of a row that are NaN or infinite.
fn not_finite(row: &Row) -> String {
    let [a, b] = row.difference.non_finite;
    if a + b == 0 {
        return String::new();
    }
    let place = match &row.difference.first {
        Some(place) if row.difference.unequal > 0 => {
            format!("; the first place outside is {place:?}")
        }
        _ => ", the same in both".into(),
    };
    format!(
        "{}: {a} values of A and {b} of B are not finite (NaN or infinite){place}\n",
        full_name(row.part, &row.name)
    )
}

fn verdict(made: &Comparison, given: bool) -> String {
    let outside = made.rows.iter().filter(|row| !row.inside).count();
    let compared = match made.rows.len() {
        1 => "1 tensor".into(),
        count => format!("{count} tensors"),
    };
    let worst = made.rows.iter().map(Row::excess).fold(0.0, f64::max);
    if made.inside {
        let why = if given {
            ""
        } else {
            ": rounding explains the differences"
        };
        return match made.rows.iter().all(|row| row.difference.max == 0.0) {
            true => format!("equal: {compared}, every value the same\n"),
            false => format!(
                "alike: {compared}, each within its tolerance{why} (the worst takes {:.0}% of it)\n",
                (worst * 100.0).ceil()
            ),
        };
    }
    let unmatched = match made.unmatched.len() {
        0 => String::new(),
        1 => "; 1 tensor has no like".into(),
        count => format!("; {count} tensors have no like"),
    };
    let worst = match worst {
        worst if !worst.is_finite() => ", at worst without measure (NaN or infinite)".into(),
        worst if worst > 1.0 => format!(", at worst {} times as much", number_of(worst)),
        _ => String::new(),
    };
    format!(
        "different: {outside} of {compared} differ by more than their tolerance{worst}{unmatched}\n"
    )
}

/// A factor for people.
fn number_of(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.1}"),
        10.0..1e6 => format!("{value:.0}"),
        _ => format!("{value:.0e}"),
    }
}
