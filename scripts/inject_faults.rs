//! Shows what faults of a pipeline look like on clips of the built-in miniature: `cargo run
//! --release --example inject-faults -- STRIPS REPORTS` writes a strip of each case that shows into the folder
//! STRIPS, statistics of all frames and a film strip of each clip into REPORTS, and prints the
//! tables of `docs/verification.md`. `scripts/inject_faults` runs it.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use mlx_rs::Array;
use wan_i2v::diagnose::analyze::{Report, Status, Symptom, analyze};
use wan_i2v::diagnose::lab::faults::{CASES, Case, Clip, Gap, distance, render, strip};
use wan_i2v::diagnose::lab::scenes::{Scene, Studio, scene};
use wan_i2v::media::metrics::{mean_square, psnr_of_mean_square};
use wan_i2v::media::strip::FilmStrip;
use wan_i2v::pipeline::TEXT_LEN;
use wan_i2v::runtime::to_host;
use wan_i2v::weights::Expert;

/// The scenes whose clips are shown.
const SHOWN: [u64; 2] = [0, 3];
/// Those that the predictions for both prompts are compared on.
const COMPARED: std::ops::Range<u64> = 0..16;

/// PSNR from which a clip looks like the sound one, in dB.
const AS_SOUND: f64 = 40.0;

fn main() -> Result<()> {
    let usage = "usage: inject-faults STRIPS REPORTS";
    let mut folders = std::env::args_os().skip(1).map(PathBuf::from);
    let [strips, reports] = [folders.next(), folders.next()].map(|folder| folder.context(usage));
    let (strips, reports) = (strips?, reports?);
    fs::create_dir_all(&strips)?;
    fs::create_dir_all(&reports)?;

    let studio = Studio::open()?;
    for number in SHOWN {
        println!("Scene {number}: {}", scene(number).prompt);
    }
    println!(
        "\n| what is wrong | clips | first frame | later frames | contrast | prompts apart | alarms |\n\
         | --- | --- | --- | --- | --- | --- | --- |"
    );
    let sound = shown(&studio, &CASES[0])?;
    for case in CASES {
        let clips = shown(&studio, &case)?;
        let later = later(&clips, &sound)?;
        let shows = later < AS_SOUND || case.faults.is_empty();
        if shows {
            strip::write(&strips.join(format!("{}.png", case.name)), &clips)?;
        }
        let found = analyzed(&reports, &case, &clips)?;
        println!("{}", row(&case, &clips, &sound, later, shows, &found)?);
        eprintln!("{} done", case.name);
    }
    println!();
    compare_prompts(&studio)?;
    compare_experts(&studio)
}

/// The clips of the scenes that are shown.
fn shown(studio: &Studio, case: &Case) -> Result<Vec<Clip>> {
    SHOWN
        .map(|number| clip(studio, &scene(number), case))
        .into_iter()
        .collect()
}

fn clip(studio: &Studio, scene: &Scene, case: &Case) -> Result<Clip> {
    render(studio, &studio.stage(scene)?, scene, case)
}

/// What is found in each clip; writes it down with the film strip.
fn analyzed(folder: &Path, case: &Case, clips: &[Clip]) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for (number, clip) in SHOWN.into_iter().zip(clips) {
        let name = folder.join(format!("{}-{number}", case.name));
        let mut film = FilmStrip::new(&name.with_extension("png"), clip.frames.len() as u32, None)?;
        clip.frames.iter().for_each(|frame| film.push(frame));
        film.finish()?;
        let report = analyze(clip.frames.iter().cloned(), Some(scene(number).picture))?;
        let file = name.with_extension("json");
        fs::write(&file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        reports.push(report);
    }
    Ok(reports)
}

/// PSNR of all frames but the first ones against the sound clips, in dB.
fn later(clips: &[Clip], sound: &[Clip]) -> Result<f64> {
    let mut squares = Vec::new();
    for (clip, sound) in clips.iter().zip(sound) {
        for (a, b) in clip.frames.iter().zip(&sound.frames).skip(1) {
            squares.push(mean_square(a, b)?);
        }
    }
    Ok(psnr_of_mean_square(
        squares.iter().sum::<f64>() / squares.len() as f64,
    ))
}

/// A case's row of the table; figures are over all scenes shown.
fn row(
    case: &Case,
    clips: &[Clip],
    sound: &[Clip],
    later: f64,
    shows: bool,
    reports: &[Report],
) -> Result<String> {
    let mut first = 0.0;
    for (number, clip) in SHOWN.into_iter().zip(clips) {
        first += mean_square(&clip.frames[0], &scene(number).picture)? / clips.len() as f64;
    }
    let contrast = |clips: &[Clip]| -> Result<f64> {
        let last = |clip: &Clip| clip.frames.last().cloned().context("a clip has frames");
        let frames: Vec<RgbImage> = clips.iter().map(last).collect::<Result<_>>()?;
        let report = analyze(frames, None)?;
        Ok(report.frames.iter().map(|frame| frame.contrast).sum())
    };
    let gaps = clips.iter().filter_map(|clip| clip.gaps.first().copied());
    let gaps: Vec<Gap> = gaps.collect();
    Ok(format!(
        "| {} | {} | {:.1} dB | {} | {:.0}% | {} | {} |",
        case.what,
        match shows {
            true => format!("![{0}](images/faults/{0}.png)", case.name),
            false => "as the sound ones".into(),
        },
        psnr_of_mean_square(first),
        match later {
            f64::INFINITY => "equal".into(),
            later => format!("{later:.1} dB"),
        },
        contrast(clips)? / contrast(sound)? * 100.0,
        match gaps.is_empty() {
            true => String::new(),
            false => described(&gaps),
        },
        alarms(reports)
    ))
}

