//! `wan-i2v` without a command: one clip.

mod resume;
mod serve;

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use crate::clip::Model;
use crate::pipeline::plan::{PlannedMemory, Rates};
use crate::pipeline::{Interrupted, Job, Partner};
use crate::runtime::{self, Group, Tuning};
use crate::tiny;
use crate::util::show::{Show, chain, gist};
use anyhow::{Context, Result, bail};
use indicatif::MultiProgress;

use super::again::Early;
use super::many::{Folders, tell_of_miniature};
use super::preview::{self, Screen};
use super::resolve::{self, Elsewhere, Resolved};
use super::{GoOn, awake, tune};
use crate::cli::config::Catalogue;
use crate::cli::flags::{AfterArgs, GenerateArgs};
use crate::cli::ui::desktop::{Share, Signs};
use crate::cli::ui::report::Outlook;
use crate::cli::ui::{Listener, Stoppable, human_time, info, print_path, report, stderr};

impl GenerateArgs {
    /// Makes the clip and prints its path.
    ///
    /// # Errors
    /// When it cannot be made; an interrupted run is no error but an exit code.
    pub(super) fn run(self, catalogue: &Catalogue) -> Result<ExitCode> {
        let after = self.after.clone();
        after.check()?;
        let ran = self.make(&after, catalogue);
        if let Err(error) = &ran
            && !error.is::<GoOn>()
        {
            after.notify(&format!("no clip: {}", gist(error)));
        }
        ran
    }

