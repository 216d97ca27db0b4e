//! The built-in miniature, used when no model is named.

use std::fs;

use image::{Rgb, RgbImage};
use serde_json::Value;
use wan_i2v::model::vae::VaeConfig;
use wan_i2v::tiny;
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::naming::{Detected, Kind, Naming};
use wan_i2v::weights::published;

use crate::cli::program;
use crate::support::containers::safetensors;
use crate::support::layouts::{random_part, stored};
use crate::support::{TINY, names};

#[test]
fn a_picture_and_a_prompt_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    // Not square and not the miniature's size, as any photo.
    let photo = RgbImage::from_fn(120, 90, |x, y| Rgb([x as u8, y as u8, 120]));
    photo.save(folder.path().join("photo.jpg")).unwrap();
    let run = || {
        program()
            .current_dir(folder.path())
            .env("XDG_CACHE_HOME", folder.path().join("cache"))
            .args([
                "--image",
                "photo.jpg",
                "--prompt",
                "the red circle moves left",
            ])
            .output()
            .unwrap()
    };
    let output = run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let notice = |stderr: &str| stderr.contains("for real clips fetch a model");
    assert!(notice(&stderr), "{stderr}");
    // What it is is said in short each time, the rest once a day.
    let again = run();
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && !notice(&stderr), "{stderr}");
    assert!(
        stderr.contains("\nmodel     the built-in miniature ("),
        "{stderr}"
    );
    // Nothing can be remembered: that is no error.
    std::fs::remove_dir_all(folder.path().join("cache")).unwrap();
    std::fs::write(folder.path().join("cache"), "").unwrap();
    let stderr = run();
    assert!(stderr.status.success());
    assert!(!notice(&String::from_utf8_lossy(&stderr.stderr)));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let name = stdout.trim_end();
    assert!(
        name.starts_with("photo-") && name.ends_with(".mp4"),
        "{name}"
    );
    assert!(folder.path().join(name).is_file());
}

#[test]
fn a_folder_called_tiny_needs_a_path() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(16, 16)
        .save(folder.path().join("p.png"))
        .unwrap();
    let output = program()
        .current_dir(folder.path())
        .args(["--image", "p.png", "--prompt", "x", "--model", "./tiny"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("--model ./tiny: no such file or folder"),
        "{stderr}"
    );
}

/// A quantized model cannot be quantized again to other bits, and says so instead of ignoring it.
#[test]
fn bits_that_a_model_does_not_have_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    RgbImage::new(16, 16).save(path("p.png")).unwrap();
    let run = |args: &[&str]| {
        program()
            .current_dir(folder.path())
            .args(args)
            .output()
            .unwrap()
    };
    let converted = run(&["convert", TINY, "eight", "--bits", "8"]);
    assert_eq!(converted.status.code(), Some(0), "{converted:?}");
    assert_eq!(converted.stdout, b"eight\n");
    let clip = ["--image", "p.png", "--prompt", "x", "--model", "eight"];
    let refused = run(&[&clip[..], &["--bits", "4"]].concat());
    assert_eq!(refused.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("quantized to 8 bits already"), "{stderr}");
    let made = run(&[&clip[..], &["--bits", "8", "--output", "c.gif"]].concat());
    assert_eq!(made.status.code(), Some(0), "{made:?}");
}

