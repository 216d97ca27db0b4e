//! Planted faults, and where they begin.

use image::RgbImage;
use wan_i2v::diagnose::analyze::{Report, Status, Symptom, analyze};

use super::drawn::{Noise, flat, moving, picture, with_checkerboard};

fn symptoms(report: &Report) -> Vec<(Symptom, Status)> {
    report.findings().map(|v| (v.symptom, v.status)).collect()
}

/// Checks that these symptoms are alarms from a frame on, and that nothing else is found.
fn check(frames: Vec<RgbImage>, expected: &[(Symptom, usize)]) {
    let report = analyze(frames, Some(picture(0.0))).unwrap();
    let found: Vec<_> = report
        .findings()
        .map(|v| (v.symptom, v.first.unwrap()))
        .collect();
    assert_eq!(found, expected, "{:#?}", report.verdicts);
    assert_eq!(report.alarm, !expected.is_empty());
    for verdict in report.findings() {
        assert_eq!(verdict.status, Status::Alarm);
        assert!(!verdict.causes.is_empty());
        let text = format!("from frame {}", verdict.first.unwrap());
        let last = verdict.to_end && verdict.first != verdict.last;
        assert!(
            !last || verdict.found().contains(&text),
            "{}",
            verdict.found()
        );
    }
}

/// The clip with its frames from `from` on replaced.
fn tail(from: usize, mut fault: impl FnMut(&RgbImage) -> RgbImage) -> Vec<RgbImage> {
    let mut frames = moving(17);
    for frame in &mut frames[from..] {
        *frame = fault(frame);
    }
    frames
}

#[test]
fn a_sound_clip_has_none() {
    check(moving(17), &[]);
    check(moving(1), &[]);
}

#[test]
fn grey_tails() {
    for from in [9, 13, 16] {
        check(
            tail(from, |_| flat([128, 126, 129])),
            &[(Symptom::Grey, from)],
        );
    }
    // Not quite flat, as the VAE draws it.
    let pale = |frame: &RgbImage| {
        let mut frame = frame.clone();
        frame
            .pixels_mut()
            .for_each(|p| p.0 = p.0.map(|v| (128 + (i32::from(v) - 128) / 10) as u8));
        frame
    };
    check(tail(9, pale), &[(Symptom::Grey, 9)]);
}

/// The report's last symptom: the picture in the first latent frame, grey after it.
#[test]
fn content_that_is_lost_after_the_first_latent_frame() {
    for from in [1, 4, 5] {
        let frames = tail(from, |_| flat([128; 3]));
        let frozen = (Symptom::Frozen, from + 1);
        let mut expected = vec![(Symptom::ContentLost, from), (Symptom::Grey, from)];
        if 17 - from > 8 {
            expected.push(frozen);
        }
        check(frames, &expected);
    }
}

#[test]
fn black_frames() {
    check(tail(12, |_| flat([0, 1, 0])), &[(Symptom::Black, 12)]);
    let report = analyze(vec![flat([0; 3]); 9], None).unwrap();
    assert!(symptoms(&report).contains(&(Symptom::Black, Status::Alarm)));
    let verdict = report.verdict(Symptom::Black).unwrap();
    assert_eq!((verdict.first, verdict.to_end), (Some(0), true));
    // From a black picture a black clip is right.
    let report = analyze(vec![flat([0; 3]); 9], Some(flat([0; 3]))).unwrap();
    assert!(!report.alarm, "{:#?}", report.verdicts);
}

#[test]
fn noisy_tails() {
    let mut noise = Noise(2);
    check(
        tail(7, |frame| noise.on(frame, 25.0)),
        &[(Symptom::Noise, 7)],
    );
}

/// Noise that the VAE has made smooth is told by frames that have nothing to do with each other.
#[test]
fn tails_of_smooth_noise() {
    let mut noise = Noise(2);
    let mut smooth = |_: &RgbImage| {
        let coarse = noise.on(&RgbImage::from_pixel(12, 10, image::Rgb([128; 3])), 40.0);
        image::imageops::resize(&coarse, 96, 80, image::imageops::FilterType::CatmullRom)
    };
    check(tail(5, &mut smooth), &[(Symptom::Noise, 5)]);
}

#[test]
fn frozen_tails() {
    let mut frames = moving(17);
    for i in 7..17 {
        frames[i] = frames[6].clone();
    }
    check(frames, &[(Symptom::Frozen, 7)]);
    // A rest of less than two latent frames may be meant.
    let mut frames = moving(17);
    for i in 12..17 {
        frames[i] = frames[11].clone();
    }
    check(frames, &[]);
}

/// Worth knowing, and no alarm.
#[test]
fn still_clips() {
    let report = analyze(vec![picture(0.0); 17], Some(picture(0.0))).unwrap();
    assert_eq!(symptoms(&report), [(Symptom::Frozen, Status::Note)]);
    assert!(!report.alarm);
}

#[test]
fn checkerboards() {
    for (period, amplitude) in [(2, 4), (8, 3), (16, 3)] {
        let frames = tail(4, |frame| with_checkerboard(frame, period, amplitude));
        check(frames, &[(Symptom::Checkerboard, 4)]);
        // One that the picture has is no fault.
        let own = with_checkerboard(&picture(0.0), period, amplitude);
        let frames = moving(9)
            .iter()
            .map(|f| with_checkerboard(f, period, amplitude))
            .collect::<Vec<_>>();
        let report = analyze(frames, Some(own)).unwrap();
        assert!(!report.alarm, "{:#?}", report.verdicts);
    }
}

#[test]
fn another_first_frame() {
    let report = analyze(moving(5), Some(flat([120; 3]))).unwrap();
    let verdict = report.verdict(Symptom::FirstFrame).unwrap();
    assert_eq!((verdict.status, verdict.first), (Status::Alarm, Some(0)));
    let report = analyze(moving(5), None).unwrap();
    let verdict = report.verdict(Symptom::FirstFrame).unwrap();
    assert_eq!(verdict.status, Status::Unknown);
}

#[test]
fn frames_of_one_size() {
    let error = analyze([flat([9; 3]), RgbImage::new(8, 8)], None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("frame 1 is 8x8 pixels, the one before 96x80")
    );
    assert!(analyze([flat([9; 3])], Some(RgbImage::new(8, 8))).is_err());
    assert!(analyze([], None).is_err());
    assert!(analyze([RgbImage::new(0, 4)], None).is_err());
}
