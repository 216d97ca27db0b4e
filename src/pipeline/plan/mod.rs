//! The cost of a clip before it is made: operations, bytes and time of every phase, from
//! headers and settings alone.

mod budget;
mod parts;
mod published;

pub use crate::model::cost::{ExchangeRate, Operations, Rates};
pub use budget::{
    Budget, Clip, PlannedMemory, plan_memory, plan_memory_or_refuse, refusal, refusal_on_mac,
    shortage,
};
pub use published::{CLIPS, Fits, PlannedModel, Published, plan_published};

use std::iter::once;

use anyhow::Result;
use parts::{Half, Work};
use serde::Serialize;

use crate::clip::{GuideScale, Settings};
use crate::model::MemoryPlan;
use crate::model::dit::share::Traffic;
use crate::model::dit::{self, DitConfig};
use crate::model::vae::Tiling;
use crate::model::{clip_vision, umt5, vae};
use crate::pipeline::image::encoded_grid;
use crate::pipeline::{Phase, TEXT_LEN, preview};
use crate::runtime::Device;
use crate::sampling::Schedule;
use crate::weights::{Checkpoint, Conditioning, Expert, PartName};

/// Sizes of what a clip is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the negative prompt, when any step needs one.
    pub negative: Option<usize>,
    /// Pictures: none, the first, or the last one as well.
    pub pictures: usize,
    /// Whether previews are decoded meanwhile.
    pub previews: bool,
}

/// What one phase costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseForecast {
    /// Which one.
    pub phase: Phase,
    /// Whose denoising.
    pub expert: Option<Expert>,
    /// Floating-point operations.
    pub operations: Operations,
    /// Bytes of the weights that are loaded.
    pub weight_bytes: u64,
    /// The most bytes that arrays take at once, weights included.
    pub peak_bytes: u64,
    /// Seconds at this machine's rates, when they are known.
    pub seconds: Option<f64>,
    /// Those of them in which weights are loaded.
    pub loading_seconds: Option<f64>,
    /// An expert's.
    #[serde(skip)]
    steps: Steps,
    /// What its time is made of.
    #[serde(skip)]
    works: Vec<Work>,
}

impl PhaseForecast {
    fn timed(mut self, rates: Option<&Rates>) -> Self {
        let [computing, loading] = [false, true].map(|loads| self.seconds_in(rates, loads));
        self.seconds = computing.zip(loading).map(|(a, b)| a + b);
        self.loading_seconds = loading;
        self
    }

    /// Seconds at a machine's rates of loading, or of all else.
    pub(crate) fn seconds_in(&self, rates: Option<&Rates>, loads: bool) -> Option<f64> {
        let rates = rates?;
        let works = self.works.iter().filter(|work| work.loads() == loads);
        Some(works.map(|work| work.seconds(rates)).sum())
    }

    /// `text`, or `denoising (high-noise)`.
    pub fn name(&self) -> String {
        match self.expert {
            None | Some(Expert::Single) => self.phase.to_string(),
            Some(expert) => format!("{} ({expert})", self.phase),
        }
    }
}

/// What a clip costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Every phase, in order; denoising once for each expert that is used.
    pub phases: Vec<PhaseForecast>,
    /// Passes through the transformers.
    pub passes: usize,
    /// The largest of the phases' peaks.
    pub peak_bytes: u64,
    /// All seconds.
    pub seconds: Option<f64>,
}

impl Forecast {
    /// All operations.
    pub fn operations(&self) -> Operations {
        let all = self.phases.iter().map(|phase| phase.operations);
        all.fold(Operations::default(), |sum, one| sum + one)
    }

    /// The same with times at a machine's rates.
    pub fn timed(mut self, rates: Option<&Rates>) -> Self {
        let phases = self.phases.into_iter();
        self.phases = phases.map(|phase| phase.timed(rates)).collect();
        self.seconds = self.phases.iter().map(|phase| phase.seconds).sum();
        self
    }

