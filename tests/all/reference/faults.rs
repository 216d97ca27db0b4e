//! What each known fault does to the numbers: every one must stand far outside the tolerance
//! that the sound code is held to, so that the tests beside this one catch it.
//!
//! The measured errors are listed in `docs/verification.md`.

use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::Recorder;
use wan_i2v::model::dit::{CrossKv, Dit, Rope, TimeEmbedding, time_sinusoid};
use wan_i2v::model::umt5::pad_rows;
use wan_i2v::model::vae::{Chunk, FeatureCache, Slot, VaeConfig, VaeEncoder};
use wan_i2v::pipeline::{Condition, EncodedPrompts, guide, initial_noise};
use wan_i2v::runtime::{Precision, to_host};
use wan_i2v::sampling::{Sampler, Schedule};
use wan_i2v::weights::naming::Kind;
use wan_i2v::weights::part::Part;
use wan_i2v::weights::store::Location;
use wan_i2v::weights::{Checkpoint, Loading, Sources};

use crate::reference::dit::{encoded_text, hidden, load, rope};
use crate::reference::run::{inputs, plan};
use crate::support::golden::{Case, F32, relative_error};

/// Tolerances of the sound code's tests.
const FORWARD: f64 = 1e-4;
const VAE: f64 = 2e-4;
const RUN: f64 = 2e-3;

fn report(fault: &str, case: &Case, error: f64, tolerance: f64) {
    let name = case.name;
    println!("measured fault {fault}, case {name}: {error:.2e} (tolerance {tolerance:.0e})");
    assert!(
        error > 10.0 * tolerance,
        "{fault}, case {name}: {error:.2e} is too near the tolerance {tolerance:.0e}"
    );
}

/// The report's "Bug 3" fix: one frequency table over the whole head, cut in three.
fn single_table(case: &Case, dit: &Dit) -> Rope {
    let head_dim = dit.config().attention_head_dim;
    let table: Vec<f64> = (0..head_dim / 2)
        .map(|i| 10_000f64.powf(-f64::from(2 * i) / f64::from(head_dim)))
        .collect();
    let spatial = (head_dim / 6) as usize;
    let frames = table.len() - 2 * spatial;
    let axes = [
        table[..frames].to_vec(),
        table[frames..frames + spatial].to_vec(),
        table[frames + spatial..].to_vec(),
    ];
    let [t, h, w] = case.grid();
    Rope::from_frequencies([t, h / 2, w / 2], &axes)
}

fn forward_error(case: &Case, dit: &Dit, time: &TimeEmbedding, rope: &Rope) -> f64 {
    let cross = dit.cross_kv(&encoded_text(case), 512).unwrap();
    let velocity = dit
        .forward(&hidden(case), time, rope, &cross, &MemoryPlan::WHOLE)
        .unwrap();
    relative_error(
        &to_host(&velocity).unwrap(),
        case.golden.floats("dit/high/output"),
    )
}

#[test]
fn one_rotary_table_for_all_axes() {
    for name in Case::ALL {
        let case = Case::load(name);
        let dit = load(&case, "transformer", F32);
        let time = dit.embed_time(937).unwrap();
        let error = forward_error(&case, &dit, &time, &single_table(&case, &dit));
        report("one rotary table", &case, error, FORWARD);
    }
}

#[test]
fn float_timesteps() {
    for name in Case::ALL {
        let case = Case::load(name);
        let dit = load(&case, "transformer", F32);
        // The first sigma of 4 steps at shift 5 that truncation changes: 0.93750 and so on.
        let sinusoid = time_sinusoid(937.4, dit.config().freq_dim);
        let time = dit.embed_sinusoid(&sinusoid).unwrap();
        let error = forward_error(&case, &dit, &time, &rope(&case, &dit));
        report("float timesteps", &case, error, FORWARD);
    }
}

/// Encodes the case's conditioning video while `harm` acts on the cache after every chunk.
fn harmed_encoding(case: &Case, config: &VaeConfig, harm: impl Fn(&mut FeatureCache)) -> Array {
    let mut source = case.source("vae", Precision::F32);
    let encoder = VaeEncoder::load(config, &mut source, F32).unwrap();
    let settings = &case.settings;
    let (frames, height, width) = (
        settings.frames as i32,
        settings.height as i32,
        settings.width as i32,
    );
    let video = case
        .input("vae.video", &[3, frames, height, width], 1.0)
        .transpose_axes(&[1, 2, 3, 0])
        .unwrap();
    let mut stream = encoder.stream(&MemoryPlan::WHOLE);
    let first = Chunk::Pixels(video.try_index(0..1).unwrap());
    let mut latents = vec![stream.push(&first).unwrap()];
    harm(stream.cache_mut());
    for start in (1..frames).step_by(4) {
        let chunk = Chunk::Pixels(video.try_index(start..start + 4).unwrap());
        latents.push(stream.push(&chunk).unwrap());
        harm(stream.cache_mut());
    }
    concatenate(&latents, 1).unwrap()
}

fn encoding_error(case: &Case, latents: &Array) -> f64 {
    relative_error(&to_host(latents).unwrap(), case.golden.floats("vae/mean"))
}

#[test]
fn a_dropped_cache_slot() {
    for name in ["b", "c"] {
        let case = Case::load(name);
        let config: VaeConfig = case.config("vae");
        let slots = slot_count(&case, &config);
        let mut least = f64::INFINITY;
        for slot in 0..slots {
            // A temporal downsampler without its cache would pass frames through.
            let latents = harmed_encoding(&case, &config, |cache| {
                if let Slot::Frames(frames) = &mut cache.slots_mut()[slot] {
                    *frames = mlx_rs::ops::zeros_like(&*frames).unwrap();
                }
            });
            least = least.min(encoding_error(&case, &latents));
        }
        report(
            "one dropped cache slot (the least harmful)",
            &case,
            least,
            VAE,
        );
    }
}

