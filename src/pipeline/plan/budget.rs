//! Which way of computing keeps a clip within a memory budget, and what else would when none does.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::{Forecast, Inputs, Rates, forecast};
use crate::clip::{Options, Request, Settings, Size};
use crate::model::MemoryPlan;
use crate::model::vae::TEMPORAL_STRIDE;
use crate::runtime::{Device, default_memory_budget, machine_memory};
use crate::weights::{Bits, Checkpoint, Loading};

/// Bytes that the program takes besides its arrays: code, threads, buffers of the media libraries.
/// Measured as 72 MB on Linux, the miniature's files included.
const PROGRAM_BYTES: u64 = 100_000_000;

/// Rows of a chunk and bytes of scores, from the least work to the least memory.
const CHUNKS: [(i32, u64); 6] = [
    (i32::MAX, 512 << 20),
    (16_384, 512 << 20),
    (8192, 256 << 20),
    (4096, 128 << 20),
    (2048, 64 << 20),
    (1024, 32 << 20),
];
/// The least rows of a chunk with fused attention.
const FUSED_LEAST_ROWS: i32 = 2048;

/// Those of [`CHUNKS`] that an expert with heads of `width` may use: where its attention is fused fewer
/// rows have no smaller scores, and ever more calls each read all keys and values.
/// The last again with passes that share nothing.
fn ways(device: Device, width: i32) -> Vec<(i32, u64, bool)> {
    let fused = device.fuses(width);
    let chunks = CHUNKS
        .iter()
        .filter(|(rows, _)| !fused || *rows >= FUSED_LEAST_ROWS);
    let mut ways: Vec<_> = chunks.map(|&(rows, bytes)| (rows, bytes, true)).collect();
    if let Some(&(rows, bytes, _)) = ways.last() {
        ways.push((rows, bytes, false));
    }
    ways
}

/// A budget and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes.
    pub bytes: u64,
    /// Whether the user named them.
    pub explicit: bool,
}

impl Budget {
    /// What a run may take on this machine where nobody says otherwise.
    pub fn of_machine(device: Device) -> Self {
        Self {
            bytes: default_memory_budget(device.kind),
            explicit: false,
        }
    }

    /// The largest budget into which a run of `peak_bytes` does not fit.
    pub fn below(peak_bytes: u64) -> u64 {
        peak_bytes.saturating_add(PROGRAM_BYTES - 1)
    }

    /// Bytes without what the program itself takes.
    pub fn for_arrays(&self) -> u64 {
        self.bytes.saturating_sub(PROGRAM_BYTES)
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.explicit {
            true => write!(f, "--memory-budget {}", gigabytes(self.bytes)),
            false => write!(
                f,
                "a run may take {} GB on this machine",
                gigabytes(self.bytes)
            ),
        }
    }
}

/// What is to be made with which model.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// The request.
    pub request: &'a Request,
    /// Its model.
    pub checkpoint: &'a Checkpoint,
    /// Width and height of the picture, if there is one.
    pub picture: Option<(usize, usize)>,
    /// Its settings.
    pub settings: &'a Settings,
    /// Sizes of what it is made from.
    pub inputs: Inputs,
}

/// A way of computing a clip.
#[derive(Clone, Debug)]
pub struct PlannedMemory {
    /// In what parts.
    pub memory: MemoryPlan,
    /// What it costs.
    pub forecast: Forecast,
    /// Whether it stays within the budget.
    pub fits: bool,
}

/// The way with the least work among those in which every phase of the clip stays within
/// `budget`, or the one that needs the least memory.
///
/// # Errors
/// When a file of the checkpoint cannot be read any more.
pub fn plan_memory(
    clip: Clip<'_>,
    device: Device,
    budget: Budget,
    rates: Option<&Rates>,
) -> Result<PlannedMemory> {
    let Clip {
        checkpoint,
        settings,
        inputs,
        ..
    } = clip;
    plan_settings(checkpoint, settings, inputs, device, budget, rates)
}

/// As [`plan_memory`], of a model and settings that nobody has asked for.
pub(super) fn plan_settings(
    checkpoint: &Checkpoint,
    settings: &Settings,
    inputs: Inputs,
    device: Device,
    budget: Budget,
    rates: Option<&Rates>,
) -> Result<PlannedMemory> {
    let bytes = budget.for_arrays();
    let grid = settings.latent_grid(&checkpoint.vae);
    let mut parts = MemoryPlan::of_tokens(checkpoint.dit().tokens(grid));
    let mut chunks = ways(device, checkpoint.dit().attention_head_dim).into_iter();
    loop {
        let memory = parts.in_tiles(&checkpoint.vae, device, grid, bytes);
        let forecast = forecast(checkpoint, settings, inputs, device, &memory, rates)?;
        let fits = forecast.peak_bytes <= bytes;
        let next = chunks.next().filter(|_| !fits);
        let Some((chunk_rows, score_bytes, shared_start)) = next else {
            return Ok(PlannedMemory {
                memory,
                forecast,
                fits,
            });
        };
        parts = MemoryPlan {
            chunk_rows,
            score_bytes,
            joint_passes: false,
            shared_start,
            ..parts
        };
    }
}