    /// All seconds on machines that share its passes, where an exchange takes `exchange(guided)` of a step: at
    /// most, since nothing is computed meanwhile. `decoding`, where they share that too: the part of it that one
    /// of them does, and the seconds of what they exchange.
    pub fn shared_seconds(
        &self,
        traffic: &Traffic,
        exchange: impl Fn(bool) -> f64,
        decoding: Option<(f64, f64)>,
    ) -> Option<f64> {
        let of = |phase: &PhaseForecast| {
            let (seconds, loading) = (phase.seconds?, phase.loading_seconds?);
            let Steps { all, guided } = phase.steps;
            if let Some((part, exchanged)) = decoding.filter(|_| phase.phase == Phase::Decoding) {
                return Some(loading + (seconds - loading) * part + exchanged);
            }
            if all == 0 {
                return Some(seconds);
            }
            let [mut passes, mut exchanged] = [0.0; 2];
            for (steps, guided) in [(all - guided, false), (guided, true)] {
                passes += (steps * traffic.passes(guided)) as f64;
                exchanged += steps as f64 * exchange(guided);
            }
            let part = passes / (all + guided) as f64 / traffic.sequence() as f64;
            Some(loading + (seconds - loading) * part + exchanged)
        };
        self.phases.iter().map(of).sum()
    }

    /// Measures those parts of its networks that `rates` do not know yet, and keeps what they took:
    /// some seconds for a large network.
    pub fn measure(&self, rates: &mut Rates, checkpoint: &Checkpoint) {
        let works = self.phases.iter().flat_map(|phase| &phase.works);
        let measured = works.fold(false, |any, work| work.measure(rates, checkpoint) | any);
        if measured {
            rates.keep();
        }
    }
}

/// The same clip in four steps without guidance, as distilled models and adapters make it.
pub fn in_four_steps(settings: &Settings, inputs: Inputs) -> (Settings, Inputs) {
    let settings = Settings {
        steps: 4,
        guide_scale: GuideScale {
            low: 1.0,
            high: 1.0,
        },
        ..settings.clone()
    };
    let inputs = Inputs {
        negative: None,
        ..inputs
    };
    (settings, inputs)
}

/// Operations of the VAE on a grid of latents.
type Counted<'a> = &'a dyn Fn([i32; 3], Option<Tiling>) -> Operations;

/// The steps of an expert: all of them, and those that are guided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Steps {
    all: u64,
    guided: u64,
}

