//! Sound clips of the built-in miniature: no alarm, whatever file they are in, and broken ones beside
//! them.

use anyhow::Result;
use mlx_rs::Array;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::analyze::{Report, Symptom, analyze};
use wan_i2v::diagnose::lab::scenes::{Recipe, Studio, scene};
use wan_i2v::diagnose::lab::{report_of, through};
use wan_i2v::pipeline::initial_noise;

use crate::support::mlx;

/// Scenes: every motion three times, with one thing and with two.
const CLIPS: u64 = 24;
/// The result is as sound as with the miniature's twelve.
const STEPS: u32 = 4;

fn alarms(report: &Report) -> Vec<Symptom> {
    let alarms = report.findings().filter(|v| !v.causes.is_empty());
    alarms.map(|verdict| verdict.symptom).collect()
}

#[test]
fn sound_clips_raise_no_alarm_and_broken_ones_do() -> Result<()> {
    let _mlx = mlx();
    let studio = Studio::open()?;
    for number in 0..CLIPS {
        let scene = scene(number);
        let stage = studio.stage(&scene)?;
        let recipe = Recipe {
            steps: STEPS,
            guide_scale: 2.0,
            guide_interval: GuideInterval::default(),
            cache: CacheSettings::default(),
        };
        let (array, _) = studio.denoise(&stage, &recipe, None)?;
        let frames = studio.decode(&array)?;
        let picture = || Some(scene.picture.clone());
        let said = &scene.prompt;
        assert_eq!(alarms(&report_of(&array)?), [], "{said}: latents");
        assert_eq!(alarms(&analyze(frames.clone(), picture())?), [], "{said}");
        assert_eq!(
            alarms(&analyze(frames.clone(), None)?),
            [],
            "{said}, picture unknown"
        );
        // A GIF takes as long as all else together.
        let files = ["clip.mp4", "clip.gif"];
        for name in &files[..1 + usize::from(number % 4 == 3)] {
            let report = analyze(through(name, &frames)?, picture())?;
            assert_eq!(
                alarms(&report),
                [],
                "{said}, {name}: {:#?}",
                report.verdicts
            );
        }
        if number >= 4 {
            continue;
        }
        // The first latent frame as it is, and then either nothing or noise.
        let count = array.dim(1);
        let first: Vec<f32> = (0..count).map(|i| f32::from(u8::from(i == 0))).collect();
        let first = Array::from_slice(&first, &[1, count, 1, 1]);
        let nothing = array.multiply(&first)?;
        let noise = initial_noise(
            number,
            array.dim(0),
            stage.plan.latent_grid(&studio.checkpoint.vae),
        );
        let rest = Array::from_f32(1.0).subtract(&first)?;
        let noisy = nothing.add(noise.multiply(rest)?)?;
        for (name, latents, expected) in [
            ("nothing", &nothing, Symptom::ContentLost),
            ("noise", &noisy, Symptom::Noise),
        ] {
            let report = report_of(latents)?;
            assert!(
                alarms(&report).contains(&expected),
                "{said}, {name}: latents"
            );
            let report = analyze(studio.decode(latents)?, picture())?;
            assert!(
                alarms(&report).contains(&expected),
                "{said}, {name}: {:#?}",
                report.verdicts
            );
            let verdict = report.verdict(expected).and_then(|verdict| verdict.first);
            assert!(
                (1..=5).contains(&verdict.unwrap_or_default()),
                "{said}, {name}"
            );
        }
    }
    Ok(())
}
