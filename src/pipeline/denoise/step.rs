//! A step: the expert's predictions, guidance between them, and the solver.

use std::iter;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use mlx_rs::Array;

use super::{Denoiser, Partner, health};
use crate::clip::CacheMethod;
use crate::model::MemoryPlan;
use crate::model::dit::share::Share;
use crate::model::dit::{CrossKv, Dit, Rope, Stream, TimeEmbedding};
use crate::model::umt5::pad_rows;
use crate::persist::dump::Dump;
use crate::pipeline::experts::Experts;
use crate::pipeline::image::Condition;
use crate::pipeline::text::TEXT_LEN;
use crate::progress::Progress;
use crate::runtime::{all_finite, evaluate};
use crate::sampling::{Schedule, StepCache};
use crate::weights::Expert;

/// Classifier-free guidance: `uncond + scale * (cond - uncond)`.
pub fn guide(cond: &Array, uncond: &Array, scale: f32) -> Result<Array> {
    let difference = cond.subtract(uncond)?;
    Ok(uncond.add(difference.multiply(Array::from_f32(scale))?)?)
}

/// A prompt to an expert, with what the last pass left for the next.
#[derive(Debug)]
pub(super) struct Branch {
    kv: Vec<CrossKv>,
    /// What a cache adds instead of computing: to the tokens (TeaCache) or the latents
    /// (EasyCache).
    pub(super) reusable: Option<Array>,
}

/// What an expert computes once per clip, and its cache.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) expert: Expert,
    rope: Rope,
    pub(super) prompt: Branch,
    pub(super) negative: Option<Branch>,
    pub(super) cache: StepCache,
}

