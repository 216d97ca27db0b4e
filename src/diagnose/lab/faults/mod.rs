//! Faults of an image-to-video pipeline, put in on purpose into runs of the built-in miniature:
//! those of the report that this project grew from, and others that could be behind its symptoms.

mod condition;
mod kinds;
pub mod strip;
mod weights;

pub use kinds::{CASES, Case, Fault};

use anyhow::{Context, Result};
use image::RgbImage;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, ones_dtype, zeros_dtype, zeros_like};
use mlx_rs::{Array, Dtype};

use crate::diagnose::lab::scenes::{Scene, Stage, Studio};
use crate::model::MemoryPlan;
use crate::model::dit::{CrossKv, Dit, Rope, TimeEmbedding, time_sinusoid};
use crate::model::umt5::pad_rows;
use crate::pipeline::{TEXT_LEN, guide, initial_noise};
use crate::runtime::to_host;
use crate::sampling::Sampler;
use crate::sampling::noise::randn;
use crate::weights::Expert;
use crate::weights::naming::Kind;
use crate::weights::part::{may_quantize, usizes};

/// How far the experts' text embeddings are apart in A14B, as the report measured: the mean
/// difference over the mean size.
const TEXT_OFF: f32 = 0.42;

/// How far the two predictions of a step are apart.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// What the expert was told of the noise.
    pub timestep: f64,
    /// The mean of the absolute differences, in the latents' normalised units.
    pub mean: f64,
    /// The root of the mean square difference over that of the conditional prediction.
    pub relative: f64,
}

/// A clip, rendered with faults or none.
pub struct Clip {
    pub frames: Vec<RgbImage>,
    /// The finished latents `[z_dim, frames, height, width]`, row by row.
    pub latents: Vec<f32>,
    /// Of every guided step.
    pub gaps: Vec<Gap>,
}

/// The two experts as a case has them.
struct Experts {
    high: Dit,
    low: Dit,
    /// Stands in for either in unconditional passes.
    unconditional: Option<Dit>,
}

impl Experts {
    fn load(studio: &Studio, case: &Case) -> Result<Self> {
        let device = studio.device;
        let changed = |expert: Expert, change: weights::Change<'_>| -> Result<Dit> {
            let config = studio.checkpoint.dit();
            weights::load(
                weights::folder(expert),
                Kind::Expert,
                device,
                change,
                |source| Dit::load(config, source, device),
            )
        };
        // Norms of queries and keys as they are before training.
        let plain_norms = |name: &str, shape: &[i32]| {
            let is_norm = name.contains(".norm_q.") || name.contains(".norm_k.");
            (case.has(Fault::PlainNorms) && is_norm)
                .then(|| ones_dtype(shape, Dtype::Float32).ok())?
        };
        // What is left where quantized products are zero: biases, norms, modulation.
        let no_products = |name: &str, shape: &[i32]| {
            may_quantize(Kind::Expert, name, &usizes(shape))
                .then(|| zeros_dtype(shape, Dtype::Float32).ok())?
        };
        Ok(Self {
            high: changed(Expert::HighNoise, &plain_norms)?,
            low: changed(Expert::LowNoise, &plain_norms)?,
            unconditional: match case.has(Fault::ZeroRows) {
                true => Some(changed(Expert::HighNoise, &no_products)?),
                false => None,
            },
        })
    }

    fn at(&self, studio: &Studio, timestep: f64, case: &Case) -> &Dit {
        let is_high = studio.checkpoint.expert_for(timestep) == Expert::HighNoise;
        let is_high = (is_high != case.has(Fault::SwappedExperts) || case.has(Fault::HighAlone))
            && !case.has(Fault::LowAlone);
        match is_high {
            true => &self.high,
            false => &self.low,
        }
    }
}

