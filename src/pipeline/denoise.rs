//! From noise to latents, with one expert in memory at a time.

use anyhow::{Context, Result, bail, ensure};
use mlx_rs::{Array, memory};

use super::condition::Condition;
use super::progress::{Phase, Progress};
use super::text::{EncodedPrompts, TEXT_LEN};
use crate::backend::{Backend, all_finite, to_host};
use crate::checkpoint::{Checkpoint, Expert};
use crate::dump::Dump;
use crate::model::dit::{CrossKv, Dit, Rope, Start, TimeEmbedding};
use crate::model::umt5::pad_rows;
use crate::request::GuideScale;
use crate::schedule::Sampler;

/// Predictions that spread less than this have collapsed: what broken kernels leave of a
/// velocity whose spread is near 1.
const COLLAPSED: f64 = 1e-6;

/// Classifier-free guidance: `uncond + scale * (cond - uncond)`.
pub fn guide(cond: &Array, uncond: &Array, scale: f32) -> Result<Array> {
    let difference = cond.subtract(uncond)?;
    Ok(uncond.add(difference.multiply(Array::from_f32(scale))?)?)
}

/// An expert with what it computes once per clip.
#[derive(Debug)]
struct Loaded {
    expert: Expert,
    dit: Dit,
    rope: Rope,
    /// The condition's part of the patch embedding.
    condition: Array,
    prompt: Vec<CrossKv>,
    negative: Option<Vec<CrossKv>>,
}

/// The denoising loop's state.
#[derive(Debug)]
pub struct Denoiser<'a> {
    checkpoint: &'a Checkpoint,
    backend: Backend,
    prompts: EncodedPrompts,
    condition: Condition,
    latents: Array,
    sampler: Sampler,
    guide_scale: GuideScale,
    loaded: Option<Loaded>,
}

impl<'a> Denoiser<'a> {
    /// A run from `noise` `[z_dim, frames, height, width]` along the sampler's schedule.
    pub fn new(
        checkpoint: &'a Checkpoint,
        backend: Backend,
        prompts: EncodedPrompts,
        condition: Condition,
        noise: Array,
        sampler: Sampler,
        guide_scale: GuideScale,
    ) -> Self {
        Self {
            checkpoint,
            backend,
            prompts,
            condition,
            latents: noise,
            sampler,
            guide_scale,
            loaded: None,
        }
    }

    /// Takes every step and returns the latents `[z_dim, frames, height, width]`.
    ///
    /// # Errors
    /// When a weight is damaged, MLX fails, or a prediction is not finite or has collapsed.
    pub fn run(&mut self, dump: Option<&Dump>, progress: &mut dyn Progress) -> Result<Array> {
        let steps = self.sampler.schedule().steps();
        progress.start(Phase::Denoising, steps);
        while self.sampler.step_index() < steps {
            self.step(dump, progress)?;
            progress.advance();
        }
        self.loaded = None;
        memory::clear_cache()?;
        progress.finish();
        Ok(self.latents.clone())
    }

