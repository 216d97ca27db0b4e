//! `wan-i2v plan`: a forecast for people and for scripts.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;

use crate::clip::{Model, Request, Settings, Size};
use crate::media::picture::Picture;
use crate::model::dit::share::Traffic;
use crate::model::vae::{Division, Tiling};
use crate::pipeline::plan::{
    CLIPS, Clip, ExchangeRate, Fits, Forecast, Inputs, PlannedMemory, Published, Rates,
    in_four_steps, plan_memory,
};
use crate::pipeline::{Phase, tokenize};
use crate::util::show::chain;
use crate::weights::quantize::{Bits, Scheme};
use crate::weights::{Checkpoint, Loading};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::place::Place;
use super::resolve::{self, Elsewhere};
use crate::cli::config::Catalogue;
use crate::cli::flags::PlanArgs;
use crate::cli::ui::{
    columns, exit_code, human_bytes, human_short_time, human_time, info, print, print_json, stderr,
};

/// Tokens of a prompt when none is given.
const PROMPT_TOKENS: usize = 64;
/// The picture's size when none is given.
const PICTURE: (usize, usize) = (832, 480);
/// The table's sizes: their names and pixels.
const AREAS: [(&str, u64); 2] = [("480p", 832 * 480), ("720p", 1280 * 720)];
/// The table's frames and steps.
const FRAMES: [u32; 2] = [33, 81];
const STEPS: [u32; 2] = [20, 40];

impl PlanArgs {
    /// Prints the forecast; fails when the clip does not fit.
    pub(crate) fn run(self, catalogue: &Catalogue) -> Result<ExitCode> {
        let (as_json, fresh, machines) = (self.json, self.measure, self.machines);
        let place = Place::of(&self.machine, self.mac)?;
        let Place { device, budget, .. } = place;
        let mut elsewhere = Elsewhere::new(true, catalogue);
        elsewhere.models.by_dimensions = true;
        let request = resolve::plan(self, &mut elsewhere)?;
        let checkpoint = request.model.open(request.loading.clone())?;
        let takes_picture = checkpoint.family.conditioning.takes_picture();
        let picture = match &request.image {
            Some(image) => Some(size_of(image)?),
            None => takes_picture.then_some(PICTURE),
        };
        let first = takes_picture.then(|| request.image.clone().unwrap_or_default());
        let first = first.as_deref().or(request.image.as_deref());
        let last = request.last_image.as_deref();
        // Of a model that has to have two, the second one's cost is the same whatever it is.
        let needs_last = last.is_none() && checkpoint.family.conditioning.takes_last();
        if !needs_last {
            checkpoint.family.check_pictures(first, last)?;
        }
        if let Some(last) = &request.last_image {
            Picture::open(last).context("--last-image")?;
        }
        let settings = request.resolve(&checkpoint, picture)?;
        let inputs = inputs(&checkpoint, &request, &settings)?;
        let clip = Clip {
            request: &request,
            checkpoint: &checkpoint,
            picture,
            settings: &settings,
            inputs,
        };
        // Of a machine that is not here nothing can be measured.
        let mut rates = match place.mac {
            Some(_) => None,
            None => Some(Rates::of_machine(device, fresh)?),
        };
        let settled = settle(clip, place, rates.as_mut())?;
        let few = in_few_steps(clip, place, rates.as_mut(), settled.forecast.passes)?;
        let refusal = (!settled.fits).then(|| place.refusal(clip, &settled.forecast));
        let ways = Ways::of(&settled, &checkpoint, &settings);
        let shared = machines.map(|machines| Shared::of(machines, &settled, clip, place));
        let macs = Published::default().macs()?;
        if as_json {
            let macs = macs.iter().map(|(memory, fits)| {
                let clips = CLIPS.iter().zip(fits).map(|((size, _, frames), bits)| {
                    json!({ "size": size, "frames": frames, "most_bits": bits })
                });
                json!({ "memory_gb": memory, "clips": clips.collect::<Vec<_>>() })
            });
            let mut report = json!({
                "width": settings.width,
                "height": settings.height,
                "frame_size": settings.frame_size(&checkpoint.vae),
                "frames": settings.frames,
                "steps": settings.steps,
                "device": device.kind.to_string(),
                "precision": device.dtype.to_string(),
                "mac_memory_gb": place.mac,
                "rates": rates,
                "memory_budget": budget.bytes,
                "fits": settled.fits,
                "refusal": refusal,
                "computed": ways,
                "forecast": settled.forecast,
                "in_four_steps": few.as_ref().map(|few| {
                    json!({ "passes": few.passes, "seconds": few.seconds })
                }),
                "published_on_macs": macs.collect::<Vec<_>>(),
            });
            if let Some(shared) = &shared {
                report["machines"] = json!(shared);
            }
            print_json(&report)?;
        } else {
            let mut text = answer(&settled, clip, &settings, place);
            if let Some(few) = &few {
                text += &format!(
                    "With --preset lightning and adapters for it: {}.\n",
                    passes(few)
                );
            }
            text.push('\n');
            text += &phases(&settled.forecast);
            let _ = writeln!(text, "\nComputed with {}.", ways.describe(&checkpoint));
            text += &shared.map(|shared| shared.describe()).unwrap_or_default();
            if let Some(rates) = &rates {
                let _ = writeln!(text, "Times at the rates of {}.", rates.machine);
            }
            // A model that knows one size only has nothing to choose.
            if checkpoint.settings.size.is_none() {
                text += &choices(clip, place, rates.as_mut())?;
            }
            text += &on_macs(&macs);
            print(&text)?;
        }
        if let Some(refusal) = &refusal
            && !as_json
        {
            stderr::error(refusal, 1);
        }
        Ok(exit_code(settled.fits))
    }
}

