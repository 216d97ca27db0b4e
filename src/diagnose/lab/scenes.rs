//! Scenes of the built-in miniature's world (`docs/tiny.md`) for the measuring programs, and clips
//! made of them by the library itself.

use anyhow::Result;
use image::{Rgb, RgbImage};
use mlx_rs::Array;
use ndarray::Array3;

use crate::clip::{CacheSettings, GuideInterval, GuideScale, Model, Settings};
use crate::diagnose::doctor;
use crate::model::MemoryPlan;
use crate::persist::dump::Dump;
use crate::pipeline::{
    Condition, Denoiser, EncodedPrompts, Observer, Passes, Silent, encode_condition,
    encode_prompts, initial_noise, tokenize,
};
use crate::runtime::Device;
use crate::sampling::Schedule;
use crate::weights::{Checkpoint, Loading};

const SIDE: u32 = 64;
const COLOURS: [(&str, [u8; 3]); 8] = [
    ("red", [219, 33, 33]),
    ("green", [26, 153, 56]),
    ("blue", [33, 69, 217]),
    ("yellow", [245, 219, 38]),
    ("orange", [245, 133, 20]),
    ("purple", [133, 41, 173]),
    ("white", [247, 247, 247]),
    ("black", [13, 13, 13]),
];
const SHAPES: [&str; 4] = ["circle", "square", "triangle", "diamond"];
const MOTIONS: [&str; 8] = [
    "moves right",
    "grows",
    "moves up",
    "turns",
    "moves left",
    "shrinks",
    "moves down",
    "stays still",
];

/// A start picture and what is said of it.
pub struct Scene {
    pub picture: RgbImage,
    pub prompt: String,
    /// Of the initial noise.
    pub seed: u64,
}

/// Numbers that only depend on the first one (SplitMix64, Steele et al. 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Scene `number`, always the same: the motions in turn, every other scene with two things of
/// which the first is told to do something.
pub fn scene(number: u64) -> Scene {
    let mut draw = Draw(number);
    let level = draw.between(97.0, 184.0);
    let background: [f64; 3] = std::array::from_fn(|_| level + draw.between(-23.0, 23.0));
    let motion = MOTIONS[(number % MOTIONS.len() as u64) as usize];
    let first = draw.below(COLOURS.len());
    let [second, third] = [1, 2].map(|step| (first + step * 3) % COLOURS.len());
    let shapes = [draw.below(4), draw.below(4)];
    let two = number % 2 == 1;
    let radius = draw.between(7.5, 9.0);
    let jitter: [f64; 2] = std::array::from_fn(|_| draw.between(-2.0, 2.0));
    // Room for 18 pixels of travel.
    let (mut x, mut y) = match motion {
        "moves right" => (20.0, 32.0),
        "moves left" => (44.0, 32.0),
        "moves down" => (32.0, 20.0),
        "moves up" => (32.0, 44.0),
        _ => (32.0, 32.0),
    };
    let mut things = Vec::new();
    if two {
        // Beside the way of the first.
        let aside = match motion {
            "moves right" | "moves left" => {
                y = 18.0;
                (x, 49.0)
            }
            _ => {
                x = 17.0;
                (49.0, y)
            }
        };
        things.push((aside, shapes[1], second));
    }
    things.push(((x + jitter[0], y + jitter[1]), shapes[0], first));
    let picture = RgbImage::from_fn(SIDE, SIDE, |px, py| {
        let mut pixel = background;
        for ((x, y), shape, colour) in &things {
            let distance = outline(
                *shape,
                f64::from(px) + 0.5 - x,
                f64::from(py) + 0.5 - y,
                radius,
            );
            let cover = (0.5 - distance / 1.8).clamp(0.0, 1.0);
            for (value, level) in pixel.iter_mut().zip(COLOURS[*colour].1) {
                *value += cover * (f64::from(level) - *value);
            }
        }
        Rgb(pixel.map(|value| value.round() as u8))
    });
    let name = |colour: usize, shape: usize| format!("the {} {}", COLOURS[colour].0, SHAPES[shape]);
    let mut prompt = format!("{} {motion}", name(first, shapes[0]));
    if motion == "turns" {
        prompt = format!("{prompt} {}", COLOURS[third].0);
    }
    if two {
        prompt = format!("{prompt} and {} stays still", name(second, shapes[1]));
    }
    Scene {
        picture,
        prompt,
        seed: number,
    }
}