/// Renders a scene, whose stage is set, with what is wrong in a case.
///
/// It is the pipeline's own loop written a second time, with room for faults; without one it gives
/// the same latents, as a test says.
pub fn render(studio: &Studio, stage: &Stage, scene: &Scene, case: &Case) -> Result<Clip> {
    let plan = &stage.plan;
    let grid = plan.latent_grid(&studio.checkpoint.vae);
    let condition = condition::condition(studio, stage, scene, case)?;
    let experts = Experts::load(studio, case)?;
    let schedule = plan.schedule();
    let levels: Vec<(f64, f64)> = schedule
        .timesteps
        .iter()
        .copied()
        .zip(schedule.sigmas.iter().copied())
        .collect();
    let mut sampler = Sampler::new(plan.solver, schedule, plan.seed);
    let noise = initial_noise(plan.seed, studio.checkpoint.vae.z_dim, grid);
    let mut x = noise.multiply(Array::from_f32(noise_scale(case)))?;
    let mut gaps = Vec::new();
    for (timestep, sigma) in levels {
        let dit = experts.at(studio, timestep, case);
        let time = embed_time(dit, timestep, sigma, case)?;
        let rope = rope(dit, grid, case);
        let input = concatenate(&[x.clone(), condition.clone()], 0)?;
        let predict = |dit: &Dit, text: &Array| -> Result<Array> {
            let kv = text_kv(dit, &experts, text, case)?;
            let velocity = dit.forward(&input, &time, &rope, &kv, &MemoryPlan::WHOLE)?;
            if !case.has(Fault::ZeroTail) {
                return Ok(velocity);
            }
            let (kept, lost) = (
                velocity.try_index((.., 0..2))?,
                velocity.try_index((.., 2..))?,
            );
            Ok(concatenate(&[kept, zeros_like(&lost)?], 1)?)
        };
        let prompt = &stage.prompts.prompt;
        let negative = stage
            .prompts
            .negative
            .as_ref()
            .context("no negative prompt")?;
        let cond = match case.has(Fault::NoPrompt) {
            true => predict(dit, negative)?,
            false => predict(dit, prompt)?,
        };
        let velocity = if case.has(Fault::Unguided) {
            cond
        } else {
            let text = match case.has(Fault::SamePrompt) {
                true => prompt,
                false => negative,
            };
            let uncond = predict(experts.unconditional.as_ref().unwrap_or(dit), text)?;
            gaps.push(gap(timestep, &cond, &uncond)?);
            // The same for both experts in the miniature.
            let scale = plan.guide_scale.low;
            match case.has(Fault::SwappedGuidance) {
                true => guide(&uncond, &cond, scale)?,
                false => guide(&cond, &uncond, scale)?,
            }
        };
        x = sampler.step(&x, &velocity)?;
        x.eval()?;
    }
    let decoded = match case.has(Fault::NotDenormalised) {
        // Undone by what the decoder does.
        true => studio.checkpoint.vae.normalize(&x)?,
        false => x.clone(),
    };
    Ok(Clip {
        frames: studio.decode(&decoded)?,
        latents: to_host(&x)?,
        gaps,
    })
}

fn embed_time(dit: &Dit, timestep: f64, sigma: f64, case: &Case) -> Result<TimeEmbedding> {
    let time = match case {
        case if case.has(Fault::FloatTimesteps) => sigma * 1000.0,
        case if case.has(Fault::ShareTimesteps) => sigma,
        _ => timestep,
    };
    Ok(dit.embed_sinusoid(&time_sinusoid(time, dit.config().freq_dim))?)
}

fn rope(dit: &Dit, grid: [i32; 3], case: &Case) -> Rope {
    let config = dit.config();
    let (tokens, head_dim) = (config.token_grid(grid), config.attention_head_dim);
    if !case.has(Fault::OneRotaryTable) {
        return Rope::new(tokens, head_dim);
    }
    let table: Vec<f64> = (0..head_dim / 2)
        .map(|i| 10_000_f64.powf(-f64::from(2 * i) / f64::from(head_dim)))
        .collect();
    let spatial = (head_dim / 6) as usize;
    let (frames, rest) = table.split_at(table.len() - 2 * spatial);
    let (rows, columns) = rest.split_at(spatial);
    Rope::from_frequencies(tokens, &[frames, rows, columns].map(<[f64]>::to_vec))
}

/// Keys and values of a text in a step of the expert `dit`.
fn text_kv(dit: &Dit, experts: &Experts, text: &Array, case: &Case) -> Result<Vec<CrossKv>> {
    Ok(match case {
        case if case.has(Fault::SharedText) => experts.low.cross_kv(text, TEXT_LEN as i32)?,
        case if case.has(Fault::NoPadding) => {
            dit.cross_kv_of_embedded(&dit.embed_text(text)?, 1)?
        }
        case if case.has(Fault::TextOff) && std::ptr::eq(dit, &raw const experts.high) => {
            let rows = text.dim(0) + 1;
            let embedded = dit.embed_text(&pad_rows(text, rows)?)?;
            let values = to_host(&embedded)?;
            let size = values.iter().map(|v| v.abs()).sum::<f32>() / values.len() as f32;
            // A normal value is sqrt(2 / pi) on average.
            let factor = TEXT_OFF * size / std::f32::consts::FRAC_2_PI.sqrt();
            let noise = Array::from_slice(&randn(1, values.len()), embedded.shape());
            let embedded = embedded.add(noise.multiply(Array::from_f32(factor))?)?;
            dit.cross_kv_of_embedded(&embedded, TEXT_LEN as i32 - text.dim(0))?
        }
        _ => dit.cross_kv(text, TEXT_LEN as i32)?,
    })
}

/// What the initial noise is multiplied with.
fn noise_scale(case: &Case) -> f32 {
    match case {
        case if case.has(Fault::WeakNoise) => 0.7,
        case if case.has(Fault::StrongNoise) => 1.3,
        _ => 1.0,
    }
}

fn gap(timestep: f64, cond: &Array, uncond: &Array) -> Result<Gap> {
    let (mean, relative) = distance(&to_host(uncond)?, &to_host(cond)?);
    Ok(Gap {
        timestep,
        mean,
        relative,
    })
}

/// The mean absolute difference, and the root of the mean square difference over that of `b`.
pub fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut mean, mut squares, mut all) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let difference = f64::from(a - b);
        mean += difference.abs();
        squares += difference * difference;
        all += f64::from(*b).powi(2);
    }
    (mean / a.len() as f64, (squares / all).sqrt())
}
