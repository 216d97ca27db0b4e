//! The approximate ways to less work, on clips of the built-in miniature: what they leave alone,
//! how much they compute, and that the clip stays the same.

use std::sync::MutexGuard;

use image::RgbImage;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::lab::scenes::{Recipe, Stage, Studio, scene};
use wan_i2v::media::metrics::{mean_square, psnr_of_mean_square};
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::dit::{DitConfig, Rope};
use wan_i2v::pipeline::{Passes, guide, initial_noise};
use wan_i2v::runtime::{Device, Kernels, to_host};
use wan_i2v::sampling::{Sampler, Schedule, Solver};
use wan_i2v::weights::Expert;

use crate::support::mlx;

/// Steps of the high-noise expert among 12 with the miniature's shift.
const HIGH_OF_12: usize = 5;

struct Set {
    studio: Studio,
    stage: Stage,
    _mlx: MutexGuard<'static, ()>,
}

impl Set {
    fn new(number: u64) -> Self {
        Self::computing(number, None, MemoryPlan::WHOLE)
    }

    /// With the two guidance passes one after the other: the products of a single
    /// [`Dit::forward`](wan_i2v::model::dit::Dit::forward), in the same shapes.
    fn apart(number: u64, kernels: Option<Kernels>) -> Self {
        Self::computing(
            number,
            kernels,
            MemoryPlan {
                joint_passes: false,
                ..MemoryPlan::WHOLE
            },
        )
    }

    fn computing(number: u64, kernels: Option<Kernels>, memory: MemoryPlan) -> Self {
        let mlx = mlx();
        let mut studio = Studio::open().unwrap();
        studio.memory = memory;
        if let Some(kernels) = kernels {
            let Device { kind, dtype, .. } = studio.device;
            studio.device = Device::with_kernels(kind, Some(dtype), kernels);
        }
        Self {
            stage: studio.stage(&scene(number)).unwrap(),
            studio,
            _mlx: mlx,
        }
    }

    fn recipe(&self, steps: u32, cache: &str, (start, end): (f64, f64)) -> Recipe {
        let cache: CacheSettings = cache.parse().unwrap();
        Recipe {
            steps,
            guide_scale: 2.0,
            guide_interval: GuideInterval { start, end },
            cache: cache
                .for_model(&self.studio.checkpoint.settings.teacache)
                .unwrap(),
        }
    }

    /// The latents of a run and its passes.
    fn run(&self, recipe: &Recipe) -> (Vec<f32>, Passes) {
        let (latents, passes) = self.studio.denoise(&self.stage, recipe, None).unwrap();
        (to_host(&latents).unwrap(), passes)
    }

    fn passes(&self, steps: u32, cache: &str, interval: (f64, f64)) -> Passes {
        self.run(&self.recipe(steps, cache, interval)).1
    }

    fn frames(&self, recipe: &Recipe) -> (Vec<RgbImage>, Passes) {
        let (latents, passes) = self.studio.denoise(&self.stage, recipe, None).unwrap();
        (self.studio.decode(&latents).unwrap(), passes)
    }
}

const ALWAYS: (f64, f64) = (0.0, 1.0);

/// A threshold that nothing reaches.
const NEVER: &str = "threshold=1e30,retention=1,cutoff=0";

/// How far apart two runs of `steps` steps may be that compute the same sums in products of other
/// shapes, in shares of the largest value.
///
/// A BLAS may add the terms of a sum in another order for another number of rows. Rounded at
/// random, a sum of `k` terms of float32 is then off by some `sqrt(k)` units of 2^-24, twice for two
/// runs. A step passes `n` such sums one after the other, whose errors are independent, and they
/// add up as `sqrt(n)`; three standard deviations of that.
fn rounding(dit: &DitConfig, steps: usize) -> f32 {
    // The longest sum is the feed-forward's second; a block has eight products in a row.
    let terms = f64::from(dit.ffn_dim.max(dit.dim()));
    let sums = f64::from(8 * dit.num_layers) * steps as f64;
    (3.0 * 2.0_f64.sqrt() * terms.sqrt() * sums.sqrt() * 2.0_f64.powi(-24)) as f32
}

