//! The state that a run saves, and denoising that resumes from it.

use anyhow::{Context, Result, ensure};
use mlx_rs::{Array, Dtype};

use super::step::Prepared;
use super::{Denoiser, Passes};
use crate::clip::{CacheMethod, Settings};
use crate::model::MemoryPlan;
use crate::pipeline::image::Condition;
use crate::pipeline::text::EncodedPrompts;
use crate::runtime::Device;
use crate::runtime::State;
use crate::sampling::StepCache;
use crate::weights::{Checkpoint, Expert};

/// The part of a saved run that belongs to an expert.
#[derive(Debug)]
pub(super) struct Restored {
    expert: Expert,
    cache: StepCache,
    prompt: Option<Array>,
    negative: Option<Array>,
}

impl Restored {
    /// Has it without what would be reused.
    pub(super) fn forget(&mut self) {
        (self.prompt, self.negative) = (None, None);
    }

    /// Gives it to its expert, once that is loaded.
    pub(super) fn give(self, prepared: &mut Prepared) {
        if self.expert != prepared.expert {
            return;
        }
        prepared.cache = self.cache;
        prepared.prompt.reusable = self.prompt;
        if let Some(negative) = &mut prepared.negative {
            negative.reusable = self.negative;
        }
    }
}

impl<'a> Denoiser<'a> {
    /// Everything that the run needs to resume here, to the bit.
    pub fn state(&self) -> State {
        let mut state = State::default();
        self.prompts.save(&mut state);
        self.condition.save(&mut state);
        state.set("latents", &self.latents);
        self.sampler.save(&mut state);
        if self.left_f16 {
            // The identity has the precision that was asked for.
            state.set_count("left_f16", 1);
        }
        state.set_count("passes.computed", self.passes.computed);
        state.set_count("passes.reused", self.passes.reused);
        state.set_count("passes.unguided", self.passes.unguided);
        let next = self.next_expert();
        if let Some(prepared) = &self.prepared
            && self.settings.cache.method != CacheMethod::Off
            // The other expert begins with nothing.
            && next == Some(prepared.expert)
        {
            state.set_count("cache.expert", prepared.expert as usize);
            prepared.cache.save(&mut state);
            // Of a run on several machines this one has a part.
            if self.partner.is_none() {
                state.set_optional("cache.prompt", prepared.prompt.reusable.as_ref());
                let negative = prepared.negative.as_ref();
                state.set_optional("cache.negative", negative.and_then(|n| n.reusable.as_ref()));
            }
        }
        state
    }

    /// A run that resumes where an earlier one of the same settings was.
    ///
    /// # Errors
    /// When the state lacks something, or has what no run with these settings has.
    pub fn resume(
        checkpoint: &'a Checkpoint,
        device: Device,
        memory: MemoryPlan,
        state: &State,
        settings: &Settings,
    ) -> Result<Self> {
        let prompts = EncodedPrompts::restore(state)?;
        let condition = Condition::restore(state);
        let latents = state.array("latents")?;
        let [frames, rows, columns] = settings.latent_grid(&checkpoint.vae);
        let of = |channels, frames| [channels, frames, rows, columns];
        let z = checkpoint.vae.z_dim;
        let beside = checkpoint.dit().in_channels - z;
        let saved = [
            ("latents", Some(&latents), of(z, frames)),
            ("condition", condition.beside.as_ref(), of(beside, frames)),
            ("first frame", condition.first.as_ref(), of(z, 1)),
        ];
        for (name, array, expected) in saved {
            let Some(array) = array else { continue };
            ensure!(
                array.shape() == expected && array.dtype() == Dtype::Float32,
                "the saved run's {name} are {:?} of shape {:?}; expected float32 {expected:?}",
                array.dtype(),
                array.shape()
            );
        }
        ensure!(
            condition.beside.is_some() == (beside > 0),
            "the saved run's condition is {}; expected {beside} channels",
            match condition.beside {
                Some(_) => "there",
                None => "missing",
            }
        );
        for prompt in [Some(&prompts.prompt), prompts.negative.as_ref()]
            .into_iter()
            .flatten()
        {
            ensure!(
                prompt.ndim() == 2 && prompt.dim(1) == checkpoint.text_encoder.d_model,
                "the saved run's prompts have the shape {:?}; expected rows of {}",
                prompt.shape(),
                checkpoint.text_encoder.d_model
            );
        }
        let mut denoiser = Self::new(
            checkpoint, device, memory, prompts, condition, latents, settings,
        )?;
        if state.count("left_f16").is_ok() {
            denoiser.without_f16();
        }
        denoiser.sampler.restore(state)?;
        denoiser.passes = Passes {
            computed: state.count("passes.computed")?,
            reused: state.count("passes.reused")?,
            unguided: state.count("passes.unguided")?,
        };
        if let Ok(expert) = state.count("cache.expert") {
            let expert = Expert::ALL.get(expert);
            denoiser.restored = Some(Restored {
                expert: *expert.context("the saved run's cache is of no expert")?,
                cache: StepCache::restore(denoiser.settings.cache.clone(), state)?,
                prompt: state.optional("cache.prompt"),
                negative: state.optional("cache.negative"),
            });
        }
        Ok(denoiser)
    }
}
