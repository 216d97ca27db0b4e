//! Small decoders in place of the VAE, and in previews.

use std::fs;
use std::path::PathBuf;

use image::RgbImage;
use serde_json::Value;

use super::running::{bytes, succeed};
use super::{Bench, run};
use crate::support::assert_holds;
use crate::support::checkpoint::write_small_vae;
use crate::support::isolated::program;

impl Bench {
    /// A small autoencoder as it is published.
    fn small_vae(&self, case: &str) -> PathBuf {
        let name = match case {
            "taew" => "taew2_1.safetensors",
            _ => "taew2_2.safetensors",
        };
        let path = self.checkpoint.path(name);
        write_small_vae(case, &path);
        path
    }
}

fn mean(picture: &RgbImage) -> [f64; 3] {
    let mut sum = [0.0; 3];
    for pixel in picture.pixels() {
        for (sum, &level) in sum.iter_mut().zip(&pixel.0) {
            *sum += f64::from(level);
        }
    }
    sum.map(|sum| sum / f64::from(picture.width() * picture.height()))
}

#[test]
fn a_small_vae_stands_for_the_whole_one_everywhere() {
    let bench = Bench::new("a");
    let path = bench.small_vae("taew");
    let vae = ["--vae", path.to_str().unwrap()];
    bench.small("clip.mp4", &vae).assert_wrote("clip.mp4");
    bench.small("other.mp4", &[]).assert_wrote("other.mp4");
    assert!(bytes(&bench.path("clip.mp4")) != bytes(&bench.path("other.mp4")));
    // In tiles, and from a job file.
    let tight = [&vae[..], &["--memory-budget", "0.110", "--size", "256x256"]].concat();
    let plan = program()
        .args([
            "plan", "--json", "--frames", "5", "--device", "cpu", "--model",
        ])
        .arg(bench.checkpoint.root())
        .args(&tight)
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert!(plan["computed"]["decoding_tiles"].is_array(), "{plan}");
    let jobs = r#"{"name": "b", "prompt": "a cat in the rain", "seed": 7, "size": "32x32", "frames": 5, "steps": 2}"#;
    fs::write(bench.path("jobs.jsonl"), jobs).unwrap();
    let mut batch = program();
    batch.current_dir(bench.work.path());
    batch.args([
        "batch",
        "jobs.jsonl",
        "--output-dir",
        "out",
        "--device",
        "cpu",
    ]);
    batch.arg("--model").arg(bench.checkpoint.root()).args(vae);
    succeed(batch.arg("--image").arg(bench.picture()));
    assert!(bytes(&bench.path("out/b_7.mp4")) == bytes(&bench.path("clip.mp4")));
    // A file by itself.
    let seen = run(program().arg("inspect").arg(&path));
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert_holds(&text, &["taew2_1, a small decoder for previews", "taehv"]);
    let checked = run(program()
        .args(["doctor", "--device", "cpu", "--model"])
        .arg(bench.checkpoint.root())
        .args(vae));
    assert_holds(&String::from_utf8_lossy(&checked.stdout), &["VAE"]);
    // Converted, it makes the same clip, of whose parts another name is kept.
    let plain = [&vae[..], &["--no-metadata"]].concat();
    bench.small("clip.mp4", &plain).assert_wrote("clip.mp4");
    let mut convert = program();
    convert.args(["convert", "--part", "vae"]).arg(&path);
    succeed(convert.arg(bench.path("converted")));
    let converted = bench.path("converted/vae.safetensors");
    let vae = ["--vae", converted.to_str().unwrap(), "--no-metadata"];
    bench.small("again.mp4", &vae).assert_wrote("again.mp4");
    assert!(bytes(&bench.path("again.mp4")) == bytes(&bench.path("clip.mp4")));
}

