//! The built-in miniature, on real results: the report's symptoms (a first frame that is not the
//! picture, grey or frozen tails, a prompt without effect) as assertions.
//!
//! Clips are rendered on the default device, so on a Mac this is a test of Metal; some of them also
//! with MLX's kernels wherever they are not the default.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use image::{Rgb, RgbImage};
use mlx_rs::Array;
use wan_i2v::clip::{Model, Options, Request};
use wan_i2v::model::MemoryPlan;
use wan_i2v::pipeline::{Job, Observer, Silent};
use wan_i2v::runtime::{Device, Kernels, to_host};
use wan_i2v::sampling::Solver;

use crate::support::mlx;

const SIDE: u32 = 64;
const BACKGROUND: [u8; 3] = [196, 186, 170];
/// Pixels that a moving thing covers in a clip of the miniature's world.
const TRAVEL: f64 = 18.0;

/// A thing to draw: centre, colour, and whether it is a circle or a square of radius 9.
struct Thing {
    centre: (f64, f64),
    colour: [u8; 3],
    circle: bool,
}

const RED: [u8; 3] = [219, 33, 33];
const BLUE: [u8; 3] = [33, 69, 217];
const CIRCLE: Thing = Thing {
    centre: (32.0, 32.0),
    colour: RED,
    circle: true,
};

/// The things on a plain background, antialiased.
fn draw(things: &[Thing]) -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let mut pixel = BACKGROUND.map(f64::from);
        for thing in things {
            let dx = f64::from(x) + 0.5 - thing.centre.0;
            let dy = f64::from(y) + 0.5 - thing.centre.1;
            let distance = if thing.circle {
                dx.hypot(dy)
            } else {
                dx.abs().max(dy.abs()) * 1.2
            };
            let cover = (9.0 - distance + 0.5).clamp(0.0, 1.0);
            for (value, colour) in pixel.iter_mut().zip(thing.colour) {
                *value += cover * (f64::from(colour) - *value);
            }
        }
        Rgb(pixel.map(|v| v.round() as u8))
    })
}

/// A clip of the built-in model with its own settings.
fn request(image: PathBuf, prompt: &str, output: PathBuf) -> Request {
    Request {
        model: Model::Tiny,
        loading: Default::default(),
        image: Some(image),
        last_image: None,
        prompt: prompt.into(),
        options: Options {
            seed: Some(7),
            ..Options::default()
        },
        output,
        strip: None,
        overwrite: true,
        metadata: true,
        dump: None,
        preview_vae: None,
    }
}

/// Renders a clip with the built-in model and reads its frames back.
fn render(picture: &RgbImage, prompt: &str) -> Vec<RgbImage> {
    render_between(None, picture, None, prompt)
}

/// As [`render`], with other kernels than the device's own, to end with another picture.
fn render_between(
    kernels: Option<Kernels>,
    picture: &RgbImage,
    last: Option<&RgbImage>,
    prompt: &str,
) -> Vec<RgbImage> {
    let _mlx = mlx();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("start.png");
    picture.save(&image).unwrap();
    let output = folder.path().join("frames/");
    let last_image = last.map(|last| {
        let path = folder.path().join("last.png");
        last.save(&path).unwrap();
        path
    });
    let request = Request {
        last_image,
        ..request(image, prompt, output.clone())
    };
    let job = Job::prepare(request).unwrap();
    let mut device = Device::select(None, None).unwrap();
    if let Some(kernels) = kernels {
        device = Device::with_kernels(device.kind, Some(device.dtype), kernels);
    }
    job.run(device, MemoryPlan::WHOLE, &mut Silent).unwrap();
    (0..17).map(|i| read(&output, i)).collect()
}

fn read(folder: &Path, index: usize) -> RgbImage {
    let path = folder.join(format!("frame_{index:05}.png"));
    image::open(path).unwrap().to_rgb8()
}

/// How much of a pixel is `colour` rather than the background, 0 to 1, and 0 for other colours.
fn likeness(pixel: [u8; 3], colour: [u8; 3]) -> f64 {
    let difference = |a: [u8; 3], b: [u8; 3]| -> [f64; 3] {
        std::array::from_fn(|i| f64::from(a[i]) - f64::from(b[i]))
    };
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (seen, wanted) = (
        difference(pixel, BACKGROUND),
        difference(colour, BACKGROUND),
    );
    let along = dot(seen, wanted) / dot(wanted, wanted);
    let aligned = dot(seen, wanted) / (dot(seen, seen) * dot(wanted, wanted)).sqrt().max(1.0);
    if aligned > 0.8 && along > 0.4 {
        along.min(1.0)
    } else {
        0.0
    }
}

