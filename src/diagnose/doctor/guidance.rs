//! Whether the prompt can have an effect: one denoising step of each transformer with the prompt and with
//! the negative one, and what two experts make of the text.
//!
//! The open question of the report that this project grew from was guidance without effect. It has
//! none when the text encoder's outputs, an expert's embeddings of them, or its keys and values are
//! the same for both prompts, and a wrong one when one expert's are taken for both.

use anyhow::{Context, Result};
use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;

use super::judge::{Distance, distance};
use super::{Bound, CheckResult, scene};
use crate::clip::{GuideScale, Settings};
use crate::model::MemoryPlan;
use crate::model::dit::{CrossKv, Dit, Rope};
use crate::model::umt5::pad_rows;
use crate::pipeline::{
    Condition, EncodedPrompts, Silent, TEXT_LEN, encode_prompts, initial_noise, tokenize,
};
use crate::runtime::{Device, to_host, wire};
use crate::weights::{Checkpoint, Expert, MASK_CHANNELS};

/// Two latent frames.
const FRAMES: u32 = 5;
/// Blocks whose keys and values are looked at; of more, so many at even distances.
const BLOCKS: usize = 6;
/// Embeddings, keys and values that differ by less than this share of their size are the same.
pub const LEAST_TEXT: f64 = 1e-3;
/// As above, of predictions: those of a large model at full noise differ by a few parts in a hundred
/// or thousand.
pub const LEAST_PREDICTION: f64 = 1e-4;

/// What was seen of one transformer.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which one.
    pub expert: Expert,
    /// The timestep that it was asked at.
    pub timestep: f64,
    /// What it makes of the prompt and of the negative one.
    pub embeddings: [Vec<f32>; 2],
    /// Keys of some blocks.
    pub keys: [Vec<f32>; 2],
    /// Values of the same.
    pub values: [Vec<f32>; 2],
    /// Predictions.
    pub predictions: [Vec<f32>; 2],
}

/// What was seen of all.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The text encoder's outputs, cut to the shorter prompt.
    pub encoded: [Vec<f32>; 2],
    /// The transformers: the high-noise expert and the low-noise one, or the only one.
    pub seen: Vec<Seen>,
}

/// Encodes the prompts and the picture, with `budget` bytes for the VAE, and asks each transformer, one
/// in memory at a time.
///
/// # Errors
/// When a weight is damaged or MLX fails.
pub fn observe(checkpoint: &Checkpoint, device: Device, budget: u64) -> Result<Observed> {
    // A scale of 1 would need no negative prompt.
    let plan = Settings {
        guide_scale: GuideScale {
            low: 2.0,
            high: 2.0,
        },
        ..scene::plan(checkpoint, FRAMES)
    };
    let ids = tokenize(checkpoint, scene::PROMPT, &plan)?;
    let prompts = encode_prompts(checkpoint, device, &ids, None, &mut Silent)?;
    let negative = prompts.negative.as_ref();
    let negative = negative.context("no negative prompt")?;
    let memory = scene::memory_plan(checkpoint, device, &plan, budget);
    let condition = scene::condition(checkpoint, device, &memory, &plan)?;
    let rows = prompts.prompt.dim(0).min(negative.dim(0));
    let encoded = [&prompts.prompt, negative].map(|all| to_host(&all.try_index(0..rows)?));
    let [cond, uncond] = encoded;
    let ask = |expert| {
        see(
            checkpoint, device, &memory, expert, &plan, &prompts, &condition,
        )
    };
    Ok(Observed {
        encoded: [cond?, uncond?],
        seen: (checkpoint.experts.iter())
            .map(|(expert, _)| ask(*expert))
            .collect::<Result<_>>()?,
    })
}

fn see(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    expert: Expert,
    plan: &Settings,
    prompts: &EncodedPrompts,
    condition: &Condition,
) -> Result<Seen> {
    let dit = checkpoint.load_expert(expert, device)?;
    wire(mlx_rs::memory::active_memory()? as u64);
    let seen = see_loaded(checkpoint, &dit, memory, expert, plan, prompts, condition);
    drop(dit);
    wire(0);
    mlx_rs::memory::clear_cache()?;
    seen
}

