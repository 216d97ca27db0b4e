//! From noise to latents, with one expert in memory at a time.

mod saved;

use std::iter;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mlx_rs::Array;

use self::saved::Restored;
use super::condition::Condition;
use super::eta::{Eta, PlannedStep};
use super::experts::Experts;
use super::text::{EncodedPrompts, TEXT_LEN};
use crate::clip::{CacheMethod, CacheSettings, GuideInterval, GuideScale};
use crate::model::MemoryPlan;
use crate::model::dit::{CrossKv, Dit, Rope, TimeEmbedding};
use crate::model::umt5::pad_rows;
use crate::persist::StateWriter;
use crate::persist::dump::Dump;
use crate::progress::{
    EventKind, Memory, Passes, Phase, Progress, RunningPhase, StepReport, check_stop,
};
use crate::runtime::{Device, all_finite, to_host};
use crate::sampling::Sampler;
use crate::sampling::StepCache;
use crate::weights::{Checkpoint, Expert};

/// Predictions that spread less than this have collapsed: what broken kernels leave of a
/// velocity whose spread is near 1.
const COLLAPSED: f64 = 1e-6;

/// Classifier-free guidance: `uncond + scale * (cond - uncond)`.
pub fn guide(cond: &Array, uncond: &Array, scale: f32) -> Result<Array> {
    let difference = cond.subtract(uncond)?;
    Ok(uncond.add(difference.multiply(Array::from_f32(scale))?)?)
}

/// How a run is denoised, besides the schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct DenoiseSettings {
    /// Guidance of each expert.
    pub guide_scale: GuideScale,
    /// The steps that it applies to.
    pub guide_interval: GuideInterval,
    /// The cache.
    pub cache: CacheSettings,
    /// In what parts it is computed.
    pub memory: MemoryPlan,
}

impl From<GuideScale> for DenoiseSettings {
    /// Every step computed and guided, in one part.
    fn from(guide_scale: GuideScale) -> Self {
        Self {
            guide_scale,
            guide_interval: GuideInterval::default(),
            cache: CacheSettings::default(),
            memory: MemoryPlan::WHOLE,
        }
    }
}

/// A prompt to an expert, with what the last pass left for the next.
#[derive(Debug)]
struct Branch {
    kv: Vec<CrossKv>,
    /// What a cache adds instead of computing: to the tokens (TeaCache) or the latents
    /// (EasyCache).
    reusable: Option<Array>,
}

/// What an expert computes once per clip, and its cache.
#[derive(Debug)]
struct Prepared {
    expert: Expert,
    rope: Rope,
    /// The condition's part of the patch embedding.
    condition: Array,
    prompt: Branch,
    negative: Option<Branch>,
    cache: StepCache,
}

/// Looks on while a clip is denoised. What it does changes nothing of the result.
pub trait Observer: std::fmt::Debug {
    /// Whether the estimate of step `index` of `steps`, counted from 0, is wanted.
    fn wants(&self, index: usize, steps: usize) -> bool;

    /// Hears what the step took the clean latents to be, `[z_dim, frames, height, width]`,
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
    prompts: EncodedPrompts,
    condition: Condition,
    latents: Array,
    sampler: Sampler,
    settings: DenoiseSettings,
    /// For the expert whose turn it is.
    prepared: Option<Prepared>,
    /// What an earlier run's caches had, until its expert is loaded.
    restored: Option<Restored>,
    passes: Passes,
    eta: Option<Eta>,
    observer: Option<Box<dyn Observer + 'a>>,
}

impl<'a> Denoiser<'a> {
    /// A run from `noise` `[z_dim, frames, height, width]` along the sampler's schedule.
    pub fn new(
        checkpoint: &'a Checkpoint,
        device: Device,
        prompts: EncodedPrompts,
        condition: Condition,
        noise: Array,
        sampler: Sampler,
        settings: impl Into<DenoiseSettings>,
    ) -> Self {
        Self {
            checkpoint,
            device,
            prompts,
            condition,
            latents: noise,
            sampler,
            settings: settings.into(),
            prepared: None,
            restored: None,
            passes: Passes::default(),
            eta: None,
            observer: None,
        }
    }

    /// The same run with somebody who looks on.
    pub fn observed_by(self, observer: Option<Box<dyn Observer + 'a>>) -> Self {
        Self { observer, ..self }
    }