/// Mean difference and relative difference, averaged.
fn described(gaps: &[Gap]) -> String {
    let mean = |value: fn(&Gap) -> f64| gaps.iter().map(value).sum::<f64>() / gaps.len() as f64;
    format!(
        "{:.3}, {:.1}%",
        mean(|gap| gap.mean),
        mean(|gap| gap.relative) * 100.0
    )
}

/// The alarms of all clips, each with the first frame that it is found from.
fn alarms(reports: &[Report]) -> String {
    let mut found: Vec<(Symptom, usize)> = Vec::new();
    let verdicts = reports.iter().flat_map(|report| &report.verdicts);
    for verdict in verdicts.filter(|verdict| verdict.status == Status::Alarm) {
        let from = verdict.first.unwrap_or_default();
        match found
            .iter_mut()
            .find(|(known, _)| *known == verdict.symptom)
        {
            Some((_, first)) => *first = from.min(*first),
            None => found.push((verdict.symptom, from)),
        }
    }
    let texts = found.iter().map(|(symptom, from)| match symptom {
        Symptom::FirstFrame => symptom.name().to_owned(),
        _ => format!("{} from {from}", symptom.name()),
    });
    match found.is_empty() {
        true => "none".into(),
        false => texts.collect::<Vec<_>>().join(", "),
    }
}

/// Prints how far the predictions for both prompts are apart, at each step of the sound run and at
/// the first one of others, and what the prompt is worth in the finished latents.
fn compare_prompts(studio: &Studio) -> Result<()> {
    let named = |name| Case::named(name).context("no such case");
    let mut steps: Vec<Vec<Gap>> = Vec::new();
    let mut worth = (0.0, 0.0);
    let count = COMPARED.count() as f64;
    for number in COMPARED {
        let scene = scene(number);
        let told = clip(studio, &scene, &CASES[0])?;
        let untold = clip(studio, &scene, &named("no-prompt")?)?;
        let (mean, relative) = distance(&told.latents, &untold.latents);
        worth = (worth.0 + mean / count, worth.1 + relative / count);
        steps.resize(told.gaps.len(), Vec::new());
        for (step, gap) in steps.iter_mut().zip(told.gaps) {
            step.push(gap);
        }
        eprintln!("scene {number} done");
    }
    println!(
        "| timestep | predictions for both prompts apart | least and most |\n| --- | --- | --- |"
    );
    for gaps in &steps {
        let means = gaps.iter().map(|gap| gap.mean);
        println!(
            "| {} | {} | {:.3}, {:.3} |",
            gaps[0].timestep,
            described(gaps),
            means.clone().fold(f64::INFINITY, f64::min),
            means.fold(0.0, f64::max),
        );
    }
    println!(
        "\nFinished latents with the prompt and with the negative one in its place: {:.3} apart, {:.1}%.\n",
        worth.0,
        worth.1 * 100.0
    );
    Ok(())
}

/// Prints how far the experts are apart in what they make of a prompt.
fn compare_experts(studio: &Studio) -> Result<()> {
    let load = |expert| studio.checkpoint.load_expert(expert, studio.device);
    let (high, low) = (load(Expert::HighNoise)?, load(Expert::LowNoise)?);
    let stage = studio.stage(&scene(SHOWN[0]))?;
    let text = &stage.prompts.prompt;
    let apart = |a: &Array, b: &Array| -> Result<f64> {
        let (a, b) = (to_host(a)?, to_host(b)?);
        let sizes = b.iter().map(|b| f64::from(b.abs())).sum::<f64>() / b.len() as f64;
        Ok(distance(&a, &b).0 / sizes)
    };
    let embedded = apart(&low.embed_text(text)?, &high.embed_text(text)?)?;
    let (mut keys, mut values) = (0.0, 0.0);
    let (low, high) = (
        low.cross_kv(text, TEXT_LEN as i32)?,
        high.cross_kv(text, TEXT_LEN as i32)?,
    );
    let blocks = high.len() as f64;
    for (low, high) in low.iter().zip(&high) {
        keys += apart(&low.keys, &high.keys)? / blocks;
        values += apart(&low.values, &high.values)? / blocks;
    }
    println!(
        "The experts apart, mean difference over mean size: text embedding {:.1}%, keys {:.1}%, \
         values {:.1}%.",
        embedded * 100.0,
        keys * 100.0,
        values * 100.0
    );
    Ok(())
}
