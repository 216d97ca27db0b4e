//! How many clips can be in flight in the memory that there is.

use anyhow::{Result, bail};

use super::Entry;
use crate::pipeline::Phase;
use crate::pipeline::plan::Budget;

/// The most clips in flight unless more are asked for: with eight, loading the experts is an eighth
/// of what it is clip by clip, and the first of them are not kept waiting for too many others.
const USUAL: usize = 8;

/// What the memory allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Clips in flight at once.
    pub at_once: usize,
    /// Clips can be decoded while an expert stays loaded.
    pub decoder_beside_expert: bool,
    /// The most bytes at once.
    pub peak_bytes: u64,
}

/// What the memory allows: `explicit` clips in flight, or as many as fit, at most eight.
///
/// # Errors
/// When `explicit` are too many; says how many fit.
pub fn capacity<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    explicit: Option<usize>,
    budget: Budget,
) -> Result<Capacity> {
    let mut most = Needs::default();
    let mut clips = 0;
    for entry in entries {
        most.raise(entry);
        clips += 1;
    }
    let left = budget.for_arrays();
    let spare = left.saturating_sub(most.peak) / most.held.max(1);
    let fit = usize::try_from(spare)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    let at_once = match explicit {
        Some(count) if count > fit => bail!(
            "--jobs-at-once {count}: {budget}, in which {fit} of these clips can be in flight at \
             once; each holds up to {:.1} MB\nhint: make fewer at once, or allow more with \
             --memory-budget",
            most.held as f64 / 1e6
        ),
        Some(count) => count.max(1),
        None => fit.min(USUAL),
    };
    // Fewer clips hold less.
    let at_once = at_once.min(clips).max(1);
    let held = most.held * (at_once as u64 - 1);
    // Either is at work while the other's weights stay.
    let beside = (most.denoising + most.decoder).max(most.expert + most.decoding);
    let fits = held + beside <= left;
    Ok(Capacity {
        at_once,
        decoder_beside_expert: fits,
        peak_bytes: match fits {
            true => held + beside.max(most.peak),
            false => held + most.peak,
        },
    })
}

/// The largest of all clips, in bytes.
#[derive(Debug, Default)]
struct Needs {
    peak: u64,
    denoising: u64,
    expert: u64,
    decoding: u64,
    decoder: u64,
    held: u64,
}

impl Needs {
    fn raise(&mut self, entry: &Entry) {
        let forecast = entry.forecast();
        self.peak = self.peak.max(forecast.peak_bytes);
        self.held = self.held.max(entry.job().held_bytes());
        for phase in &forecast.phases {
            match phase.phase {
                Phase::Text | Phase::Image => {}
                Phase::Denoising => {
                    self.denoising = self.denoising.max(phase.peak_bytes);
                    self.expert = self.expert.max(phase.weight_bytes);
                }
                Phase::Decoding => {
                    self.decoding = self.decoding.max(phase.peak_bytes);
                    self.decoder = self.decoder.max(phase.weight_bytes);
                }
            }
        }
    }
}
