//! The noise against PyTorch's own; `scripts/golden_noise.py` wrote the numbers.

use serde::Deserialize;
use wan_i2v::sampling::noise::randn;

/// What PyTorch's own vectorised and scalar paths differ by, and room for the libm of the machine.
const TOLERANCE: f32 = 2e-6;

#[derive(Deserialize)]
struct Case {
    seed: u64,
    count: usize,
    head: Vec<f32>,
    #[serde(default)]
    middle: Vec<f32>,
    #[serde(default)]
    tail: Vec<f32>,
    mean: Option<f64>,
    mean_square: Option<f64>,
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn draws_what_torch_draws() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/noise.json")).unwrap();
    assert!(cases.len() > 50);
    for case in &cases {
        let noise = randn(case.seed, case.count);
        assert_eq!(noise.len(), case.count);
        let middle = case.count / 2;
        for (name, start, theirs) in [
            ("head", 0, &case.head),
            ("middle", middle, &case.middle),
            ("tail", case.count - case.tail.len(), &case.tail),
        ] {
            let difference = largest_difference(&noise[start..start + theirs.len()], theirs);
            assert!(
                difference <= TOLERANCE,
                "seed {}, {} elements: {name} differs by {difference}",
                case.seed,
                case.count
            );
        }
        let mean_of = |f: fn(f64) -> f64| {
            noise.iter().map(|&x| f(f64::from(x))).sum::<f64>() / noise.len() as f64
        };
        for (theirs, ours) in [
            (case.mean, mean_of(|x| x)),
            (case.mean_square, mean_of(|x| x * x)),
        ] {
            let Some(theirs) = theirs else { continue };
            assert!(
                (ours - theirs).abs() < 1e-7,
                "seed {}, {} elements: mean {ours}, torch {theirs}",
                case.seed,
                case.count
            );
        }
    }
}

#[test]
fn only_the_low_half_of_the_seed_counts() {
    assert_eq!(randn(5, 40), randn((1 << 32) + 5, 40));
    assert_ne!(randn(5, 40), randn(6, 40));
}

#[test]
fn no_elements_is_no_error() {
    assert!(randn(3, 0).is_empty());
}
