//! Figures of single frames and from frame to frame.

use image::{Rgb, RgbImage};
use wan_i2v::diagnose::analyze::{FrameStats, PERIODS, Report, analyze};

use super::drawn::{HEIGHT, Noise, WIDTH, flat, moving, picture, with_checkerboard};

/// Half a unit in the last place of a float32 of 1.
const HALF_UNIT: f64 = f32::EPSILON as f64 / 2.0;

fn of(frame: RgbImage) -> FrameStats {
    analyze([frame], None).unwrap().frames[0].clone()
}

fn clip(frames: Vec<RgbImage>) -> Report {
    analyze(frames, None).unwrap()
}

#[test]
fn a_frame_of_two_levels() {
    // A quarter at 200, the rest at 40: mean 80, variance 120 * 40.
    let frame = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 16 { 200 } else { 40 }; 3]));
    let stats = of(frame);
    assert_eq!((stats.min, stats.max), (40, 200));
    assert!((stats.mean - 80.0).abs() < 1e-9);
    assert!((stats.std - 4800_f64.sqrt()).abs() < 1e-9);
    assert!((stats.contrast - stats.std).abs() < 1e-9);
    // The Laplacian is -160 and 160 on the two columns beside the edge, of 62.
    assert!((stats.sharpness - 2.0 * 160.0 * 160.0 / 62.0).abs() < 1e-3);
    assert_eq!(stats.noise, 0.0);
    assert_eq!(stats.difference, None);
}

/// One colour has a spread over its channels, and no contrast.
#[test]
fn contrast_is_within_channels() {
    let stats = of(flat([200, 50, 50]));
    assert!((stats.std - 5000_f64.sqrt()).abs() < 1e-9);
    assert_eq!(stats.contrast, 0.0);
    assert_eq!(stats.sharpness, 0.0);
    assert_eq!(stats.grid_power, Some(1.0));
}

#[test]
fn white_noise_has_its_deviation() {
    for deviation in [2.0, 6.0, 15.0] {
        let stats = of(Noise(7).on(&flat([128; 3]), deviation));
        // The mask's answers are correlated with their neighbours', so that the mean of their sizes
        // is known to 1.7%: three times that.
        let error = (stats.noise / deviation - 1.0).abs();
        assert!(error < 0.05, "{deviation}: {}", stats.noise);
    }
    // Luma of up to 189 levels is rounded three times, and the mask adds up sixteen of them and
    // rounds its sums: 52 half units in the last place, times the estimate's sqrt(pi / 2) / 6.
    let slope = RgbImage::from_fn(64, 64, |x, y| Rgb([(x + 2 * y) as u8; 3]));
    let rounding = 52.0 * 189.0 * HALF_UNIT * (std::f64::consts::PI / 2.0).sqrt() / 6.0;
    assert!(of(slope).noise < rounding);
}

#[test]
fn differences_are_those_of_the_motion() {
    // An edge of 150 levels that moves by a pixel a frame.
    let frame = |edge: u32| {
        RgbImage::from_fn(WIDTH, HEIGHT, |x, _| {
            Rgb([if x < edge { 200 } else { 50 }; 3])
        })
    };
    let report = clip((20..30).map(frame).collect());
    assert_eq!(report.frames[0].difference, None);
    for stats in &report.frames[1..] {
        let step = 150.0 / f64::from(WIDTH);
        assert!((stats.difference.unwrap() - step).abs() < 1e-9);
        let from_first = step * stats.frame as f64;
        assert!((stats.from_first.unwrap() - from_first).abs() < 1e-9);
    }
    assert_eq!(report.frames[0].coherence, None);
    // Two steps of shares p and q of a row: correlation sqrt(p (1 - q) / (q (1 - p))).
    for (frame, from, to) in [(1, 20.0, 21.0), (4, 20.0, 24.0), (6, 22.0, 26.0)] {
        let (p, q) = (from / f64::from(WIDTH), to / f64::from(WIDTH));
        let expected = (p * (1.0 - q) / (q * (1.0 - p))).sqrt();
        assert!((report.frames[frame].coherence.unwrap() - expected).abs() < 1e-9);
    }
}

#[test]
fn frames_that_have_nothing_in_common_have_no_coherence() {
    let mut noise = Noise(3);
    let report = clip((0..9).map(|_| noise.on(&flat([128; 3]), 20.0)).collect());
    for stats in &report.frames[1..] {
        // 1 / sqrt(pixels) is its deviation: four times that.
        let chance = 4.0 / f64::from(WIDTH * HEIGHT).sqrt();
        assert!(stats.coherence.unwrap().abs() < chance, "{stats:?}");
    }
    let still = clip(vec![picture(0.0); 6]);
    assert!((still.frames[5].coherence.unwrap() - 1.0).abs() < 1e-12);
}

