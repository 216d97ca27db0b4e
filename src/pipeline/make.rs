//! Makes clips, one or many of one model: all text is encoded first, then all pictures; then the
//! clips take turns with each expert, and each is decoded when its last step is done.
//!
//! Every network is loaded once for all clips, an expert once for as many as are in flight.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result};
use mlx_rs::{Array, memory};

use super::condition::{Condition, Ends, ImageEncoder, image_units};
use super::decode::ClipDecoder;
use super::denoise::{DenoiseSettings, Denoiser};
use super::experts::Experts;
use super::progress::{Event, Memory, Phase, PhaseReport, Progress, Stage};
use super::shelf::Shelf;
use super::still::Still;
use super::text::{EncodedPrompts, TextEncoder, dump_prompt};
use super::{Interrupted, Job, Passes, Summary, initial_noise};
use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, Expert};
use crate::dump::Dump;
use crate::media::clip::ClipWriter;
use crate::media::strip::FilmStrip;
use crate::media::tags::Tags;
use crate::resume::{Keeper, Saved};
use crate::schedule::{Sampler, Schedule};
use crate::text::TokenIds;

/// A clip to be made.
#[derive(Debug)]
pub(crate) struct Clip {
    /// What it is.
    pub(crate) job: Job,
    /// Where and in what parts it is computed.
    pub(crate) backend: Backend,
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

/// Who has the clips made.
pub(crate) trait Host {
    /// A clip is about to be denoised; returns the saved run that it goes on from.
    fn begin(&mut self, clip: &Clip, progress: &mut dyn Progress) -> Result<Option<Saved>>;

    /// What keeps a clip's state, since it has begun.
    fn keeper(&mut self, clip: &Clip) -> Option<&mut Keeper>;

    /// A clip is there, or cannot be made.
    fn end(&mut self, clip: &Clip, made: Result<Summary>, progress: &mut dyn Progress);
}

/// How clips are made.
pub(crate) struct Making<'a> {
    /// The clips, all of one model and one device.
    pub(crate) clips: Vec<Clip>,
    /// How many of them are in flight at once.
    pub(crate) at_once: usize,
    /// Whether there is room for the VAE's decoder at work beside an expert.
    pub(crate) beside: bool,
    pub(crate) shelf: &'a mut Shelf,
    pub(crate) host: &'a mut dyn Host,
}

