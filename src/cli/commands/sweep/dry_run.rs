//! `--dry-run`: the runs of a sweep and their cost.

use std::collections::HashMap;
use std::process::ExitCode;

use crate::batch::ClipStatus;
use anyhow::Result;
use serde_json::{Value, json};

use super::outcomes::{Outcomes, table};
use crate::cli::commands::many::{Checked, Ready};
use crate::cli::ui::{exit_code, human_bytes, human_time, print, print_json};

/// Prints what would be made; fails when a run would.
///
/// # Errors
/// When more clips are to be in flight than fit.
pub(super) fn show(checked: &Checked, outcomes: &Outcomes, as_json: bool) -> Result<ExitCode> {
    let ready: HashMap<usize, &Ready> = checked.ready.iter().map(|(n, run)| (*n, run)).collect();
    let runs = outcomes.runs.iter().enumerate();
    let runs = runs.map(|(number, run)| (run, ready.get(&number).copied(), outcomes.error(number)));
    if as_json {
        let runs = runs.map(|(run, ready, error)| match ready {
            Some(ready) => {
                let mut fields = json(ready);
                fields["name"] = run.name.as_str().into();
                fields["settings"] = json!(run.settings);
                fields
            }
            None => json!({ "name": run.name, "error": error }),
        });
        print_json(&json!({ "runs": runs.collect::<Vec<_>>() }))?;
    } else {
        let flags = outcomes.axes.iter().map(|axis| axis.flag.as_str());
        let heading = flags.chain(["size", "frames", "passes", "memory", "time"]);
        let mut rows: Vec<Vec<String>> = vec![heading.map(str::to_owned).collect()];
        let mut ends = Vec::new();
        for (run, ready, error) in runs {
            let settings = run.settings.iter().map(|(_, value)| value.clone());
            rows.push(
                settings
                    .chain(ready.map_or(Default::default(), figures))
                    .collect(),
            );
            ends.push(match (ready, error) {
                (Some(ready), _) if ready.status == ClipStatus::UpToDate => "done".to_owned(),
                (Some(_), _) => String::new(),
                (None, error) => format!("fails: {}", error.unwrap_or_default()),
            });
        }
        let costs = checked.costs(checked.capacity()?);
        let seconds = costs.seconds();
        print(&format!(
            "{}\n{} runs, about {} to go\n",
            table(rows, ends.into_iter()),
            outcomes.runs.len(),
            human_time(seconds.unwrap_or_default())
        ))?;
    }
    Ok(exit_code(checked.ready.len() == outcomes.runs.len()))
}

fn figures(ready: &Ready) -> [String; 5] {
    let (plan, forecast) = (ready.entry.settings(), ready.entry.forecast());
    let (width, height) = ready.entry.job().frame_size();
    [
        format!("{width}x{height}"),
        plan.frames.to_string(),
        forecast.passes.to_string(),
        human_bytes(forecast.peak_bytes),
        human_time(forecast.seconds.unwrap_or_default()),
    ]
}

fn json(ready: &Ready) -> Value {
    let (plan, forecast) = (ready.entry.settings(), ready.entry.forecast());
    let (width, height) = ready.entry.job().frame_size();
    json!({
        "width": width,
        "height": height,
        "frames": plan.frames,
        "passes": forecast.passes,
        "peak_bytes": forecast.peak_bytes,
        "seconds": forecast.seconds,
        "done": ready.status == ClipStatus::UpToDate,
    })
}
