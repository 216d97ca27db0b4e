//! `--dry-run`: what a batch will make, and what that costs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use crate::batch::report::Status;
use crate::batch::{Capacity, ClipStatus, Costs};
use crate::pipeline::plan::{Budget, Rates};
use anyhow::Result;

use super::Ready;
use super::outcome::Outcome;
use crate::cli::display::{human_bytes, human_time, print};

/// Prints a line a clip, and all together; fails when a clip cannot be made.
pub fn show(
    ready: &[(usize, Ready)],
    outcome: &Outcome,
    room: Capacity,
    budget: Budget,
    rates: &Rates,
) -> Result<ExitCode> {
    let failed = outcome.report().count(Status::Failed);
    let todo = ready
        .iter()
        .filter(|(_, clip)| clip.standing != ClipStatus::UpToDate);
    let costs = Costs::of(
        todo.clone().map(|(_, clip)| (&clip.entry, clip.standing)),
        room,
    );
    print(&format!(
        "{}\n{} clips: {} to make, {} there already, {failed} that cannot be made\n\
         texts to encode: {}, pictures: {}; passes over the experts: {}, {} clips in flight at \
         once, {}\n\
         memory: {} at most, within {}; time: {}\n",
        table(ready, outcome),
        outcome.report().clips.len(),
        todo.count(),
        outcome.report().count(Status::There),
        costs.texts,
        costs.pictures,
        costs.passes,
        room.at_once,
        match room.beside {
            true => "decoded as they are done",
            false => "decoded at the end of each pass",
        },
        human_bytes(room.peak_bytes),
        human_bytes(budget.bytes),
        seconds(costs.seconds(rates)),
    ))?;
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn table(ready: &[(usize, Ready)], outcome: &Outcome) -> String {
    let report = outcome.report();
    let found: HashMap<usize, &Ready> = ready.iter().map(|(n, clip)| (*n, clip)).collect();
    let rows: Vec<[String; 6]> = (0..report.clips.len())
        .map(|number| row(number, outcome, found.get(&number).copied()))
        .collect();
    let head = ["clip", "made from", "", "state", "memory", "time"].map(str::to_owned);
    let all = || std::iter::once(&head).chain(&rows);
    let mut text = String::new();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let cells = all().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    });
    for row in all() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Numbers end where their heads do.
            let _ = match column < 4 {
                true => write!(line, "{cell:<width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn row(number: usize, outcome: &Outcome, ready: Option<&Ready>) -> [String; 6] {
    let clip = &outcome.report().clips[number];
    let name = outcome.name(number);
    let Some(Ready {
        entry, standing, ..
    }) = ready
    else {
        let state = clip.status.to_string();
        return [
            name,
            clip.place.clone(),
            String::new(),
            state,
            String::new(),
            String::new(),
        ];
    };
    let settings = entry.settings();
    let forecast = entry.forecast();
    let todo = *standing != ClipStatus::UpToDate;
    [
        name,
        clip.place.clone(),
        format!(
            "{}x{}, {} frames, {} steps",
            settings.width, settings.height, settings.frames, settings.steps
        ),
        match standing {
            ClipStatus::UpToDate => "there".into(),
            ClipStatus::Resumable(step) => format!("goes on after step {step}"),
            ClipStatus::Missing => "new".into(),
        },
        match todo {
            true => human_bytes(forecast.peak_bytes),
            false => String::new(),
        },
        match todo {
            true => seconds(forecast.seconds),
            false => String::new(),
        },
    ]
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("?".into(), |s| human_time(Duration::from_secs_f64(s)))
}