impl Denoiser<'_> {
    /// Takes the next step with the expert that it was prepared for.
    pub(super) fn step(&mut self, dit: &Dit, dump: Option<&Dump>) -> Result<()> {
        let index = self.sampler.step_index();
        let timestep = self.sampler.schedule().timesteps[index];
        let expert = self.prepared.as_ref().map(|loaded| loaded.expert);
        let expert = expert.context("no expert is prepared")?;

        let steps = self.sampler.schedule().steps();
        let place = || {
            format!(
                "step {} of {steps} (t = {timestep}, {})",
                index + 1,
                expert.in_words()
            )
        };
        let guides = self.guides(expert);
        let rows = self.partner.as_ref().and_then(Partner::rows);
        let Some(loaded) = &mut self.prepared else {
            bail!("no expert is prepared");
        };
        let pass = Pass {
            dit,
            rope: &loaded.rope,
            time: time(dit, timestep, &self.latents, &self.condition)?,
            latents: &self.latents,
            condition: self.condition.beside.as_ref(),
            method: self.settings.cache.method,
            memory: &self.memory,
            share: rows.as_ref(),
        };
        let guided = self.settings.guide_interval.covers(index, steps);
        self.passes.unguided += usize::from(guides && !guided);
        let mut partner = self.partner.as_mut();
        let negative = loaded.negative.as_mut().filter(|_| guided);
        let mut branches: Vec<&mut Branch> =
            iter::once(&mut loaded.prompt).chain(negative).collect();
        // The first guided step after unguided ones has nothing to reuse for the negative prompt,
        // and guidance between a new and an old prediction would magnify their difference in age.
        let ready = branches.iter().all(|branch| branch.reusable.is_some())
            && (partner.as_ref()).is_none_or(|partner| partner.is_ready() || !(guides && guided));
        let left = steps - index - 1;
        let skips = loaded
            .cache
            .may_skip(&self.latents, &pass.time.projection, left, ready)?;
        if let Some(partner) = &mut partner {
            let began = partner.begin(index, &self.latents, skips, guides && guided);
            began.with_context(place)?;
        }
        let predictions = pass.predict(&mut branches, skips);
        if let (Err(_), Some(partner)) = (&predictions, &partner) {
            partner.check().with_context(place)?;
        }
        let mut predictions = predictions.with_context(place)?;
        let halves = partner.filter(|partner| partner.parts.halves && guides && guided);
        if let Some(partner) = halves {
            let uncond = partner.prediction(self.latents.shape());
            predictions.push(uncond.with_context(place)?);
        }
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
        // In row-major order, as a run that resumes here reads them.
        let latents = self.sampler.step(&self.latents, &velocity)?;
        self.latents = self.condition.put_into(&latents)?.contiguous()?;
        evaluate(&self.latents).with_context(place)?;
        health::check_latents(&self.latents).with_context(place)?;
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

    /// The prediction for each prompt at step `index`, for a machine that takes the step, of which this one
    /// may have `rows`; `reuse` has what the last step left taken for it.
    pub(super) fn predict(
        &mut self,
        dit: &Dit,
        index: usize,
        reuse: bool,
        rows: Option<&Rc<dyn Share>>,
    ) -> Result<Vec<Array>> {
        let Schedule { timesteps, .. } = self.sampler.schedule();
        let timestep = *timesteps.get(index).context("no such step")?;
        let guided = self.settings.guide_interval.covers(index, timesteps.len());
        let loaded = self.prepared.as_mut().context("no expert is prepared")?;
        let pass = Pass {
            dit,
            rope: &loaded.rope,
            time: time(dit, timestep, &self.latents, &self.condition)?,
            latents: &self.latents,
            condition: self.condition.beside.as_ref(),
            method: self.settings.cache.method,
            memory: &self.memory,
            share: rows,
        };
        let negative = loaded.negative.as_mut().filter(|_| guided);
        let mut branches: Vec<&mut Branch> =
            iter::once(&mut loaded.prompt).chain(negative).collect();
        pass.predict(&mut branches, reuse)
    }

    /// Has `expert` loaded, and computes with it what it needs once per clip; returns the seconds
    /// that loading took unless it was loaded already.
    pub(super) fn prepare(
        &mut self,
        expert: Expert,
        experts: &mut Experts<'_>,
        dump: Option<&Dump>,
        progress: &mut dyn Progress,
    ) -> Result<Option<f64>> {
        if let Some(partner) = &mut self.partner {
            partner.load(expert, self.left_f16)?;
        }
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
                Expert::Single => "single",
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
        let features = self.condition.features.as_ref();
        let image_kv = features.map(|features| dit.image_kv(features));
        let image_kv = image_kv.transpose()?.unwrap_or_default();
        let branch = |encoded: &Array| -> Result<Branch> {
            let mut kv = dit.cross_kv(encoded, TEXT_LEN as i32)?;
            for (kv, image) in kv.iter_mut().zip(&image_kv) {
                kv.image = Some(image.clone());
            }
            Ok(Branch { kv, reusable: None })
        };
        let is_here = !(self.partner.as_ref()).is_some_and(|partner| partner.parts.halves);
        let is_here = is_here && self.guides(expert);
        let negative = self.prompts.negative.as_ref().filter(|_| is_here);
        let mut prepared = Prepared {
            expert,
            rope: Rope::new(tokens, dit.config().attention_head_dim),
            prompt: branch(&self.prompts.prompt)?,
            negative: negative.map(branch).transpose()?,
            cache: StepCache::new(self.settings.cache.clone()),
        };
        if let Some(restored) = self.restored.take() {
            restored.give(&mut prepared);
        }
        self.prepared = Some(prepared);
        Ok(seconds)
    }
}

/// A timestep as an expert sees it.
fn time(dit: &Dit, timestep: f64, latents: &Array, condition: &Condition) -> Result<TimeEmbedding> {
    let grid = [1, 2, 3].map(|axis| latents.dim(axis));
    Ok(dit.embed_times(timestep, condition.given_tokens(dit.config(), grid))?)
}

/// What the passes of a step have in common.
struct Pass<'a> {
    dit: &'a Dit,
    rope: &'a Rope,
    time: TimeEmbedding,
    latents: &'a Array,
    condition: Option<&'a Array>,
    method: CacheMethod,
    memory: &'a MemoryPlan,
    /// The machines that have the other rows.
    share: Option<&'a Rc<dyn Share>>,
}

