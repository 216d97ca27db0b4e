//! `wan-i2v plan`: a forecast for people and for scripts.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use wan_i2v::backend::Backend;
use wan_i2v::checkpoint::Checkpoint;
use wan_i2v::forecast::{Forecast, Rates, Tokens, forecast};
use wan_i2v::media::picture::Picture;
use wan_i2v::pipeline::tokenize;
use wan_i2v::request::{Plan, Request, Size};

use super::args::PlanArgs;
use super::display::{human_bytes, human_time, print, say};

/// Tokens of a prompt when none is given.
const PROMPT_TOKENS: usize = 64;
/// The picture's size when none is given.
const PICTURE: (usize, usize) = (832, 480);
/// The table's sizes: their names and pixels.
const AREAS: [(&str, u64); 2] = [("480p", 832 * 480), ("720p", 1280 * 720)];
/// The table's frames and steps.
const FRAMES: [u32; 2] = [33, 81];
const STEPS: [u32; 2] = [20, 40];

/// Prints the forecast.
pub fn run(args: PlanArgs) -> Result<ExitCode> {
    let as_json = args.json;
    let (request, machine) = args.into_request()?;
    let backend = machine.backend()?;
    let checkpoint = request.model.open(request.bits)?;
    let picture = match request.image.as_os_str().is_empty() {
        true => PICTURE,
        false => size_of(&request.image)?,
    };
    let patch = checkpoint.high.patch_size[1];
    let plan = request.plan(&checkpoint.settings, picture, patch)?;
    let tokens = tokens(&checkpoint, &request, &plan)?;
    let rates = Rates::of_machine(backend)?;
    let made = forecast(&checkpoint, &plan, tokens, backend, Some(&rates))?;
    let text = if as_json {
        let report = json!({
            "width": plan.width,
            "height": plan.height,
            "frames": plan.frames,
            "steps": plan.steps,
            "device": backend.device.to_string(),
            "precision": backend.precision.to_string(),
            "rates": rates,
            "forecast": made,
        });
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        let mut text = phases(&made, &plan, &rates);
        // A model that knows one size only has nothing to choose.
        if checkpoint.settings.size.is_none() {
            text += &choices(&checkpoint, &request, picture, tokens, backend, &rates)?;
        }
        text
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn size_of(image: &Path) -> Result<(usize, usize)> {
    let picture = Picture::open(image).context("--image")?;
    Ok((picture.width(), picture.height()))
}

/// Token counts, of the real prompts where the model has a tokenizer.
fn tokens(checkpoint: &Checkpoint, request: &Request, plan: &Plan) -> Result<Tokens> {
    let ids = match tokenize(checkpoint, &request.prompt, plan) {
        Ok(ids) => ids,
        Err(error) => {
            say!("note: prompts are taken to have {PROMPT_TOKENS} tokens: {error:#}");
            return Ok(Tokens {
                prompt: PROMPT_TOKENS,
                negative: plan.guide_scale.needs_negative().then_some(PROMPT_TOKENS),
            });
        }
    };
    Ok(Tokens {
        prompt: match request.prompt.is_empty() {
            true => PROMPT_TOKENS,
            false => ids.prompt.ids.len(),
        },
        negative: ids.negative.map(|ids| ids.ids.len()),
    })
}

fn phases(made: &Forecast, plan: &Plan, rates: &Rates) -> String {
    let mut text = format!(
        "{} x {} pixels, {} frames, {} steps, {} passes; {}\n\n",
        plan.width, plan.height, plan.frames, plan.steps, made.passes, rates.machine
    );
    let _ = writeln!(
        text,
        "{:<24}{:>16}{:>12}{:>14}{:>14}",
        "phase", "operations", "weights", "peak memory", "time"
    );
    for phase in &made.phases {
        let _ = writeln!(
            text,
            "{:<24}{:>16}{:>12}{:>14}{:>14}",
            phase.phase,
            flops(phase.operations.total()),
            human_bytes(phase.weight_bytes),
            human_bytes(phase.peak_bytes),
            seconds(phase.seconds)
        );
    }
    let total = made.phases.iter().map(|p| p.operations.total()).sum();
    let _ = writeln!(
        text,
        "{:<24}{:>16}{:>12}{:>14}{:>14}",
        "in all",
        flops(total),
        "",
        human_bytes(made.peak_bytes),
        seconds(made.seconds)
    );
    text
}

/// Peak memory and time over sizes, frames and steps.
fn choices(
    checkpoint: &Checkpoint,
    request: &Request,
    picture: (usize, usize),
    tokens: Tokens,
    backend: Backend,
    rates: &Rates,
) -> Result<String> {
    let mut text = format!(
        "\n{:<8}{:>8}{:>8}{:>14}{:>14}\n",
        "size", "frames", "steps", "peak memory", "time"
    );
    let patch = checkpoint.high.patch_size[1];
    for (name, area) in AREAS {
        for frames in FRAMES {
            for steps in STEPS {
                let request = Request {
                    size: Some(Size::Area(area)),
                    frames: Some(frames),
                    steps: Some(steps),
                    ..request.clone()
                };
                let plan = request.plan(&checkpoint.settings, picture, patch)?;
                let made = forecast(checkpoint, &plan, tokens, backend, Some(rates))?;
                let _ = writeln!(
                    text,
                    "{name:<8}{frames:>8}{steps:>8}{:>14}{:>14}",
                    human_bytes(made.peak_bytes),
                    seconds(made.seconds)
                );
            }
        }
    }
    Ok(text)
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("?".into(), |s| human_time(Duration::from_secs_f64(s)))
}

/// Operations for people: `12.3 G`, `1.80 P`.
fn flops(count: u64) -> String {
    let count = count as f64;
    match count {
        0.0..1e9 => format!("{:.1} MFLOP", count / 1e6),
        1e9..1e12 => format!("{:.1} GFLOP", count / 1e9),
        1e12..1e15 => format!("{:.2} TFLOP", count / 1e12),
        _ => format!("{:.2} PFLOP", count / 1e15),
    }
}