    /// Takes every step and returns the latents `[z_dim, frames, height, width]`.
    ///
    /// # Errors
    /// When a weight is damaged, MLX fails, or a prediction is not finite or has collapsed.
    pub fn run(&mut self, dump: Option<&Dump>, progress: &mut dyn Progress) -> Result<Array> {
        let mut experts = Experts::new(self.checkpoint);
        let stage = self.begin(None, progress);
        while self.next_expert().is_some() {
            self.turn(&mut experts, dump, None, progress)?;
        }
        experts.release()?;
        stage.finish(progress);
        Ok(self.latents.clone())
    }

    /// The latents `[z_dim, frames, height, width]` as they are.
    pub(super) fn latents(&self) -> &Array {
        &self.latents
    }

    /// Who predicts the next step; `None` after the last one.
    pub(super) fn next_expert(&self) -> Option<Expert> {
        let timesteps = &self.sampler.schedule().timesteps;
        let next = timesteps.get(self.sampler.step_index());
        next.map(|&timestep| self.checkpoint.expert_for(timestep))
    }

    /// Begins a phase of turns, with the state kept.
    pub(super) fn begin(
        &mut self,
        keeper: Option<&mut StateWriter>,
        progress: &mut dyn Progress,
    ) -> RunningPhase {
        let steps = self.sampler.schedule().steps();
        let done = self.sampler.step_index();
        let stage = RunningPhase::start(Phase::Denoising, steps, done, progress);
        if self.eta.is_none() {
            self.eta = Some(Eta::new(self.ahead()));
        }
        if let Some(keeper) = keeper {
            keeper.keep(done, || self.state(), progress);
        }
        stage
    }

    /// Has the state kept as it is.
    pub(super) fn keep(&self, keeper: &mut StateWriter, progress: &mut dyn Progress) {
        keeper.keep(self.sampler.step_index(), || self.state(), progress);
    }

    /// Takes every step of the expert that predicts the next one, with the state kept after steps
    /// and when the run ends early.
    ///
    /// # Errors
    /// When a weight is damaged, MLX fails, or a prediction is not finite or has collapsed; and
    /// [`Interrupted`](super::Interrupted).
    pub(super) fn turn(
        &mut self,
        experts: &mut Experts<'_>,
        dump: Option<&Dump>,
        mut keeper: Option<&mut StateWriter>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Some(expert) = self.next_expert() else {
            return Ok(());
        };
        match self.prepare(expert, experts, dump, progress) {
            Ok(Some(seconds)) => self.told(|eta| eta.loaded(seconds)),
            Ok(None) => {}
            Err(error) => {
                if let Some(keeper) = keeper {
                    keeper.keep(self.sampler.step_index(), || self.state(), progress);
                }
                return Err(error);
            }
        }
        let Some((_, dit)) = experts.loaded() else {
            bail!("no expert is loaded");
        };
        let steps = self.sampler.schedule().steps();
        while self.next_expert() == Some(expert) {
            let index = self.sampler.step_index();
            let (start, before) = (Instant::now(), self.passes);
            self.step(dit, dump)?;
            let seconds = start.elapsed().as_secs_f64();
            let passes = self.passes.since(before);
            self.told(|eta| eta.took(index, passes.computed, seconds));
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
            if let Some(keeper) = keeper.as_deref_mut()
                && (stops || keeper.is_due(index + 1, steps))
            {
                keeper.keep(index + 1, || self.state(), progress);
            }
            check_stop(progress)?;
        }
        // What the other one takes no interest in.
        self.prepared = None;
        Ok(())
    }

    fn told(&mut self, tell: impl FnOnce(&mut Eta)) {
        if let Some(eta) = &mut self.eta {
            tell(eta);
        }
    }

    /// The passes so far.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// What every step of the schedule takes, without a cache.
    fn ahead(&self) -> Vec<PlannedStep> {
        let timesteps = &self.sampler.schedule().timesteps;
        let step = |(index, &timestep): (usize, &i64)| {
            let expert = self.checkpoint.expert_for(timestep);
            let guided = self.prompts.negative.is_some()
                && self.settings.guide_scale.of(expert) != 1.0
                && self.settings.guide_interval.covers(index, timesteps.len());
            let passes = 1 + usize::from(guided);
            PlannedStep { expert, passes }
        };
        timesteps.iter().enumerate().map(step).collect()
    }