/// Forecasts a clip.
///
/// # Errors
/// When a file of the checkpoint cannot be read any more.
pub fn forecast(
    checkpoint: &Checkpoint,
    settings: &Settings,
    inputs: Inputs,
    device: Device,
    memory: &MemoryPlan,
    rates: Option<&Rates>,
) -> Result<Forecast> {
    let grid = settings.latent_grid(&checkpoint.vae);
    let cells = grid.map(|side| side.max(0) as u64);
    let mut phases = Vec::new();
    let mut add = |(phase, expert, steps), operations, weight_bytes, peak_bytes, works| {
        let forecast = PhaseForecast {
            phase,
            expert,
            operations,
            weight_bytes,
            peak_bytes,
            seconds: None,
            loading_seconds: None,
            steps,
            works,
        };
        phases.push(forecast.timed(rates));
    };

    let text = &checkpoint.text_encoder;
    let prompts = [Some(inputs.prompt), inputs.negative];
    let counts = || prompts.iter().flatten().map(|&n| n as u64);
    let held = checkpoint.weights_held(PartName::TextEncoder, device)?;
    let longest = counts().max().unwrap_or(0);
    let format = checkpoint.format(PartName::TextEncoder)?;
    let encode =
        |n| umt5::cost::operations(text, n) + umt5::cost::unpacking(device, held.quantized, n);
    let load = Work::load(
        PartName::TextEncoder,
        None,
        format,
        held.bytes,
        device.for_text(),
    );
    let prompt = |&n: &usize| Work::text(text, format, n, device, encode(n as u64));
    // What the machine has in memory already need not be read.
    let read = |name, device| -> Result<Option<Work>> {
        let absent = checkpoint.absent(name)?;
        Ok((absent > 0).then(|| Work::read(name, absent, device)))
    };
    add(
        (Phase::Text, None, Steps::default()),
        counts().map(encode).sum(),
        held.bytes,
        held.bytes + umt5::cost::peak_bytes(text, device, longest, held.quantized),
        once(load)
            .chain(read(PartName::TextEncoder, device.for_text())?)
            .chain(prompts.iter().flatten().map(prompt))
            .collect(),
    );

    let (encoder, decoder) = checkpoint.vae_bytes(device)?;
    let pictures: &[i32] = match inputs.pictures {
        2.. => &[0, grid[0] - 1],
        _ => &[0],
    };
    let format = checkpoint.format(PartName::Vae)?;
    let of_vae = |grid, half, bytes, tiling: Option<Tiling>, of: Counted<'_>| {
        let load = Work::load(PartName::Vae, Some(half), format, bytes, device);
        let tile = tiling.map(|tiling| tiling.tile);
        let compute = Work::vae(
            &checkpoint.vae,
            half,
            (grid, tile),
            device,
            of(grid, tiling),
            &|of_grid| of(of_grid, None),
        );
        vec![load, compute]
    };
    let encoding: Counted<'_> = &|of, tiling| {
        let pictures = if of == grid { pictures } else { &[0] };
        vae::cost::encode_operations(&checkpoint.vae, of, tiling, pictures)
    };
    let of_first_frame = checkpoint.family.conditioning == Conditioning::FirstFrame;
    if inputs.pictures > 0 {
        let grid = encoded_grid(checkpoint, settings);
        let phases = vae::cost::encode_phases(&checkpoint.vae, device, memory, grid);
        let mut works = of_vae(grid, Half::Encoder, encoder, memory.encode_tiling, encoding);
        let mut operations = encoding(grid, memory.encode_tiling);
        let [mut bytes, mut peak] = held_and_peak(&phases);
        if let Some(config) = &checkpoint.image_encoder {
            let name = PartName::ImageEncoder;
            let (held, format) = (
                checkpoint.weight_bytes(name, device)?,
                checkpoint.format(name)?,
            );
            let pictures = checkpoint.family.conditioning.features() as u64;
            let features = clip_vision::cost::operations(config).times(pictures);
            works.push(Work::load(name, None, format, held, device));
            works.push(Work::features(config, device, features));
            operations = operations + features;
            bytes += held;
            // One after the other.
            peak = peak.max(held + clip_vision::cost::peak_bytes(config, device));
        }
        let of = (Phase::Image, None, Steps::default());
        add(of, operations, bytes, peak, works);
    }

    // After a step, when none of its arrays is left.
    let preview = match inputs.previews {
        true => preview::peak_bytes(checkpoint.vae.z_dim, device, grid),
        false => 0,
    };
    let schedule = settings.schedule();
    let mut passes = 0;
    for (expert, config) in &checkpoint.experts {
        let expert = *expert;
        let steps = steps_of(checkpoint, settings, &schedule, expert);
        if steps.all == 0 {
            continue;
        }
        passes += (steps.all + steps.guided) as usize;
        let sequence = config.tokens(grid).max(0) as u64;
        let given = match inputs.pictures > 0 && of_first_frame {
            true => config.tokens([1, grid[1], grid[2]]).max(0) as u64,
            false => 0,
        };
        let features = checkpoint.feature_rows();
        let rows = |n: usize| dit::cost::text_rows(device, n, TEXT_LEN);
        let negative = inputs
            .negative
            .filter(|_| settings.guide_scale.of(expert) != 1.0);
        let held = checkpoint.weights_held(expert.into(), device)?;
        let format = checkpoint.format(expert.into())?;
        let counts = [Some(inputs.prompt), negative];
        let prompts: Vec<usize> = counts.into_iter().flatten().collect();
        let mut works = vec![Work::load(expert.into(), None, format, held.bytes, device)];
        works.extend(read(expert.into(), device)?);
        works.extend(
            prompts
                .iter()
                .map(|&n| Work::prompt(config, format, n, device)),
        );
        let tokens = config.token_grid(grid);
        for (often, prompts) in [
            (steps.all - steps.guided, &prompts[..1]),
            (steps.guided, &prompts[..]),
        ] {
            if often > 0 {
                works.push(Work::steps(
                    config, format, memory, tokens, prompts, device, often,
                ));
            }
        }
        let texts: Vec<[u64; 2]> = prompts.iter().map(|&n| rows(n)).collect();
        add(
            (Phase::Denoising, Some(expert), steps),
            denoising(
                config,
                memory,
                sequence,
                rows(inputs.prompt),
                negative.map(rows),
                steps,
                [given, features],
            ) + dit::cost::unpacking(
                config,
                device,
                memory,
                held.quantized,
                &products_of(&texts, features),
                [sequence, given],
                [steps.all, steps.guided],
            ) + beside(held.beside, sequence, &products_of(&texts, features), steps),
            held.bytes,
            held.bytes
                + preview.max(dit::cost::peak_bytes(
                    config,
                    device,
                    memory,
                    dit::cost::Denoising {
                        tokens: sequence,
                        given,
                        text_rows: texts.iter().map(|[_, keys]| keys).sum::<u64>() + features,
                        quantized: held.quantized > 0,
                        guided: steps.guided > 0,
                        cells,
                        cache: settings.cache.method,
                    },
                )),
            works,
        );
    }

    let decoding: Counted<'_> =
        &|of, tiling| vae::cost::decode_operations(&checkpoint.vae, of, tiling);
    let [held, peak] = held_and_peak(&vae::cost::decode_phases(
        &checkpoint.vae,
        device,
        memory,
        grid,
    ));
    add(
        (Phase::Decoding, None, Steps::default()),
        decoding(grid, memory.decode_tiling),
        held,
        peak,
        of_vae(grid, Half::Decoder, decoder, memory.decode_tiling, decoding),
    );
    Ok(Forecast {
        passes,
        peak_bytes: phases
            .iter()
            .map(|phase| phase.peak_bytes)
            .max()
            .unwrap_or(0),
        seconds: phases.iter().map(|phase| phase.seconds).sum(),
        phases,
    })
}