/// Centre of what has a colour, and its area in pixels.
fn find(frame: &RgbImage, colour: [u8; 3]) -> ((f64, f64), f64) {
    let (mut x_sum, mut y_sum, mut area) = (0.0, 0.0, 0.0);
    for (x, y, pixel) in frame.enumerate_pixels() {
        let weight = likeness(pixel.0, colour);
        x_sum += weight * (f64::from(x) + 0.5);
        y_sum += weight * (f64::from(y) + 0.5);
        area += weight;
    }
    assert!(
        area > 20.0,
        "nothing of the colour {colour:?} is left: {area:.1} pixels"
    );
    ((x_sum / area, y_sum / area), area)
}

/// Displacement of what has a colour, from the first frame to the last.
fn displacement(clip: &[RgbImage], colour: [u8; 3]) -> (f64, f64) {
    let (from, _) = find(&clip[0], colour);
    let (to, _) = find(&clip[16], colour);
    (to.0 - from.0, to.1 - from.1)
}

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares: f64 = a
        .iter()
        .zip(b.iter())
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    10.0 * (255.0 * 255.0 / (squares / a.len() as f64)).log10()
}

fn contrast(frame: &RgbImage) -> f64 {
    let count = frame.len() as f64;
    let mean = frame.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let squares = frame
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>();
    (squares / count).sqrt()
}

/// What must hold of every clip: it starts with the picture and does not fade to grey.
fn check_sound(clip: &[RgbImage], picture: &RgbImage) {
    let first = psnr(&clip[0], picture);
    let kept = contrast(&clip[16]) / contrast(&clip[0]);
    println!("first frame {first:.1} dB, contrast kept {kept:.2}");
    assert!(
        first >= 26.0,
        "the first frame is not the picture: {first:.1} dB"
    );
    assert!(
        kept >= 0.85,
        "the last frame has faded: {kept:.2} of the contrast"
    );
}

#[test]
fn the_prompt_decides_the_direction() {
    let picture = draw(&[CIRCLE]);
    for (prompt, direction) in [
        ("the red circle moves right", (1.0, 0.0)),
        ("the red circle moves left", (-1.0, 0.0)),
        ("the red circle rises", (0.0, -1.0)),
        ("the red circle moves down", (0.0, 1.0)),
    ] {
        let clip = render(&picture, prompt);
        check_sound(&clip, &picture);
        let (dx, dy) = displacement(&clip, RED);
        let forward = dx * direction.0 + dy * direction.1;
        let sideways = (dx * direction.1).abs() + (dy * direction.0).abs();
        println!("{prompt}: moved by ({dx:.1}, {dy:.1})");
        assert!(
            forward >= 0.6 * TRAVEL,
            "{prompt}: moved by ({dx:.1}, {dy:.1})"
        );
        assert!(
            sideways < 0.3 * forward,
            "{prompt}: moved by ({dx:.1}, {dy:.1})"
        );
    }
}

#[test]
fn what_stays_still_stays() {
    let picture = draw(&[CIRCLE]);
    let clip = render(&picture, "the red circle stays still");
    check_sound(&clip, &picture);
    let (dx, dy) = displacement(&clip, RED);
    assert!(dx.hypot(dy) < 2.0, "moved by ({dx:.1}, {dy:.1})");
}

#[test]
fn what_grows_grows() {
    let picture = draw(&[CIRCLE]);
    let clip = render(&picture, "the red circle grows");
    let (_, before) = find(&clip[0], RED);
    let (_, after) = find(&clip[16], RED);
    println!("area {before:.0} to {after:.0}");
    assert!(after > 1.5 * before, "area {before:.0} to {after:.0}");
}

#[test]
fn the_named_thing_moves_and_the_other_stays() {
    let things = [
        Thing {
            centre: (16.0, 40.0),
            ..CIRCLE
        },
        Thing {
            centre: (46.0, 40.0),
            colour: BLUE,
            circle: false,
        },
    ];
    let picture = draw(&things);
    let prompt = "the blue square moves up and the red circle stays still";
    let clips = [None, Some(Kernels::Mlx)].map(|kernels| {
        let clip = render_between(kernels, &picture, None, prompt);
        check_sound(&clip, &picture);
        let (dx, dy) = displacement(&clip, BLUE);
        assert!(
            dy <= -0.6 * TRAVEL,
            "the square moved by ({dx:.1}, {dy:.1})"
        );
        let (dx, dy) = displacement(&clip, RED);
        assert!(dx.hypot(dy) < 3.0, "the circle moved by ({dx:.1}, {dy:.1})");
        clip
    });
    // The same clip, but for rounding.
    let [ours, mlx] = &clips;
    let least = ours.iter().zip(mlx).map(|(a, b)| psnr(a, b));
    let least = least.fold(f64::INFINITY, f64::min);
    println!("by MLX's kernels and by the default ones: {least:.1} dB");
    assert!(least >= 50.0, "{least:.1} dB");
}

