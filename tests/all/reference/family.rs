//! The models beside I2V-A14B: transformers and whole runs, against diffusers' pipelines.

use std::collections::BTreeMap;
use std::fs;

use image::RgbImage;
use mlx_rs::Array;
use wan_i2v::clip::{Options, Settings, Size};
use wan_i2v::media::Resize;
use wan_i2v::media::picture::Picture;
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::dit::{Dit, Rope};
use wan_i2v::pipeline::{
    Condition, Denoiser, EncodedPrompts, PromptIds, Silent, decode_clip, encode_condition,
    encode_prompts, initial_noise,
};
use wan_i2v::runtime::{Device, State};
use wan_i2v::sampling::{Sampler, Schedule, Sigmas, Solver, renoise};
use wan_i2v::text::TokenIds;
use wan_i2v::weights::{Checkpoint, Conditioning, Expert, Family, Loading, Sources};

use super::dit::{encoded_text, load};
use super::run::plan;
use crate::support::golden::{BOTH, Case, F32, golden_dir, relative_error};

const CHUNKS: MemoryPlan = MemoryPlan {
    chunk_rows: 5,
    joint_passes: false,
    ..MemoryPlan::WHOLE
};

/// Latent frames, rows and columns.
fn grid(case: &Case, side: i32) -> [i32; 3] {
    let settings = &case.settings;
    let [height, width] = [settings.height, settings.width].map(|pixels| pixels as i32 / side);
    [(settings.frames as i32 - 1) / 4 + 1, height, width]
}

/// An expert's velocity at t = 937, as the golden data has it.
fn velocity(case: &Case, dit: &Dit, given: bool, memory: &MemoryPlan) -> Array {
    let side = if given { 16 } else { 8 };
    let [frames, height, width] = grid(case, side);
    let config = dit.config();
    let channels = config.in_channels;
    let hidden = case.input("dit.hidden", &[channels, frames, height, width], 1.7);
    let mut cross = dit.cross_kv(&encoded_text(case), 512).unwrap();
    if let Some(width) = config.image_dim {
        let tokens = case
            .golden
            .array("clip/tokens")
            .reshape(&[-1, width])
            .unwrap();
        for (kv, image) in cross.iter_mut().zip(dit.image_kv(&tokens).unwrap()) {
            kv.image = Some(image);
        }
    }
    let first = if given { height / 2 * width / 2 } else { 0 };
    let time = dit.embed_times(937.0, first).unwrap();
    let rope = Rope::new([frames, height / 2, width / 2], config.attention_head_dim);
    dit.forward(&hidden, &time, &rope, &cross, memory).unwrap()
}

#[test]
fn forward_passes() {
    for (name, given, experts) in [
        ("family/ti2v", true, &["high"][..]),
        ("family/t2v", false, &["high", "low"]),
        ("family/i2v21", false, &["high"]),
        ("family/flf2v", false, &["high"]),
    ] {
        let case = Case::load(name);
        for (&expert, device) in experts.iter().flat_map(|e| BOTH.map(|device| (e, device))) {
            let part = match expert {
                "high" => "transformer",
                _ => "transformer_2",
            };
            let dit = load(&case, part, device);
            for memory in [MemoryPlan::WHOLE, CHUNKS] {
                let found = velocity(&case, &dit, given, &memory);
                let tensor = format!("dit/{expert}/output");
                case.golden.check(name, &tensor, &found, 1e-4);
            }
        }
    }
}

/// A timestep for all tokens where the picture's have one of their own is seen, far above what is allowed.
#[test]
fn the_timestep_of_a_picture_matters() {
    let case = Case::load("family/ti2v");
    let dit = load(&case, "transformer", F32);
    let [frames, height, width] = grid(&case, 16);
    let shape = [dit.config().in_channels, frames, height, width];
    let hidden = case.input("dit.hidden", &shape, 1.7);
    let cross = dit.cross_kv(&encoded_text(&case), 512).unwrap();
    let rope = Rope::new([frames, height / 2, width / 2], 128);
    let time = dit.embed_time(937).unwrap();
    let found = dit.forward(&hidden, &time, &rope, &cross, &MemoryPlan::WHOLE);
    let found = wan_i2v::runtime::to_host(&found.unwrap()).unwrap();
    let error = relative_error(&found, case.golden.floats("dit/high/output"));
    assert!((0.6..0.8).contains(&error), "{error}");
}