/// Distance in pixels to a shape's outline, negative inside.
fn outline(shape: usize, dx: f64, dy: f64, radius: f64) -> f64 {
    match SHAPES[shape] {
        "circle" => dx.hypot(dy) - radius,
        "square" => dx.abs().max(dy.abs()) - 0.86 * radius,
        "diamond" => (dx.abs() + dy.abs()) * 0.5_f64.sqrt() - 0.78 * radius,
        _ => {
            let length = 1.9_f64.hypot(1.0);
            let sides = dx.abs() * 1.9 / length - (dy + 1.1 * radius) / length;
            sides.max(dy - 0.8 * radius)
        }
    }
}

/// What a clip is made with, besides its scene.
#[derive(Clone)]
pub struct Recipe {
    pub steps: u32,
    /// Of both experts.
    pub guide_scale: f32,
    pub guide_interval: GuideInterval,
    pub cache: CacheSettings,
}

/// The miniature, and where it computes.
pub struct Studio {
    pub checkpoint: Checkpoint,
    pub device: Device,
    pub memory: MemoryPlan,
}

/// A scene with its prompts and its picture encoded.
pub struct Stage {
    pub plan: Settings,
    pub prompts: EncodedPrompts,
    pub condition: Condition,
}

impl Studio {
    pub fn open() -> Result<Self> {
        Ok(Self {
            checkpoint: Model::Tiny.open(Loading::default())?,
            device: Device::select(None, None)?,
            memory: MemoryPlan::WHOLE,
        })
    }

    pub fn stage(&self, scene: &Scene) -> Result<Stage> {
        let checkpoint = &self.checkpoint;
        let plan = Settings {
            seed: scene.seed,
            ..doctor::scene::plan(checkpoint, checkpoint.settings.frames)
        };
        let ids = tokenize(checkpoint, &scene.prompt, &plan)?;
        let prompts = encode_prompts(checkpoint, self.device, &ids, None, &mut Silent)?;
        let shape = (plan.height as usize, plan.width as usize, 3);
        let pixels = Array3::from_shape_fn(shape, |(y, x, channel)| {
            f32::from(scene.picture.get_pixel(x as u32, y as u32)[channel]) / 127.5 - 1.0
        });
        let condition = encode_condition(
            checkpoint,
            self.device,
            &self.memory,
            pixels.view(),
            &plan,
            None,
            &mut Silent,
        )?;
        Ok(Stage {
            plan,
            prompts,
            condition,
        })
    }

    /// The latents of a clip, and the passes that they took.
    pub fn denoise(
        &self,
        stage: &Stage,
        recipe: &Recipe,
        dump: Option<&Dump>,
    ) -> Result<(Array, Passes)> {
        self.denoise_observed(stage, recipe, dump, None)
    }

    /// As [`Self::denoise`], with somebody who looks on.
    pub fn denoise_observed<'a>(
        &'a self,
        stage: &Stage,
        recipe: &Recipe,
        dump: Option<&Dump>,
        observer: Option<&'a mut dyn Observer>,
    ) -> Result<(Array, Passes)> {
        let plan = &stage.plan;
        let grid = plan.latent_grid(&self.checkpoint.vae);
        let noise = initial_noise(plan.seed, self.checkpoint.vae.z_dim, grid);
        if let Some(dump) = dump {
            let schedule = Schedule::new(plan.solver, recipe.steps as usize, plan.shift);
            dump.timesteps(&schedule.timesteps)?;
        }
        let settings = Settings {
            steps: recipe.steps,
            guide_scale: GuideScale {
                low: recipe.guide_scale,
                high: recipe.guide_scale,
            },
            guide_interval: recipe.guide_interval,
            cache: recipe.cache.clone(),
            ..plan.clone()
        };
        let mut denoiser = Denoiser::new(
            &self.checkpoint,
            self.device,
            self.memory,
            stage.prompts.clone(),
            stage.condition.clone(),
            noise,
            &settings,
        )?
        .observed_by(observer.map(|observer| Box::new(observer) as Box<dyn Observer>));
        let latents = denoiser.run(dump, &mut Silent)?;
        Ok((latents, denoiser.passes()))
    }

    /// The frames of latents.
    pub fn decode(&self, latents: &Array) -> Result<Vec<RgbImage>> {
        doctor::scene::decoded(&self.checkpoint, self.device, &self.memory, latents)
    }
}
