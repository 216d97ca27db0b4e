//! What a forecast says against what a run does: operations to the last one, memory within 15%.

use mlx_rs::memory;
use ndarray::Array3;
use wan_i2v::backend::{Backend, DeviceKind, Precision, operations};
use wan_i2v::checkpoint::{Checkpoint, LoadBits};
use wan_i2v::forecast::{Forecast, Tokens, forecast};
use wan_i2v::pipeline::{
    DenoiseSettings, Denoiser, Silent, decode_clip, encode_condition, encode_prompts,
    initial_noise, tokenize,
};
use wan_i2v::request::{CacheSettings, GuideInterval, GuideScale, Plan};
use wan_i2v::schedule::{Sampler, Schedule, Solver};
use wan_i2v::tiny;

/// What one phase did.
#[derive(Debug)]
struct Measured {
    operations: u64,
    peak: u64,
}

fn plan(size: u32, frames: u32, guide_scale: GuideScale, interval: (f64, f64)) -> Plan {
    Plan {
        width: size,
        height: size,
        frames,
        fps: 16.0,
        steps: 4,
        solver: Solver::UniPc,
        shift: 5.0,
        guide_scale,
        guide_interval: GuideInterval {
            start: interval.0,
            end: interval.1,
        },
        cache: CacheSettings::default(),
        seed: 1,
        negative_prompt: String::new(),
    }
}

fn phase<T>(phases: &mut Vec<Measured>, run: impl FnOnce() -> T) -> T {
    memory::clear_cache().unwrap();
    memory::reset_peak_memory().unwrap();
    let before = operations();
    let result = run();
    phases.push(Measured {
        operations: operations() - before,
        peak: memory::peak_memory().unwrap() as u64,
    });
    result
}

/// Runs a clip of the miniature, phase by phase.
fn run(checkpoint: &Checkpoint, backend: Backend, plan: &Plan) -> (Tokens, Vec<Measured>) {
    let mut phases = Vec::new();
    let ids = tokenize(checkpoint, "the red circle moves up", plan).unwrap();
    let tokens = Tokens {
        prompt: ids.prompt.ids.len(),
        negative: ids.negative.as_ref().map(|ids| ids.ids.len()),
    };
    let encoded = phase(&mut phases, || {
        encode_prompts(checkpoint, backend, &ids, None, &mut Silent).unwrap()
    });
    let pixels = Array3::zeros((plan.height as usize, plan.width as usize, 3));
    let condition = phase(&mut phases, || {
        encode_condition(checkpoint, backend, pixels.view(), plan, None, &mut Silent).unwrap()
    });
    let noise = initial_noise(plan.seed, checkpoint.vae.z_dim, plan.latent_grid());
    let schedule = Schedule::new(plan.solver, plan.steps as usize, plan.shift);
    let settings = DenoiseSettings {
        guide_scale: plan.guide_scale,
        guide_interval: plan.guide_interval,
        cache: plan.cache.clone(),
    };
    let latents = phase(&mut phases, || {
        let sampler = Sampler::new(plan.solver, schedule);
        Denoiser::new(
            checkpoint, backend, encoded, condition, noise, sampler, settings,
        )
        .run(None, &mut Silent)
        .unwrap()
    });
    phase(&mut phases, || {
        decode_clip(
            checkpoint,
            backend,
            &latents,
            None,
            &mut Silent,
            &mut |_| Ok(()),
        )
        .unwrap();
    });
    (tokens, phases)
}

/// The forecast of the same four phases: both experts together.
fn forecast_of(forecast: &Forecast) -> Vec<(u64, u64)> {
    let mut phases = vec![(0, 0); 4];
    let count = forecast.phases.len();
    for (i, phase) in forecast.phases.iter().enumerate() {
        let place = match i {
            0 | 1 => i,
            i if i + 1 == count => 3,
            _ => 2,
        };
        let (operations, peak) = &mut phases[place];
        *operations += phase.operations.total();
        *peak = phase.peak_bytes.max(*peak);
    }
    phases
}

const NAMES: [&str; 4] = ["text", "image", "denoising", "decoding"];

fn backend() -> Backend {
    Backend::select(Some(DeviceKind::Cpu), Some(Precision::F32)).unwrap()
}

#[test]
fn operations_are_exact() {
    let checkpoint = Checkpoint::embedded(tiny::FILES, LoadBits::default()).unwrap();
    let guided = GuideScale {
        low: 2.0,
        high: 2.0,
    };
    let half = GuideScale {
        low: 1.0,
        high: 3.0,
    };
    for plan in [
        plan(64, 17, guided, (0.0, 1.0)),
        plan(32, 1, guided, (0.0, 1.0)),
        plan(48, 5, half, (0.0, 1.0)),
        plan(48, 9, guided, (0.25, 0.75)),
    ] {
        let (tokens, measured) = run(&checkpoint, backend(), &plan);
        let forecast = forecast(&checkpoint, &plan, tokens, backend(), None).unwrap();
        for ((expected, _), (measured, name)) in forecast_of(&forecast)
            .into_iter()
            .zip(measured.iter().zip(NAMES))
        {
            assert_eq!(measured.operations, expected, "{name} of {plan:?}");
        }
    }
}

#[test]
fn memory_is_within_15_percent() {
    let checkpoint = Checkpoint::embedded(tiny::FILES, LoadBits::default()).unwrap();
    let guided = GuideScale {
        low: 2.0,
        high: 2.0,
    };
    for (size, frames) in [(64, 17), (96, 5), (128, 9)] {
        let plan = plan(size, frames, guided, (0.0, 1.0));
        let (tokens, measured) = run(&checkpoint, backend(), &plan);
        let forecast = forecast(&checkpoint, &plan, tokens, backend(), None).unwrap();
        for ((_, expected), (measured, name)) in forecast_of(&forecast)
            .into_iter()
            .zip(measured.iter().zip(NAMES))
        {
            let ratio = expected as f64 / measured.peak as f64;
            println!(
                "measured {size} x {size}, {frames} frames, {name}: {} bytes, forecast {ratio:.3} \
                 of it",
                measured.peak
            );
            assert!(
                (0.85..1.15).contains(&ratio),
                "{size}, {frames}, {name}: {ratio}"
            );
        }
    }
}
