//! Makes clips, one or many of one model: all text is encoded first, then all pictures; then the
//! clips take turns with each expert, and each is decoded when its last step is done.
//!
//! Every network is loaded once for all clips, an expert once for as many as are under way.

mod active;
mod clip;
mod encode;

pub(crate) use clip::{Clip, Keys};

use std::rc::Rc;

use anyhow::{Context, Result};

use self::active::{ActiveClip, StartedClip, Work};
use super::decode::ClipDecoder;
use super::denoise::Denoiser;
use super::experts::Experts;
use super::image::Condition;
use super::text::EncodedPrompts;
use super::{Interrupted, Summary, initial_noise};
use crate::persist::EmbeddingStore;
use crate::persist::{SavedRun, StateWriter};
use crate::progress::{ForClip, Progress, RunningPhase};
use crate::runtime::GpuError;
use crate::util::show::Show;
use crate::weights::{Checkpoint, Expert};

/// What an encoded prompt is called in the store.
const ENCODED: &str = "encoded";

/// Follows each clip of a scheduler, and keeps its state.
pub(crate) trait ClipObserver {
    /// A clip is about to be denoised; returns the saved run that it resumes.
    fn begin(&mut self, clip: &Clip, progress: &mut dyn Progress) -> Result<Option<SavedRun>>;

    /// Writes the state of a clip that has begun.
    fn writer(&mut self, clip: &Clip) -> Option<&mut StateWriter>;

    /// A clip is complete, or cannot be made.
    fn end(&mut self, clip: &Clip, made: Result<Summary>, progress: &mut dyn Progress);
}

/// Makes clips that share networks.
pub(crate) struct Scheduler<'a> {
    /// The clips, all of one model and one device.
    pub(crate) clips: Vec<Clip>,
    /// How many of them are under way at once.
    pub(crate) at_once: usize,
    /// Whether the VAE's decoder and an expert fit into memory at the same time.
    pub(crate) decoder_beside_expert: bool,
    /// Their encoded texts and pictures.
    pub(crate) store: &'a mut EmbeddingStore,
    /// Follows them.
    pub(crate) observer: &'a mut dyn ClipObserver,
}

