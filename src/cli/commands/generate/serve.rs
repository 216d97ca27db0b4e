//! A rank other than 0: it computes what rank 0 asks for, and writes nothing.

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;

use crate::cli::commands::resolve::{self, Elsewhere, Resolved};
use crate::cli::commands::{awake, group};
use crate::cli::config::Catalogue;
use crate::cli::flags::{ClipArgs, OutputArgs};
use crate::cli::ui::stderr;
use crate::pipeline::Job;
use crate::runtime::{self, Group, RankLost};
use crate::util::show::gist;

/// Computes its part of the clip, and tells rank 0 if that cannot be done.
///
/// # Errors
/// When rank 0 makes another clip or is lost, or the part cannot be computed.
pub(super) fn serve(
    clip: ClipArgs,
    output: OutputArgs,
    group: &Rc<Group>,
    catalogue: &Catalogue,
) -> Result<ExitCode> {
    let served = part(clip, output, group, catalogue);
    if let Err(error) = &served
        && !error.is::<RankLost>()
    {
        group.fail(&gist(error));
    }
    served.map(|()| ExitCode::SUCCESS)
}

fn part(
    clip: ClipArgs,
    mut output: OutputArgs,
    group: &Rc<Group>,
    catalogue: &Catalogue,
) -> Result<()> {
    // Nothing is written there.
    let nowhere = group::folder()?;
    output.output = Some(nowhere.path().join("clip.mp4"));
    (output.strip, output.dump, output.preview.preview) = (None, None, None);
    let mut elsewhere = Elsewhere::new(false, catalogue);
    let Resolved {
        request,
        machine,
        allow_sleep,
        ..
    } = resolve::clip(clip, output, &mut elsewhere)?;
    let job = Job::prepare(request)?;
    let device = machine.device()?;
    let budget = machine.budget(device);
    let memory = job.plan_memory_or_refuse(device, budget, None)?.memory;
    runtime::limit_memory(budget.bytes)?;
    let identity = job.identity(device, &memory)?;
    awake::keep(allow_sleep);
    job.serve(device, memory, group, &identity)?;
    stderr::detail_of_rank(&format!(
        "sent {} bytes of arrays to other machines",
        group.sent()
    ));
    Ok(())
}