/// Exactly its amplitude on what is smooth, nearly so on a picture, and nothing at other periods.
#[test]
fn a_planted_checkerboard_has_its_amplitude() {
    let slope = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        Rgb([(60 + x / 2 + y / 2 * 2) as u8; 3])
    });
    // Four values of luma, each rounded three times, and three sums, over four.
    let rounding = 6.0 * 255.0 * HALF_UNIT;
    for (name, ground, tolerance) in [
        ("flat", flat([120, 130, 90]), rounding),
        ("slope", slope, rounding),
        ("picture", picture(0.0), 0.35),
    ] {
        for (place, period) in PERIODS.into_iter().enumerate() {
            for amplitude in [0, 1, 3, 10, 30] {
                let stats = of(with_checkerboard(&ground, period as u32, amplitude));
                let measured = stats.checkerboard.by_period();
                for (other, (_, found)) in measured.into_iter().enumerate() {
                    let expected = if other == place {
                        f64::from(amplitude)
                    } else {
                        0.0
                    };
                    assert!(
                        (found - expected).abs() < tolerance,
                        "{name}, {amplitude} at {period} px: {measured:?}"
                    );
                }
            }
        }
    }
}

/// The report's own figure, `mean |f[::2, ::2] - f[1::2, 1::2]|`, answers to any texture.
#[test]
fn texture_is_no_checkerboard() {
    let textured = Noise(11).on(&picture(0.0), 12.0);
    let even = |x: u32, y: u32| f64::from(textured.get_pixel(x, y)[1]);
    let mut crude = 0.0;
    for (x, y) in (0..HEIGHT)
        .step_by(2)
        .flat_map(|y| (0..WIDTH).step_by(2).map(move |x| (x, y)))
    {
        crude += (even(x, y) - even(x + 1, y + 1)).abs();
    }
    crude /= f64::from(WIDTH * HEIGHT / 4);
    assert!(crude > 10.0, "{crude}");
    for (period, amplitude) in of(textured).checkerboard.by_period() {
        assert!(amplitude < 0.6, "{period}: {amplitude}");
    }
}

#[test]
fn what_repeats_every_eight_pixels_has_power_there() {
    // A bin is the mean of 80 powers, which the window correlates: known to 16%, its four neighbours'
    // mean to 9%. The larger of two such ratios is within four of their deviations of 1.
    for seed in [5, 6, 7] {
        let plain = of(Noise(seed).on(&flat([128; 3]), 3.0)).grid_power.unwrap();
        assert!((0.6..1.8).contains(&plain), "{plain}");
    }
    // In either direction, and wherever it begins. A wave of 5 levels from side to side has a bin of
    // 683, a checkerboard two of 291, both beside noise and rounding of 9.08.
    for (name, expected, stripes) in [
        (
            "across",
            75.0,
            RgbImage::from_fn(WIDTH, HEIGHT, |x, _| {
                Rgb([if (x + 3) % 8 < 4 { 123 } else { 133 }; 3])
            }),
        ),
        (
            "down",
            75.0,
            RgbImage::from_fn(WIDTH, HEIGHT, |_, y| {
                Rgb([if y % 8 < 4 { 123 } else { 133 }; 3])
            }),
        ),
        ("both", 64.0, with_checkerboard(&flat([128; 3]), 8, 5)),
    ] {
        let power = of(Noise(5).on(&stripes, 3.0)).grid_power.unwrap();
        assert!((power / expected - 1.0).abs() < 0.5, "{name}: {power}");
    }
    for period in [6, 12, 16] {
        let power = of(with_checkerboard(&flat([128; 3]), period, 5))
            .grid_power
            .unwrap();
        assert!(power < 1.5, "{period}: {power}");
    }
    assert_eq!(of(RgbImage::new(31, 64)).grid_power, None);
}

#[test]
fn the_first_frame_is_held_to_the_picture() {
    let report = analyze(moving(2), Some(picture(0.0))).unwrap();
    let first = report.first_frame.unwrap();
    assert_eq!((first.psnr, first.ssim.unwrap()), (None, 1.0));
    let darker = flat([100; 3]);
    let report = analyze([flat([101; 3])], Some(darker)).unwrap();
    let psnr = report.first_frame.unwrap().psnr.unwrap();
    assert!((psnr - 48.1308).abs() < 1e-4, "{psnr}");
}

#[test]
fn frames_of_any_size_are_measured() {
    for (width, height) in [(1, 1), (2, 1), (1, 9), (3, 3), (17, 33), (40, 32)] {
        let report = clip(vec![RgbImage::new(width, height); 6]);
        assert_eq!(report.frames.len(), 6, "{width}x{height}");
        let json = serde_json::to_string(&report).unwrap();
        assert!(!json.contains("null,null"), "{json}");
    }
}
