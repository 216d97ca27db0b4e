//! What a sweep would make.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::batch::sweep::{Outcome, Run};
use crate::pipeline::Job;
use crate::pipeline::plan::{Rates, Settled};
use anyhow::Result;
use serde_json::{Value, json};

use super::{Sweep, exit_code, record_name, table};
use crate::cli::args::Generate;
use crate::cli::display::{human_bytes, human_time, print};

impl Sweep {
    /// Prints what would be made; fails when a run would.
    pub(super) fn list(&self, as_json: bool) -> Result<ExitCode> {
        let scratch = tempfile::tempdir()?;
        let folder = match self.folder.is_dir() {
            true => self.folder.as_path(),
            false => scratch.path(),
        };
        let mut listed = Vec::new();
        let mut rates: Option<Rates> = None;
        for run in &self.runs {
            listed.push(self.forecast(run, folder, &mut rates));
        }
        let failed = listed.iter().any(|run| run.is_err());
        print(&match as_json {
            true => {
                let runs = self
                    .runs
                    .iter()
                    .zip(&listed)
                    .map(|(run, listed)| match listed {
                        Ok(listed) => listed.json(run),
                        Err(error) => json!({ "name": run.name, "error": format!("{error:#}") }),
                    });
                serde_json::to_string_pretty(&json!({ "runs": runs.collect::<Vec<_>>() }))? + "\n"
            }
            false => self.listing(&listed),
        })?;
        Ok(exit_code(failed))
    }

    fn forecast(&self, run: &Run, folder: &Path, rates: &mut Option<Rates>) -> Result<Listed> {
        let Generate {
            request, machine, ..
        } = self.read(run, folder)?.into_request()?;
        let job = Job::prepare(request)?;
        let device = machine.device()?;
        let rates = match rates {
            Some(rates) => rates,
            None => rates.insert(Rates::of_machine(device, false)?),
        };
        let settled = job.settle(device, machine.budget(device), Some(rates))?;
        let identity = job.identity(device, &settled.memory)?;
        let record = folder.join(record_name(run));
        Ok(Listed {
            is_done: Outcome::finished(&record, folder, &identity).is_some(),
            size: [
                job.settings().width,
                job.settings().height,
                job.settings().frames,
            ],
            settled,
        })
    }

    fn listing(&self, listed: &[Result<Listed>]) -> String {
        let flags = self.axes.iter().map(|axis| axis.flag.as_str());
        let figures = ["size", "frames", "passes", "memory", "time"];
        let mut rows: Vec<Vec<String>> = vec![flags.chain(figures).map(str::to_owned).collect()];
        let mut ends = vec![String::new()];
        let mut seconds = 0.0;
        for (run, listed) in self.runs.iter().zip(listed) {
            let settings = run.settings.iter().map(|(_, value)| value.clone());
            let (figures, end) = match listed {
                Ok(listed) => (listed.figures(), listed.state().to_owned()),
                Err(error) => (Default::default(), format!("fails: {error:#}")),
            };
            let left = listed.as_ref().ok().filter(|listed| !listed.is_done);
            seconds += left.map_or(0.0, Listed::seconds);
            rows.push(settings.chain(figures).collect());
            ends.push(end);
        }
        let count = self.runs.len();
        let time = human_time(Duration::from_secs_f64(seconds));
        format!(
            "{}\n{count} runs, about {time} to go\n",
            table(&rows, &ends)
        )
    }
}

/// A run that is not made yet.
struct Listed {
    settled: Settled,
    /// Width, height and frames.
    size: [u32; 3],
    is_done: bool,
}

impl Listed {
    fn seconds(&self) -> f64 {
        self.settled.forecast.seconds.unwrap_or_default()
    }

    fn figures(&self) -> [String; 5] {
        let [width, height, frames] = self.size;
        let forecast = &self.settled.forecast;
        [
            format!("{width}x{height}"),
            frames.to_string(),
            forecast.passes.to_string(),
            human_bytes(forecast.peak_bytes),
            human_time(Duration::from_secs_f64(self.seconds())),
        ]
    }

    fn state(&self) -> &'static str {
        match (self.is_done, self.settled.fits) {
            (true, _) => "done",
            (false, true) => "",
            (false, false) => "does not fit",
        }
    }

    fn json(&self, run: &Run) -> Value {
        let forecast = &self.settled.forecast;
        json!({
            "name": run.name,
            "settings": run.settings,
            "width": self.size[0],
            "height": self.size[1],
            "frames": self.size[2],
            "passes": forecast.passes,
            "peak_bytes": forecast.peak_bytes,
            "seconds": forecast.seconds,
            "fits": self.settled.fits,
            "done": self.is_done,
        })
    }
}