fn see_loaded(
    checkpoint: &Checkpoint,
    dit: &Dit,
    memory: &MemoryPlan,
    expert: Expert,
    plan: &Settings,
    prompts: &EncodedPrompts,
    condition: &Condition,
) -> Result<Seen> {
    let negative = prompts.negative.as_ref().context("no negative prompt")?;
    // As many rows of both, the shorter one padded as the reference pads it.
    let rows = prompts.prompt.dim(0).max(negative.dim(0)) + 1;
    let both = [&prompts.prompt, negative];
    let embedded = both.map(|prompt| dit.embed_text(&pad_rows(prompt, rows)?));
    let [cond, uncond] = embedded;
    let embedded = [cond?, uncond?];
    let mut keys = [Vec::new(), Vec::new()];
    let mut values = [Vec::new(), Vec::new()];
    for (i, embedded) in embedded.iter().enumerate() {
        let kv = dit.cross_kv_of_embedded(embedded, 1)?;
        for block in some_of(&kv) {
            keys[i].extend(to_host(&block.keys)?);
            values[i].extend(to_host(&block.values)?);
        }
    }
    let (timestep, latents) = place(checkpoint, expert, plan, condition)?;
    let latents = condition.put_into(&latents)?;
    let input = match &condition.beside {
        Some(beside) => concatenate(&[&latents, beside], 0)?,
        None => latents,
    };
    let given = condition.given_tokens(dit.config(), plan.latent_grid(&checkpoint.vae));
    let time = dit.embed_times(timestep, given)?;
    let tokens = dit.config().token_grid(plan.latent_grid(&checkpoint.vae));
    let rope = Rope::new(tokens, dit.config().attention_head_dim);
    let features = condition.features.as_ref();
    let images = features
        .map(|features| dit.image_kv(features))
        .transpose()?;
    let predict = |prompt: &Array| -> Result<Vec<f32>> {
        let mut kv = dit.cross_kv(prompt, TEXT_LEN as i32)?;
        for (kv, image) in kv.iter_mut().zip(images.iter().flatten()) {
            kv.image = Some(image.clone());
        }
        Ok(to_host(&dit.forward(&input, &time, &rope, &kv, memory)?)?)
    };
    let [cond, uncond] = embedded.each_ref().map(to_host);
    Ok(Seen {
        expert,
        timestep,
        embeddings: [cond?, uncond?],
        keys,
        values,
        predictions: [predict(&prompts.prompt)?, predict(negative)?],
    })
}

/// The first timestep of a schedule that an expert is asked at, and latents with as much noise: of
/// the picture alone, since there is no clip yet.
fn place(
    checkpoint: &Checkpoint,
    expert: Expert,
    plan: &Settings,
    condition: &Condition,
) -> Result<(f64, Array)> {
    let schedule = plan.schedule();
    let mut steps = 0..schedule.steps();
    let (timestep, sigma) = steps
        .find(|&index| checkpoint.expert_at(&schedule, index) == Some(expert))
        .map(|index| (schedule.timesteps[index], schedule.sigmas[index]))
        .with_context(|| {
            format!(
                "no step of the model's own schedule is the {}'s",
                expert.in_words()
            )
        })?;
    let noise = initial_noise(
        plan.seed,
        checkpoint.vae.z_dim,
        plan.latent_grid(&checkpoint.vae),
    );
    let noise = noise.multiply(Array::from_f32(sigma as f32))?;
    let latents = match &condition.beside {
        Some(beside) => {
            let clean = beside.try_index(MASK_CHANNELS..)?;
            noise.add(clean.multiply(Array::from_f32(1.0 - sigma as f32))?)?
        }
        None => noise,
    };
    Ok((timestep, latents))
}

fn some_of(blocks: &[CrossKv]) -> impl Iterator<Item = &CrossKv> {
    let chosen = blocks.len().min(BLOCKS);
    (0..chosen).map(move |i| &blocks[i * (blocks.len() - 1) / (chosen - 1).max(1)])
}

impl Observed {
    /// What is to be said of it.
    pub fn findings(&self) -> Vec<CheckResult> {
        let mut findings = vec![differs(
            "text encoder: prompt against negative prompt",
            &self.encoded[0],
            &self.encoded[1],
            LEAST_TEXT,
            "the text encoder gives the same for any text",
        )];
        for seen in &self.seen {
            let expert = seen.expert.in_words();
            for (what, [cond, uncond]) in [
                ("text embeddings", &seen.embeddings),
                ("cross-attention keys", &seen.keys),
                ("cross-attention values", &seen.values),
            ] {
                findings.push(differs(
                    &format!("{expert}: {what}, prompt against negative prompt"),
                    cond,
                    uncond,
                    LEAST_TEXT,
                    "the prompt is lost before it reaches the blocks",
                ));
            }
            let [cond, uncond] = &seen.predictions;
            findings.push(differs(
                &format!(
                    "{expert}: predictions at t = {}, prompt against negative prompt",
                    seen.timestep
                ),
                cond,
                uncond,
                LEAST_PREDICTION,
                "guidance has no effect, whatever its scale",
            ));
        }
        let [high, low] = self.seen.as_slice() else {
            return findings;
        };
        for (what, high, low) in [
            ("text embeddings", &high.embeddings, &low.embeddings),
            ("cross-attention keys", &high.keys, &low.keys),
            ("cross-attention values", &high.values, &low.values),
        ] {
            findings.push(differs(
                &format!("high-noise against low-noise expert: {what} of the prompt"),
                &high[0],
                &low[0],
                LEAST_TEXT,
                "one expert is taken for both",
            ));
        }
        findings
    }
}

/// Whether two arrays are as different as they have to be; `alarm` is what it means when not.
pub fn differs(name: &str, a: &[f32], b: &[f32], least: f64, alarm: &str) -> CheckResult {
    let Distance { relative, cosine } = distance(a, b);
    let mut finding = CheckResult::new(
        &format!("{name}: relative difference"),
        relative,
        Bound::AtLeast(least),
        format!("cosine {cosine:.4}"),
    );
    if !finding.sound {
        finding.detail = match relative.is_finite() {
            true => format!("they are the same: {alarm}"),
            false => "one of them is all zero or not finite".into(),
        };
    }
    finding
}
