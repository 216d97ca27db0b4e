//! Solvers over 40 steps on the latents of 81 frames of 832 x 480, without a network.

use divan::Bencher;
use divan::counter::ItemsCount;
use mlx_rs::{Array, Dtype};
use wan_i2v::sampling::{Sampler, Schedule, Solver};

use crate::device;
use crate::source::constant;

const LATENTS: [i32; 4] = [16, 21, 60, 104];
const STEPS: usize = 40;

/// Items are steps.
#[divan::bench(args = [Solver::UniPc, Solver::DpmPlusPlus, Solver::Euler])]
fn steps_40(bencher: Bencher, solver: Solver) {
    device();
    let schedule = Schedule::new(solver, STEPS, 5.0);
    let latents = constant(&LATENTS, Dtype::Float32).unwrap();
    let velocity = constant(&LATENTS, Dtype::Float32).unwrap();
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| {
        let mut sampler = Sampler::new(solver, schedule.clone(), 0);
        let mut x: Array = latents.clone();
        for _ in 0..STEPS {
            x = sampler.step(&x, &velocity).unwrap();
            x.eval().unwrap();
        }
        x
    });
}