fn steps_of(
    checkpoint: &Checkpoint,
    settings: &Settings,
    schedule: &Schedule,
    expert: Expert,
) -> Steps {
    let mut steps = Steps::default();
    let guides = settings.guide_scale.of(expert) != 1.0;
    for index in 0..schedule.steps() {
        if checkpoint.expert_at(schedule, index) == Some(expert) {
            steps.all += 1;
            let covered = settings.guide_interval.covers(index, schedule.steps());
            steps.guided += u64::from(guides && covered);
        }
    }
    steps
}

/// All operations of an expert in a run without a cache.
fn denoising(
    config: &DitConfig,
    memory: &MemoryPlan,
    tokens: u64,
    prompt: [u64; 2],
    negative: Option<[u64; 2]>,
    steps: Steps,
    [given, features]: [u64; 2],
) -> Operations {
    let cost = |[rows, keys]: [u64; 2], passes| {
        dit::cost::prompt(config, rows)
            + dit::cost::pass(config, tokens, [keys, features]).times(passes)
    };
    let joint = memory.joint_passes && given == 0;
    let starts = match joint || memory.shared_start {
        true => steps.all,
        false => steps.all + steps.guided,
    };
    // Where the first frame is given, its tokens have a timestep of their own.
    let times = steps.all * (1 + u64::from(given > 0));
    let every_step =
        dit::cost::step(config).times(times) + dit::cost::start(config, tokens).times(starts);
    let unconditional = negative.map(|rows| cost(rows, steps.guided));
    every_step
        + cost(prompt, steps.all)
        + unconditional.unwrap_or_default()
        + dit::cost::pictures(config, features)
}

/// Rows that go once through the products of every block: the prompts', and pictures' features.
fn products_of(texts: &[[u64; 2]], features: u64) -> Vec<u64> {
    let texts = texts.iter().map(|[rows, _]| *rows);
    texts.chain(once(features)).collect()
}

/// What adapters add beside quantized weights: to the tokens in every pass, to the text and to features,
/// which are the last of `rows`, once.
fn beside(
    [tokens, text, image]: [u64; 3],
    sequence: u64,
    rows: &[u64],
    steps: Steps,
) -> Operations {
    let (features, texts) = rows.split_last().unwrap_or((&0, &[]));
    let of_tokens = Operations::product(sequence, tokens, 1).times(steps.all + steps.guided);
    let of_text = Operations::product(texts.iter().sum(), text, 1);
    of_tokens + of_text + Operations::product(*features, image, 1)
}

