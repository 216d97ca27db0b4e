//! Statistics of latents.

use anyhow::{Result, ensure};
use ndarray::{ArrayView3, ArrayView4, Axis, Zip};
use serde::Serialize;

use super::causes;
use super::report::{Report, Size};
use super::symptoms::non_finite;
use super::verdict::{Run, Symptom, Verdict};

/// Statistics of one latent frame over its finite values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatentStats {
    /// Its number, from 0.
    pub frame: usize,
    /// Mean over all channels.
    pub mean: f64,
    /// Standard deviation over all channels.
    pub std: f64,
    /// The lowest value.
    pub min: f32,
    /// The highest value.
    pub max: f32,
    /// Standard deviation of the pixels within each channel (root of the mean variance).
    pub contrast: f64,
    /// Mean absolute difference from the latent frame before; `None` for the first one.
    pub difference: Option<f64>,
    /// Correlation of neighbours within a channel: 0 for white noise, towards 1 for pictures;
    /// `None` for latents that do not vary.
    pub correlation: Option<f64>,
    /// Mean and standard deviation of each channel.
    pub channels: Vec<ChannelStats>,
    /// Values that are infinite or no number.
    pub non_finite: usize,
}

/// Statistics of one channel of a latent frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChannelStats {
    /// Mean over the pixels.
    pub mean: f64,
    /// Standard deviation over the pixels.
    pub std: f64,
}

/// Analyzes latents `[channels, frames, height, width]`, normalised as the transformer sees them.
///
/// # Errors
/// When an axis is empty.
pub fn analyze(latents: ArrayView4<'_, f32>) -> Result<Report> {
    let (channels, frames, height, width) = latents.dim();
    ensure!(
        !latents.is_empty(),
        "latents of the shape [{channels}, {frames}, {height}, {width}] are empty"
    );
    let mut stats: Vec<LatentStats> = Vec::with_capacity(frames);
    for index in 0..frames {
        let frame = latents.index_axis(Axis(1), index);
        let before = index.checked_sub(1).map(|i| latents.index_axis(Axis(1), i));
        stats.push(LatentStats::of(frame, before, index));
    }
    let verdicts = verdicts(&stats);
    Ok(Report {
        latents: stats,
        ..Report::new(Size { width, height }, verdicts)
    })
}

/// Latents have collapsed below this contrast, or below this share of the first frame's; sound ones are
/// at about 1.
const COLLAPSED: f64 = 0.1;
const COLLAPSED_SHARE: f64 = 0.2;
/// Latents are noise below this correlation of neighbours.
const NOISE_CORRELATION: f64 = 0.1;

fn verdicts(frames: &[LatentStats]) -> Vec<Verdict> {
    let limit = (COLLAPSED_SHARE * frames[0].contrast).max(COLLAPSED);
    let collapsed = Run::last_of(frames.len(), 0, |i| frames[i].contrast < limit);
    let least = frames.iter().map(|f| f.contrast).fold(f64::MAX, f64::min);
    let text = format!(
        "contrast of at least {least:.3}, {:.3} in the first",
        frames[0].contrast
    );
    vec![
        non_finite(frames.iter().map(|f| f.non_finite)),
        match collapsed.filter(|run| run.first == 1 && run.is_tail()) {
            Some(run) => {
                let text = "the first latent frame has content, the rest has none";
                Verdict::alarm(Symptom::ContentLost, run, text, causes::CONTENT_LOST)
            }
            None => Verdict::ok(
                Symptom::ContentLost,
                "the latent frames after the first have content",
            ),
        },
        noise(frames),
        match collapsed {
            Some(run) => Verdict::alarm(Symptom::Collapsed, run, text, causes::COLLAPSED),
            None => Verdict::ok(Symptom::Collapsed, text),
        },
    ]
}

fn noise(frames: &[LatentStats]) -> Verdict {
    let correlation = |f: &LatentStats| f.correlation.unwrap_or(1.0);
    let least = frames.iter().map(correlation).fold(f64::MAX, f64::min);
    let text = format!("correlation of neighbours of at least {least:.2}");
    match Run::last_of(frames.len(), 0, |i| {
        correlation(&frames[i]) < NOISE_CORRELATION
    }) {
        Some(run) => Verdict::alarm(Symptom::Noise, run, text, causes::NOISE),
        None => Verdict::ok(Symptom::Noise, text),
    }
}

impl LatentStats {
    /// Of a latent frame `[channels, height, width]` and the one before it.
    fn of(frame: ArrayView3<'_, f32>, before: Option<ArrayView3<'_, f32>>, index: usize) -> Self {
        let finite = || frame.iter().copied().filter(|value| value.is_finite());
        let all = moments(finite());
        let channels: Vec<ChannelStats> = frame
            .outer_iter()
            .map(|channel| {
                let found = moments(channel.iter().copied().filter(|v| v.is_finite()));
                ChannelStats {
                    mean: found.mean,
                    std: found.variance.sqrt(),
                }
            })
            .collect();
        let variance = channels.iter().map(|c| c.std * c.std).sum::<f64>() / channels.len() as f64;
        Self {
            frame: index,
            mean: all.mean,
            std: all.variance.sqrt(),
            min: finite().reduce(f32::min).unwrap_or(0.0),
            max: finite().reduce(f32::max).unwrap_or(0.0),
            contrast: variance.sqrt(),
            difference: before.map(|before| difference(frame, before)),
            correlation: correlation(frame, &channels),
            channels,
            non_finite: frame.len() - all.count,
        }
    }
}

struct Moments {
    count: usize,
    mean: f64,
    variance: f64,
}

fn moments(values: impl Iterator<Item = f32> + Clone) -> Moments {
    let (mut count, mut sum) = (0, 0.0);
    for value in values.clone() {
        count += 1;
        sum += f64::from(value);
    }
    let mean = sum / count.max(1) as f64;
    let squares: f64 = values.map(|value| (f64::from(value) - mean).powi(2)).sum();
    Moments {
        count,
        mean,
        variance: squares / count.max(1) as f64,
    }
}

/// Mean absolute difference where both are finite.
fn difference(a: ArrayView3<'_, f32>, b: ArrayView3<'_, f32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0_usize);
    Zip::from(a).and(b).for_each(|&a, &b| {
        let difference = f64::from(a) - f64::from(b);
        if difference.is_finite() {
            sum += difference.abs();
            count += 1;
        }
    });
    sum / count.max(1) as f64
}

/// Covariance of all pairs of neighbours, right and below, over the variance; both summed over the
/// channels.
fn correlation(frame: ArrayView3<'_, f32>, channels: &[ChannelStats]) -> Option<f64> {
    let (_, height, width) = frame.dim();
    let (mut products, mut pairs, mut variance) = (0.0, 0_usize, 0.0);
    for (channel, stats) in frame.outer_iter().zip(channels) {
        let centred = |y: usize, x: usize| f64::from(channel[[y, x]]) - stats.mean;
        for y in 0..height {
            for x in 0..width {
                let right = (x + 1 < width).then(|| centred(y, x) * centred(y, x + 1));
                let below = (y + 1 < height).then(|| centred(y, x) * centred(y + 1, x));
                for product in [right, below]
                    .into_iter()
                    .flatten()
                    .filter(|p| p.is_finite())
                {
                    products += product;
                    pairs += 1;
                }
            }
        }
        variance += stats.std * stats.std;
    }
    let variance = variance / channels.len() as f64;
    (variance > 0.0 && pairs > 0).then(|| products / pairs as f64 / variance)
}
