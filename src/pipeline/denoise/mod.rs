//! From noise to latents, with one expert in memory at a time.
//!
//! Here is the loop over the steps; [`step`] is one of them, [`saved`] what a run keeps on disk,
//! [`health`] refuses broken results, [`partner`] is a second machine's part.

mod health;
mod partner;
mod saved;
mod step;

pub(super) use partner::Decoders;
pub(crate) use partner::Partner;
pub use step::guide;

use std::time::Instant;

use anyhow::{Context, Result};
use mlx_rs::Array;

use self::health::NotFinite;
use self::saved::Restored;
use self::step::Prepared;
use super::eta::{Eta, PlannedStep};
use super::experts::Experts;
use super::image::Condition;
use super::text::EncodedPrompts;
use crate::clip::Settings;
use crate::model::MemoryPlan;
use crate::model::dit::Dit;
use crate::persist::StateWriter;
use crate::persist::dump::Dump;
use crate::progress::{
    EventKind, Memory, Passes, Phase, Progress, RunningPhase, StepReport, check_stop,
};
use crate::runtime::{Device, Precision, RankLost};
use crate::sampling::{Sampler, Schedule};
use crate::weights::{Checkpoint, Expert};

/// Watches a clip being denoised. What it does changes nothing of the result.
pub trait Observer: std::fmt::Debug {
    /// Whether the estimate of step `index` of `steps`, counted from 0, is wanted.
    fn wants(&self, index: usize, steps: usize) -> bool;

    /// Receives the step's estimate of the clean latents, `[z_dim, frames, height, width]`,
    /// normalised as the transformer sees them. Not evaluated yet.
    fn estimate(&mut self, clean: &Array);
}

impl<O: Observer + ?Sized> Observer for &mut O {
    fn wants(&self, index: usize, steps: usize) -> bool {
        (**self).wants(index, steps)
    }

    fn estimate(&mut self, clean: &Array) {
        (**self).estimate(clean);
    }
}

/// The denoising loop's state.
#[derive(Debug)]
pub struct Denoiser<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    memory: MemoryPlan,
    prompts: EncodedPrompts,
    condition: Condition,
    latents: Array,
    sampler: Sampler,
    settings: Settings,
    /// For the expert whose turn it is.
    prepared: Option<Prepared>,
    /// What an earlier run's caches had, until its expert is loaded.
    restored: Option<Restored>,
    passes: Passes,
    /// Whether float16's range did not suffice.
    left_f16: bool,
    eta: Option<Eta>,
    observer: Option<Box<dyn Observer + 'a>>,
    /// The other machines.
    partner: Option<Partner>,
}

/// The expert that is loaded.
fn loaded<'e>(experts: &'e Experts<'_>) -> Result<&'e Dit> {
    let loaded = experts.loaded().map(|(_, dit)| dit);
    loaded.context("no expert is loaded")
}