/// Bytes of the weights, as the kernels have them, and of all there is at the peak.
fn held_and_peak(phases: &[vae::cost::Footprint]) -> [u64; 2] {
    let most = |of: fn(&vae::cost::Footprint) -> u64| phases.iter().map(of).max().unwrap_or(0);
    [
        most(|phase| phase.weights),
        most(vae::cost::Footprint::total),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{Options, Size};
    use crate::runtime::DeviceKind;
    use crate::tiny;
    use crate::weights::Loading;

    /// A guided clip, the last of whose steps are not.
    pub(super) fn forecast_of(checkpoint: &Checkpoint) -> Forecast {
        let (width, height) = (32, 32);
        let mut options = Options {
            size: Some(Size::Exact { width, height }),
            frames: Some(9),
            steps: Some(8),
            ..Options::default()
        };
        options.guide_scale = Some(crate::clip::GuideScale {
            low: 2.0,
            high: 3.0,
        });
        let settings = options
            .resolve(&checkpoint.settings, Some((32, 32)), 16)
            .unwrap();
        let device = Device::new(DeviceKind::Cpu, None);
        let inputs = Inputs {
            prompt: 10,
            negative: Some(3),
            pictures: 1,
            previews: false,
        };
        forecast(
            checkpoint,
            &settings,
            inputs,
            device,
            &MemoryPlan::WHOLE,
            None,
        )
        .unwrap()
    }

    #[test]
    fn times_are_those_of_the_phases_and_loading_is_part_of_them() {
        let checkpoint = Checkpoint::embedded(tiny::FILES, Loading::default()).unwrap();
        let made = forecast_of(&checkpoint);
        assert!(made.seconds.is_none() && made.phases[0].loading_seconds.is_none());
        let [slow, fast] = [1e9, 2e9].map(|rate| made.clone().timed(Some(&Rates::even(rate))));
        let sum: f64 = slow.phases.iter().filter_map(|phase| phase.seconds).sum();
        assert_eq!(slow.seconds, Some(sum));
        for (slow, fast) in slow.phases.iter().zip(&fast.phases) {
            let (seconds, loading) = (slow.seconds.unwrap(), slow.loading_seconds.unwrap());
            assert!(seconds > loading && loading > 0.0);
            assert!((fast.seconds.unwrap() * 2.0 / seconds - 1.0).abs() < 1e-9);
            // Without parts it is as long as at the rates of large products. A VAE's weights are loaded before
            // they are transformed and grow.
            let all = Rates::even(1e9).seconds(slow.operations, slow.weight_bytes);
            assert!((seconds / all - 1.0).abs() < 2e-2, "{seconds} {all}");
        }
        assert_eq!(slow.timed(None), made);
    }

    #[test]
    fn machines_share_what_is_computed_of_denoising() {
        let checkpoint = Checkpoint::embedded(tiny::FILES, Loading::default()).unwrap();
        let made = forecast_of(&checkpoint);
        let config = checkpoint.dit();
        let none = |_: bool| 0.0;
        let of = |machines, guided| Traffic::new(config, [3, 4, 4], 4, machines, guided, true);
        assert_eq!(made.shared_seconds(&of(2, true), none, None), None);
        let made = made.timed(Some(&Rates::even(1e9)));
        let all = made.seconds.unwrap();
        let denoising = made.phases.iter().filter(|phase| phase.steps.all > 0);
        let [mut computed, mut steps, mut guided] = [0.0; 3];
        for phase in denoising {
            computed += phase.seconds.unwrap() - phase.loading_seconds.unwrap();
            steps += phase.steps.all as f64;
            guided += phase.steps.guided as f64;
        }
        assert!(computed > 0.0 && steps == 8.0 && guided > 0.0);
        let is_near = |seconds: Option<f64>, expected: f64| {
            let seconds = seconds.unwrap();
            assert!(
                (seconds / expected - 1.0).abs() < 1e-9,
                "{seconds} {expected}"
            );
        };
        // Every pass has a third of its rows.
        let rest = all - computed;
        is_near(
            made.shared_seconds(&of(3, true), none, None),
            rest + computed / 3.0,
        );
        let exchange = |guided| if guided { 2.0 } else { 1.0 };
        is_near(
            made.shared_seconds(&of(3, true), exchange, None),
            rest + computed / 3.0 + steps + guided,
        );
        let decoding = made.phases.last().unwrap();
        let decoded = decoding.seconds.unwrap() - decoding.loading_seconds.unwrap();
        is_near(
            made.shared_seconds(&of(3, true), none, Some((0.25, 7.0))),
            rest + computed / 3.0 - 0.75 * decoded + 7.0,
        );
        // A guided step takes one pass instead of two.
        if guided == steps {
            is_near(
                made.shared_seconds(&of(2, true), none, None),
                rest + computed / 2.0,
            );
            is_near(
                made.shared_seconds(&of(4, true), none, None),
                rest + computed / 4.0,
            );
        } else {
            let two = made.shared_seconds(&of(2, true), none, None).unwrap();
            assert!(two > rest + computed / 2.0 && two < all, "{two}");
        }
    }
}