    /// Takes the next step.
    fn step(&mut self, dump: Option<&Dump>, progress: &mut dyn Progress) -> Result<()> {
        let index = self.sampler.step_index();
        let timestep = self.sampler.schedule().timesteps[index];
        let expert = self.checkpoint.expert_for(timestep);
        self.load(expert, dump, progress)?;
        progress.detail(&format!("{expert} expert, t = {timestep}"));
        let Some(loaded) = &self.loaded else {
            bail!("no expert is loaded");
        };

        let steps = self.sampler.schedule().steps();
        let place = || {
            format!(
                "step {} of {steps} (t = {timestep}, {expert} expert)",
                index + 1
            )
        };
        let time = loaded.dit.embed_time(timestep)?;
        let start = loaded
            .dit
            .start(&self.latents, &loaded.condition, &time, &loaded.rope)?;
        let cond = loaded
            .predict(&start, &time, &loaded.prompt)
            .with_context(place)?;
        let scale = self.guide_scale.of(expert);
        let mut uncond = None;
        let velocity = match &loaded.negative {
            Some(negative) if scale != 1.0 => {
                let prediction = loaded
                    .predict(&start, &time, negative)
                    .with_context(place)?;
                let velocity = guide(&cond, &prediction, scale)?;
                uncond = Some(prediction);
                velocity
            }
            _ => cond.clone(),
        };
        self.latents = self.sampler.step(&self.latents, &velocity)?;
        self.latents.eval()?;
        ensure!(
            all_finite(&self.latents)?,
            "{}: the latents are no longer finite after the solver's step; try --dtype f32, a \
             smaller --guide-scale or another --solver",
            place()
        );
        if let Some(dump) = dump {
            let name = |what: &str| format!("step_{index:03}_{what}");
            dump.array(&name("cond"), &cond)?;
            if let Some(uncond) = &uncond {
                dump.array(&name("uncond"), uncond)?;
            }
            dump.array(&name("latents"), &self.latents)?;
        }
        Ok(())
    }

    /// Makes `expert` the loaded one. The other goes first: a Mac holds one at a time.
    fn load(
        &mut self,
        expert: Expert,
        dump: Option<&Dump>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if self.loaded.as_ref().is_some_and(|l| l.expert == expert) {
            return Ok(());
        }
        self.loaded = None;
        memory::clear_cache()?;
        progress.detail(&format!("loading the {expert} expert"));
        let dit = self.checkpoint.load_expert(expert, self.backend)?;
        let grid = [1, 2, 3].map(|axis| self.latents.dim(axis));
        let patch = dit.config().patch_size;
        let tokens = [0, 1, 2].map(|axis| grid[axis] / patch[axis]);
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
        self.loaded = Some(Loaded {
            expert,
            rope: Rope::new(tokens, dit.config().attention_head_dim),
            condition: dit.embed_condition(&self.condition.0)?,
            prompt: dit.cross_kv(&self.prompts.prompt, TEXT_LEN as i32)?,
            negative: match &self.prompts.negative {
                Some(negative) if self.guide_scale.of(expert) != 1.0 => {
                    Some(dit.cross_kv(negative, TEXT_LEN as i32)?)
                }
                _ => None,
            },
            dit,
        });
        Ok(())
    }
}

impl Loaded {
    /// One forward pass, checked: kernels that overflow leave NaN or nothing, which would
    /// otherwise show as a black clip hours later.
    fn predict(&self, start: &Start, time: &TimeEmbedding, text: &[CrossKv]) -> Result<Array> {
        let velocity = self
            .dit
            .finish(start, time, &self.rope, text, &mut |_, _| Ok(()))?;
        let values = to_host(&velocity)?;
        let (mut sum, mut squares) = (0.0_f64, 0.0_f64);
        for &value in &values {
            sum += f64::from(value);
            squares += f64::from(value) * f64::from(value);
        }
        let count = values.len().max(1) as f64;
        let variance = squares / count - (sum / count).powi(2);
        if !squares.is_finite() {
            bail!(
                "the prediction is not finite, first in {}; try --dtype f32 or --device cpu \
                 and please report it",
                self.first_bad_block(start, time, text)?
            );
        }
        ensure!(
            values.len() < 2 || variance.max(0.0).sqrt() > COLLAPSED,
            "the prediction has collapsed to {:.3e} everywhere; try --dtype f32 or --device cpu \
             and please report it",
            sum / count
        );
        Ok(velocity)
    }

    /// Runs the pass again to name the first block whose output is not finite.
    fn first_bad_block(
        &self,
        start: &Start,
        time: &TimeEmbedding,
        text: &[CrossKv],
    ) -> Result<String> {
        let mut first = None;
        self.dit
            .finish(start, time, &self.rope, text, &mut |block, x| {
                if first.is_none() && !all_finite(x)? {
                    first = Some(block);
                }
                Ok(())
            })?;
        Ok(first.map_or("the output head".into(), |block| format!("block {block}")))
    }
}