/// The miniature was trained to meet a last picture (36.3 dB on average over 240 scenes, 29.7 dB at
/// worst).
#[test]
fn the_last_picture_is_met() {
    let start = draw(&[CIRCLE]);
    let at = |x, y| Thing {
        centre: (x, y),
        ..CIRCLE
    };
    let yellow = Thing {
        colour: [231, 194, 46],
        ..CIRCLE
    };
    // Where the prompt alone does not lead: not so far, elsewhere, to another colour.
    for (kernels, prompt, last) in [
        (None, "the red circle moves left", at(22.0, 32.0)),
        (None, "the red circle moves down", at(26.0, 50.0)),
        (Some(Kernels::Mlx), "the circle turns blue", yellow),
    ] {
        let last = draw(&[last]);
        let clip = render_between(kernels, &start, Some(&last), prompt);
        let first = psnr(&clip[0], &start);
        assert!(first >= 26.0, "{prompt}: the first frame at {first:.1} dB");
        let alone = psnr(&render(&start, prompt)[16], &last);
        let met = psnr(&clip[16], &last);
        println!("{prompt}: the last picture is met at {met:.1} dB, without it {alone:.1} dB");
        assert!(met >= 28.0, "{prompt}: {met:.1} dB");
        assert!(
            met > alone + 8.0,
            "{prompt}: {met:.1} dB, without the picture {alone:.1} dB"
        );
    }
    // What the model itself renders, with another prompt's words for it.
    let rendered = &render(&draw(&[CIRCLE]), "the red circle moves down")[16];
    let clip = render_between(None, &start, Some(rendered), "the red circle sinks");
    let met = psnr(&clip[16], rendered);
    println!("the last frame of another clip is met at {met:.1} dB");
    assert!(met >= 28.0, "{met:.1} dB");
}

/// Keeps the last estimate that it is told.
#[derive(Debug)]
struct Watcher(Rc<RefCell<Vec<Array>>>);

impl Observer for Watcher {
    fn wants(&self, index: usize, steps: usize) -> bool {
        assert_eq!(steps, 3);
        index != 1
    }

    fn estimate(&mut self, clean: &Array) {
        self.0.borrow_mut().push(clean.clone());
    }
}

/// Of the last step, whose noise level is followed by none, Euler's latents are the estimate.
#[test]
fn an_observer_hears_the_estimates_that_it_wants() {
    let _mlx = mlx();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("start.png");
    RgbImage::new(64, 64).save(&image).unwrap();
    let dump = folder.path().join("dump");
    let request = Request {
        options: Options {
            steps: Some(3),
            frames: Some(5),
            solver: Some(Solver::Euler),
            ..Options::default()
        },
        dump: Some(dump.clone()),
        ..request(
            image,
            "the red circle grows",
            folder.path().join("clip.gif"),
        )
    };
    let mut job = Job::prepare(request).unwrap();
    let estimates = Rc::default();
    job.observe(Box::new(Watcher(Rc::clone(&estimates))));
    let device = Device::select(None, None).unwrap();
    job.run(device, MemoryPlan::WHOLE, &mut Silent).unwrap();
    let estimates = estimates.borrow();
    assert_eq!(estimates.len(), 2);
    let load = |name: &str| -> Vec<f32> {
        let file = std::fs::File::open(dump.join(format!("{name}.npy"))).unwrap();
        npyz::NpyFile::new(file).unwrap().into_vec().unwrap()
    };
    assert_eq!(to_host(&estimates[1]).unwrap(), load("step_002_latents"));
    // The first: the noise less its level times the velocity, which guidance has doubled.
    let (noise, sigma) = (load("noise"), load("sigmas")[0]);
    let (cond, uncond) = (load("step_000_cond"), load("step_000_uncond"));
    for (i, value) in to_host(&estimates[0]).unwrap().into_iter().enumerate() {
        let velocity = 2.0 * cond[i] - uncond[i];
        assert!((value - (noise[i] - sigma * velocity)).abs() < 1e-4);
    }
}