impl Scheduler<'_> {
    /// Makes the clips; each one's end is reported to the observer.
    ///
    /// # Errors
    /// [`Interrupted`], or MLX fails where it is no clip's.
    pub(crate) fn run(mut self, progress: &mut dyn Progress) -> Result<()> {
        for clip in std::mem::take(&mut self.clips) {
            match clip.job.dump() {
                Ok(_) => self.clips.push(clip),
                Err(error) => self.fail(&clip, error, progress)?,
            }
        }
        let Some(first) = self.clips.first() else {
            return Ok(());
        };
        let checkpoint = Rc::clone(&first.job.checkpoint);
        let device = first.device;
        for clip in self.clips.iter().filter(|clip| !clip.ready) {
            clip.wants().for_each(|key| self.store.reserve(key));
        }
        self.encode_texts(&checkpoint, device, progress)?;
        self.encode_pictures(&checkpoint, device, progress)?;
        let mut experts = Experts::new(&checkpoint);
        let mut decoder = ClipDecoder::new(&checkpoint);
        while !self.clips.is_empty() {
            let many = self.at_once.clamp(1, self.clips.len());
            let clips = self.clips.drain(..many).collect();
            let active = self.begin_all(&checkpoint, clips, &mut decoder, progress)?;
            self.pass(active, &mut experts, &mut decoder, progress)?;
        }
        Ok(())
    }

    /// Reports that a clip cannot be made, unless the user ends everything, or the GPU does, with which
    /// no other clip can be made either.
    fn fail(
        &mut self,
        clip: &Clip,
        error: anyhow::Error,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        if GpuError::of(&error).is_some() {
            return Err(error.context(clip.job.output().shown().to_string()));
        }
        if !clip.ready {
            clip.wants().for_each(|key| self.store.release(key));
        }
        self.observer
            .end(clip, Err(error), &mut for_clip(clip, progress));
        Ok(())
    }

    /// Begins clips that are to be under way together. One whose saved run has taken every step is
    /// decoded at once.
    fn begin_all<'c>(
        &mut self,
        checkpoint: &'c Checkpoint,
        clips: Vec<Clip>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<ActiveClip<'c>>> {
        let mut active: Vec<ActiveClip<'c>> = Vec::new();
        for mut clip in clips {
            match self.begin(checkpoint, &mut clip, progress) {
                Ok(begun) => active.push(begun.activate(clip)),
                Err(error) => self.fail(&clip, error, progress)?,
            }
        }
        let mut open = None;
        for index in 0..active.len() {
            if active[index].next_expert().is_none() {
                self.open(index, &mut active, &mut open, progress);
                self.close(&mut open, &mut active, progress);
                active[index].denoised();
                self.decode(&mut active[index], decoder, progress)?;
            }
        }
        if !self.decoder_beside_expert {
            decoder.release()?;
        }
        Ok(active)
    }

    /// Denoises and decodes clips that are under way together.
    fn pass(
        &mut self,
        mut active: Vec<ActiveClip<'_>>,
        experts: &mut Experts<'_>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut open = None;
        while let Some(expert) = next_expert(&active) {
            for index in 0..active.len() {
                if active[index].next_expert() != Some(expert) {
                    continue;
                }
                if let Err(error) = self.turn(index, &mut active, &mut open, experts, progress) {
                    open = None;
                    active[index].work = Work::Ended;
                    self.fail(&active[index].clip, error, progress)?;
                    continue;
                }
                if active[index].next_expert().is_some() {
                    continue;
                }
                let last = next_expert(&active).is_none();
                if last {
                    experts.release()?;
                }
                self.close(&mut open, &mut active, progress);
                active[index].denoised();
                if self.decoder_beside_expert && !last {
                    self.decode(&mut active[index], decoder, progress)?;
                }
            }
        }
        experts.release()?;
        for current in &mut active {
            self.decode(current, decoder, progress)?;
        }
        if !self.decoder_beside_expert {
            decoder.release()?;
        }
        Ok(())
    }

    /// The clip's noise, prompts and condition, or where its saved run was.
    fn begin<'c>(
        &mut self,
        checkpoint: &'c Checkpoint,
        clip: &mut Clip,
        progress: &mut dyn Progress,
    ) -> Result<StartedClip<'c>> {
        let saved = self.observer.begin(clip, &mut for_clip(clip, progress))?;
        let dump = clip.job.dump()?;
        let tags = clip.job.tags(clip.device)?;
        let (device, memory, settings) = (clip.device, clip.memory, &clip.job.settings);
        let denoiser = if let Some(saved) = saved {
            Denoiser::resume(checkpoint, device, memory, &saved.state, settings)
                .with_context(|| format!("{} cannot be resumed", saved.path.shown()))?
        } else {
            let mut encoded = Vec::new();
            for (key, ..) in clip.prompts() {
                encoded.push(self.store.get(key)?.array(ENCODED)?);
            }
            let negative = (encoded.len() > 1).then(|| encoded.remove(1));
            let prompt = encoded.remove(0);
            let condition = match clip.job.image() {
                Some(_) => Condition::restore(&self.store.get(&clip.keys.condition)?),
                None => Condition::default(),
            };
            let noise = initial_noise(
                settings.seed,
                checkpoint.vae.z_dim,
                settings.latent_grid(&checkpoint.vae),
            );
            let prompts = EncodedPrompts { prompt, negative };
            let denoiser = Denoiser::new(
                checkpoint, device, memory, prompts, condition, noise, settings,
            )?;
            let dump = dump.as_ref();
            dump.map(|dump| denoiser.dump_start(dump)).transpose()?;
            denoiser
        };
        Ok(StartedClip {
            denoiser: denoiser.observed_by(clip.job.observer.take()),
            dump,
            tags,
        })
    }

    /// A clip's steps with its next expert.
    fn turn(
        &mut self,
        index: usize,
        active: &mut [ActiveClip<'_>],
        open: &mut Option<(usize, RunningPhase)>,
        experts: &mut Experts<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        self.open(index, active, open, progress);
        let ActiveClip {
            clip, work, dump, ..
        } = &mut active[index];
        let Work::Denoising(denoiser) = work else {
            return Ok(());
        };
        let progress = &mut for_clip(clip, progress);
        denoiser.turn(experts, dump.as_ref(), self.observer.writer(clip), progress)
    }

    /// Begins a clip's phase; a clip that keeps its turn stays in it.
    fn open(
        &mut self,
        index: usize,
        active: &mut [ActiveClip<'_>],
        open: &mut Option<(usize, RunningPhase)>,
        progress: &mut dyn Progress,
    ) {
        if open.as_ref().is_some_and(|(other, _)| *other == index) {
            return;
        }
        self.close(open, active, progress);
        let ActiveClip { clip, work, .. } = &mut active[index];
        let Work::Denoising(denoiser) = work else {
            return;
        };
        let progress = &mut for_clip(clip, progress);
        *open = Some((index, denoiser.begin(self.observer.writer(clip), progress)));
        if !clip.ready {
            // It is in the clip's own state now.
            clip.wants().for_each(|key| self.store.release(key));
            clip.ready = true;
        }
    }

    /// Ends the phase that is under way. A clip whose steps are not all taken is saved: others may
    /// be at work for long now.
    fn close(
        &mut self,
        open: &mut Option<(usize, RunningPhase)>,
        active: &mut [ActiveClip<'_>],
        progress: &mut dyn Progress,
    ) {
        let Some((index, phase)) = open.take() else {
            return;
        };
        let current = &mut active[index];
        let progress = &mut for_clip(&current.clip, progress);
        if current.next_expert().is_some()
            && let Work::Denoising(denoiser) = &current.work
            && let Some(writer) = self.observer.writer(&current.clip)
        {
            denoiser.save(writer, progress);
        }
        current.add(phase.finish(progress));
    }

    /// Decodes and writes a clip, and reports its end.
    fn decode(
        &mut self,
        current: &mut ActiveClip<'_>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Work::Denoised { latents, passes } = std::mem::replace(&mut current.work, Work::Ended)
        else {
            return Ok(());
        };
        let for_it = &mut for_clip(&current.clip, progress);
        match current.decode(&latents, passes, decoder, for_it) {
            Ok(summary) => {
                self.observer.end(&current.clip, Ok(summary), for_it);
                Ok(())
            }
            Err(error) => self.fail(&current.clip, error, progress),
        }
    }
}

fn for_clip<'a>(clip: &Clip, progress: &'a mut dyn Progress) -> ForClip<'a> {
    ForClip {
        inner: progress,
        clip: clip.number,
    }
}

/// Whose turn it is: the high-noise expert's while any clip wants it.
fn next_expert(active: &[ActiveClip<'_>]) -> Option<Expert> {
    let wanted = || active.iter().filter_map(ActiveClip::next_expert);
    wanted()
        .find(|expert| *expert == Expert::HighNoise)
        .or_else(|| wanted().next())
}