#[test]
fn a_run_with_a_small_vae_resumes_to_the_same_bytes() {
    let bench = Bench::new("a");
    let path = bench.small_vae("taew");
    let flags = ["--vae", path.to_str().unwrap(), "--steps", "6"];
    bench.small("whole.mp4", &flags).assert_wrote("whole.mp4");
    let state = bench.path("again.mp4.wan-state");
    let mut command = bench.command();
    command.args(["--prompt", "a cat in the rain", "--output", "again.mp4"]);
    command.args([
        "--size", "32x32", "--frames", "5", "--seed", "7", "--device", "cpu",
    ]);
    command.args(flags);
    let mut child = command.spawn().unwrap();
    let start = std::time::Instant::now();
    while !state.exists() && start.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(&mut command);
    assert!(bytes(&bench.path("again.mp4")) == bytes(&bench.path("whole.mp4")));
}

#[test]
fn small_decoders_for_other_models_and_damaged_ones_are_refused() {
    let bench = Bench::new("family/ti2v");
    let [one, two] = ["taew", "taew22"].map(|case| bench.small_vae(case));
    let [one, two] = [&one, &two].map(|path| path.to_str().unwrap());
    let size = ["--size", "64x32"];
    let with = |flags: &[&str]| bench.small("clip.mp4", &[flags, &size].concat());
    let parts = [
        "taew2_1, a small decoder for previews",
        "48 latent channels",
        "hint: A14B and Wan2.1 take taew2_1 (16), TI2V-5B takes taew2_2 (48)",
    ];
    with(&["--vae", one]).assert_refused(1, &parts);
    with(&["--vae", two]).assert_wrote("clip.mp4");
    let preview = ["--preview", "p.png", "--preview-vae"];
    let preview = |file: &str| with(&[&preview[..], &[file]].concat());
    preview(one).assert_refused(1, &["--preview-vae", "taew2_1", "hint: take taew2_2"]);
    preview(two).assert_wrote("clip.mp4");
    let whole = bench.checkpoint.path("vae");
    preview(whole.to_str().unwrap()).assert_refused(1, &["--preview-vae", "this is a whole VAE"]);
    preview("none.safetensors").assert_refused(1, &["--preview-vae", "none.safetensors"]);
    let unseen = with(&["--preview-vae", two]);
    unseen.assert_refused(
        2,
        &["--preview-vae changes nothing without --preview\nhint: give --preview as well, or"],
    );
    // One tensor short.
    let content = fs::read(two).unwrap();
    let mut tensors = crate::support::scratch::tensors_of(&content);
    tensors.remove("decoder.9.conv.2.bias").unwrap();
    fs::write(two, crate::support::scratch::file_of(&tensors)).unwrap();
    let missing = ["missing: decoder.9.conv.2.bias"];
    with(&["--vae", two]).assert_refused(1, &missing);
    preview(two).assert_refused(1, &missing);
}

/// The last step's estimate is what is decoded: the same frames, in the same colours.
#[test]
fn previews_show_what_the_small_decoder_makes_of_the_clip() {
    let bench = Bench::new("a");
    let path = bench.small_vae("taew");
    let file = path.to_str().unwrap();
    let preview = ["--preview", "p.png", "--preview-vae", file];
    let flags = [&["--vae", file][..], &preview].concat();
    bench.small("frames/", &flags).assert_wrote("frames/");
    bench.small("clip.mp4", &preview).assert_wrote("clip.mp4");
    let changed = bytes(&bench.path("clip.mp4"));
    bench.small("clip.mp4", &[]).assert_wrote("clip.mp4");
    assert!(
        changed == bytes(&bench.path("clip.mp4")),
        "the clip is the same"
    );
    bench.small("frames/", &flags).assert_wrote("frames/");
    let page = image::open(bench.path("p.png")).unwrap().into_rgb8();
    // Two frames of 32 x 32, seven times as large, below a title of one line.
    assert_eq!(page.width(), 2 * (224 + 4) + 4);
    let top = page.height() - 254;
    for (tile, frame) in [(0, 0), (1, 4)] {
        let left = 4 + tile * 228;
        let shown = image::imageops::crop_imm(&page, left, top + 4, 224, 224).to_image();
        let made = bench.path(&format!("frames/frame_{frame:05}.png"));
        let made = image::open(made).unwrap().into_rgb8();
        for (shown, made) in mean(&shown).into_iter().zip(mean(&made)) {
            assert!((shown - made).abs() < 3.0, "frame {frame}: {shown} {made}");
        }
    }
}
