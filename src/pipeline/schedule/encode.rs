//! Texts and pictures, each encoded once for all clips.

use std::collections::BTreeMap;

use anyhow::Result;
use mlx_rs::{Array, memory};

use super::{Clip, ENCODED, Scheduler};
use crate::pipeline::Interrupted;
use crate::pipeline::image::{Condition, FeatureEncoder, ImageEncoder, frame_units};
use crate::pipeline::text::TextEncoder;
use crate::progress::{Phase, Progress, RunningPhase};
use crate::runtime::{Device, State};
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
                Ok(encoded) => {
                    let mut state = State::default();
                    state.set(ENCODED, &encoded);
                    self.store.put(key, state, progress);
                }
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
        let with_pictures = self.clips.iter().filter(|clip| clip.job.image().is_some());
        for clip in with_pictures.filter(|clip| !clip.ready) {
            let key = &clip.keys.condition;
            if !todo.contains_key(key) && !self.store.has(key) {
                let units = frame_units(&clip.memory, &clip.job.settings, checkpoint);
                todo.insert(key.clone(), units);
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        let pictures = todo.len() * checkpoint.family.conditioning.features();
        let units = pictures + todo.values().sum::<usize>();
        let mut phase = RunningPhase::start(Phase::Image, units, 0, progress);
        let mut features = BTreeMap::new();
        if checkpoint.image_encoder.is_some() {
            features = self.encode_features(checkpoint, device, &mut todo, &mut phase, progress)?;
            phase.pass_over(pictures);
        }
        let encoder = match ImageEncoder::load(checkpoint, device, progress) {
            Ok(encoder) => encoder,
            Err(error) => {
                let wants = |clip: &Clip| todo.contains_key(&clip.keys.condition);
                return self.fail_all(error, wants, progress);
            }
        };
        let mut done = pictures;
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
                let condition = Condition {
                    features: features.remove(&key),
                    ..condition
                };
                let same = |clip: &&Clip| !clip.ready && clip.keys.condition == key;
                for clip in self.clips.iter().filter(same) {
                    if let Some(dump) = clip.job.dump()? {
                        condition.dump(&dump)?;
                    }
                }
                Ok(condition)
            });
            match made {
                Ok(condition) => {
                    let mut state = State::default();
                    condition.save(&mut state);
                    self.store.put(&key, state, progress);
                }
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

impl Scheduler<'_> {
    /// The features of the pictures that are `todo`, by the same keys; what cannot be made is taken from
    /// there, and its clips are given up.
    fn encode_features(
        &mut self,
        checkpoint: &Checkpoint,
        device: Device,
        todo: &mut BTreeMap<String, usize>,
        phase: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<BTreeMap<String, Array>> {
        let mut features = BTreeMap::new();
        let encoder = match FeatureEncoder::load(checkpoint, device, progress) {
            Ok(encoder) => encoder,
            Err(error) => {
                let failed = std::mem::take(todo);
                let wants = |clip: &Clip| failed.contains_key(&clip.keys.condition);
                self.fail_all(error, wants, progress)?;
                return Ok(features);
            }
        };
        for key in todo.keys().cloned().collect::<Vec<_>>() {
            let wanted = |clip: &&mut Clip| !clip.ready && clip.keys.condition == key;
            let Some(clip) = self.clips.iter_mut().find(wanted) else {
                continue;
            };
            match clip.encode_features(&encoder, phase, progress) {
                Ok(made) => {
                    features.insert(key, made);
                }
                Err(error) => {
                    self.fail_all(error, |clip| clip.keys.condition == key, progress)?;
                    todo.remove(&key);
                }
            }
        }
        drop(encoder);
        memory::clear_cache()?;
        Ok(features)
    }
}

fn is_in(todo: &[(String, TokenIds)], key: &str) -> bool {
    todo.iter().any(|(other, _)| other == key)
}