/// [`plan_memory`], refusing what does not fit.
///
/// # Errors
/// When the clip does not fit; the message names the phase, what it needs, and the nearest
/// settings that fit. Also when a file of the checkpoint cannot be read any more.
pub fn plan_memory_or_refuse(
    clip: Clip<'_>,
    device: Device,
    budget: Budget,
    rates: Option<&Rates>,
) -> Result<PlannedMemory> {
    let settled = plan_memory(clip, device, budget, rates)?;
    if !settled.fits {
        bail!("{}", refusal(clip, device, budget, &settled.forecast));
    }
    Ok(settled)
}

/// A warning that a run of `peak_bytes` finds less memory `free` now than it will take, if so. How
/// a clip is computed does not depend on it.
pub fn shortage(peak_bytes: u64, free: Option<u64>) -> Option<String> {
    let needed = peak_bytes + PROGRAM_BYTES;
    let free = free.filter(|&free| free < needed)?;
    Some(format!(
        "the run needs {} GB of memory, and {} GB are free now\nhint: close other programs, or give \
         --memory-budget {} to compute in smaller parts",
        gigabytes(needed),
        gigabytes(free),
        gigabytes(free)
    ))
}

/// Why a clip that takes `least` at least does not fit, and what would.
pub fn refusal(clip: Clip<'_>, device: Device, budget: Budget, least: &Forecast) -> String {
    let text = budget.to_string();
    refusal_on(clip, device, budget, least, text, machine_memory())
}

/// As [`refusal`], on a Mac with so many GB.
pub fn refusal_on_mac(
    clip: Clip<'_>,
    device: Device,
    budget: Budget,
    least: &Forecast,
    memory: u64,
) -> String {
    let bytes = gigabytes(budget.bytes);
    let text = format!("a run may take {bytes} GB on a Mac with {memory} GB");
    refusal_on(clip, device, budget, least, text, memory * 1_000_000_000)
}

fn refusal_on(
    clip: Clip<'_>,
    device: Device,
    budget: Budget,
    least: &Forecast,
    mut message: String,
    machine: u64,
) -> String {
    let needed = least.peak_bytes + PROGRAM_BYTES;
    if let Some(phase) = least.phases.iter().max_by_key(|phase| phase.peak_bytes) {
        let _ = write!(
            message,
            ": {} needs {} GB, {} GB of them for weights, in however small parts it is computed",
            phase.name(),
            gigabytes(needed),
            gigabytes(phase.weight_bytes),
        );
    }
    message + "\nhint: " + &advice(&alternatives(clip, device, budget), needed, machine)
}

/// What makes a clip fit that needs so many bytes: other flags, or a larger budget where the machine has
/// the memory.
fn advice(others: &[String], needed: u64, machine: u64) -> String {
    // Rounded up, so that what is named is enough.
    let enough = needed + needed / 50;
    let fits = format!("it fits with {}", others.join(", or "));
    let more = format!("allow more with --memory-budget {}", gigabytes(enough));
    match (others.is_empty(), enough <= machine) {
        (true, true) => more,
        (true, false) => format!(
            "this machine has {} GB of memory; a larger one, or a smaller model, can make the clip",
            gigabytes(machine)
        ),
        (false, true) => format!("{fits}; or {more}"),
        (false, false) => fits,
    }
}