/// The loop as it was before there were caches, written out on the parts of the library.
fn plain_loop(set: &Set, steps: usize, scale: f32) -> Vec<f32> {
    let (studio, stage) = (&set.studio, &set.stage);
    let grid = stage.plan.latent_grid(&studio.checkpoint.vae);
    let mut latents = initial_noise(stage.plan.seed, studio.checkpoint.vae.z_dim, grid);
    let schedule = Schedule::new(Solver::UniPc, steps, stage.plan.shift);
    let timesteps = schedule.timesteps.clone();
    let mut sampler = Sampler::new(Solver::UniPc, schedule, 0);
    for expert in [Expert::HighNoise, Expert::LowNoise] {
        let dit = studio
            .checkpoint
            .load_expert(expert, studio.device)
            .unwrap();
        let patch = dit.config().patch_size;
        let tokens = [0, 1, 2].map(|axis| grid[axis] / patch[axis]);
        let rope = Rope::new(tokens, dit.config().attention_head_dim);
        let negative = stage.prompts.negative.as_ref().unwrap();
        let voices = [&stage.prompts.prompt, negative].map(|p| dit.cross_kv(p, 512).unwrap());
        for &timestep in &timesteps {
            if studio.checkpoint.expert_for(timestep) != expert {
                continue;
            }
            let input =
                mlx_rs::ops::concatenate(&[&latents, stage.condition.beside.as_ref().unwrap()], 0)
                    .unwrap();
            let time = dit.embed_time(timestep).unwrap();
            let [cond, uncond] = voices.each_ref().map(|kv| {
                dit.forward(&input, &time, &rope, kv, &MemoryPlan::WHOLE)
                    .unwrap()
            });
            let velocity = guide(&cond, &uncond, scale).unwrap();
            latents = sampler.step(&latents, &velocity).unwrap();
        }
    }
    to_host(&latents).unwrap()
}

#[test]
fn without_a_cache_every_step_is_computed_as_before() {
    for kernels in [None, Some(Kernels::Mlx)] {
        let set = Set::apart(0, kernels);
        let (latents, passes) = set.run(&set.recipe(6, "off", ALWAYS));
        assert_eq!(
            (passes.computed, passes.reused, passes.unguided),
            (12, 0, 0)
        );
        assert!(
            latents == plain_loop(&set, 6, 2.0),
            "the latents differ from the plain loop's"
        );
        // A threshold that every step reaches computes every step, to the same bytes.
        for cache in ["teacache", "easycache"] {
            let recipe = set.recipe(6, &format!("{cache},threshold=1e-9"), ALWAYS);
            let (same, passes) = set.run(&recipe);
            assert_eq!((passes.computed, passes.reused), (12, 0), "{cache}");
            assert!(same == latents, "{cache}: the latents differ");
        }
    }
}

#[test]
fn both_passes_as_one_are_the_passes_apart() {
    let latents = |set: Set| set.run(&set.recipe(6, "off", ALWAYS)).0;
    let apart = Set::apart(0, None);
    let most = rounding(apart.studio.checkpoint.dit(), 6);
    let expected = latents(apart);
    let size = expected.iter().fold(0.0_f32, |size, v| size.max(v.abs()));
    let joint = latents(Set::new(0));
    let differences = joint.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0_f32, f32::max) / size;
    println!("measured both passes as one: {worst:.1e} of {most:.1e}");
    assert!(worst < most, "{worst:.1e} apart, at most {most:.1e}");
}

#[test]
fn the_defaults_save_work_and_keep_the_clip() {
    // Measured on eight scenes at 12 and 40 steps (docs/performance.md).
    for (number, kernels, steps, share, least) in [
        (0, None, 12, 0.3, 50.0),
        (0, Some(Kernels::Mlx), 12, 0.3, 50.0),
        (3, None, 40, 0.6, 48.0),
    ] {
        let set = Set::computing(number, kernels, MemoryPlan::WHOLE);
        let (expected, full) = set.frames(&set.recipe(steps, "off", ALWAYS));
        for cache in ["teacache", "easycache"] {
            let (frames, passes) = set.frames(&set.recipe(steps, cache, ALWAYS));
            assert_eq!(passes.computed + passes.reused, full.computed);
            let saved = passes.reused as f64 / full.computed as f64;
            let squares = frames.iter().zip(&expected);
            let squares: f64 = squares.map(|(a, b)| mean_square(a, b).unwrap()).sum();
            let psnr = psnr_of_mean_square(squares / expected.len() as f64);
            println!("{cache}, {steps} steps: {saved:.2} saved, {psnr:.1} dB");
            assert!(saved >= share, "{cache}, {steps} steps: {saved:.2} saved");
            assert!(psnr >= least, "{cache}, {steps} steps: {psnr:.1} dB");
        }
    }
}