impl Making<'_> {
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
        let backend = first.backend;
        for clip in self.clips.iter().filter(|clip| !clip.ready) {
            clip.wants().for_each(|key| self.shelf.reserve(key));
        }
        self.encode_texts(&checkpoint, backend, progress)?;
        self.encode_pictures(&checkpoint, backend, progress)?;
        let mut decoder = ClipDecoder::new(&checkpoint);
        while !self.clips.is_empty() {
            let many = self.at_once.clamp(1, self.clips.len());
            let clips = self.clips.drain(..many).collect();
            self.pass(&checkpoint, clips, &mut decoder, progress)?;
            if !self.beside {
                decoder.release()?;
            }
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
        self.host.end(clip, Err(error), progress);
        Ok(())
    }

    /// [`Self::fail`] for every clip that wants `key`; they are no longer made.
    fn fail_all(
        &mut self,
        error: anyhow::Error,
        wants: impl Fn(&Clip) -> bool,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let text = format!("{error:#}");
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

    fn encode_texts(
        &mut self,
        checkpoint: &Checkpoint,
        backend: Backend,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut todo: Vec<(String, TokenIds)> = Vec::new();
        for clip in self.clips.iter().filter(|clip| !clip.ready) {
            for (key, _, ids) in clip.prompts() {
                if !todo.iter().any(|(other, _)| other == key) && !self.shelf.has(key) {
                    todo.push((key.to_owned(), ids.clone()));
                }
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        progress.event(&Event::Turn(None));
        let mut stage = Stage::start(Phase::Text, todo.len(), 0, progress);
        let encoder = match TextEncoder::load(checkpoint, backend, progress) {
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
                Ok(encoded) => self.shelf.put(key, &encoded, progress),
                Err(error) => {
                    let wants = |clip: &Clip| clip.prompts().any(|(other, ..)| other == key);
                    self.fail_all(error, wants, progress)?;
                }
            }
            stage.advance(progress)?;
        }
        drop(encoder);
        memory::clear_cache()?;
        stage.finish(progress);
        Ok(())
    }

    fn encode_pictures(
        &mut self,
        checkpoint: &Checkpoint,
        backend: Backend,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut todo: BTreeMap<String, usize> = BTreeMap::new();
        for clip in self.clips.iter().filter(|clip| !clip.ready) {
            let key = &clip.keys.condition;
            if !todo.contains_key(key) && !self.shelf.has(key) {
                let units = image_units(checkpoint, clip.backend, &clip.job.plan);
                todo.insert(key.clone(), units);
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        progress.event(&Event::Turn(None));
        let mut stage = Stage::start(Phase::Image, todo.values().sum(), 0, progress);
        let mut encoder = match ImageEncoder::load(checkpoint, backend, progress) {
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
            let made = clip.encode_picture(&mut encoder, &mut stage, progress);
            let made = made.and_then(|condition| {
                let same = |clip: &&Clip| !clip.ready && clip.keys.condition == key;
                for clip in self.clips.iter().filter(same) {
                    if let Some(dump) = clip.dump()? {
                        condition.dump(&dump)?;
                    }
                }
                Ok(condition)
            });
            match made {
                Ok(condition) => self.shelf.put(&key, &condition.0, progress),
                Err(error) => {
                    self.fail_all(error, |clip| clip.keys.condition == key, progress)?;
                    stage.pass_over(done);
                    // The clip itself is gone from its place, too.
                    next = 0;
                }
            }
        }
        drop(encoder);
        memory::clear_cache()?;
        stage.finish(progress);
        Ok(())
    }

    /// Denoises and decodes clips that are in flight together.
    fn pass(
        &mut self,
        checkpoint: &Checkpoint,
        clips: Vec<Clip>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut experts = Experts::new(checkpoint);
        let mut flights: Vec<Flight<'_>> = Vec::new();
        for mut clip in clips {
            match self.begin(checkpoint, &mut clip, progress) {
                Ok(begun) => flights.push(begun.flight(clip)),
                Err(error) => self.fail(&clip, error, progress)?,
            }
        }
        let mut open = None;
        for index in 0..flights.len() {
            // A saved run may have taken every step.
            if flights[index].next_expert().is_none() {
                self.open(index, &mut flights, &mut open, progress);
                self.close(&mut open, &mut flights, progress);
                flights[index].denoised();
            }
        }
        while let Some(expert) = next_expert(&flights) {
            for index in 0..flights.len() {
                if flights[index].next_expert() != Some(expert) {
                    continue;
                }
                if let Err(error) =
                    self.turn(index, &mut flights, &mut open, &mut experts, progress)
                {
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
        Ok(())
    }

    /// The clip's noise, prompts and condition, or where its saved run was.
    fn begin<'c>(
        &mut self,
        checkpoint: &'c Checkpoint,
        clip: &mut Clip,
        progress: &mut dyn Progress,
    ) -> Result<Begun<'c>> {
        progress.event(&Event::Turn(Some(clip.number)));
        let saved = self.host.begin(clip, progress)?;
        let dump = clip.dump()?;
        let tags = clip.job.tags(clip.backend)?;
        let plan = &clip.job.plan;
        let schedule = Schedule::new(plan.solver, plan.steps as usize, plan.shift);
        let sampler = Sampler::new(plan.solver, schedule.clone());
        let settings = DenoiseSettings {
            guide_scale: plan.guide_scale,
            guide_interval: plan.guide_interval,
            cache: plan.cache.clone(),
        };
        let denoiser = if let Some(saved) = saved {
            Denoiser::resume(checkpoint, clip.backend, &saved.state, sampler, settings)
                .with_context(|| format!("{} cannot be gone on from", saved.path.display()))?
        } else {
            let mut encoded = Vec::new();
            for (key, ..) in clip.prompts() {
                encoded.push(self.shelf.get(key)?);
            }
            let negative = (encoded.len() > 1).then(|| encoded.remove(1));
            let prompt = encoded.remove(0);
            let condition = Condition(self.shelf.get(&clip.keys.condition)?);
            let noise = initial_noise(plan.seed, checkpoint.vae.z_dim, plan.latent_grid());
            if let Some(dump) = &dump {
                dump.array("noise", &noise)?;
                dump.integers("timesteps", &schedule.timesteps)?;
                let sigmas: Vec<f32> = schedule.sigmas.iter().map(|&s| s as f32).collect();
                let sigmas = Array::from_slice(&sigmas, &[sigmas.len() as i32]);
                dump.array("sigmas", &sigmas)?;
            }
            Denoiser::new(
                checkpoint,
                clip.backend,
                EncodedPrompts { prompt, negative },
                condition,
                noise,
                sampler,
                settings,
            )
        };
        Ok(Begun {
            denoiser: denoiser.observed_by(clip.job.observer.take()),
            dump,
            tags,
        })
    }

    /// A clip's steps with its next expert.
    fn turn(
        &mut self,
        index: usize,
        flights: &mut [Flight<'_>],
        open: &mut Option<(usize, Stage)>,
        experts: &mut Experts<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        self.open(index, flights, open, progress);
        let Flight {
            clip, work, dump, ..
        } = &mut flights[index];
        let Work::Denoising(denoiser) = work else {
            return Ok(());
        };
        denoiser.turn(experts, dump.as_ref(), self.host.keeper(clip), progress)
    }

    /// Begins a clip's phase; one that keeps its turn goes on in the same.
    fn open(
        &mut self,
        index: usize,
        flights: &mut [Flight<'_>],
        open: &mut Option<(usize, Stage)>,
        progress: &mut dyn Progress,
    ) {
        if open.as_ref().is_some_and(|(other, _)| *other == index) {
            return;
        }
        self.close(open, flights, progress);
        let Flight { clip, work, .. } = &mut flights[index];
        let Work::Denoising(denoiser) = work else {
            return;
        };
        progress.event(&Event::Turn(Some(clip.number)));
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
        open: &mut Option<(usize, Stage)>,
        flights: &mut [Flight<'_>],
        progress: &mut dyn Progress,
    ) {
        let Some((index, stage)) = open.take() else {
            return;
        };
        let flight = &mut flights[index];
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
        flight: &mut Flight<'_>,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Work::Denoised { latents, passes } = std::mem::replace(&mut flight.work, Work::Ended)
        else {
            return Ok(());
        };
        progress.event(&Event::Turn(Some(flight.clip.number)));
        match flight.decode(&latents, passes, decoder, progress) {
            Ok(summary) => {
                self.host.end(&flight.clip, Ok(summary), progress);
                Ok(())
            }
            Err(error) => self.fail(&flight.clip, error, progress),
        }
    }
}

fn is_in(todo: &[(String, TokenIds)], key: &str) -> bool {
    todo.iter().any(|(other, _)| other == key)
}

/// Whose turn it is: the high-noise expert's while any clip wants it.
fn next_expert(flights: &[Flight<'_>]) -> Option<Expert> {
    let wanted = || flights.iter().filter_map(Flight::next_expert);
    wanted()
        .find(|expert| *expert == Expert::HighNoise)
        .or_else(|| wanted().next())
}

impl Clip {
    /// A single clip, which shares nothing.
    pub(super) fn single(job: Job, backend: Backend, ready: bool) -> Self {
        Self {
            job,
            backend,
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
    fn prompts(&self) -> impl Iterator<Item = (&str, &'static str, &TokenIds)> {
        let prompts = &self.job.prompts;
        let negative = prompts.negative.as_ref();
        let negative = negative.map(|ids| (self.keys.negative.as_str(), "uncond", ids));
        [(self.keys.prompt.as_str(), "cond", &prompts.prompt)]
            .into_iter()
            .chain(negative)
    }

    /// Keys of what must be encoded.
    fn wants(&self) -> impl Iterator<Item = &str> {
        let prompts = self.prompts().map(|(key, ..)| key);
        prompts.chain([self.keys.condition.as_str()])
    }

    fn dump(&self) -> Result<Option<Dump>> {
        let folder = self.job.request.dump.as_deref();
        folder.map(Dump::create).transpose()
    }

    fn dump_prompts(&self, encoded_key: &str, encoded: &Array) -> Result<()> {
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

    fn encode_picture(
        &mut self,
        encoder: &mut ImageEncoder<'_>,
        stage: &mut Stage,
        progress: &mut dyn Progress,
    ) -> Result<Condition> {
        let Job {
            request,
            picture,
            last,
            plan,
            ..
        } = &mut self.job;
        let (width, height) = (plan.width as usize, plan.height as usize);
        let resized = |still: &mut Still| still.take()?.resized(width, height, request.resize);
        let first = resized(picture).context("--image")?;
        let last = last.as_mut().map(resized).transpose();
        let last = last.context("--last-image")?;
        let ends = Ends {
            first: first.view(),
            last: last.as_ref().map(|last| last.view()),
        };
        encoder.encode(self.backend, ends, plan, stage, progress)
    }
}

/// What a clip begins with.
struct Begun<'c> {
    denoiser: Denoiser<'c>,
    dump: Option<Dump>,
    tags: Option<Tags>,
}

impl<'c> Begun<'c> {
    fn flight(self, clip: Clip) -> Flight<'c> {
        Flight {
            clip,
            work: Work::Denoising(Box::new(self.denoiser)),
            dump: self.dump,
            tags: self.tags,
            phases: Vec::new(),
        }
    }
}

/// A clip in flight.
struct Flight<'c> {
    clip: Clip,
    work: Work<'c>,
    dump: Option<Dump>,
    tags: Option<Tags>,
    phases: Vec<PhaseReport>,
}

/// How far it is.
enum Work<'c> {
    Denoising(Box<Denoiser<'c>>),
    Denoised {
        latents: Array,
        passes: Passes,
    },
    /// It is there, or cannot be made.
    Ended,
}

impl Flight<'_> {
    fn next_expert(&self) -> Option<Expert> {
        match &self.work {
            Work::Denoising(denoiser) => denoiser.next_expert(),
            _ => None,
        }
    }

    /// The last step is taken: keeps the latents alone.
    fn denoised(&mut self) {
        if let Work::Denoising(denoiser) = &self.work {
            self.work = Work::Denoised {
                latents: denoiser.latents().clone(),
                passes: denoiser.passes(),
            };
        }
    }

    /// Phases of one kind count as one.
    fn add(&mut self, report: PhaseReport) {
        match self.phases.iter_mut().find(|p| p.phase == report.phase) {
            Some(phase) => {
                phase.seconds += report.seconds;
                phase.memory = Memory {
                    peak: phase.memory.peak.max(report.memory.peak),
                    ..report.memory
                };
            }
            None => self.phases.push(report),
        }
    }

    fn decode(
        &mut self,
        latents: &Array,
        passes: Passes,
        decoder: &mut ClipDecoder<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Summary> {
        let Job { request, plan, .. } = &self.clip.job;
        let tags = self.tags.take();
        let mut writer = ClipWriter::create(&request.output, &plan.clip_spec(), tags.as_ref())
            .with_context(|| format!("--output {}", request.output.display()))?;
        let strip = request.strip.as_deref();
        let mut strip = strip
            .map(|path| FilmStrip::new(path, plan.frames, tags))
            .transpose()
            .context("--strip")?;
        let (backend, dump) = (self.clip.backend, self.dump.as_ref());
        let report = decoder.decode(backend, latents, dump, progress, &mut |frame| {
            if let Some(strip) = &mut strip {
                strip.push(frame);
            }
            writer.push(frame)
        })?;
        writer
            .finish()
            .with_context(|| format!("--output {}", request.output.display()))?;
        if let Some(strip) = strip {
            strip.finish().context("--strip; the clip is complete")?;
        }
        self.phases.push(report);
        Ok(Summary {
            seconds: self.phases.iter().map(|phase| phase.seconds).sum(),
            passes,
            phases: self.phases.clone(),
            memory: Memory::now(),
            plan: self.clip.job.plan.clone(),
        })
    }
}

impl Job {
    /// What its file keeps of how it was made, if anything.
    fn tags(&self, backend: Backend) -> Result<Option<Tags>> {
        if !self.request.metadata {
            return Ok(None);
        }
        Ok(Some(self.record(backend)?.tags()?))
    }
}