/// Keys and values of pictures, before any token attends to them.
#[test]
fn picture_features_become_keys_and_values() {
    for name in ["family/i2v21", "family/flf2v"] {
        let case = Case::load(name);
        for device in BOTH {
            let dit = load(&case, "transformer", device);
            let width = dit.config().image_dim.unwrap();
            let tokens = case
                .golden
                .array("clip/tokens")
                .reshape(&[-1, width])
                .unwrap();
            let (keys, values) = dit.image_kv(&tokens).unwrap().remove(0);
            for (what, found) in [("cross_k_img", keys), ("cross_v_img", values)] {
                let found = found.transpose_axes(&[0, 2, 1, 3]).unwrap();
                let found = found.reshape(&[tokens.dim(0), -1]).unwrap();
                let tensor = format!("dit/high/{what}");
                case.golden.check(name, &tensor, &found, 1e-5);
            }
        }
    }
}

pub fn open(case: &Case) -> (tempfile::TempDir, Checkpoint) {
    let folder = case.checkpoint();
    let sources = Sources::folder(folder.path());
    let checkpoint = Checkpoint::open(&sources, Loading::default()).unwrap();
    (folder, checkpoint)
}

fn prompts(case: &Case, checkpoint: &Checkpoint, device: Device) -> EncodedPrompts {
    let ids = |length| TokenIds {
        ids: case.ids(length),
        cut: None,
    };
    let ids = PromptIds {
        prompt: ids("medium"),
        negative: Some(ids("long")),
    };
    encode_prompts(checkpoint, device, &ids, None, &mut Silent).unwrap()
}

/// The case's final latents.
pub fn latents(
    case: &Case,
    checkpoint: &Checkpoint,
    condition: Condition,
    memory: MemoryPlan,
) -> Array {
    let settings = plan(case);
    let grid = settings.latent_grid(&checkpoint.vae);
    let noise = initial_noise(settings.seed, checkpoint.vae.z_dim, grid);
    case.golden.check(case.name, "run/noise", &noise, 1e-6);
    let prompts = prompts(case, checkpoint, F32);
    Denoiser::new(
        checkpoint, F32, memory, prompts, condition, noise, &settings,
    )
    .unwrap()
    .run(None, &mut Silent)
    .unwrap()
}

/// Fails unless the frames of `latents` are the golden ones within a level.
fn check_frames(case: &Case, checkpoint: &Checkpoint, latents: &Array) {
    let mut frames = Vec::new();
    let mut push = |frame: &RgbImage| {
        frames.extend_from_slice(frame.as_raw());
        Ok(())
    };
    let memory = MemoryPlan::WHOLE;
    let decoded = decode_clip(
        checkpoint,
        F32,
        &memory,
        latents,
        None,
        &mut Silent,
        &mut push,
    );
    decoded.unwrap();
    let expected = case.golden.bytes("run/frames_u8");
    assert_eq!(frames.len(), expected.len());
    let worst = frames
        .iter()
        .zip(expected)
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    println!("measured {} run/frames_u8: {worst:?} levels", case.name);
    assert!(worst <= Some(1));
}