/// Bits by measured errors within a size, in a report; groups of 32 in a clip's own record.
#[test]
fn bits_within_a_size_and_smaller_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    RgbImage::new(16, 16).save(path("p.png")).unwrap();
    let run = |args: &[&str]| {
        let output = program().current_dir(folder.path()).args(args).output();
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, _, stderr) = run(&["convert", TINY, "auto", "--bits", "auto:0.01"]);
    assert_eq!(code, Some(0), "{stderr}");
    for words in ["bits by kind of layer", "attn1.to_q", "layers x bits"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    let files = fs::read_dir(path("auto")).unwrap();
    let bytes: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!((9_000_000..=10_000_000).contains(&bytes), "{bytes}");
    let report = fs::read(path("auto/conversion.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let layer = &report["parts"]["high_noise_model"]["layers"][0];
    assert!(
        layer["name"].is_string() && layer["bits"].is_object(),
        "{layer}"
    );
    let (code, stdout, _) = run(&["inspect", "auto"]);
    assert!(code == Some(0) && stdout.contains("-bit"), "{stdout}");

    let clip = [
        "--image", "p.png", "--prompt", "x", "--model", TINY, "--frames", "5", "--steps", "2",
    ];
    let (code, _, stderr) = run(&[&clip[..], &["--bits", "auto:1"]].concat());
    assert!(
        code == Some(1) && stderr.contains("wan-i2v convert"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["pull", "a/b", "--output", "c", "--bits", "auto:1"]);
    assert!(
        code == Some(1) && stderr.contains("without --output"),
        "{stderr}"
    );
    // Too little for any model, and still told with what this one takes.
    for size in ["0.001", "0.0001"] {
        let (code, _, stderr) = run(&["convert", TINY, "none", "--bits", &format!("auto:{size}")]);
        let says = [size, "GB are too little for this model, which takes 0.00"];
        assert!(
            code == Some(1) && says.iter().all(|words| stderr.contains(words)),
            "{stderr}"
        );
    }
    for command in [
        &["convert", TINY, "none"][..],
        &["pull", "a/b", "--output", "none"],
        &["plan", "--model", TINY, "--image", "p.png"],
        &clip,
    ] {
        let (code, _, stderr) = run(&[command, &["--group-size", "32"]].concat());
        let says = "--group-size changes nothing without one of --bits, --high-bits";
        assert!(code == Some(2) && stderr.contains(says), "{stderr}");
    }
    let (code, _, stderr) = run(&["convert", TINY, "none", "--bits", "auto"]);
    assert!(code == Some(2) && stderr.contains("auto:20"), "{stderr}");

    let groups = ["--bits", "5", "--group-size", "32", "--output", "c.gif"];
    let (code, _, stderr) = run(&[&clip[..], &groups].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let (_, stdout, _) = run(&["show", "c.gif"]);
    for words in ["--high-bits 5", "--group-size 32"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    run(&[
        "convert",
        TINY,
        "small",
        "--bits",
        "4",
        "--group-size",
        "32",
    ]);
    let (_, stdout, _) = run(&["inspect", "small"]);
    assert!(stdout.contains("4-bit in groups of 32"), "{stdout}");
}

/// As spacepxl's Wan2.1-VAE-upscale2x, of random weights.
#[test]
fn a_vae_may_decode_to_twice_the_size() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(64, 64)
        .save(folder.path().join("p.png"))
        .unwrap();
    let config = VaeConfig {
        base_dim: 8,
        out_channels: 12,
        ..published::vae()
    };
    let names = Detected::plain(Kind::Vae, Naming::Original);
    let content = random_part("vae", &PartConfig::Vae(config))
        .into_iter()
        .map(|tensor| {
            let found = stored(Encoding::F32, &tensor.shape, &tensor.values);
            (names.name(&tensor.name).unwrap(), found)
        })
        .collect();
    safetensors(&folder.path().join("vae.safetensors"), &content);
    for (output, first) in [
        ("clip.gif", "clip.gif"),
        ("frames/", "frames/frame_00000.png"),
    ] {
        let ran = program()
            .current_dir(folder.path())
            .args([
                "--model",
                TINY,
                "--vae",
                "vae.safetensors",
                "--image",
                "p.png",
            ])
            .args([
                "--prompt",
                "a red circle",
                "--size",
                "48x32",
                "--frames",
                "5",
            ])
            .args(["--steps", "1", "--output", output])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{stderr}");
        assert!(
            stderr.contains("48 x 32 pixels, decoded to 96 x 64, "),
            "{stderr}"
        );
        let size = image::image_dimensions(folder.path().join(first)).unwrap();
        assert_eq!(size, (96, 64));
        let shown = program()
            .arg("show")
            .arg(folder.path().join(first))
            .output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        let said = "48 x 32 pixels, decoded to 96 x 64, ";
        assert!(shown.contains(said), "{shown}");
        let planned = program()
            .current_dir(folder.path())
            .args([
                "plan",
                "--model",
                TINY,
                "--vae",
                "vae.safetensors",
                "--size",
                "48x32",
                "--machine",
                "16",
            ])
            .output();
        let planned = String::from_utf8(planned.unwrap().stdout).unwrap();
        assert!(planned.contains(said), "{planned}");
    }
}

/// Four passes without the negative prompt, by the adapters that the miniature brings along.
#[test]
fn the_preset_for_four_steps_needs_nothing_else() {
    let bytes: usize = tiny::LIGHTNING.iter().map(|file| file.bytes.len()).sum();
    assert!(
        bytes < 2_000_000,
        "{bytes} bytes of adapters are in the program"
    );
    let folder = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_fn(64, 64, |x, y| {
        match x.abs_diff(32).max(y.abs_diff(32)) < 9 {
            true => Rgb([219, 33, 33]),
            false => Rgb([196, 186, 170]),
        }
    });
    picture.save(folder.path().join("start.png")).unwrap();
    let run = |output: &str, more: &[&str]| -> Vec<Value> {
        let flags = [
            "--progress",
            "json",
            "--seed",
            "7",
            "--dump",
            output,
            "--overwrite",
        ];
        let ran = program()
            .current_dir(folder.path())
            .args([
                "--image",
                "start.png",
                "--prompt",
                "the red square moves left",
            ])
            .args(["--output", &format!("{output}.mp4"), "--device", "cpu"])
            .args(flags)
            .args(more)
            .output()
            .unwrap();
        let stderr = String::from_utf8(ran.stderr).unwrap();
        assert!(ran.status.success(), "{stderr}");
        let events = stderr
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        events.collect()
    };
    let events = run("four", &["--preset", "lightning"]);
    let result = events.last().unwrap();
    assert!(folder.path().join("four.mp4").is_file());
    assert_eq!(result["passes"]["computed"], 4, "{result}");
    assert_eq!(result["settings"]["steps"], 4, "{result}");
    let steps: Vec<&Value> = events.iter().filter(|e| e["event"] == "step").collect();
    let experts: Vec<&Value> = steps.iter().map(|step| &step["expert"]).collect();
    assert_eq!(
        experts,
        ["high-noise", "high-noise", "low-noise", "low-noise"]
    );
    let dumped = |output: &str| names(&folder.path().join(output));
    let of_negative = |name: &String| name.contains("uncond") || name.contains("negative");
    assert!(
        !dumped("four").iter().any(of_negative),
        "{:?}",
        dumped("four")
    );
    // Its usual way has all of that.
    run("usual", &["--steps", "2"]);
    assert!(
        dumped("usual").iter().any(of_negative),
        "{:?}",
        dumped("usual")
    );
}