/// Flags, one change at a time, with which the clip fits: fewer bits, fewer frames, fewer pixels;
/// and all of them together when none does alone.
fn alternatives(clip: Clip<'_>, device: Device, budget: Budget) -> Vec<String> {
    // What is quantized already cannot be quantized again.
    let fewer_bits: Vec<_> = [Bits::Eight, Bits::Four]
        .into_iter()
        .filter_map(|bits| Some((clip.request.model.open(Loading::all(bits)).ok()?, bits)))
        .collect();
    let fits = |checkpoint: &Checkpoint, request: &Request| {
        let Ok(settings) = request.resolve(checkpoint, clip.picture) else {
            return false;
        };
        let clip = Clip {
            request,
            checkpoint,
            settings: &settings,
            ..clip
        };
        plan_memory(clip, device, budget, None).is_ok_and(|settled| settled.fits)
    };
    let with = |change: &dyn Fn(&mut Options)| {
        let mut request = clip.request.clone();
        change(&mut request.options);
        request
    };
    let alone = |checkpoint: &Checkpoint, bits: &str| {
        let mut found = Vec::new();
        let join = |flag: String| match bits.is_empty() {
            true => flag,
            false => format!("{bits} {flag}"),
        };
        let frames = most_frames(clip.settings.frames, |frames| {
            let frames = Some(frames);
            fits(checkpoint, &with(&|options| options.frames = frames))
        });
        found.extend(frames.map(|frames| join(format!("--frames {frames}"))));
        let pixels = u64::from(clip.settings.width) * u64::from(clip.settings.height);
        // A model that knows one size has no smaller one.
        let areas = areas_below(pixels).filter(|_| checkpoint.settings.size.is_none());
        for (name, area) in areas {
            let size = Some(Size::Area(area));
            if fits(checkpoint, &with(&|options| options.size = size)) {
                found.push(join(format!("--area {name}")));
                break;
            }
        }
        found
    };
    let mut found = alone(clip.checkpoint, "");
    let enough = fewer_bits
        .iter()
        .find(|(checkpoint, _)| fits(checkpoint, clip.request));
    match (enough, fewer_bits.last()) {
        (Some((_, bits)), _) => found.insert(0, format!("--bits {bits}")),
        (None, Some((checkpoint, bits))) if found.is_empty() => {
            found = alone(checkpoint, &format!("--bits {bits}"));
        }
        _ => {}
    }
    found
}

/// The largest number of frames below `frames` that a clip may have and that fits. More take more
/// memory, so that a number that fits halves what is left to be tried.
fn most_frames(frames: u32, fits: impl Fn(u32) -> bool) -> Option<u32> {
    let stride = TEMPORAL_STRIDE as u32;
    let (mut fitting, mut beyond) = (None, frames.saturating_sub(1) / stride);
    let mut least = 0;
    while least < beyond {
        let latent = least + (beyond - least) / 2;
        let frames = latent * stride + 1;
        match fits(frames) {
            true => (fitting, least) = (Some(frames), latent + 1),
            false => beyond = latent,
        }
    }
    fitting
}

/// Areas below `pixels`, the largest first, as `--area` takes them.
fn areas_below(pixels: u64) -> impl Iterator<Item = (String, u64)> {
    let named = [("720p", 1280 * 720), ("480p", 832 * 480)].map(|(name, area)| (name.into(), area));
    let parts = [75_u64, 50, 35, 25, 15, 10, 5].map(|percent| {
        let area = pixels * percent / 100;
        (area.to_string(), area)
    });
    let mut all: Vec<(String, u64)> = named.into_iter().chain(parts).collect();
    all.retain(|(_, area)| *area < pixels);
    all.sort_by_key(|(_, area)| std::cmp::Reverse(*area));
    all.into_iter()
}

/// Gigabytes with three digits: `0.115`, `9.87`, `28.6`.
fn gigabytes(bytes: u64) -> String {
    let number = bytes as f64 / 1e9;
    match number {
        0.0..1.0 => format!("{number:.3}"),
        1.0..10.0 => format!("{number:.2}"),
        _ => format!("{number:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frames_that_fit_are_found_in_few_tries() {
        let tries = std::cell::Cell::new(0);
        for (frames, limit, most) in [
            (81, 40, Some(37)),
            (81, 37, Some(37)),
            (81, 200, Some(77)),
            (81, 1, Some(1)),
            (81, 0, None),
            (5, 5, Some(1)),
            (1, 1, None),
            (4001, 100, Some(97)),
        ] {
            tries.set(0);
            let found = most_frames(frames, |frames| {
                tries.set(tries.get() + 1);
                frames <= limit
            });
            assert_eq!(found, most, "{frames}, {limit}");
            assert!(tries.get() <= 10, "{}", tries.get());
        }
    }

    #[test]
    fn no_more_memory_is_advised_than_the_machine_has() {
        let others = ["--bits 4".to_owned(), "--frames 5".to_owned()];
        let gb = 1_000_000_000;
        let both = "it fits with --bits 4, or --frames 5";
        assert_eq!(
            advice(&others, 10 * gb, 16 * gb),
            format!("{both}; or allow more with --memory-budget 10.2")
        );
        assert_eq!(advice(&others, 16 * gb, 16 * gb), both);
        assert_eq!(
            advice(&[], gb, 16 * gb),
            "allow more with --memory-budget 1.02"
        );
        assert!(advice(&[], 20 * gb, 16 * gb).starts_with("this machine has 16.0 GB"));
    }

    #[test]
    fn less_free_memory_than_a_run_takes_is_warned_of() {
        let peak = 2_000_000_000;
        assert_eq!(shortage(peak, None), None);
        assert_eq!(shortage(peak, Some(peak + PROGRAM_BYTES)), None);
        let warning = shortage(peak, Some(peak + PROGRAM_BYTES - 1)).unwrap();
        assert!(warning.contains("needs 2.10 GB"), "{warning}");
        assert!(warning.contains("--memory-budget 2.10"), "{warning}");
    }
}