/// The clip's plan, with its times where there are rates: what they lack is measured.
fn settle(clip: Clip<'_>, place: Place, rates: Option<&mut Rates>) -> Result<PlannedMemory> {
    let settled = plan_memory(clip, place.device, place.budget, None)?;
    let Some(rates) = rates else {
        return Ok(settled);
    };
    if settled.fits {
        settled.forecast.measure(rates, clip.checkpoint);
    }
    Ok(PlannedMemory {
        forecast: settled.forecast.timed(Some(rates)),
        ..settled
    })
}

/// What is asked, in two lines.
fn answer(settled: &PlannedMemory, clip: Clip<'_>, settings: &Settings, place: Place) -> String {
    let model = match clip.request.model {
        Model::Tiny => "The built-in miniature",
        _ => clip.checkpoint.family.name,
    };
    let made = &settled.forecast;
    let peak = human_bytes(made.peak_bytes);
    let limit = place.limit();
    let fits = match settled.fits {
        true => format!("It fits: {peak} at its peak of {limit}"),
        false => format!("It does not fit: {peak} at its peak, more than {limit}"),
    };
    let (width, height) = (settings.width, settings.height);
    let decoded = match settings.frame_size(&clip.checkpoint.vae) {
        size if size == (width, height) => String::new(),
        (width, height) => format!(", decoded to {width} x {height}"),
    };
    format!(
        "{fits}.\n{model}: {width} x {height} pixels{decoded}, {} frames, {} steps, {}.\n",
        settings.frames,
        settings.steps,
        passes(made),
    )
}

/// Wires, and the most bytes that go over one a second.
pub(super) const WIRES: [(&str, f64); 2] = [
    ("Thunderbolt 5 (10 GB/s)", 10e9),
    ("10 GbE (1.25 GB/s)", 1.25e9),
];

/// The clip on several machines.
#[derive(Debug, Serialize)]
struct Shared {
    machines: u64,
    /// Whether half of them predict for the negative prompt.
    guidance: bool,
    /// How many share the sequence of a pass.
    sequence: u64,
    /// Whether it has guided steps, of which the bytes and seconds are.
    guided: bool,
    /// The most bytes that one of them sends a step.
    sent_bytes: u64,
    /// The most bytes on a machine that has the transformers alone; rank 0 takes what one machine does.
    peak_bytes: u64,
    /// How many of them decode, where that is shared.
    decoding: Option<Decoders>,
    /// What was measured between so many machines, if it was.
    rate: Option<ExchangeRate>,
    /// What that makes of the exchange of a step, and of the clip.
    exchange_seconds: Option<f64>,
    seconds: Option<f64>,
    /// The same by the rates of wires.
    wires: Vec<OverWire>,
}

