//! A step: the expert's predictions, guidance between them, and the solver.

use std::iter;

use anyhow::{Context, Result, bail};
use mlx_rs::Array;

use super::{Denoiser, health};
use crate::clip::CacheMethod;
use crate::model::MemoryPlan;
use crate::model::dit::{CrossKv, Dit, Rope, Stream, TimeEmbedding};
use crate::model::umt5::pad_rows;
use crate::persist::dump::Dump;
use crate::pipeline::experts::Experts;
use crate::pipeline::text::TEXT_LEN;
use crate::progress::Progress;
use crate::runtime::{all_finite, evaluate};
use crate::sampling::StepCache;
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
        let Some(loaded) = &mut self.prepared else {
            bail!("no expert is prepared");
        };
        let expert = loaded.expert;

        let steps = self.sampler.schedule().steps();
        let place = || {
            format!(
                "step {} of {steps} (t = {timestep}, {})",
                index + 1,
                expert.in_words()
            )
        };
        let grid = [1, 2, 3].map(|axis| self.latents.dim(axis));
        let given = self.condition.given_tokens(dit.config(), grid);
        let pass = Pass {
            dit,
            rope: &loaded.rope,
            time: dit.embed_times(timestep, given)?,
            latents: &self.latents,
            condition: self.condition.beside.as_ref(),
            method: self.settings.cache.method,
            memory: &self.memory,
        };
        let guided = self.settings.guide_interval.covers(index, steps);
        self.passes.unguided += usize::from(loaded.negative.is_some() && !guided);
        let negative = loaded.negative.as_mut().filter(|_| guided);
        let mut branches: Vec<&mut Branch> =
            iter::once(&mut loaded.prompt).chain(negative).collect();
        // The first guided step after unguided ones has nothing to reuse for the negative prompt,
        // and guidance between a new and an old prediction would magnify their difference in age.
        let ready = branches.iter().all(|branch| branch.reusable.is_some());
        let left = steps - index - 1;
        let skips = loaded
            .cache
            .may_skip(&self.latents, &pass.time.projection, left, ready)?;
        let predictions = match skips {
            true => pass.reuse(&branches),
            false => pass.compute(&mut branches),
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

    /// Has `expert` loaded, and computes with it what it needs once per clip; returns the seconds
    /// that loading took unless it was loaded already.
    pub(super) fn prepare(
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
        let guided = self.settings.guide_scale.of(expert) != 1.0;
        let negative = self.prompts.negative.as_ref().filter(|_| guided);
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

/// What the passes of a step have in common.
struct Pass<'a> {
    dit: &'a Dit,
    rope: &'a Rope,
    time: TimeEmbedding,
    latents: &'a Array,
    condition: Option<&'a Array>,
    method: CacheMethod,
    memory: &'a MemoryPlan,
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
            .embed(self.latents, self.condition, given, self.memory)?)
    }

    fn start(&self) -> Result<Stream> {
        let (tokens, time) = (self.tokens()?, &self.time);
        Ok(self.dit.start(tokens, time, self.rope, self.memory)?)
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
                        let x = self.tokens()?.whole()?.add(reusable)?;
                        self.dit.head(&x.into(), &self.time, self.grid())?
                    }
                    _ => self.latents.add(reusable)?,
                })
            })
            .collect()
    }

    /// The prediction for each prompt, from the network: jointly, or one after the other.
    fn compute(&self, branches: &mut [&mut Branch]) -> Result<Vec<Array>> {
        let (dit, time, memory) = (self.dit, &self.time, self.memory);
        if let ([cond, uncond], true) = (&mut *branches, memory.joint_passes) {
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
