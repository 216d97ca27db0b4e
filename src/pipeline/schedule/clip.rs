//! A clip to be made.

use anyhow::{Context, Result};
use mlx_rs::Array;

use crate::model::MemoryPlan;
use crate::pipeline::Job;
use crate::pipeline::image::{Condition, FeatureEncoder, ImageEncoder};
use crate::pipeline::text::dump_prompt;
use crate::progress::{Progress, RunningPhase};
use crate::runtime::Device;
use crate::text::TokenIds;

/// A clip to be made.
#[derive(Debug)]
pub(crate) struct Clip {
    /// What it is.
    pub(crate) job: Job,
    /// Where it is computed.
    pub(crate) device: Device,
    /// In what parts.
    pub(crate) memory: MemoryPlan,
    /// Whether it needs nothing encoded any more, as when it resumes a saved run.
    pub(crate) ready: bool,
    /// Keys of its encoded prompt, negative prompt and condition.
    pub(crate) keys: Keys,
    /// Its number in events.
    pub(crate) number: usize,
}

/// Keys of what a clip shares with others: equal things have equal keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) prompt: String,
    pub(crate) negative: String,
    pub(crate) condition: String,
}

impl Clip {
    /// Key, name and tokens of each prompt.
    pub(super) fn prompts(&self) -> impl Iterator<Item = (&str, &'static str, &TokenIds)> {
        let prompts = &self.job.prompts;
        let negative = prompts.negative.as_ref();
        let negative = negative.map(|ids| (self.keys.negative.as_str(), "uncond", ids));
        [(self.keys.prompt.as_str(), "cond", &prompts.prompt)]
            .into_iter()
            .chain(negative)
    }

    /// Keys of what must be encoded.
    pub(super) fn wants(&self) -> impl Iterator<Item = &str> {
        let prompts = self.prompts().map(|(key, ..)| key);
        let picture = self.job.image();
        prompts.chain(picture.map(|_| self.keys.condition.as_str()))
    }

    pub(super) fn dump_prompts(&self, encoded_key: &str, encoded: &Array) -> Result<()> {
        let Some(dump) = self.job.dump()? else {
            return Ok(());
        };
        for (key, name, ids) in self.prompts() {
            if key == encoded_key {
                dump_prompt(&dump, name, ids, encoded)?;
            }
        }
        Ok(())
    }

    pub(super) fn encode_features(
        &mut self,
        encoder: &FeatureEncoder,
        phase: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<Array> {
        let images = self.job.resized()?;
        let ends = images.ends().context("the clip has no picture")?;
        encoder.encode(ends, phase, progress)
    }

    pub(super) fn encode_picture(
        &mut self,
        encoder: &ImageEncoder<'_>,
        phase: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<Condition> {
        let images = self.job.resized()?;
        let settings = &self.job.settings;
        let ends = images.ends().context("the clip has no picture")?;
        encoder.encode(&self.memory, ends, settings, phase, progress)
    }
}