/// Machines that decode the clip.
#[derive(Debug, Serialize)]
struct Decoders {
    machines: usize,
    /// The part of the work of the one that has most.
    largest_share: f64,
    /// Of latents there, and of pixels back.
    exchanged_bytes: u64,
}

/// What a wire makes of the clip.
#[derive(Debug, Serialize)]
struct OverWire {
    wire: &'static str,
    bytes_per_second: f64,
    exchange_seconds: f64,
    seconds: Option<f64>,
}

impl Shared {
    fn of(machines: u64, settled: &PlannedMemory, clip: Clip<'_>, place: Place) -> Self {
        let guided = clip.inputs.negative.is_some();
        let (vae, tiling) = (&clip.checkpoint.vae, settled.memory.decode_tiling);
        let grid = clip.settings.latent_grid(vae);
        let traffic = Traffic::new(
            clip.checkpoint.dit(),
            grid,
            place.device.dtype.matmul_dtype_size() as u64,
            machines,
            guided,
            settled.memory.shared_start,
        );
        let forecast = &settled.forecast;
        let denoising = forecast
            .phases
            .iter()
            .filter(|phase| phase.phase == Phase::Denoising);
        let division = Division::of(vae, tiling, grid, machines as usize);
        let decoding = division.map(|division| {
            let (largest_share, exchanged_bytes) = division.cost(vae, tiling, grid);
            Decoders {
                machines: division.machines(),
                largest_share,
                exchanged_bytes,
            }
        });
        let times = |rate, least| {
            let exchange = |guided| traffic.seconds(guided, rate, least);
            let decoding = (decoding.as_ref())
                .map(|all| (all.largest_share, all.exchanged_bytes as f64 / rate));
            let seconds = forecast.shared_seconds(&traffic, exchange, decoding);
            (exchange(guided), seconds)
        };
        let wires = WIRES.map(|(wire, bytes_per_second)| {
            let (exchange_seconds, seconds) = times(bytes_per_second, 0.0);
            OverWire {
                wire,
                bytes_per_second,
                exchange_seconds,
                seconds,
            }
        });
        // Between machines that are not here nothing was measured.
        let rate = match place.mac {
            Some(_) => None,
            None => ExchangeRate::of_wire(machines as usize),
        };
        let measured = rate
            .as_ref()
            .map(|rate| times(rate.bytes_per_second, rate.least_seconds));
        Self {
            machines,
            guidance: traffic.halves(),
            sequence: traffic.sequence(),
            guided,
            sent_bytes: traffic.most_sent(guided),
            peak_bytes: denoising
                .map(|phase| phase.peak_bytes)
                .max()
                .unwrap_or_default(),
            decoding,
            rate,
            exchange_seconds: measured.map(|(exchange, _)| exchange),
            seconds: measured.and_then(|(_, seconds)| seconds),
            wires: wires.into(),
        }
    }

