//! Sound clips of the built-in miniature: no alarm, whatever file they are in, and broken ones beside
//! them.

use anyhow::Result;
use image::RgbImage;
use mlx_rs::Array;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::analyze::{Report, Symptom, analyze, latents};
use wan_i2v::media::clip::{ClipSpec, ClipWriter};
use wan_i2v::media::read;
use wan_i2v::pipeline::initial_noise;
use wan_i2v::runtime::to_host;

use crate::scenes::{Recipe, Studio, scene};
use crate::support::mlx;

/// Scenes: every motion three times, with one thing and with two.
const CLIPS: u64 = 24;
/// The result is as sound as with the miniature's twelve.
const STEPS: u32 = 4;

fn alarms(report: &Report) -> Vec<Symptom> {
    let alarms = report.findings().filter(|v| !v.causes.is_empty());
    alarms.map(|verdict| verdict.symptom).collect()
}

fn of_latents(array: &Array) -> Result<Report> {
    let shape: Vec<usize> = array.shape().iter().map(|&side| side as usize).collect();
    let values = to_host(array)?;
    let shape = [shape[0], shape[1], shape[2], shape[3]];
    latents::analyze(ndarray::ArrayView4::from_shape(shape, &values)?)
}

/// The frames as a file of this kind holds them.
fn through(name: &str, frames: &[RgbImage]) -> Result<Vec<RgbImage>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    let (width, height) = frames[0].dimensions();
    let spec = ClipSpec {
        width,
        height,
        fps: 16.0,
    };
    let mut writer = ClipWriter::create(&path, &spec, None)?;
    for frame in frames {
        writer.push(frame)?;
    }
    writer.finish()?;
    let mut found = Vec::new();
    read::frames(&path, &mut |frame| {
        found.push(frame.pixels);
        Ok(())
    })?;
    Ok(found)
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
        assert_eq!(alarms(&of_latents(&array)?), [], "{said}: latents");
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
        let noise = initial_noise(number, array.dim(0), stage.plan.latent_grid());
        let rest = Array::from_f32(1.0).subtract(&first)?;
        let noisy = nothing.add(noise.multiply(rest)?)?;
        for (name, latents, expected) in [
            ("nothing", &nothing, Symptom::ContentLost),
            ("noise", &noisy, Symptom::Noise),
        ] {
            let report = of_latents(latents)?;
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