    /// Takes the next step with the expert that it was prepared for.
    fn step(&mut self, dit: &Dit, dump: Option<&Dump>) -> Result<()> {
        let index = self.sampler.step_index();
        let timestep = self.sampler.schedule().timesteps[index];
        let Some(loaded) = &mut self.prepared else {
            bail!("no expert is prepared");
        };
        let expert = loaded.expert;

        let steps = self.sampler.schedule().steps();
        let place = || {
            format!(
                "step {} of {steps} (t = {timestep}, {expert} expert)",
                index + 1
            )
        };
        let tokens = dit.embed_noise(&self.latents, &loaded.condition)?;
        let pass = Pass {
            dit,
            rope: &loaded.rope,
            time: dit.embed_time(timestep)?,
            tokens,
            latents: &self.latents,
            method: self.settings.cache.method,
            memory: &self.settings.memory,
        };
        let guided = self.settings.guide_interval.covers(index, steps);
        self.passes.unguided += usize::from(loaded.negative.is_some() && !guided);
        let negative = loaded.negative.as_mut().filter(|_| guided);
        let mut voices: Vec<&mut Branch> = iter::once(&mut loaded.prompt).chain(negative).collect();
        // The first guided step after unguided ones has nothing to reuse for the negative prompt,
        // and guidance between a new and an old prediction would magnify their difference in age.
        let ready = voices.iter().all(|voice| voice.reusable.is_some());
        let left = steps - index - 1;
        let skips = loaded
            .cache
            .may_skip(&self.latents, &pass.time.projection, left, ready)?;
        let predictions = match skips {
            true => pass.reuse(&voices),
            false => pass.compute(&mut voices),
        }
        .with_context(place)?;
        let time_projection = pass.time.projection;
        let (cond, uncond) = match predictions.as_slice() {
            [cond] => (cond, None),
            [cond, uncond] => (cond, Some(uncond)),
            _ => bail!("{} predictions for a step", predictions.len()),
        };
        if skips {
            self.passes.reused += predictions.len();
        } else {
            self.passes.computed += predictions.len();
            loaded.cache.note(&self.latents, cond)?;
        }
        let velocity = match uncond {
            Some(uncond) => guide(cond, uncond, self.settings.guide_scale.of(expert))?,
            None => cond.clone(),
        };
        let observer = self.observer.as_deref_mut();
        let observer = observer.filter(|observer| observer.wants(index, steps));
        let estimate = match &observer {
            Some(_) => Some(self.sampler.estimate(&self.latents, &velocity)?),
            None => None,
        };
        // In row-major order, as a run that goes on from here gets them.
        self.latents = self.sampler.step(&self.latents, &velocity)?.contiguous()?;
        self.latents.eval()?;
        ensure!(
            all_finite(&self.latents)?,
            "{}: the latents are no longer finite after the solver's step; try --dtype f32, a \
             smaller --guide-scale or another --solver",
            place()
        );
        if let (Some(observer), Some(estimate)) = (observer, &estimate) {
            observer.estimate(estimate);
        }
        if let Some(dump) = dump {
            let name = |what: &str| format!("step_{index:03}_{what}");
            dump.array(&name("time"), &time_projection)?;
            dump.array(&name("cond"), cond)?;
            if let Some(uncond) = uncond {
                dump.array(&name("uncond"), uncond)?;
            }
            dump.array(&name("latents"), &self.latents)?;
        }
        Ok(())
    }

    /// Has `expert` loaded, and computes with it what it needs once per clip; returns the seconds
    /// that loading took unless it was loaded already.
    fn prepare(
        &mut self,
        expert: Expert,
        experts: &mut Experts<'_>,
        dump: Option<&Dump>,
        progress: &mut dyn Progress,
    ) -> Result<Option<f64>> {
        let seconds = experts.load(expert, self.device, progress)?;
        let Some((_, dit)) = experts.loaded() else {
            bail!("no expert is loaded");
        };
        let grid = [1, 2, 3].map(|axis| self.latents.dim(axis));
        let tokens = dit.config().token_grid(grid);
        if let Some(dump) = dump {
            let suffix = match expert {
                Expert::HighNoise => "high",
                Expert::LowNoise => "low",
            };
            let embed = |encoded| dit.embed_text(&pad_rows(encoded, TEXT_LEN as i32)?);
            let embedded = embed(&self.prompts.prompt)?;
            dump.array(&format!("text_embedding_{suffix}_cond"), &embedded)?;
            if let Some(negative) = &self.prompts.negative {
                dump.array(
                    &format!("text_embedding_{suffix}_uncond"),
                    &embed(negative)?,
                )?;
            }
        }
        let voice = |encoded: &Array| -> Result<Branch> {
            Ok(Branch {
                kv: dit.cross_kv(encoded, TEXT_LEN as i32)?,
                reusable: None,
            })
        };
        let guided = self.settings.guide_scale.of(expert) != 1.0;
        let negative = self.prompts.negative.as_ref().filter(|_| guided);
        let mut prepared = Prepared {
            expert,
            rope: Rope::new(tokens, dit.config().attention_head_dim),
            condition: dit.embed_condition(&self.condition.0)?,
            prompt: voice(&self.prompts.prompt)?,
            negative: negative.map(voice).transpose()?,
            cache: StepCache::new(self.settings.cache.clone()),
        };
        if let Some(restored) = self.restored.take() {
            restored.give(&mut prepared);
        }
        self.prepared = Some(prepared);
        Ok(seconds)
    }
}