    fn describe(&self) -> String {
        let what = match (self.guidance, self.sequence) {
            (true, 1) => &["guidance"][..],
            (true, _) => &["guidance", "the sequence"],
            (false, _) => &["the sequence"],
        };
        let what = [what, self.decoding.as_ref().map_or(&[], |_| &["decoding"])].concat();
        let what = match what.as_slice() {
            [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
            all => all.concat(),
        };
        let step = if self.guided {
            "a guided step"
        } else {
            "a step"
        };
        let mut text = format!(
            "\n{} machines share {what}.\nThe others need {} at most. Each sends up to {} {step},\n",
            self.machines,
            human_bytes(self.peak_bytes),
            human_bytes(self.sent_bytes),
        );
        let the_clip = |seconds: Option<f64>| match seconds {
            Some(seconds) => format!(": the clip takes at most {}", human_time(seconds)),
            None => String::new(),
        };
        if let (Some(rate), Some(exchange)) = (&self.rate, self.exchange_seconds) {
            let others = match rate.machines.as_slice() {
                [_, other] => other.to_string(),
                all => format!("{} others", all.len().saturating_sub(1)),
            };
            let first = rate.machines.first().map(Ipv4Addr::to_string);
            let _ = writeln!(
                text,
                "{} at the {}/s measured between {}\nand {others}{}.",
                human_short_time(exchange),
                human_bytes(rate.bytes_per_second as u64),
                first.unwrap_or_default(),
                the_clip(self.seconds),
            );
            return text;
        }
        text += "which takes, at the wire's own rate:";
        for OverWire {
            wire,
            exchange_seconds,
            seconds,
            ..
        } in &self.wires
        {
            let exchange = human_short_time(*exchange_seconds);
            let _ = write!(text, "\n  {exchange} over {wire}{}", the_clip(*seconds));
        }
        text + "\nwan-i2v launch --hosts a,b -- doctor measures the rate between your machines.\n"
    }
}

/// How many passes, and their time where it is known.
fn passes(made: &Forecast) -> String {
    let time = match made.seconds {
        Some(seconds) => format!(", about {}", human_time(seconds)),
        None => String::new(),
    };
    format!("{} passes{time}", made.passes)
}

/// What the clip costs with a model or adapters for four steps, unless it takes no more than these.
fn in_few_steps(
    clip: Clip<'_>,
    place: Place,
    rates: Option<&mut Rates>,
    passes: usize,
) -> Result<Option<Forecast>> {
    if passes <= 4 {
        return Ok(None);
    }
    let (settings, inputs) = in_four_steps(clip.settings, clip.inputs);
    let clip = Clip {
        settings: &settings,
        inputs,
        ..clip
    };
    Ok(Some(settle(clip, place, rates)?.forecast))
}

/// How a clip is computed.
#[derive(Debug, Serialize)]
struct Ways {
    /// Whether both guidance passes run as one.
    joint_guidance: bool,
    /// Tokens that a block computes at once, when not all.
    chunk_tokens: Option<i32>,
    /// Tiles of a frame and their latent rows and columns, when there are several.
    encoding_tiles: Option<(usize, [i32; 2])>,
    decoding_tiles: Option<(usize, [i32; 2])>,
}

impl Ways {
    fn of(settled: &PlannedMemory, checkpoint: &Checkpoint, settings: &Settings) -> Self {
        let memory = &settled.memory;
        let grid = settings.latent_grid(&checkpoint.vae);
        let tokens = checkpoint.dit().tokens(grid);
        let tiles = |tiling: Option<Tiling>| {
            tiling.map(|tiling| (tiling.tiles(grid[1], grid[2]).len(), tiling.tile))
        };
        Self {
            joint_guidance: settings.guide_scale.needs_negative() && memory.joint_passes,
            chunk_tokens: (tokens > memory.chunk_rows).then_some(memory.chunk_rows),
            encoding_tiles: tiles(memory.encode_tiling),
            decoding_tiles: tiles(memory.decode_tiling),
        }
    }

