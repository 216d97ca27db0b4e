//! Latents.

use ndarray::{Array4, s};
use wan_i2v::diagnose::analyze::{Status, Symptom, latents};

use super::drawn::Noise;

/// Smooth pictures of deviation near 1, `[16, 5, 8, 10]`.
fn smooth() -> Array4<f32> {
    Array4::from_shape_fn((16, 5, 8, 10), |(c, t, y, x)| {
        let (c, t, y, x) = (c as f32, t as f32, y as f32, x as f32);
        1.4 * (0.5 * x + 0.1 * t + c).sin() * (0.4 * y + 0.7 * c).cos()
    })
}

fn noise() -> Array4<f32> {
    let mut noise = Noise(9);
    Array4::from_shape_simple_fn((16, 5, 8, 10), || noise.next() as f32)
}

fn alarms(latents: &Array4<f32>) -> Vec<(Symptom, usize)> {
    let report = latents::analyze(latents.view()).unwrap();
    let found = report.findings().map(|v| (v.symptom, v.first.unwrap()));
    found.collect()
}

#[test]
fn figures_of_known_latents() {
    // Channel c of frame t is c + 10 t, but one pixel 16 above.
    let mut values = Array4::from_shape_fn((2, 3, 4, 4), |(c, t, _, _)| (c + 10 * t) as f32);
    values
        .slice_mut(s![.., .., 0, 0])
        .mapv_inplace(|v| v + 16.0);
    let report = latents::analyze(values.view()).unwrap();
    assert_eq!((report.size.width, report.size.height), (4, 4));
    let last = &report.latents[2];
    assert_eq!((last.min, last.max), (20.0, 37.0));
    assert!((last.mean - 21.5).abs() < 1e-9);
    assert!((last.channels[1].mean - 22.0).abs() < 1e-9);
    // 1/16 at 15 above the mean, the rest at 1 below it.
    assert!((last.channels[0].std - 15_f64.sqrt()).abs() < 1e-9);
    assert!((last.contrast - 15_f64.sqrt()).abs() < 1e-9);
    assert_eq!(last.difference, Some(10.0));
    assert_eq!(report.latents[0].difference, None);
}

#[test]
fn neighbours_tell_pictures_from_noise() {
    let correlation = |latents: &Array4<f32>| {
        let report = latents::analyze(latents.view()).unwrap();
        report.latents[2].correlation.unwrap()
    };
    assert!(correlation(&smooth()) > 0.7);
    assert!(correlation(&noise()).abs() < 0.08);
    assert!(alarms(&smooth()).is_empty());
}

#[test]
fn faults_are_found_where_they_begin() {
    let mut lost = smooth();
    lost.slice_mut(s![.., 1.., .., ..]).fill(0.3);
    assert_eq!(
        alarms(&lost),
        [(Symptom::ContentLost, 1), (Symptom::Collapsed, 1)]
    );
    let mut collapsed = smooth();
    collapsed
        .slice_mut(s![.., 3.., .., ..])
        .mapv_inplace(|v| v / 50.0);
    assert_eq!(alarms(&collapsed), [(Symptom::Collapsed, 3)]);
    let mut noisy = smooth();
    noisy
        .slice_mut(s![.., 2.., .., ..])
        .assign(&noise().slice(s![.., 2.., .., ..]));
    assert_eq!(alarms(&noisy), [(Symptom::Noise, 2)]);
    let mut broken = smooth();
    broken[[3, 4, 1, 1]] = f32::NAN;
    broken[[5, 1, 0, 2]] = f32::INFINITY;
    let report = latents::analyze(broken.view()).unwrap();
    let verdict = report.verdict(Symptom::NonFinite).unwrap();
    assert_eq!(
        (verdict.status, verdict.first, verdict.last),
        (Status::Alarm, Some(1), Some(4))
    );
    assert!(verdict.text.starts_with("2 values"));
    assert_eq!(report.latents[1].non_finite, 1);
    // What is finite is measured all the same.
    assert!(report.latents[1].max < 2.0 && report.latents[4].std > 0.3);
    // JSON has no word for what is no number.
    assert!(!serde_json::to_string(&report).unwrap().contains("NaN"));
    assert!(latents::analyze(Array4::zeros((16, 0, 2, 2)).view()).is_err());
    let none = Array4::from_elem((2, 2, 2, 2), f32::NAN);
    assert!(latents::analyze(none.view()).unwrap().alarm);
}
