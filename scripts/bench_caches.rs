//! Measures what the approximate ways to less work save and cost, on clips of the built-in
//! miniature against the full run of the same seed: `cargo run --release --example bench-caches --
//! SCENES PLOT.svg`. Prints Markdown tables; `scripts/bench_caches` runs it.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use image::RgbImage;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::lab::scenes::{Recipe, Stage, Studio, scene};
use wan_i2v::media::metrics::{mean_square, psnr_of_mean_square, ssim};
use wan_i2v::pipeline::Passes;

/// Steps of the runs: the miniature's recommendation and the published model's.
const STEPS: [u32; 2] = [12, 40];
/// Guidance of the runs, likewise.
const GUIDES: [f32; 2] = [2.0, 3.5];
/// Of each cache; the thresholds are drawn.
const OPTIONS: [&str; 6] = [
    "threshold=0.01",
    "threshold=0.02",
    "threshold=0.04",
    "threshold=0.08",
    "retention=3",
    "cutoff=3",
];
const INTERVALS: [(f64, f64); 3] = [(0.0, 0.5), (0.0, 0.7), (0.2, 0.8)];
/// Fewer steps for comparison, as shares of all.
const FEWER: [u32; 3] = [75, 50, 25];

/// A way to less work.
struct Way {
    family: Family,
    /// The flags that ask for it.
    flags: String,
    /// Whether the plot shows it.
    drawn: bool,
    recipe: Recipe,
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    TeaCache,
    EasyCache,
    Interval,
    Both,
    Steps,
}

impl Family {
    const ALL: [Self; 5] = [
        Self::TeaCache,
        Self::EasyCache,
        Self::Interval,
        Self::Both,
        Self::Steps,
    ];

    /// What the plot calls it, and its colour there.
    fn look(self) -> (&'static str, &'static str) {
        match self {
            Self::TeaCache => ("teacache", "#d1495b"),
            Self::EasyCache => ("easycache", "#00798c"),
            Self::Interval => ("guide-interval", "#edae49"),
            Self::Both => ("easycache and guide-interval", "#5b5ea6"),
            Self::Steps => ("fewer steps", "#777777"),
        }
    }
}

/// What a way saved and cost over all scenes.
#[derive(Default)]
struct Score {
    passes: Passes,
    /// Passes of the full runs.
    full: usize,
    clips: usize,
    /// Sums over the clips.
    squares: f64,
    ssim: f64,
    /// The worst clip's.
    worst_square: f64,
    worst_ssim: f64,
}

impl Score {
    fn add(&mut self, passes: Passes, full: Passes, a: &[RgbImage], b: &[RgbImage]) -> Result<()> {
        let (mut squares, mut similarity) = (0.0, 0.0);
        for (a, b) in a.iter().zip(b) {
            squares += mean_square(a, b)?;
            similarity += ssim(a, b)?;
        }
        let count = a.len() as f64;
        let (squares, similarity) = (squares / count, similarity / count);
        self.worst_square = self.worst_square.max(squares);
        self.worst_ssim = if self.clips == 0 {
            similarity
        } else {
            self.worst_ssim.min(similarity)
        };
        self.squares += squares;
        self.ssim += similarity;
        self.clips += 1;
        self.full += full.computed;
        self.passes.computed += passes.computed;
        self.passes.reused += passes.reused;
        self.passes.unguided += passes.unguided;
        Ok(())
    }

    /// The share of the full runs' passes that was not computed.
    fn saved(&self) -> f64 {
        1.0 - self.passes.computed as f64 / self.full as f64
    }

    fn psnr(&self) -> f64 {
        psnr_of_mean_square(self.squares / self.clips as f64)
    }