    fn describe(&self, checkpoint: &Checkpoint) -> String {
        let side = checkpoint.vae.spatial_stride();
        let tiles = |tiles: Option<(usize, [i32; 2])>| match tiles {
            Some((count, [rows, columns])) => {
                let (width, height) = (columns * side, rows * side);
                format!("in {count} tiles of {width} x {height} pixels")
            }
            None => "in whole frames".into(),
        };
        format!(
            "guidance in {}, tokens {}, image {}, decoding {}",
            match self.joint_guidance {
                true => "one batch",
                false => "separate passes",
            },
            match self.chunk_tokens {
                Some(rows) => format!("{rows} at a time"),
                None => "all at once".into(),
            },
            tiles(self.encoding_tiles),
            tiles(self.decoding_tiles),
        )
    }
}

fn size_of(image: &Path) -> Result<(usize, usize)> {
    let picture = Picture::open(image).context("--image")?;
    Ok((picture.width(), picture.height()))
}

/// Sizes of the inputs, of the real prompts where the model has a tokenizer.
fn inputs(checkpoint: &Checkpoint, request: &Request, settings: &Settings) -> Result<Inputs> {
    let takes_picture = checkpoint.family.conditioning.takes_picture();
    let pictures = usize::from(takes_picture) + usize::from(request.last_image.is_some());
    let ids = match tokenize(checkpoint, &request.prompt, settings) {
        Ok(ids) => ids,
        Err(error) => {
            // A model that is not here has no tokenizer, which matters to who gives a prompt.
            let is_away = matches!(request.model, Model::Published(_));
            if !is_away || !request.prompt.is_empty() {
                info!(
                    "note: prompts are taken to have {PROMPT_TOKENS} tokens: {}",
                    chain(&error)
                );
            }
            return Ok(Inputs {
                prompt: PROMPT_TOKENS,
                negative: settings
                    .guide_scale
                    .needs_negative()
                    .then_some(PROMPT_TOKENS),
                pictures,
                previews: false,
            });
        }
    };
    Ok(Inputs {
        prompt: match request.prompt.is_empty() {
            true => PROMPT_TOKENS,
            false => ids.prompt.ids.len(),
        },
        negative: ids.negative.map(|ids| ids.ids.len()),
        pictures,
        previews: false,
    })
}

fn phases(made: &Forecast) -> String {
    let heading = ["phase", "operations", "weights", "peak memory", "time"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(made.phases.iter().map(|phase| {
        vec![
            phase.name(),
            flops(phase.operations.total()),
            human_bytes(phase.weight_bytes),
            human_bytes(phase.peak_bytes),
            seconds(phase.seconds),
        ]
    }));
    let (peak, time) = (human_bytes(made.peak_bytes), seconds(made.seconds));
    rows.push(vec![
        "in all".into(),
        flops(made.operations().total()),
        String::new(),
        peak,
        time,
    ]);
    if made.seconds.is_none() {
        rows.iter_mut().for_each(|row| row.truncate(4));
    }
    columns(&rows, |column| column > 0)
}

/// Peak memory and time over sizes, frames, bits and steps.
fn choices(clip: Clip<'_>, place: Place, mut rates: Option<&mut Rates>) -> Result<String> {
    let budget = place.budget;
    let heading = ["size", "frames", "bits", "peak memory"].map(str::to_owned);
    let steps: &[u32] = if rates.is_some() { &STEPS } else { &STEPS[..1] };
    let fates = steps.iter().map(|steps| match &rates {
        Some(_) => format!("{steps} steps"),
        None => format!("within {}", human_bytes(budget.bytes)),
    });
    let mut rows = vec![heading.into_iter().chain(fates).collect::<Vec<_>>()];
    let asked = &clip.request.loading;
    let all = |scheme: Scheme| Loading {
        adapters: asked.adapters.clone(),
        merges: asked.merges,
        ..Loading::all(scheme)
    };
    let own = asked.high.filter(|&scheme| all(scheme) == *asked);
    let name = own.map_or("as is".into(), |scheme| scheme.to_string());
    let mut models = vec![(name, None)];
    for bits in [Bits::Eight, Bits::Four] {
        if all(bits.into()) == *asked {
            continue;
        }
        // What is quantized already cannot be quantized again.
        if let Ok(checkpoint) = clip.request.model.open(all(bits.into())) {
            models.push((bits.to_string(), Some(checkpoint)));
        }
    }
    for (name, area) in AREAS {
        for frames in FRAMES {
            for (bits, checkpoint) in &models {
                let checkpoint = checkpoint.as_ref().unwrap_or(clip.checkpoint);
                let mut row = vec![name.to_owned(), frames.to_string(), bits.clone()];
                for (i, steps) in steps.iter().enumerate() {
                    let mut request = clip.request.clone();
                    request.options.size = Some(Size::Area(area));
                    request.options.frames = Some(frames);
                    request.options.steps = Some(*steps);
                    let settings = request.resolve(checkpoint, clip.picture)?;
                    let clip = Clip {
                        request: &request,
                        checkpoint,
                        settings: &settings,
                        ..clip
                    };
                    let settled = settle(clip, place, rates.as_deref_mut())?;
                    let made = &settled.forecast;
                    if i == 0 {
                        row.push(human_bytes(made.peak_bytes));
                    }
                    row.push(match (settled.fits, made.seconds) {
                        (false, _) => "does not fit".into(),
                        (true, None) => "fits".into(),
                        (true, Some(seconds)) => human_time(seconds),
                    });
                }
                rows.push(row);
            }
        }
    }
    Ok(format!("\n{}", columns(&rows, |column| column > 0)))
}

/// What of the published model fits on which Mac.
fn on_macs(macs: &[(u64, Fits)]) -> String {
    let clips = CLIPS.map(|(size, _, frames)| format!("{size} x {frames}"));
    let mut rows = vec![[vec!["Mac".to_owned()], clips.to_vec()].concat()];
    rows.extend(macs.iter().map(|(memory, fits)| {
        let cells = fits.map(|bits| bits.map_or("-".into(), |bits| format!("{bits} bits")));
        [vec![format!("{memory} GB")], cells.to_vec()].concat()
    }));
    format!(
        "\nThe most bits at which Wan2.2 I2V-A14B fits (pixels x frames):\n{}",
        columns(&rows, |column| column > 0)
    )
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("?".into(), human_time)
}

/// Operations for people: `12.3 G`, `1.80 P`.
fn flops(count: u64) -> String {
    let count = count as f64;
    match count {
        0.0..1e9 => format!("{:.1} MFLOP", count / 1e6),
        1e9..1e12 => format!("{:.1} GFLOP", count / 1e9),
        1e12..1e15 => format!("{:.2} TFLOP", count / 1e12),
        _ => format!("{:.2} PFLOP", count / 1e15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_machines_share_fits_eighty_columns() {
        let long = [[192, 168, 100, 100], [192, 168, 100, 101]].map(Ipv4Addr::from);
        let of = |rate: Option<(&[Ipv4Addr], f64)>, seconds| {
            let times = |exchange| (rate.is_some()).then_some(exchange);
            Shared {
                machines: 4,
                guidance: true,
                sequence: 2,
                guided: true,
                sent_bytes: 253_800_000_000,
                peak_bytes: 14_300_000_000,
                decoding: Some(Decoders {
                    machines: 4,
                    largest_share: 0.3,
                    exchanged_bytes: 300_000_000,
                }),
                exchange_seconds: times(725.0),
                seconds: times(43_000.0).and(seconds),
                rate: rate.map(|(machines, rate)| ExchangeRate::now(machines.to_vec(), rate, 1e-3)),
                wires: WIRES
                    .map(|(wire, bytes_per_second)| OverWire {
                        wire,
                        bytes_per_second,
                        exchange_seconds: 725.0,
                        seconds,
                    })
                    .into(),
            }
        };
        let seconds = Some(43_000.0);
        for (shared, last) in [
            (
                of(Some((&long, 523e6)), seconds),
                "12 min 05 s at the 523.0 MB/s measured between 192.168.100.100\n\
                 and 192.168.100.101: the clip takes at most 11 h 56 min.\n",
            ),
            (
                of(Some((&[long, long].concat(), 1.1e9)), None),
                "12 min 05 s at the 1.1 GB/s measured between 192.168.100.100\n\
                 and 3 others.\n",
            ),
            (
                of(None, seconds),
                "which takes, at the wire's own rate:\n  \
                 12 min 05 s over Thunderbolt 5 (10 GB/s): the clip takes at most 11 h 56 min\n  \
                 12 min 05 s over 10 GbE (1.25 GB/s): the clip takes at most 11 h 56 min\n\
                 wan-i2v launch --hosts a,b -- doctor measures the rate between your machines.\n",
            ),
        ] {
            let text = shared.describe();
            let first = "\n4 machines share guidance, the sequence and decoding.\n\
                         The others need 14.3 GB at most. Each sends up to 253.8 GB a guided step,\n";
            assert_eq!(text, format!("{first}{last}"));
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
    }
}