fn slot_count(case: &Case, config: &VaeConfig) -> usize {
    let mut source = case.source("vae", Precision::F32);
    let encoder = VaeEncoder::load(config, &mut source, F32).unwrap();
    encoder
        .stream(&MemoryPlan::WHOLE)
        .cache_mut()
        .slots_mut()
        .len()
}

/// The report's "Bug 5": zeros instead of the last chunk's frames in front of every convolution.
#[test]
fn encoding_without_what_came_before() {
    for name in ["a", "b", "c"] {
        let case = Case::load(name);
        let latents = harmed_encoding(&case, &case.config("vae"), |cache| {
            for slot in cache.slots_mut() {
                if let Slot::Frames(frames) = slot {
                    *frames = mlx_rs::ops::zeros_like(&*frames).unwrap();
                }
            }
        });
        report(
            "no cached frames",
            &case,
            encoding_error(&case, &latents),
            VAE,
        );
    }
}

/// The report's "Bug 4": temporal downsampling at the first two levels instead of the last two.
#[test]
fn temporal_downsampling_at_the_wrong_levels() {
    for name in ["a", "b", "c"] {
        let case = Case::load(name);
        let mut config: VaeConfig = case.config("vae");
        config.temperal_downsample = vec![true, true, false];
        let latents = harmed_encoding(&case, &config, |_| ());
        let error = encoding_error(&case, &latents);
        report("temporal levels", &case, error, VAE);

        // On real weights the strict loader refuses it before anything is computed.
        let folder = case.checkpoint();
        let mut recorder = Recorder::default();
        VaeEncoder::load(&config, &mut recorder, F32).unwrap();
        let location = Location::at(&folder.path().join("vae")).unwrap();
        let part = Part::open(&location, Kind::Vae).unwrap();
        assert!(part.check(&recorder.specs).is_err());
    }
}

/// The report's "Bug 2": a VAE without its encoder's weights.
#[test]
fn a_vae_without_its_encoder() {
    let case = Case::load("b");
    let folder = case.checkpoint();
    let path = folder
        .path()
        .join("vae/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("encoder."));
    safetensors::serialize_to_file(kept, None, &path).unwrap();
    let error = format!(
        "{:#}",
        Checkpoint::open(&Sources::folder(folder.path()), Loading::default()).unwrap_err()
    );
    assert!(error.contains("missing: encoder.conv_in.weight"), "{error}");
}

/// Ways to run the denoising loop wrongly.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LoopFault {
    None,
    /// The report's "Bug 1": the low-noise expert's text embedding for both.
    SharedText,
    SwappedExperts,
    SwappedGuidance,
}

/// The denoising loop, written a second time with room for faults.
fn run(
    case: &Case,
    experts: &[Dit; 2],
    inputs: &(EncodedPrompts, Condition),
    fault: LoopFault,
) -> Array {
    let (prompts, condition) = inputs;
    let negative = prompts.negative.as_ref().unwrap();
    let plan = plan(case);
    let schedule = Schedule::new(plan.solver, plan.steps as usize, plan.shift);
    let timesteps = schedule.timesteps.clone();
    let mut sampler = Sampler::new(plan.solver, schedule, plan.seed);
    let mut x = initial_noise(plan.seed, 16, plan.latent_grid(&case.config("vae")));
    let [high, low] = experts;
    let kv = |dit: &Dit, text: &Array| -> Vec<CrossKv> {
        match fault {
            LoopFault::SharedText => {
                let context = low.embed_text(&pad_rows(text, 512).unwrap()).unwrap();
                dit.cross_kv_of_embedded(&context, 1).unwrap()
            }
            _ => dit.cross_kv(text, 512).unwrap(),
        }
    };
    for t in timesteps {
        let is_high = (t >= case.settings.boundary as f64) != (fault == LoopFault::SwappedExperts);
        let (dit, scale) = if is_high {
            (high, plan.guide_scale.high)
        } else {
            (low, plan.guide_scale.low)
        };
        let time = dit.embed_time(t).unwrap();
        let rope = rope(case, dit);
        let input = concatenate(&[x.clone(), condition.beside.clone().unwrap()], 0).unwrap();
        let predict = |text: &Array| {
            dit.forward(&input, &time, &rope, &kv(dit, text), &MemoryPlan::WHOLE)
                .unwrap()
        };
        let (cond, uncond) = (predict(&prompts.prompt), predict(negative));
        let velocity = if fault == LoopFault::SwappedGuidance {
            guide(&uncond, &cond, scale)
        } else {
            guide(&cond, &uncond, scale)
        };
        x = sampler.step(&x, &velocity.unwrap()).unwrap();
    }
    x
}

#[test]
fn faults_of_the_denoising_loop() {
    for name in Case::ALL {
        let case = Case::load(name);
        let folder = case.checkpoint();
        let checkpoint =
            Checkpoint::open(&Sources::folder(folder.path()), Loading::default()).unwrap();
        let inputs = inputs(&case, &checkpoint, F32);
        let experts = ["transformer", "transformer_2"].map(|e| load(&case, e, F32));
        let error = |fault| {
            let latents = run(&case, &experts, &inputs, fault);
            relative_error(
                &to_host(&latents).unwrap(),
                case.golden.floats("run/latents"),
            )
        };
        assert!(error(LoopFault::None) < RUN);
        for (fault, label) in [
            (LoopFault::SharedText, "one text embedding for both experts"),
            (LoopFault::SwappedExperts, "swapped experts"),
            (LoopFault::SwappedGuidance, "swapped guidance order"),
        ] {
            report(label, &case, error(fault), RUN);
        }
    }
}
