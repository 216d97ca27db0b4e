//! `--dry-run`: the clips of a batch and their cost.

use std::collections::HashMap;
use std::process::ExitCode;

use crate::batch::ClipStatus;
use crate::batch::report::Status;
use anyhow::Result;

use super::outcome::Outcome;
use crate::cli::commands::many::{Checked, Ready};
use crate::cli::ui::{columns, exit_code, human_bytes, human_time, print};

/// Prints a line for each clip, and what all of them cost; fails when a clip cannot be made.
///
/// # Errors
/// When more clips are to be in flight than fit.
pub(super) fn show(checked: &Checked, outcome: &Outcome) -> Result<ExitCode> {
    let capacity = checked.capacity()?;
    let failed = outcome.report().count(Status::Failed);
    let costs = checked.costs(capacity);
    let found: HashMap<usize, &Ready> = checked.ready.iter().map(|(n, clip)| (*n, clip)).collect();
    let head = ["clip", "made from", "", "state", "memory", "time"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(
        (0..outcome.report().clips.len())
            .map(|number| row(number, outcome, found.get(&number).copied())),
    );
    print(&format!(
        "{}\n{} clips: {} to make, {} there already, {failed} that cannot be made\n\
         texts to encode: {}, pictures: {}; passes over the experts: {}, {} clips in flight at \
         once, {}\n\
         memory: {} at most, within {}; time: {}\n",
        // Numbers end where their heads do.
        columns(&rows, |column| column >= 4),
        outcome.report().clips.len(),
        checked.todo().count(),
        outcome.report().count(Status::There),
        costs.texts,
        costs.pictures,
        costs.rounds,
        capacity.at_once,
        match capacity.decoder_beside_expert {
            true => "decoded as they are done",
            false => "decoded at the end of each pass",
        },
        human_bytes(capacity.peak_bytes),
        checked
            .budget()
            .map_or("?".into(), |budget| human_bytes(budget.bytes)),
        seconds(costs.seconds()),
    ))?;
    Ok(exit_code(failed == 0))
}

fn row(number: usize, outcome: &Outcome, ready: Option<&Ready>) -> Vec<String> {
    let clip = &outcome.report().clips[number];
    let (settings, state) = match ready {
        Some(Ready { entry, status, .. }) => {
            let clip = entry.settings();
            let (width, height) = entry.job().frame_size();
            (
                format!(
                    "{width}x{height}, {} frames, {} steps",
                    clip.frames, clip.steps
                ),
                match status {
                    ClipStatus::UpToDate => "there".into(),
                    ClipStatus::Resumable(step) => format!("resumes after step {step}"),
                    ClipStatus::Missing => "new".into(),
                },
            )
        }
        None => (String::new(), clip.status.to_string()),
    };
    let todo = ready.filter(|clip| clip.status != ClipStatus::UpToDate);
    let cost = todo.map(|clip| clip.entry.forecast());
    vec![
        outcome.name(number),
        clip.place.clone(),
        settings,
        state,
        cost.map_or(String::new(), |cost| human_bytes(cost.peak_bytes)),
        cost.map_or(String::new(), |cost| seconds(cost.seconds)),
    ]
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("?".into(), human_time)
}
