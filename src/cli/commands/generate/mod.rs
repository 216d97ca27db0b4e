//! `wan-i2v` without a command: one clip.

mod resume;

use std::process::ExitCode;

use crate::clip::Model;
use crate::pipeline::plan::PlannedMemory;
use crate::pipeline::{Interrupted, Job};
use crate::runtime;
use crate::tiny;
use crate::util::show::chain;
use anyhow::{Context, Result};
use indicatif::MultiProgress;

use super::preview::{self, Screen};
use super::resolve::{self, Resolved};
use crate::cli::flags::GenerateArgs;
use crate::cli::ui::{Listener, Stoppable, info, print_path, report, stderr};

impl GenerateArgs {
    /// Makes the clip and prints its path.
    ///
    /// # Errors
    /// When it cannot be made; an interrupted run is no error but an exit code.
    pub(super) fn run(self) -> Result<ExitCode> {
        let resume = self.resume;
        let Resolved {
            request,
            machine,
            preview,
            open,
        } = resolve::clip(self.clip, self.output)?;
        let screen = Screen::of(&preview, &request)?;
        let output = request.output.clone();
        let (is_tiny, dumps) = (request.model == Model::Tiny, request.dump.is_some());
        let mut job = Job::prepare(request)?;
        let console = MultiProgress::new();
        if let Some(screen) = screen {
            preview::attach(&preview, &mut job, screen, console.clone())?;
        }
        if is_tiny {
            info!("{}", tiny::NOTICE);
        }
        for warning in job.warnings() {
            stderr::warning(&warning);
        }
        let device = machine.device()?;
        let budget = machine.budget(device);
        let PlannedMemory {
            memory, forecast, ..
        } = job.plan_memory_or_refuse(device, budget, None)?;
        stderr::warn_of_shortage(device, forecast.peak_bytes);
        runtime::limit_memory(budget.bytes)?;
        let mut start = resume.start(&output, &job.identity(device, &memory)?, &open)?;
        let output = start.output.clone();
        if let Some(seed) = start.seed().filter(|_| open.seed) {
            job.reseed(seed, output.clone());
        }
        job.remove_stale();
        report::start(job.settings(), device, &output);
        start.report(dumps);
        let listener = Listener::start()?;
        let mut progress = Stoppable {
            inner: &mut *report::reporter(console, Vec::new()),
            listener: &listener,
        };
        let ran = job.run_saved(
            device,
            memory,
            Some(&mut start.writer),
            start.from.as_ref(),
            &mut progress,
        );
        let summary = match ran {
            Ok(summary) => summary,
            Err(error) if error.is::<Interrupted>() => {
                let code = listener.exit_code().unwrap_or(1);
                stderr::error(&format!("{}\nhint: {}", chain(&error), start.hint()), code);
                return Ok(ExitCode::from(code));
            }
            Err(error) => {
                if start.writer.latest().is_some_and(|(_, step)| step > 0) {
                    stderr::hint(&start.hint());
                }
                return Err(error);
            }
        };
        start.writer.finish();
        report::finish(&summary, device, &output);
        print_path(&output).context("the clip is complete")?;
        Ok(ExitCode::SUCCESS)
    }
}