impl<'a> Denoiser<'a> {
    /// A run from `noise` `[z_dim, frames, height, width]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn new(
        checkpoint: &'a Checkpoint,
        device: Device,
        memory: MemoryPlan,
        prompts: EncodedPrompts,
        condition: Condition,
        noise: Array,
        settings: &Settings,
    ) -> Result<Self> {
        let schedule = settings.schedule();
        let latents = condition.put_into(&noise)?;
        Ok(Self {
            checkpoint,
            device,
            memory,
            prompts,
            condition,
            latents,
            sampler: Sampler::new(settings.solver, schedule, settings.seed),
            settings: settings.clone(),
            prepared: None,
            restored: None,
            passes: Passes::default(),
            left_f16: false,
            eta: None,
            observer: None,
            partner: None,
        })
    }

    /// The same run with an observer.
    pub fn observed_by(self, observer: Option<Box<dyn Observer + 'a>>) -> Self {
        Self { observer, ..self }
    }

    /// Takes every step and returns the latents `[z_dim, frames, height, width]`.
    ///
    /// # Errors
    /// When a weight is damaged, MLX fails, or a prediction is not finite or has collapsed.
    pub fn run(&mut self, dump: Option<&Dump>, progress: &mut dyn Progress) -> Result<Array> {
        self.run_saved(dump, None, progress)
    }

    /// As [`Self::run`], with the state saved after steps and when the run ends early.
    ///
    /// # Errors
    /// As there, and [`Interrupted`](super::Interrupted).
    pub(super) fn run_saved(
        &mut self,
        dump: Option<&Dump>,
        mut writer: Option<&mut StateWriter>,
        progress: &mut dyn Progress,
    ) -> Result<Array> {
        let mut experts = Experts::new(self.checkpoint);
        let phase = self.begin(writer.as_deref_mut(), progress);
        while self.next_expert().is_some() {
            self.turn(&mut experts, dump, writer.as_deref_mut(), progress)?;
        }
        experts.release()?;
        phase.finish(progress);
        Ok(self.latents.clone())
    }

    /// Writes the noise and the schedule that a run starts with.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn dump_start(&self, dump: &Dump) -> Result<()> {
        let Schedule {
            sigmas, timesteps, ..
        } = self.sampler.schedule();
        dump.array("noise", &self.latents)?;
        dump.timesteps(timesteps)?;
        let sigmas: Vec<f32> = sigmas.iter().map(|&s| s as f32).collect();
        dump.array(
            "sigmas",
            &Array::from_slice(&sigmas, &[sigmas.len() as i32]),
        )
    }

    /// The latents `[z_dim, frames, height, width]` as they are.
    pub(super) fn latents(&self) -> &Array {
        &self.latents
    }

    /// Who predicts the next step; `None` after the last one.
    pub(super) fn next_expert(&self) -> Option<Expert> {
        let schedule = self.sampler.schedule();
        self.checkpoint
            .expert_at(schedule, self.sampler.step_index())
    }

    /// Begins a phase of turns, and saves the state.
    pub(super) fn begin(
        &mut self,
        writer: Option<&mut StateWriter>,
        progress: &mut dyn Progress,
    ) -> RunningPhase {
        let steps = self.sampler.schedule().steps();
        let done = self.sampler.step_index();
        let stage = RunningPhase::start(Phase::Denoising, steps, done, progress);
        if self.eta.is_none() {
            self.eta = Some(Eta::new(self.planned_steps()));
        }
        if let Some(writer) = writer {
            writer.save(done, || self.state(), progress);
        }
        stage
    }

    /// Saves the state as it is.
    pub(super) fn save(&self, writer: &mut StateWriter, progress: &mut dyn Progress) {
        writer.save(self.sampler.step_index(), || self.state(), progress);
    }

    /// Takes every step of the expert that predicts the next one, with the state saved after steps
    /// and when the run ends early.
    ///
    /// # Errors
    /// When a weight is damaged, MLX fails, or a prediction is not finite or has collapsed; and
    /// [`Interrupted`](super::Interrupted).
    pub(super) fn turn(
        &mut self,
        experts: &mut Experts<'_>,
        dump: Option<&Dump>,
        mut writer: Option<&mut StateWriter>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Some(expert) = self.next_expert() else {
            return Ok(());
        };
        self.load(expert, experts, dump, writer.as_deref_mut(), progress)?;
        let steps = self.sampler.schedule().steps();
        while self.next_expert() == Some(expert) {
            let index = self.sampler.step_index();
            let (start, before) = (Instant::now(), self.passes);
            let dit = loaded(experts)?;
            // Without what the step leaves behind before another machine is lost.
            let state = self.partner.is_some().then(|| self.state());
            if let Err(error) = self.step(dit, dump) {
                if let (Some(state), Some(writer)) = (state, writer.as_deref_mut())
                    && error.is::<RankLost>()
                {
                    writer.save(index, || state, progress);
                }
                self.leave_f16(error, progress)?;
                self.load(expert, experts, dump, writer.as_deref_mut(), progress)?;
                self.step(loaded(experts)?, dump)?;
            }
            let seconds = start.elapsed().as_secs_f64();
            let passes = self.passes.since(before);
            self.update_eta(|eta| eta.took(index, passes.computed, seconds));
            progress.report(EventKind::Step(StepReport {
                step: index + 1,
                steps,
                expert,
                timestep: self.sampler.schedule().timesteps[index],
                sigma: self.sampler.schedule().sigmas[index],
                passes,
                seconds,
                left: self.eta.as_ref().and_then(|eta| eta.left(index)),
                memory: Memory::now(),
            }));
            let stops = progress.stops();
            if let Some(writer) = writer.as_deref_mut()
                && (stops || writer.is_due(index + 1, steps))
            {
                writer.save(index + 1, || self.state(), progress);
            }
            check_stop(progress)?;
        }
        // Of no use to the other expert.
        self.prepared = None;
        Ok(())
    }

    /// Loads the expert that predicts the next step, and saves the state when that fails.
    fn load(
        &mut self,
        expert: Expert,
        experts: &mut Experts<'_>,
        dump: Option<&Dump>,
        writer: Option<&mut StateWriter>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        match self.prepare(expert, experts, dump, progress) {
            Ok(Some(seconds)) => self.update_eta(|eta| eta.loaded(seconds)),
            Ok(None) => {}
            Err(error) => {
                if let Some(writer) = writer {
                    writer.save(self.sampler.step_index(), || self.state(), progress);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn without_f16(&mut self) {
        self.device = self.device.without_f16();
        self.left_f16 = true;
    }

    /// Has the rest of the run computed in bfloat16, if it was float16 whose range did not suffice.
    ///
    /// # Errors
    /// `error` when it was something else.
    fn leave_f16(&mut self, error: anyhow::Error, progress: &mut dyn Progress) -> Result<()> {
        if self.device.dtype != Precision::F16 || error.downcast_ref::<NotFinite>().is_none() {
            return Err(error);
        }
        self.without_f16();
        self.prepared = None;
        progress.report(EventKind::Warning(
            "values leave float16's range; the rest of the clip is computed in bfloat16",
        ));
        Ok(())
    }

    fn update_eta(&mut self, update: impl FnOnce(&mut Eta)) {
        if let Some(eta) = &mut self.eta {
            update(eta);
        }
    }

    /// The passes so far.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// The other machines, of which no further step is asked.
    pub(super) fn into_partner(self) -> Option<Partner> {
        self.partner
    }

    /// Whether an expert's predictions are guided, at steps that `guide_interval` covers.
    fn guides(&self, expert: Expert) -> bool {
        self.prompts.negative.is_some() && self.settings.guide_scale.of(expert) != 1.0
    }

    /// The passes of every step of the schedule, without a cache.
    fn planned_steps(&self) -> Vec<PlannedStep> {
        let schedule = self.sampler.schedule();
        let steps = schedule.steps();
        let step = |index| {
            let expert = self.checkpoint.expert_at(schedule, index)?;
            let guided = self.guides(expert) && self.settings.guide_interval.covers(index, steps);
            let passes = 1 + usize::from(guided);
            Some(PlannedStep { expert, passes })
        };
        (0..steps).filter_map(step).collect()
    }
}