/// What the passes of a step have in common.
struct Pass<'a> {
    dit: &'a Dit,
    rope: &'a Rope,
    time: TimeEmbedding,
    tokens: Array,
    latents: &'a Array,
    method: CacheMethod,
    memory: &'a MemoryPlan,
}

impl Pass<'_> {
    fn grid(&self) -> [i32; 3] {
        [1, 2, 3].map(|axis| self.latents.dim(axis))
    }

    /// The prediction for each prompt, from what its last pass left.
    fn reuse(&self, voices: &[&mut Branch]) -> Result<Vec<Array>> {
        let reused = voices.iter().filter_map(|voice| voice.reusable.as_ref());
        reused
            .map(|reusable| {
                Ok(match self.method {
                    CacheMethod::TeaCache { .. } => {
                        self.dit
                            .head(&self.tokens.add(reusable)?, &self.time, self.grid())?
                    }
                    _ => self.latents.add(reusable)?,
                })
            })
            .collect()
    }

    /// The prediction for each prompt, from the network: jointly, or one after the other.
    fn compute(&self, voices: &mut [&mut Branch]) -> Result<Vec<Array>> {
        let (dit, time, memory) = (self.dit, &self.time, self.memory);
        let start = dit.start(&self.tokens, time, self.rope, memory)?;
        if let ([cond, uncond], true) = (&mut *voices, memory.joint_passes) {
            let both = [cond.kv.as_slice(), uncond.kv.as_slice()];
            let x = dit.finish_both(&start, time, self.rope, both, memory, &mut |_, _| Ok(()))?;
            return x
                .iter()
                .zip(voices)
                .map(|(x, voice)| self.conclude(x, voice, &start))
                .collect();
        }
        voices
            .iter_mut()
            .map(|voice| {
                let kv = &voice.kv;
                let x = dit.finish(&start, time, self.rope, kv, memory, &mut |_, _| Ok(()))?;
                self.conclude(&x, voice, &start)
            })
            .collect()
    }

    /// From the last block's output to the checked prediction, leaving in `voice` what a later
    /// step may reuse.
    fn conclude(&self, x: &Array, voice: &mut Branch, start: &Array) -> Result<Array> {
        let velocity = self.dit.head(x, &self.time, self.grid())?;
        self.check(start, &voice.kv, &velocity)?;
        voice.reusable = match self.method {
            CacheMethod::Off => None,
            CacheMethod::TeaCache { .. } => Some(x.subtract(&self.tokens)?.contiguous()?),
            CacheMethod::EasyCache { .. } => Some(velocity.subtract(self.latents)?.contiguous()?),
        };
        if let Some(reusable) = &voice.reusable {
            reusable.eval()?;
        }
        Ok(velocity)
    }

    /// Refuses a broken prediction: kernels that overflow leave NaN or nothing, which would
    /// otherwise show as a black clip hours later.
    fn check(&self, start: &Array, kv: &[CrossKv], velocity: &Array) -> Result<()> {
        let values = to_host(velocity)?;
        let (mut sum, mut squares) = (0.0_f64, 0.0_f64);
        for &value in &values {
            sum += f64::from(value);
            squares += f64::from(value) * f64::from(value);
        }
        let count = values.len().max(1) as f64;
        let variance = squares / count - (sum / count).powi(2);
        if !squares.is_finite() {
            // Once more, to name the first block whose output is not finite.
            let mut first = None;
            self.dit.finish(
                start,
                &self.time,
                self.rope,
                kv,
                self.memory,
                &mut |block, x| {
                    if first.is_none() && !all_finite(x)? {
                        first = Some(block);
                    }
                    Ok(())
                },
            )?;
            bail!(
                "the prediction is not finite, first in {}; try --dtype f32 or --device cpu \
                     and please report it",
                first.map_or("the output head".into(), |block| format!("block {block}"))
            );
        }
        ensure!(
            values.len() < 2 || variance.max(0.0).sqrt() > COLLAPSED,
            "the prediction has collapsed to {:.3e} everywhere; try --dtype f32 or --device cpu \
                 and please report it",
            sum / count
        );
        Ok(())
    }
}