    fn row(&self, flags: &str) -> String {
        let per_clip = |count: usize| {
            let text = format!("{:.1}", count as f64 / self.clips as f64);
            text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
        };
        format!(
            "| `{flags}` | {} / {} / {} | {:.0}% | {} | {:.4} / {:.4} |",
            per_clip(self.passes.computed),
            per_clip(self.passes.reused),
            per_clip(self.passes.unguided),
            self.saved() * 100.0,
            if self.worst_square == 0.0 {
                "equal".to_owned()
            } else {
                let worst = psnr_of_mean_square(self.worst_square);
                format!("{:.1} / {worst:.1} dB", self.psnr())
            },
            self.ssim / self.clips as f64,
            self.worst_ssim,
        )
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: bench-caches SCENES PLOT.svg";
    let count: u64 = arguments.next().context(usage)?.parse().context(usage)?;
    let plot = PathBuf::from(arguments.next().context(usage)?);

    let studio = Studio::open()?;
    let stages = (0..count)
        .map(|number| studio.stage(&scene(number)))
        .collect::<Result<Vec<_>>>()?;
    let mut panels = Vec::new();
    for guide_scale in GUIDES {
        for steps in STEPS {
            let scores = measure(&studio, &stages, steps, guide_scale)?;
            println!("{steps} steps, guidance {guide_scale}:\n");
            println!(
                "| flags | passes computed / reused / unguided | work saved | PSNR, all / worst clip | \
                 SSIM, mean / worst clip |"
            );
            println!("| --- | --- | --- | --- | --- |");
            for (way, score) in &scores {
                println!("{}", score.row(&way.flags));
            }
            println!();
            if guide_scale == GUIDES[0] {
                panels.push((format!("{steps} steps, guidance {guide_scale}"), scores));
            }
        }
    }
    std::fs::write(&plot, draw(&panels)?)
        .with_context(|| format!("cannot write {}", plot.display()))
}

/// Every way at a number of steps and a guidance, with its score.
fn measure(
    studio: &Studio,
    stages: &[Stage],
    steps: u32,
    guide_scale: f32,
) -> Result<Vec<(Way, Score)>> {
    let full = Recipe {
        steps,
        guide_scale,
        guide_interval: GuideInterval::default(),
        cache: CacheSettings::default(),
    };
    let mut scores: Vec<(Way, Score)> = ways(studio, &full)?
        .into_iter()
        .map(|way| (way, Score::default()))
        .collect();
    for (number, stage) in stages.iter().enumerate() {
        let make = |recipe: &Recipe| -> Result<(Vec<RgbImage>, Passes)> {
            let (latents, passes) = studio.denoise(stage, recipe, None)?;
            Ok((studio.decode(&latents)?, passes))
        };
        let (expected, full) = make(&full)?;
        for (way, score) in &mut scores {
            let (frames, passes) = make(&way.recipe)?;
            score.add(passes, full, &frames, &expected)?;
        }
        eprintln!("{steps} steps, guidance {guide_scale}: scene {number} done");
    }
    Ok(scores)
}

fn ways(studio: &Studio, full: &Recipe) -> Result<Vec<Way>> {
    let cache = |text: &str| -> Result<CacheSettings> {
        text.parse::<CacheSettings>()?
            .for_model(&studio.checkpoint.settings.teacache)
    };
    let mut ways = Vec::new();
    for (family, name) in [
        (Family::TeaCache, "teacache"),
        (Family::EasyCache, "easycache"),
    ] {
        for options in OPTIONS {
            let value = format!("{name},{options}");
            ways.push(Way {
                family,
                flags: format!("--cache {value}"),
                drawn: options.starts_with("threshold"),
                recipe: Recipe {
                    cache: cache(&value)?,
                    ..full.clone()
                },
            });
        }
    }
    for (start, end) in INTERVALS {
        let guide_interval = GuideInterval { start, end };
        ways.push(Way {
            family: Family::Interval,
            flags: format!("--guide-interval {start},{end}"),
            drawn: true,
            recipe: Recipe {
                guide_interval,
                ..full.clone()
            },
        });
    }
    ways.push(Way {
        family: Family::Interval,
        flags: "--guide-scale 1".into(),
        drawn: true,
        recipe: Recipe {
            guide_scale: 1.0,
            ..full.clone()
        },
    });
    ways.push(Way {
        family: Family::Both,
        flags: "--cache easycache --guide-interval 0,0.5".into(),
        drawn: true,
        recipe: Recipe {
            cache: cache("easycache")?,
            guide_interval: GuideInterval {
                start: 0.0,
                end: 0.5,
            },
            ..full.clone()
        },
    });
    for share in FEWER {
        let steps = full.steps * share / 100;
        ways.push(Way {
            family: Family::Steps,
            flags: format!("--steps {steps}"),
            drawn: true,
            recipe: Recipe {
                steps,
                ..full.clone()
            },
        });
    }
    Ok(ways)
}

/// Work saved against PSNR, a panel beside the other, as SVG.
fn draw(panels: &[(String, Vec<(Way, Score)>)]) -> Result<String> {
    const WIDTH: f64 = 360.0;
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 50.0;
    const TOP: f64 = 34.0;
    const PITCH: f64 = WIDTH + 60.0;
    const DECIBELS: (f64, f64) = (20.0, 70.0);
    let across = |saved: f64| LEFT + saved * WIDTH;
    let down = |psnr: f64| {
        let share = (psnr - DECIBELS.0) / (DECIBELS.1 - DECIBELS.0);
        TOP + (1.0 - share.clamp(0.0, 1.0)) * HEIGHT
    };
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"380\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
        PITCH * panels.len() as f64
    )?;
    for (index, (title, scores)) in panels.iter().enumerate() {
        writeln!(
            svg,
            "<g transform=\"translate({:.0} 0)\">\n<text x=\"{:.0}\" y=\"20\" \
             text-anchor=\"middle\">{title}</text>",
            PITCH * index as f64,
            LEFT + WIDTH / 2.0
        )?;
        for tenth in (0..=10).step_by(2) {
            let x = across(f64::from(tenth) / 10.0);
            writeln!(
                svg,
                "<path d=\"M{x:.1} {TOP}V{:.1}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}%</text>",
                TOP + HEIGHT,
                TOP + HEIGHT + 16.0,
                tenth * 10
            )?;
        }
        for psnr in (20..=70).step_by(10) {
            let y = down(f64::from(psnr));
            writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{psnr}</text>",
                LEFT + WIDTH,
                LEFT - 6.0,
                y + 4.0
            )?;
        }
        for family in Family::ALL {
            let colour = family.look().1;
            let mut points: Vec<(f64, f64)> = scores
                .iter()
                .filter(|(way, _)| way.family == family && way.drawn)
                .map(|(_, score)| (across(score.saved()), down(score.psnr())))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let line: Vec<String> = points
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
                line.join(" ")
            )?;
            for (x, y) in points {
                writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
                )?;
            }
        }
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">passes not computed</text>\
             <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">PSNR against \
             the full run, dB</text>\n</g>",
            LEFT + WIDTH / 2.0,
            TOP + HEIGHT + 34.0,
            TOP + HEIGHT / 2.0
        )?;
    }
    let mut x = LEFT;
    for family in Family::ALL {
        let (name, colour) = family.look();
        writeln!(
            svg,
            "<circle cx=\"{x:.0}\" cy=\"360\" r=\"4\" fill=\"{colour}\"/><text x=\"{:.0}\" \
             y=\"364\">{name}</text>",
            x + 9.0
        )?;
        x += 40.0 + 7.0 * name.len() as f64;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