#[test]
fn text_to_video_with_two_experts() {
    let case = Case::load("family/t2v");
    let (_folder, checkpoint) = open(&case);
    assert_eq!(checkpoint.family.name, "Wan2.2 T2V-A14B");
    assert_eq!(checkpoint.boundary_timestep, 875.0);
    let settings = plan(&case);
    let schedule = settings.schedule();
    let experts = (0..8).map(|step| checkpoint.expert_at(&schedule, step).unwrap());
    let experts: Vec<_> = experts.collect();
    assert!(experts.contains(&Expert::HighNoise) && experts.contains(&Expert::LowNoise));
    for memory in [MemoryPlan::WHOLE, CHUNKS] {
        let found = latents(&case, &checkpoint, Condition::default(), memory);
        case.golden.check(case.name, "run/latents", &found, 2e-3);
        check_frames(&case, &checkpoint, &found);
    }
}

#[test]
fn text_and_image_to_video_from_a_picture() {
    let case = Case::load("family/ti2v");
    let (_folder, checkpoint) = open(&case);
    assert_eq!(checkpoint.family.name, "Wan2.2 TI2V-5B");
    assert_eq!(checkpoint.family.conditioning, Conditioning::FirstFrame);
    let settings = plan(&case);
    let picture = Picture::open(&golden_dir(case.name).join("start.png")).unwrap();
    let (width, height) = (settings.width as usize, settings.height as usize);
    let pixels = picture.resized(width, height, Resize::Lanczos).unwrap();
    for memory in [MemoryPlan::WHOLE, CHUNKS] {
        let condition = encode_condition(
            &checkpoint,
            F32,
            &memory,
            pixels.view(),
            &settings,
            None,
            &mut Silent,
        );
        let condition = condition.unwrap();
        let first = condition.first.clone().unwrap();
        case.golden.check(case.name, "condition/z", &first, 2e-4);
        let found = latents(&case, &checkpoint, condition, memory);
        case.golden.check(case.name, "run/latents", &found, 2e-3);
        check_frames(&case, &checkpoint, &found);
    }
}

/// The settings that each is published with, for a picture of 16:9 and without one.
#[test]
fn defaults_are_the_published_ones() {
    for (name, picture, size, frames, fps, steps, shift, scale) in [
        (
            "family/ti2v",
            Some((1920, 1080)),
            (1248, 704),
            121,
            24.0,
            50,
            5.0,
            (5.0, 5.0),
        ),
        (
            "family/ti2v",
            None,
            (1280, 704),
            121,
            24.0,
            50,
            5.0,
            (5.0, 5.0),
        ),
        (
            "family/t2v",
            None,
            (1280, 720),
            81,
            16.0,
            40,
            12.0,
            (3.0, 4.0),
        ),
    ] {
        let case = Case::load(name);
        let (_folder, checkpoint) = open(&case);
        let settings = Options::default();
        let token = checkpoint.token_side();
        let settings = settings
            .resolve(&checkpoint.settings, picture, token)
            .unwrap();
        assert_eq!((settings.width, settings.height), size, "{name}");
        assert_eq!((settings.frames, settings.fps), (frames, fps), "{name}");
        assert_eq!((settings.steps, settings.shift), (steps, shift), "{name}");
        let found = (settings.guide_scale.low, settings.guide_scale.high);
        assert_eq!(found, scale, "{name}");
    }
}

/// The sizes of clips for pictures of all shapes, by Wan2.2's own function.
#[test]
fn sizes_follow_the_picture_as_in_the_reference() {
    let _mlx = crate::support::mlx();
    let json = fs::read(golden_dir("family").join("ti2v_sizes.json")).unwrap();
    let cases: Vec<BTreeMap<String, [u32; 2]>> = serde_json::from_slice(&json).unwrap();
    let family = Family::named("Wan2.2 TI2V-5B").unwrap();
    assert!(cases.len() > 5);
    for case in cases {
        let [width, height] = case["picture"];
        let picture = Some((width as usize, height as usize));
        let options = Options {
            size: Some(Size::Area(704 * 1280)),
            ..Options::default()
        };
        let settings = options.resolve(&family.recommended(), picture, 32).unwrap();
        assert_eq!(
            [settings.width, settings.height],
            case["clip"],
            "{picture:?}"
        );
    }
}

