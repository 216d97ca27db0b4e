//! A clip that is to be made.

use anyhow::{Context, Result};
use mlx_rs::Array;

use crate::media::tags::Tags;
use crate::model::MemoryPlan;
use crate::persist::dump::Dump;
use crate::pipeline::Job;
use crate::pipeline::condition::{Condition, Ends, ImageEncoder};
use crate::pipeline::source_image::SourceImage;
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
    /// Whether it needs nothing encoded any more, as when it goes on from a saved run.
    pub(crate) ready: bool,
    /// By what its prompt, negative prompt and condition are told from others.
    pub(crate) keys: Keys,
    /// What events call it.
    pub(crate) number: usize,
}

/// What is equal has equal keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) prompt: String,
    pub(crate) negative: String,
    pub(crate) condition: String,
}

impl Clip {
    /// A single clip, which shares nothing.
    pub(in crate::pipeline) fn single(
        job: Job,
        device: Device,
        memory: MemoryPlan,
        ready: bool,
    ) -> Self {
        Self {
            job,
            device,
            memory,
            ready,
            keys: Keys {
                prompt: "prompt".into(),
                negative: "negative".into(),
                condition: "condition".into(),
            },
            number: 0,
        }
    }

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
        prompts.chain([self.keys.condition.as_str()])
    }

    pub(super) fn dump(&self) -> Result<Option<Dump>> {
        let folder = self.job.request.dump.as_deref();
        folder.map(Dump::create).transpose()
    }

    pub(super) fn dump_prompts(&self, encoded_key: &str, encoded: &Array) -> Result<()> {
        let Some(dump) = self.dump()? else {
            return Ok(());
        };
        for (key, name, ids) in self.prompts() {
            if key == encoded_key {
                dump_prompt(&dump, name, ids, encoded)?;
            }
        }
        Ok(())
    }

    pub(super) fn encode_picture(
        &mut self,
        encoder: &ImageEncoder<'_>,
        stage: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<Condition> {
        let Job {
            picture,
            last,
            settings,
            ..
        } = &mut self.job;
        let (width, height) = (settings.width as usize, settings.height as usize);
        let resized =
            |still: &mut SourceImage| still.take()?.resized(width, height, settings.resize);
        let first = resized(picture).context("--image")?;
        let last = last.as_mut().map(resized).transpose();
        let last = last.context("--last-image")?;
        let ends = Ends {
            first: first.view(),
            last: last.as_ref().map(|last| last.view()),
        };
        encoder.encode(&self.memory, ends, settings, stage, progress)
    }
}

impl Job {
    /// What its file keeps of how it was made, if anything.
    pub(super) fn tags(&self, device: Device) -> Result<Option<Tags>> {
        if !self.request.metadata {
            return Ok(None);
        }
        Ok(Some(self.record(device)?.tags()?))
    }
}
