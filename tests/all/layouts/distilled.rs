//! Whole experts that were distilled to four steps, as lightx2v/Wan2.2-Distill-Models has them.

use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;
use wan_i2v::weights::container::encoding::Encoding;

use crate::layouts::found::scale_rows;
use crate::layouts::{BF16, F32, folder};
use crate::support::containers::safetensors;
use crate::support::isolated::program;
use crate::support::layouts::{Content, Form, Model};

/// The original's names, as the published files have them.
const FORM: Form = Form::Comfy(BF16, "");

/// The clip that experts make with the rest of a model, and what the run said last.
fn clip(model: &Path, experts: &[Content], name: &str, more: &[&str]) -> (Vec<u8>, Value, String) {
    let work = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_fn(40, 36, |x, y| Rgb([(x * 6) as u8, (y * 7) as u8, 90]));
    picture.save(work.path().join("start.png")).unwrap();
    let mut command = program();
    for ((flag, noise), content) in [("--high", "high"), ("--low", "low")].iter().zip(experts) {
        let path = work.path().join(name.replace("NOISE", noise));
        safetensors(&path, content);
        command.arg(flag).arg(path);
    }
    let flags = "--image start.png --output clip.mp4 --size 32x32 --frames 5 --seed 7 --device cpu \
                 --no-metadata --progress json";
    command.current_dir(work.path()).arg("--model").arg(model);
    command.args(flags.split_whitespace()).args(more);
    let ran = command.args(["--prompt", "a cat"]).output().unwrap();
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{stderr}");
    let last = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    (
        std::fs::read(work.path().join("clip.mp4")).unwrap(),
        last,
        stderr,
    )
}

#[test]
fn float8_experts_run_in_four_passes_like_their_values() {
    let model = Model::random();
    let (rest, _) = folder(Form::Diffusers(F32), &model);
    let ([high, low, ..], _) = model.in_form(FORM);
    let mut small = [high, low];
    let plain = [true, false].map(|column| scale_rows(&mut small[usize::from(!column)], column));
    let is_float8 = |content: &Content| {
        let mut all = content.values();
        all.any(|tensor| tensor.encoding == Encoding::F8E4M3)
    };
    assert!(small.iter().all(is_float8) && !plain.iter().any(is_float8));

    let name = "wan2.2_i2v_A14b_NOISE_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors";
    let (ours, last, said) = clip(rest.path(), &small, name, &[]);
    assert!(
        said.contains("taking preset lightning, as the name wan2.2_i2v_A14b_high"),
        "{said}"
    );
    let (settings, passes) = (&last["settings"], &last["passes"]);
    assert_eq!(settings["steps"], 4, "{last}");
    assert_eq!(settings["solver"], "euler", "{last}");
    assert_eq!(passes["computed"], 4, "{last}");
    // Dequantized, under a name that asks for nothing.
    let named = ["--preset", "lightning"];
    let (theirs, ..) = clip(rest.path(), &plain, "NOISE_noise.safetensors", &named);
    assert!(ours == theirs, "the clips differ");
    let (other, last, _) = clip(
        rest.path(),
        &small,
        name,
        &["--preset", "none", "--steps", "4"],
    );
    assert_eq!(last["passes"]["computed"], 8, "{last}");
    assert!(other != ours, "the schedule changes nothing");
}
