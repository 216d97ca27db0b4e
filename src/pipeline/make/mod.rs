//! Makes clips, one or many of one model: all text is encoded first, then all pictures; then the
//! clips take turns with each expert, and each is decoded when its last step is done.
//!
//! Every network is loaded once for all clips, an expert once for as many as are in flight.

mod clip;
mod encode;
mod flight;

pub(crate) use clip::{Clip, Keys};

use std::rc::Rc;

use anyhow::{Context, Result};
use mlx_rs::Array;

use self::flight::{ActiveClip, StartedClip, Work};
use super::condition::Condition;
use super::decode::ClipDecoder;
use super::denoise::{DenoiseSettings, Denoiser};
use super::experts::Experts;
use super::text::EncodedPrompts;
use super::{Interrupted, Summary, initial_noise};
use crate::persist::EmbeddingStore;
use crate::persist::{SavedRun, StateWriter};
use crate::progress::{ForClip, Progress, RunningPhase};
use crate::sampling::{Sampler, Schedule};
use crate::weights::{Checkpoint, Expert};

/// Who has the clips made.
pub(crate) trait ClipObserver {
    /// A clip is about to be denoised; returns the saved run that it goes on from.
    fn begin(&mut self, clip: &Clip, progress: &mut dyn Progress) -> Result<Option<SavedRun>>;

    /// What keeps a clip's state, since it has begun.
    fn keeper(&mut self, clip: &Clip) -> Option<&mut StateWriter>;

    /// A clip is there, or cannot be made.
    fn end(&mut self, clip: &Clip, made: Result<Summary>, progress: &mut dyn Progress);
}

/// How clips are made.
pub(crate) struct Scheduler<'a> {
    /// The clips, all of one model and one device.
    pub(crate) clips: Vec<Clip>,
    /// How many of them are in flight at once.
    pub(crate) at_once: usize,
    /// Whether there is room for the VAE's decoder at work beside an expert.
    pub(crate) beside: bool,
    pub(crate) shelf: &'a mut EmbeddingStore,
    pub(crate) host: &'a mut dyn ClipObserver,
}