#[test]
fn a_guidance_interval_spares_exactly_the_passes_outside() {
    let set = Set::new(1);
    for (interval, guided) in [
        ((0.0, 1.0), 8),
        ((0.0, 0.5), 4),
        ((0.5, 1.0), 4),
        ((0.25, 0.75), 4),
        ((0.0, 0.7), 6),
        ((0.2, 0.8), 4),
        ((0.0, 0.01), 0),
    ] {
        let passes = set.passes(8, "off", interval);
        let counted = (passes.computed, passes.reused, passes.unguided);
        assert_eq!(counted, (8 + guided, 0, 8 - guided), "{interval:?}");
    }
}

#[test]
fn retention_and_cutoff_are_kept_to_the_step() {
    let set = Set::new(2);
    let high = HIGH_OF_12;
    let low = 12 - high;
    for (cache, retention, cutoff, steps) in [
        // The first step of each expert has nothing to reuse, whatever is asked for.
        ("teacache", 0, 0, 2),
        ("teacache", 1, 0, 2),
        // The first of each expert that has a rate to go by is the third.
        ("easycache", 1, 0, 4),
        ("easycache", 3, 0, 6),
        ("teacache", 3, 2, 3 + 3 + 2),
        ("easycache", 3, 2, 3 + 3 + 2),
        // All but one step of the high-noise expert.
        ("teacache", high - 1, 0, 2 * (high - 1)),
        // The cutoff reaches the other expert.
        ("teacache", 1, low + 1, 1 + low + 1),
        ("easycache", 99, 0, 12),
        ("teacache", 0, 99, 12),
    ] {
        let text = format!("{cache},threshold=1e30,retention={retention},cutoff={cutoff}");
        let passes = set.passes(12, &text, ALWAYS);
        let counted = (passes.computed, passes.reused);
        assert_eq!(counted, (2 * steps, 2 * (12 - steps)), "{text}");
    }
}

#[test]
fn the_other_expert_starts_anew() {
    // Steps 1 to 4 and 6 to 11 reuse; step 5 is the low-noise expert's first, and neither the
    // other's residual nor what it had added up counts there.
    let set = Set::apart(3, None);
    let timesteps = Schedule::new(Solver::UniPc, 12, set.stage.plan.shift).timesteps;
    let high = timesteps
        .iter()
        .filter(|&&t| set.studio.checkpoint.expert_for(t) == Expert::HighNoise);
    assert_eq!(high.count(), HIGH_OF_12);
    let folder = tempfile::tempdir().unwrap();
    let dump = wan_i2v::persist::dump::Dump::create(folder.path()).unwrap();
    let recipe = set.recipe(12, &format!("teacache,{NEVER}"), ALWAYS);
    let (_, passes) = set
        .studio
        .denoise(&set.stage, &recipe, Some(&dump))
        .unwrap();
    assert_eq!((passes.computed, passes.reused), (4, 20));
    // Computed by hand from the latents before it, the swap's prediction is the same.
    let read = |name: &str| {
        let bytes = std::fs::read(folder.path().join(format!("{name}.npy"))).unwrap();
        let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
        let shape: Vec<i32> = npy.shape().iter().map(|&d| d as i32).collect();
        mlx_rs::Array::from_slice(&npy.into_vec::<f32>().unwrap(), &shape)
    };
    let dit = set
        .studio
        .checkpoint
        .load_expert(Expert::LowNoise, set.studio.device)
        .unwrap();
    let latents = read(&format!("step_{:03}_latents", HIGH_OF_12 - 1));
    let input =
        mlx_rs::ops::concatenate(&[&latents, set.stage.condition.beside.as_ref().unwrap()], 0)
            .unwrap();
    let patch = dit.config().patch_size;
    let tokens = [1, 2, 3].map(|axis| latents.dim(axis) / patch[axis as usize - 1]);
    let rope = Rope::new(tokens, dit.config().attention_head_dim);
    let time = dit.embed_time(timesteps[HIGH_OF_12]).unwrap();
    let kv = dit.cross_kv(&set.stage.prompts.prompt, 512).unwrap();
    let expected = dit
        .forward(&input, &time, &rope, &kv, &MemoryPlan::WHOLE)
        .unwrap();
    let cond = read(&format!("step_{HIGH_OF_12:03}_cond"));
    assert!(to_host(&cond).unwrap() == to_host(&expected).unwrap());
}

/// Guidance between a reused and a new prediction would magnify their difference in age.
#[test]
fn the_first_guided_step_computes_both_passes() {
    let set = Set::new(4);
    let passes = set.passes(12, &format!("teacache,{NEVER}"), (0.5, 1.0));
    // Steps 0 and 5 (each expert's first) for the prompt alone, step 6 for both.
    let counted = (passes.computed, passes.reused, passes.unguided);
    assert_eq!(counted, (2 + 2, 9 + 5, 6));
}
