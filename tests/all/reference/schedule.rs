use mlx_rs::Array;
use mlx_rs::ops::{stack, tanh};
use wan_i2v::sampling::{Sampler, Schedule, Solver};

use crate::support::golden::{Case, Golden};
use crate::support::portable;

const SHAPE: [i32; 4] = [16, 2, 4, 6];
const SOLVERS: [Solver; 3] = [Solver::UniPc, Solver::DpmPlusPlus, Solver::Euler];

fn input(name: &str, scale: f32) -> Array {
    let dims = SHAPE.map(|d| d as usize);
    Array::from_slice(&portable::input("common", name, &dims, scale), &SHAPE)
}

/// The synthetic model: `tanh(0.7 x + sin(t / 1000 * 3)) - 0.3 x + c`.
fn model(x: &Array, timestep: f64, c: &Array) -> Array {
    let phase = (timestep / 1000.0 * 3.0).sin() as f32;
    let inner = x
        .multiply(Array::from_f32(0.7))
        .unwrap()
        .add(Array::from_f32(phase))
        .unwrap();
    tanh(&inner)
        .unwrap()
        .subtract(x.multiply(Array::from_f32(0.3)).unwrap())
        .unwrap()
        .add(c)
        .unwrap()
}

fn trajectory(solver: Solver, steps: usize) -> Vec<Array> {
    let c = input("schedule.c", 0.5);
    let mut x = input("schedule.x", 1.7);
    let mut sampler = Sampler::new(solver, Schedule::new(solver, steps, 5.0), 0);
    (0..steps)
        .map(|i| {
            let velocity = model(&x, sampler.schedule().timesteps[i], &c);
            x = sampler.step(&x, &velocity).unwrap();
            x.clone()
        })
        .collect()
}

#[test]
fn timesteps_and_sigmas_are_the_original_ones() {
    let golden = Golden::load("common");
    for solver in [Solver::UniPc, Solver::DpmPlusPlus] {
        for steps in [4, 12, 40] {
            for shift in [3, 5, 12] {
                let name = format!("schedule/{solver}/steps{steps}_shift{shift}");
                let schedule = Schedule::new(solver, steps, f64::from(shift));
                let expected: Vec<f64> = golden
                    .ints(&format!("{name}/timesteps"))
                    .iter()
                    .map(|&t| f64::from(t))
                    .collect();
                assert_eq!(schedule.timesteps, expected, "{name}");
                let sigmas: Vec<f32> = schedule.sigmas.iter().map(|&s| s as f32).collect();
                assert_eq!(sigmas, golden.floats(&format!("{name}/sigmas")), "{name}");
            }
        }
    }
    assert_eq!(
        Schedule::new(Solver::UniPc, 4, 5.0).timesteps,
        [999.0, 937.0, 833.0, 624.0]
    );
    assert_eq!(
        Schedule::new(Solver::Euler, 12, 5.0),
        Schedule::new(Solver::UniPc, 12, 5.0)
    );
}

#[test]
fn trajectories() {
    let _mlx = Case::load("d");
    let golden = Golden::load("common");
    for solver in SOLVERS {
        let twelve = stack(&trajectory(solver, 12), 0).unwrap();
        let name = format!("trajectory/{solver}/steps12");
        golden.check("solver", &name, &twelve, 1e-5);
        for steps in [4, 40] {
            let last = trajectory(solver, steps).pop().unwrap();
            let name = format!("trajectory/{solver}/steps{steps}");
            golden.check("solver", &name, &last, 1e-5);
        }
    }
}

#[test]
fn one_step_goes_straight_to_the_clean_estimate() {
    let _mlx = Case::load("d");
    let c = input("schedule.c", 0.5);
    let x = input("schedule.x", 1.7);
    for solver in SOLVERS {
        let schedule = Schedule::new(solver, 1, 5.0);
        let (sigma, timestep) = (schedule.sigmas[0], schedule.timesteps[0]);
        let velocity = model(&x, timestep, &c);
        let mut sampler = Sampler::new(solver, schedule, 0);
        let ours = sampler.step(&x, &velocity).unwrap();
        let clean = x
            .subtract(velocity.multiply(Array::from_f32(sigma as f32)).unwrap())
            .unwrap();
        let error = ours
            .subtract(&clean)
            .unwrap()
            .abs()
            .unwrap()
            .max(None)
            .unwrap();
        assert!(error.item_cast::<f32>() < 1e-5, "{solver}");
        // Past the end nothing moves.
        let after = sampler.step(&ours, &velocity).unwrap();
        let moved = after
            .subtract(&ours)
            .unwrap()
            .abs()
            .unwrap()
            .max(None)
            .unwrap();
        assert_eq!(moved.item_cast::<f32>(), 0.0);
    }
}