    fn make(self, after: &AfterArgs, catalogue: &Catalogue) -> Result<ExitCode> {
        let (links, resume) = (self.group.meet()?, self.resume);
        let group = links.map(Group::connect).transpose()?;
        let group = match group {
            Some(group) if group.rank() > 0 => {
                return serve::serve(self.clip, self.output, &Rc::new(group), catalogue);
            }
            group => group,
        };
        let mut folders = Folders::default();
        if self.output.parents {
            let preview = self.output.preview.preview.as_deref();
            for path in self.output.written().chain(preview) {
                folders.make(path.parent().unwrap_or(Path::new("")))?;
            }
        }
        let mut elsewhere = Elsewhere::new(false, catalogue);
        let Resolved {
            request,
            machine,
            preview,
            open,
            yes,
            allow_sleep,
            no_retry,
        } = resolve::clip(self.clip, self.output, &mut elsewhere)?;
        let screen = Screen::of(&preview, &request)?;
        let (is_tiny, dumps) = (request.model == Model::Tiny, request.dump.is_some());
        let mut job = Job::prepare(request)?;
        let console = MultiProgress::new();
        let mut device = machine.device()?;
        if let Some(screen) = screen {
            preview::attach(&preview, &mut job, screen, device, console.clone())?;
        }
        for warning in job.warnings() {
            stderr::warning(&warning);
        }
        let budget = machine.budget(device);
        let mut planned = job.plan_memory_or_refuse(device, budget, None)?;
        stderr::warn_of_shortage(device, planned.forecast.peak_bytes);
        runtime::limit_memory(budget.bytes)?;
        let again = runtime::again();
        let identify = |job: &Job, tuning: Tuning| {
            let device = machine.device_as(tuning)?;
            let memory = job.plan_memory_or_refuse(device, budget, None)?.memory;
            let mut identity = job.identity(device, &memory)?;
            if again.is_some_and(|again| again.budget.is_some()) {
                identity.mix_parts();
            }
            Ok(identity)
        };
        let Some(mut start) = resume.start(&mut job, device, &identify, &open)? else {
            report::there(job.output());
            print_path(job.output())?;
            let text = format!("{} is there", job.output().shown());
            return Ok(after.finished(job.output(), &text));
        };
        // A run goes on as it began.
        let tuning = (start.from.as_ref()).map_or(device.tuning, |from| from.identity.tuning());
        if tuning != device.tuning {
            device = machine.device_as(tuning)?;
            planned = job.plan_memory_or_refuse(device, budget, None)?;
        }
        if again.is_some_and(|again| again.ran_out)
            && let Some(saved) = &start.from
            && saved.identity.has_parts_of(&identify(&job, tuning)?)
        {
            bail!(
                "the GPU has no memory left, and the clip cannot be computed in smaller parts\n\
                 hint: close other programs, or give a smaller --size or --frames\nhint: {}",
                start.hint()
            );
        }
        let output = job.output().to_owned();
        job.remove_stale();
        let model = match is_tiny {
            true => tiny::NAME.to_owned(),
            false => job.metadata(device)?.model.name,
        };
        report::start(&job, device, &model);
        let PlannedMemory {
            mut memory,
            forecast,
            ..
        } = planned;
        let mut rates = Rates::for_work(device, forecast.operations());
        if let Some((rates, true)) = &mut rates {
            forecast.measure(rates, job.checkpoint());
        }
        let mut forecast = forecast.timed(rates.as_ref().map(|(rates, _)| rates));
        let few = match &mut rates {
            Some((rates, _))
                if forecast.seconds.is_some_and(report::is_long) && forecast.passes > 4 =>
            {
                job.seconds_in_four_steps(device, &memory, rates)?
            }
            _ => None,
        };
        report::forecast(
            forecast.seconds,
            forecast.peak_bytes,
            forecast.passes,
            few,
            yes,
        )?;
        start.report(dumps);
        if is_tiny {
            tell_of_miniature(device, catalogue);
        }
        if let Some(group) = group {
            let shared = job.share_with(Partner::meet(group, &identify(&job, tuning)?)?)?;
            info!("machines  {shared}");
        }
        awake::keep(allow_sleep);
        if start.from.is_none()
            && !is_tiny
            && let Some(tuning) = tune::before_a_run(&machine, forecast.seconds)?
        {
            device = machine.device_as(tuning)?;
            let planned = job.plan_memory_or_refuse(device, budget, None)?;
            // Of the tuned device, which has rates of its own.
            let mut rates = Rates::for_work(device, planned.forecast.operations());
            if let Some((rates, true)) = &mut rates {
                planned.forecast.measure(rates, job.checkpoint());
            }
            let rates = rates.as_ref().map(|(rates, _)| rates);
            (memory, forecast) = (planned.memory, planned.forecast.timed(rates));
            start.writer.change(identify(&job, tuning)?);
        }
        let is_shared = job.is_shared();
        let listener = Listener::start()?;
        let outlook = Outlook::of(&forecast);
        let share = Share::of_clip(outlook.phases());
        let mut reporter = report::reporter(console, Vec::new(), outlook);
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let mut signs = Signs::new(&mut *reporter, &name, share);
        let mut progress = Stoppable {
            inner: &mut signs,
            listener: &listener,
            advanced: false,
        };
        let ran = job.run_saved(
            device,
            memory,
            Some(&mut start.writer),
            start.from.as_ref(),
            &mut progress,
        );
        let advanced = progress.advanced;
        drop(signs);
        let summary = match ran {
            Ok(summary) => summary,
            Err(error) if error.is::<Interrupted>() => {
                let code = listener.exit_code().unwrap_or(1);
                after.notify(&format!("{} was interrupted", output.shown()));
                stderr::error(&format!("{}\nhint: {}", chain(&error), start.hint()), code);
                return Ok(ExitCode::from(code));
            }
            Err(error) => {
                let latest = start.writer.latest();
                let against = match listener.exit_code() {
                    Some(_) => Some("the run was to stop"),
                    None if is_shared => Some("the other machine cannot follow"),
                    None if no_retry => Some("the run is not resumed by itself (--no-retry)"),
                    None => start.unsaved(),
                };
                let early = Early {
                    against,
                    advanced,
                    peak_bytes: forecast.peak_bytes,
                    step: Some(latest.map_or(0, |(_, step)| step)),
                    state: latest.map(|(path, _)| path.to_owned()),
                    output: Some(output),
                };
                let error = early.because_of(error);
                if !error.is::<GoOn>() && latest.is_some_and(|(_, step)| step > 0) {
                    stderr::hint(&start.hint());
                }
                return Err(error);
            }
        };
        start.writer.finish();
        report::finish(&summary, device, &output);
        print_path(&output).context("the clip is complete")?;
        let text = format!(
            "{} is complete after {}",
            output.shown(),
            human_time(summary.seconds)
        );
        Ok(after.finished(&output, &text))
    }
}