impl Pass<'_> {
    fn grid(&self) -> [i32; 3] {
        [1, 2, 3].map(|axis| self.latents.dim(axis))
    }

    /// The embedded latents and condition, computed whenever they are asked for: kept they would be as
    /// large as the stream, and they cost a few millionths of a pass.
    fn tokens(&self) -> Result<Stream> {
        let given = self.time.given.as_ref().map_or(0, |given| given.tokens);
        Ok(self
            .dit
            .embed_shared(self.latents, self.condition, given, self.memory, self.share)?)
    }

    fn start(&self) -> Result<Stream> {
        let (tokens, time) = (self.tokens()?, &self.time);
        Ok(self.dit.start(tokens, time, self.rope, self.memory)?)
    }

    /// The prediction for each prompt, from what its last pass left or from the network.
    fn predict(&self, branches: &mut [&mut Branch], reuse: bool) -> Result<Vec<Array>> {
        match reuse {
            true => self.reuse(branches),
            false => self.compute(branches),
        }
    }

    /// The prediction for each prompt, from what its last pass left.
    fn reuse(&self, branches: &[&mut Branch]) -> Result<Vec<Array>> {
        let reused = branches
            .iter()
            .filter_map(|branch| branch.reusable.as_ref());
        reused
            .map(|reusable| {
                Ok(match self.method {
                    CacheMethod::TeaCache { .. } => {
                        let tokens = self.tokens()?;
                        let x = tokens.of_same_rows(tokens.whole()?.add(reusable)?);
                        self.dit.head(&x, &self.time, self.grid())?
                    }
                    _ => self.latents.add(reusable)?,
                })
            })
            .collect()
    }

    /// The prediction for each prompt, from the network: jointly, or one after the other.
    fn compute(&self, branches: &mut [&mut Branch]) -> Result<Vec<Array>> {
        let (dit, time, memory) = (self.dit, &self.time, self.memory);
        let jointly = memory.joint_passes && self.share.is_none();
        if let ([cond, uncond], true) = (&mut *branches, jointly) {
            let both = [cond.kv.as_slice(), uncond.kv.as_slice()];
            let start = self.start()?;
            let x = dit.finish_both(&start, time, self.rope, both, memory, &mut |_, _| Ok(()))?;
            return x
                .iter()
                .zip(branches)
                .map(|(x, branch)| self.conclude(x, branch))
                .collect();
        }
        let mut shared: Option<Stream> = None;
        let last = branches.len().saturating_sub(1);
        let mut predictions = Vec::new();
        for (index, branch) in branches.iter_mut().enumerate() {
            let first = match shared.take() {
                Some(start) => start,
                None => self.start()?,
            };
            // The last pass has it to itself.
            shared = (memory.shared_start && index < last).then(|| first.clone());
            let kv = &branch.kv;
            let x = dit.finish(first, time, self.rope, kv, memory, &mut |_, _| Ok(()))?;
            predictions.push(self.conclude(&x, branch)?);
        }
        Ok(predictions)
    }

    /// From the last block's output to the checked prediction, leaving in `branch` what a later
    /// step may reuse.
    fn conclude(&self, x: &Stream, branch: &mut Branch) -> Result<Array> {
        let velocity = self.dit.head(x, &self.time, self.grid())?;
        health::check_prediction(&velocity, || {
            // Once more, to name the first block whose output is not finite.
            let mut first = None;
            self.dit.finish(
                self.start()?,
                &self.time,
                self.rope,
                &branch.kv,
                self.memory,
                &mut |block, x| {
                    if first.is_none() && !all_finite(&x.whole()?)? {
                        first = Some(block);
                    }
                    Ok(())
                },
            )?;
            Ok(first)
        })?;
        branch.reusable = match self.method {
            CacheMethod::Off => None,
            CacheMethod::TeaCache { .. } => {
                let tokens = self.tokens()?.whole()?;
                Some(x.whole()?.subtract(tokens)?.contiguous()?)
            }
            CacheMethod::EasyCache { .. } => Some(velocity.subtract(self.latents)?.contiguous()?),
        };
        if let Some(reusable) = &branch.reusable {
            reusable.eval()?;
        }
        Ok(velocity)
    }
}