/// Three steps of a model distilled by distribution matching, with the noise of each step given.
#[test]
fn fresh_noise_leads_from_step_to_step() {
    let case = Case::load("family/ti2v");
    let dit = load(&case, "transformer", F32);
    let cross = dit.cross_kv(&encoded_text(&case), 512).unwrap();
    let noise = case.golden.array("text/noise");
    let [frames, height, width] = [1, 2, 3].map(|axis| noise.dim(axis));
    let rope = Rope::new([frames, height / 2, width / 2], 128);
    let sigmas = Sigmas::List(vec![1.0, 0.757, 0.522]);
    for (solver, name) in [(Solver::Lcm, "renoised"), (Solver::Euler, "euler")] {
        let schedule = Schedule::with_sigmas(&sigmas, solver, 3, 5.0);
        let mut sampler = Sampler::new(solver, schedule.clone(), 0);
        let mut x = noise.clone();
        for (step, &timestep) in schedule.timesteps.iter().enumerate() {
            let time = dit.embed_time(timestep).unwrap();
            let velocity = dit.forward(&x, &time, &rope, &cross, &MemoryPlan::WHOLE);
            let velocity = velocity.unwrap();
            let clean = sampler.estimate(&x, &velocity).unwrap();
            let fresh = case.input(&format!("fast.noise.{step}"), noise.shape(), 1.7);
            let next = schedule.sigmas[step + 1];
            x = match solver {
                Solver::Lcm => renoise(&clean, next, || fresh).unwrap(),
                _ => sampler.step(&x, &velocity).unwrap(),
            };
            if solver == Solver::Lcm {
                // For its place in the schedule.
                sampler.step(&x, &velocity).unwrap();
            }
        }
        case.golden
            .check(case.name, &format!("fast/{name}"), &x, 2e-3);
    }
}

/// The noise of each step follows from the seed alone, and a run that resumes has the same.
#[test]
fn a_run_with_fresh_noise_repeats_itself() {
    let _mlx = crate::support::mlx();
    let schedule = || Schedule::with_sigmas(&Sigmas::Flow, Solver::Lcm, 4, 5.0);
    let run = |seed: u64, resumed: bool| {
        let mut sampler = Sampler::new(Solver::Lcm, schedule(), seed);
        let mut x = initial_noise(seed, 2, [1, 4, 4]);
        for step in 0..4 {
            if resumed && step == 2 {
                let mut state = State::default();
                sampler.save(&mut state);
                state.set("latents", &x);
                sampler = Sampler::new(Solver::Lcm, schedule(), seed);
                sampler.restore(&state).unwrap();
            }
            let velocity = x.multiply(Array::from_f32(0.5)).unwrap();
            x = sampler.step(&x, &velocity).unwrap();
        }
        wan_i2v::runtime::to_host(&x).unwrap()
    };
    assert_eq!(run(3, false), run(3, true));
    assert_ne!(run(3, false), run(4, false));
}

/// From text alone every token of TI2V-5B has the step's timestep, and the first frame its noise.
#[test]
fn text_and_image_to_video_from_text_alone() {
    let case = Case::load("family/ti2v");
    let (_folder, checkpoint) = open(&case);
    let settings = Settings {
        frames: 5,
        width: 96,
        height: 64,
        seed: 15,
        ..plan(&case)
    };
    let grid = settings.latent_grid(&checkpoint.vae);
    let noise = initial_noise(settings.seed, checkpoint.vae.z_dim, grid);
    case.golden.check(case.name, "text/noise", &noise, 1e-6);
    let prompts = prompts(&case, &checkpoint, F32);
    let (memory, condition) = (MemoryPlan::WHOLE, Condition::default());
    let latents = Denoiser::new(
        &checkpoint,
        F32,
        memory,
        prompts,
        condition,
        noise,
        &settings,
    )
    .unwrap()
    .run(None, &mut Silent)
    .unwrap();
    case.golden.check(case.name, "text/latents", &latents, 2e-3);
}