impl Scheduler<'_> {
    /// Makes the clips; each one's end is told to the host.
    ///
    /// # Errors
    /// [`Interrupted`], or MLX fails where it is no clip's.
    pub(crate) fn run(mut self, progress: &mut dyn Progress) -> Result<()> {
        for clip in std::mem::take(&mut self.clips) {
            match clip.dump() {
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
            clip.wants().for_each(|key| self.shelf.reserve(key));
        }
        self.encode_texts(&checkpoint, device, progress)?;
        self.encode_pictures(&checkpoint, device, progress)?;
        let mut experts = Experts::new(&checkpoint);
        let mut decoder = ClipDecoder::new(&checkpoint);
        while !self.clips.is_empty() {
            let many = self.at_once.clamp(1, self.clips.len());
            let clips = self.clips.drain(..many).collect();
            let flights = self.begin_all(&checkpoint, clips, &mut decoder, progress)?;
            self.pass(flights, &mut experts, &mut decoder, progress)?;
        }
        Ok(())
    }

    /// A clip cannot be made, unless it is the user who ends everything.
    fn fail(
        &mut self,
        clip: &Clip,
        error: anyhow::Error,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        if !clip.ready {
            clip.wants().for_each(|key| self.shelf.release(key));
        }
        self.host
            .end(clip, Err(error), &mut for_clip(clip, progress));
        Ok(())
    }

    /// Begins clips that are to be in flight together. One whose saved run has taken every step is
    /// decoded at once.
    fn begin_all<'c>(
        &mut self,
        checkpoint: &'c Checkpoint,
        clips: Vec<Clip>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<ActiveClip<'c>>> {
        let mut flights: Vec<ActiveClip<'c>> = Vec::new();
        for mut clip in clips {
            match self.begin(checkpoint, &mut clip, progress) {
                Ok(begun) => flights.push(begun.flight(clip)),
                Err(error) => self.fail(&clip, error, progress)?,
            }
        }
        let mut open = None;
        for index in 0..flights.len() {
            if flights[index].next_expert().is_none() {
                self.open(index, &mut flights, &mut open, progress);
                self.close(&mut open, &mut flights, progress);
                flights[index].denoised();
                self.decode(&mut flights[index], decoder, progress)?;
            }
        }
        if !self.beside {
            decoder.release()?;
        }
        Ok(flights)
    }

    /// Denoises and decodes clips that are in flight together.
    fn pass(
        &mut self,
        mut flights: Vec<ActiveClip<'_>>,
        experts: &mut Experts<'_>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut open = None;
        while let Some(expert) = next_expert(&flights) {
            for index in 0..flights.len() {
                if flights[index].next_expert() != Some(expert) {
                    continue;
                }
                if let Err(error) = self.turn(index, &mut flights, &mut open, experts, progress) {
                    open = None;
                    flights[index].work = Work::Ended;
                    self.fail(&flights[index].clip, error, progress)?;
                    continue;
                }
                if flights[index].next_expert().is_some() {
                    continue;
                }
                let last = next_expert(&flights).is_none();
                if last {
                    experts.release()?;
                }
                self.close(&mut open, &mut flights, progress);
                flights[index].denoised();
                if self.beside && !last {
                    self.decode(&mut flights[index], decoder, progress)?;
                }
            }
        }
        experts.release()?;
        for flight in &mut flights {
            self.decode(flight, decoder, progress)?;
        }
        if !self.beside {
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
        let saved = self.host.begin(clip, &mut for_clip(clip, progress))?;
        let dump = clip.dump()?;
        let tags = clip.job.tags(clip.device)?;
        let settings = &clip.job.settings;
        let schedule = Schedule::new(settings.solver, settings.steps as usize, settings.shift);
        let sampler = Sampler::new(settings.solver, schedule.clone());
        let denoising = DenoiseSettings {
            guide_scale: settings.guide_scale,
            guide_interval: settings.guide_interval,
            cache: settings.cache.clone(),
            memory: clip.memory,
        };
        let denoiser = if let Some(saved) = saved {
            Denoiser::resume(checkpoint, clip.device, &saved.state, sampler, denoising)
                .with_context(|| format!("{} cannot be gone on from", saved.path.display()))?
        } else {
            let mut encoded = Vec::new();
            for (key, ..) in clip.prompts() {
                encoded.push(self.shelf.get(key)?);
            }
            let negative = (encoded.len() > 1).then(|| encoded.remove(1));
            let prompt = encoded.remove(0);
            let condition = Condition(self.shelf.get(&clip.keys.condition)?);
            let noise = initial_noise(settings.seed, checkpoint.vae.z_dim, settings.latent_grid());
            if let Some(dump) = &dump {
                dump.array("noise", &noise)?;
                dump.integers("timesteps", &schedule.timesteps)?;
                let sigmas: Vec<f32> = schedule.sigmas.iter().map(|&s| s as f32).collect();
                let sigmas = Array::from_slice(&sigmas, &[sigmas.len() as i32]);
                dump.array("sigmas", &sigmas)?;
            }
            Denoiser::new(
                checkpoint,
                clip.device,
                EncodedPrompts { prompt, negative },
                condition,
                noise,
                sampler,
                denoising,
            )
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
        flights: &mut [ActiveClip<'_>],
        open: &mut Option<(usize, RunningPhase)>,
        experts: &mut Experts<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        self.open(index, flights, open, progress);
        let ActiveClip {
            clip, work, dump, ..
        } = &mut flights[index];
        let Work::Denoising(denoiser) = work else {
            return Ok(());
        };
        let progress = &mut for_clip(clip, progress);
        denoiser.turn(experts, dump.as_ref(), self.host.keeper(clip), progress)
    }

    /// Begins a clip's phase; one that keeps its turn goes on in the same.
    fn open(
        &mut self,
        index: usize,
        flights: &mut [ActiveClip<'_>],
        open: &mut Option<(usize, RunningPhase)>,
        progress: &mut dyn Progress,
    ) {
        if open.as_ref().is_some_and(|(other, _)| *other == index) {
            return;
        }
        self.close(open, flights, progress);
        let ActiveClip { clip, work, .. } = &mut flights[index];
        let Work::Denoising(denoiser) = work else {
            return;
        };
        let progress = &mut for_clip(clip, progress);
        *open = Some((index, denoiser.begin(self.host.keeper(clip), progress)));
        if !clip.ready {
            // Its own state has it now.
            clip.wants().for_each(|key| self.shelf.release(key));
            clip.ready = true;
        }
    }

    /// Ends the phase that is under way. A clip whose steps are not all taken is saved: others may
    /// be at work for long now.
    fn close(
        &mut self,
        open: &mut Option<(usize, RunningPhase)>,
        flights: &mut [ActiveClip<'_>],
        progress: &mut dyn Progress,
    ) {
        let Some((index, stage)) = open.take() else {
            return;
        };
        let flight = &mut flights[index];
        let progress = &mut for_clip(&flight.clip, progress);
        if flight.next_expert().is_some()
            && let Work::Denoising(denoiser) = &flight.work
            && let Some(keeper) = self.host.keeper(&flight.clip)
        {
            denoiser.keep(keeper, progress);
        }
        flight.add(stage.finish(progress));
    }

    /// Decodes and writes a clip, and tells of its end.
    fn decode(
        &mut self,
        flight: &mut ActiveClip<'_>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Work::Denoised { latents, passes } = std::mem::replace(&mut flight.work, Work::Ended)
        else {
            return Ok(());
        };
        let for_it = &mut for_clip(&flight.clip, progress);
        match flight.decode(&latents, passes, decoder, for_it) {
            Ok(summary) => {
                self.host.end(&flight.clip, Ok(summary), for_it);
                Ok(())
            }
            Err(error) => self.fail(&flight.clip, error, progress),
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
fn next_expert(flights: &[ActiveClip<'_>]) -> Option<Expert> {
    let wanted = || flights.iter().filter_map(ActiveClip::next_expert);
    wanted()
        .find(|expert| *expert == Expert::HighNoise)
        .or_else(|| wanted().next())
}
