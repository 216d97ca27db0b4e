//! Texts and pictures, each encoded once for all clips.

use std::collections::BTreeMap;

use anyhow::Result;
use mlx_rs::memory;

use super::{Clip, Scheduler};
use crate::pipeline::Interrupted;
use crate::pipeline::image::{ImageEncoder, image_units};
use crate::pipeline::text::TextEncoder;
use crate::progress::{Phase, Progress, RunningPhase};
use crate::runtime::Device;
use crate::text::TokenIds;
use crate::util::show::chain;
use crate::weights::Checkpoint;

impl Scheduler<'_> {
    /// [`Self::fail`] for every clip that `wants` what failed; they are no longer made.
    fn fail_all(
        &mut self,
        error: anyhow::Error,
        wants: impl Fn(&Clip) -> bool,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let text = chain(&error);
        let mut error = Some(error);
        let (failed, left) = std::mem::take(&mut self.clips)
            .into_iter()
            .partition(|clip| !clip.ready && wants(clip));
        self.clips = left;
        let failed: Vec<Clip> = failed;
        for clip in &failed {
            // The first one has its causes too.
            let error = error.take().unwrap_or_else(|| anyhow::anyhow!("{text}"));
            self.fail(clip, error, progress)?;
        }
        Ok(())
    }

    pub(super) fn encode_texts(
        &mut self,
        checkpoint: &Checkpoint,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut todo: Vec<(String, TokenIds)> = Vec::new();
        for clip in self.clips.iter().filter(|clip| !clip.ready) {
            for (key, _, ids) in clip.prompts() {
                if !todo.iter().any(|(other, _)| other == key) && !self.store.has(key) {
                    todo.push((key.to_owned(), ids.clone()));
                }
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        let mut phase = RunningPhase::start(Phase::Text, todo.len(), 0, progress);
        let encoder = match TextEncoder::load(checkpoint, device, progress) {
            Ok(encoder) => encoder,
            Err(error) => {
                let wants = |clip: &Clip| clip.prompts().any(|(key, ..)| is_in(&todo, key));
                return self.fail_all(error, wants, progress);
            }
        };
        for (key, ids) in &todo {
            let encoded = encoder.encode(ids).and_then(|encoded| {
                for clip in self.clips.iter().filter(|clip| !clip.ready) {
                    clip.dump_prompts(key, &encoded)?;
                }
                Ok(encoded)
            });
            match encoded {
                Ok(encoded) => self.store.put(key, &encoded, progress),
                Err(error) => {
                    let wants = |clip: &Clip| clip.prompts().any(|(other, ..)| other == key);
                    self.fail_all(error, wants, progress)?;
                }
            }
            phase.advance(progress)?;
        }
        drop(encoder);
        memory::clear_cache()?;
        phase.finish(progress);
        Ok(())
    }

    pub(super) fn encode_pictures(
        &mut self,
        checkpoint: &Checkpoint,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut todo: BTreeMap<String, usize> = BTreeMap::new();
        for clip in self.clips.iter().filter(|clip| !clip.ready) {
            let key = &clip.keys.condition;
            if !todo.contains_key(key) && !self.store.has(key) {
                let units = image_units(&clip.memory, &clip.job.settings, &checkpoint.vae);
                todo.insert(key.clone(), units);
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        let mut phase = RunningPhase::start(Phase::Image, todo.values().sum(), 0, progress);
        let encoder = match ImageEncoder::load(checkpoint, device, progress) {
            Ok(encoder) => encoder,
            Err(error) => {
                let wants = |clip: &Clip| todo.contains_key(&clip.keys.condition);
                return self.fail_all(error, wants, progress);
            }
        };
        let mut done = 0;
        // In the clips' order.
        let mut next = 0;
        while let Some(clip) = self.clips.get_mut(next) {
            next += 1;
            let wanted = if clip.ready {
                None
            } else {
                todo.remove_entry(&clip.keys.condition)
            };
            let Some((key, units)) = wanted else { continue };
            done += units;
            let made = clip.encode_picture(&encoder, &mut phase, progress);
            let made = made.and_then(|condition| {
                let same = |clip: &&Clip| !clip.ready && clip.keys.condition == key;
                for clip in self.clips.iter().filter(same) {
                    if let Some(dump) = clip.job.dump()? {
                        condition.dump(&dump)?;
                    }
                }
                Ok(condition)
            });
            match made {
                Ok(condition) => self.store.put(&key, &condition.0, progress),
                Err(error) => {
                    self.fail_all(error, |clip| clip.keys.condition == key, progress)?;
                    phase.pass_over(done);
                    // The clip itself is gone from its place, too.
                    next = 0;
                }
            }
        }
        drop(encoder);
        memory::clear_cache()?;
        phase.finish(progress);
        Ok(())
    }
}

fn is_in(todo: &[(String, TokenIds)], key: &str) -> bool {
    todo.iter().any(|(other, _)| other == key)
}
