//! The doctor finds what is planted: wrong kernels, a prompt without effect, an expert taken for
//! both, a VAE that loses the picture, a clip that fades.

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;
use wan_i2v::diagnose::doctor::golden::{Gist, MOST, render};
use wan_i2v::diagnose::doctor::guidance::{Observed, Seen, differs, observe};
use wan_i2v::diagnose::doctor::judge::{distance, judge};
use wan_i2v::diagnose::doctor::vae::{Peak, RoundTrip, checkerboard, round_trip};
use wan_i2v::diagnose::doctor::{Bound, CheckResult};
use wan_i2v::runtime::{Device, DeviceKind, Precision};
use wan_i2v::weights::{Checkpoint, Expert, Loading, Sources};

use crate::support::TINY;
use crate::support::isolated::program;
use crate::support::mlx;

fn device(precision: Precision) -> Device {
    Device::select(Some(DeviceKind::Cpu), Some(precision)).unwrap()
}

/// A product of 40,000 rows, as it should be.
fn expected() -> Vec<f64> {
    (0..40_000 * 4)
        .map(|i| f64::from((i * 37 % 101) as f32) / 50.0 - 1.0)
        .collect()
}

fn found() -> Vec<f32> {
    expected().iter().map(|&v| v as f32).collect()
}

#[test]
fn a_sound_result_passes() {
    let judged = judge(&found(), &expected(), 4, 1e-6);
    assert_eq!(judged.fault, None);
    assert!(judged.error < 1e-7);
    let mut slightly = found();
    slightly[7] += 1e-4;
    assert!(judge(&slightly, &expected(), 4, 2e-4).fault.is_none());
    let fault = judge(&slightly, &expected(), 4, 5e-5).fault.unwrap();
    assert!(
        fault.contains("1 of 40000 rows are wrong, from row 1 to row 1"),
        "{fault}"
    );
}

#[test]
fn zeros_above_a_row_are_caught() {
    let mut found = found();
    found[32_768 * 4..].fill(0.0);
    let judged = judge(&found, &expected(), 4, 0.01);
    let fault = judged.fault.unwrap();
    assert!(
        fault.starts_with("7232 of 40000 rows are wrong, from row 32768"),
        "{fault}"
    );
    assert!(
        fault.contains("7232 are all zero, the first is row 32768"),
        "{fault}"
    );
    assert_eq!(judged.error, 1.0);
}

#[test]
fn swapped_rows_are_caught() {
    let mut found = found();
    let (a, b) = found.split_at_mut(39_000 * 4);
    a[10 * 4..11 * 4].swap_with_slice(&mut b[..4]);
    let fault = judge(&found, &expected(), 4, 0.01).fault.unwrap();
    assert!(
        fault.contains("2 of 40000 rows are wrong, from row 10 to row 39000"),
        "{fault}"
    );
}

#[test]
fn nan_infinity_and_missing_values_are_caught() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut found = found();
        found[35_000 * 4 + 2] = bad;
        let judged = judge(&found, &expected(), 4, 1e9);
        let fault = judged.fault.unwrap();
        assert!(
            fault.contains("1 are not finite, the first is row 35000"),
            "{fault}"
        );
        assert!(!judged.error.is_finite());
    }
    let judged = judge(&found()[4..], &expected(), 4, 1.0);
    assert_eq!(judged.fault.unwrap(), "159996 values instead of 160000");
}

/// Zeros where zeros are meant, and a NaN where one is not.
#[test]
fn what_should_be_zero_is_held_to_it() {
    assert_eq!(judge(&[0.0; 8], &[0.0; 8], 4, 0.0).fault, None);
    assert!(judge(&[0.0, 1e-30], &[0.0; 2], 2, 0.5).fault.is_some());
    assert!(judge(&[0.0, f32::NAN], &[0.0; 2], 2, 0.5).fault.is_some());
}

#[test]
fn distances_are_known_ones() {
    let found = distance(&[3.0, 0.0], &[0.0, 4.0]);
    assert_eq!((found.relative, found.cosine), (7.0 / 3.0, 0.0));
    assert_eq!(distance(&[1.0, -2.0], &[1.0, -2.0]).relative, 0.0);
    assert!(distance(&[0.0], &[0.0]).relative.is_nan());
    assert!(distance(&[1.0], &[1.0, 2.0]).relative.is_nan());
    assert!(differs("x", &[1.0, 2.0], &[1.0, 2.1], 1e-3, "").sound);
    let same = differs("x", &[1.0, 2.0], &[1.0, 2.0], 1e-3, "no effect");
    assert!(!same.sound && same.detail == "they are the same: no effect");
    let zero = differs("x", &[0.0; 2], &[0.0; 2], 1e-3, "");
    assert!(!zero.sound && zero.detail.contains("all zero"), "{zero:?}");
    assert!(!differs("x", &[f32::NAN, 1.0], &[1.0, 1.0], 1e-3, "").sound);
}

fn seen(expert: Expert, shift: f32) -> Seen {
    let two = |at: f32| [vec![1.0, 2.0, at + shift], vec![2.0, -1.0, at - shift]];
    Seen {
        expert,
        timestep: 900.0,
        embeddings: two(1.0),
        keys: two(2.0),
        values: two(3.0),
        predictions: two(4.0),
    }
}

fn failed(findings: &[CheckResult]) -> Vec<&str> {
    let bad = findings.iter().filter(|finding| !finding.sound);
    bad.map(|finding| finding.name.as_str()).collect()
}

#[test]
fn guidance_without_effect_is_named() {
    let sound = Observed {
        encoded: [vec![1.0, 2.0], vec![2.0, 1.0]],
        seen: vec![seen(Expert::HighNoise, 0.5), seen(Expert::LowNoise, 0.7)],
    };
    assert!(failed(&sound.findings()).is_empty());
    let mut same = sound.clone();
    same.seen[1].keys[1] = same.seen[1].keys[0].clone();
    let findings = same.findings();
    let bad = failed(&findings);
    assert_eq!(bad.len(), 1);
    assert!(
        bad[0].starts_with("low-noise expert: cross-attention keys"),
        "{bad:?}"
    );
    let mut one = sound.clone();
    one.seen[0].predictions[1] = one.seen[0].predictions[0].clone();
    let findings = one.findings();
    assert_eq!(failed(&findings).len(), 1);
    let finding = findings.iter().find(|finding| !finding.sound).unwrap();
    assert!(
        finding.detail.contains("guidance has no effect"),
        "{finding:?}"
    );
    let mut shared = sound;
    shared.seen[1] = Seen {
        expert: Expert::LowNoise,
        ..shared.seen[0].clone()
    };
    let findings = shared.findings();
    assert_eq!(failed(&findings).len(), 3, "{:?}", failed(&findings));
    let bad = findings.iter().filter(|finding| !finding.sound);
    assert!(
        bad.into_iter()
            .all(|f| f.detail.contains("one expert is taken for both"))
    );
}

fn plain(level: u8) -> RgbImage {
    RgbImage::from_pixel(64, 48, Rgb([level; 3]))
}

/// A checkerboard of `period` pixels and an amplitude, on grey.
fn board(period: u32, amplitude: i32) -> RgbImage {
    RgbImage::from_fn(64, 48, |x, y| {
        let odd = (x / (period / 2) + y / (period / 2)) % 2 == 1;
        Rgb([(128 + if odd { -amplitude } else { amplitude }) as u8; 3])
    })
}

#[test]
fn a_planted_checkerboard_is_measured() {
    for period in [2, 8, 16] {
        let found = checkerboard(&plain(128), &board(period, 12), period);
        assert!((found - 12.0).abs() < 1e-9, "{period}: {found}");
        assert_eq!(
            checkerboard(&board(period, 12), &board(period, 12), period),
            0.0
        );
    }
    assert!(checkerboard(&plain(128), &board(2, 12), 8) < 1e-9);
    assert!(
        checkerboard(&plain(128), &plain(90), 8) < 1e-9,
        "brighter is no checkerboard"
    );
}

#[test]
fn what_the_vae_does_wrong_is_named() {
    let trip = |first: RgbImage, rest: u8| RoundTrip {
        picture: plain(128),
        frames: vec![first, plain(rest), plain(rest)],
        latents: vec![(0.0, 1.0)],
        memory: [Peak::default(); 2],
    };
    assert!(failed(&trip(plain(129), 127).findings()).is_empty());
    let findings = trip(board(8, 6), 127).findings();
    let bad = failed(&findings);
    assert!(bad.len() == 1 && bad[0].contains("8 pixels"), "{bad:?}");
    let findings = trip(plain(60), 127).findings();
    let bad = failed(&findings);
    assert!(bad.len() == 1 && bad[0].contains("PSNR"), "{bad:?}");
    let findings = trip(plain(128), 0).findings();
    let bad = failed(&findings);
    assert!(bad.len() == 1 && bad[0].contains("were zeros"), "{bad:?}");
    let none = RoundTrip {
        frames: Vec::new(),
        ..trip(plain(1), 1)
    };
    assert_eq!(failed(&none.findings()).len(), 1);
}

/// The known result is this program's, in float32 to a few tenths of a level and in bfloat16 well
/// within what is allowed; and a clip that fades to grey is not it.
#[test]
fn the_miniatures_clip_is_the_known_one() {
    let _mlx = mlx();
    let known = Gist::known().unwrap();
    let frames = render(device(Precision::F32)).unwrap();
    let measured = |frames: &[RgbImage]| {
        let finding = Gist::of(frames).unwrap().compare(&known).unwrap();
        assert_eq!(finding.bound, Some(Bound::AtMost(MOST)));
        println!("{} {:?}", finding.detail, finding.measured);
        finding
    };
    assert!(measured(&frames).measured.unwrap() < 0.5);
    let bf16 = render(device(Precision::Bf16)).unwrap();
    assert!(measured(&bf16).measured.unwrap() < 0.5 * MOST);
    let mut grey = frames.clone();
    for frame in &mut grey[4..] {
        frame.pixels_mut().for_each(|pixel| *pixel = Rgb([127; 3]));
    }
    let faded = measured(&grey);
    assert!(
        !faded.sound && faded.detail.contains("frame 4 is the first"),
        "{faded:?}"
    );
    let mut frozen = frames.clone();
    frozen[16] = frames[0].clone();
    assert!(!measured(&frozen).sound, "the last frame is the first");
    assert!(Gist::of(&frames[..16]).unwrap().compare(&known).is_err());
}

/// A copy of the miniature's files.
fn copy() -> TempDir {
    fn all(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            match entry.path().is_dir() {
                true => all(&entry.path(), &target),
                false => drop(fs::copy(entry.path(), target).unwrap()),
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    all(Path::new(TINY), folder.path());
    folder
}

/// Changes a tensor's bytes in a file.
fn change(file: &Path, name: &str, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = |i: usize| json[name]["data_offsets"][i].as_u64().unwrap() as usize;
    change(&mut bytes[8 + header + offset(0)..8 + header + offset(1)]);
    fs::write(file, bytes).unwrap();
}

fn open(folder: &Path) -> Checkpoint {
    Checkpoint::open(&Sources::folder(folder), Loading::default()).unwrap()
}

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Every token has the first one's embedding: the text encoder cannot tell prompts apart.
#[test]
fn a_text_encoder_that_is_deaf_is_found() {
    let _mlx = mlx();
    let model = copy();
    let file = model.path().join("text_encoder/model.safetensors");
    change(&file, "shared.weight", |bytes| {
        let row = bytes[..2 * 96].to_vec();
        bytes
            .chunks_mut(row.len())
            .for_each(|other| other.copy_from_slice(&row));
    });
    let findings = observe(&open(model.path()), device(Precision::F32), u64::MAX)
        .unwrap()
        .findings();
    let bad = failed(&findings);
    assert!(
        bad.iter().any(|name| name.starts_with("text encoder")),
        "{bad:?}"
    );
}

#[test]
fn a_vae_that_loses_the_picture_is_found() {
    let _mlx = mlx();
    let model = copy();
    let file = model.path().join("vae").join(WEIGHTS);
    change(&file, "encoder.conv_in.weight", |bytes| bytes.fill(0));
    let trip = round_trip(&open(model.path()), device(Precision::F32), u64::MAX).unwrap();
    let findings = trip.findings();
    let bad = failed(&findings);
    assert!(bad.iter().any(|name| name.contains("PSNR")), "{findings:?}");
}

fn doctor(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = program()
        .current_dir(folder)
        .arg("doctor")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// One expert's file in both places, the mistake of the report's first bug, in a whole run: every
/// other check passes, and the report names nobody's folders.
#[test]
fn an_expert_that_is_taken_for_both_fails_the_run() {
    let model = copy();
    let expert = |name: &str| -> PathBuf { model.path().join(name).join(WEIGHTS) };
    fs::copy(expert("transformer"), expert("transformer_2")).unwrap();
    let work = tempfile::tempdir().unwrap();
    let path = model.path().to_str().unwrap();
    let args = [
        "--model", path, "--device", "cpu", "--json", "--report", "r.md",
    ];
    let (code, stdout, stderr) = doctor(work.path(), &args);
    assert_eq!(code, 1, "{stdout}{stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["sound"], false);
    let checks = json["checks"].as_array().unwrap();
    let of = |outcome: &str| -> Vec<&Value> {
        checks
            .iter()
            .filter(|check| check["outcome"] == outcome)
            .collect()
    };
    let bad = of("failed");
    assert_eq!(bad.len(), 3, "{bad:?}");
    for check in bad {
        assert_eq!(check["group"], "guidance");
        assert!(
            check["detail"]
                .as_str()
                .unwrap()
                .contains("one expert is taken for both")
        );
    }
    let groups = |group: &str| {
        let passed = of("passed");
        passed
            .iter()
            .filter(|check| check["group"] == group)
            .count()
    };
    assert!(groups("kernel") >= 40 && groups("vae") == 7 && groups("clip") == 1);
    assert!(of("skipped").is_empty());
    let (code, stdout, stderr) = doctor(work.path(), &["--model", path, "--device", "cpu"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("guidance   9 of 12 are right"), "{stdout}");
    let mut last = stderr.lines().rev();
    assert!(
        last.next().unwrap().starts_with("hint: wan-i2v inspect"),
        "{stderr}"
    );
    let named = last.next().unwrap();
    assert!(
        named.starts_with("error: guidance: high-noise against low-noise"),
        "{stderr}"
    );
    assert!(
        named.ends_with("(2 more failed; -v shows them)"),
        "{stderr}"
    );
    let report = fs::read_to_string(work.path().join("r.md")).unwrap();
    assert!(report.contains("something is wrong") && report.contains("| FAILED | guidance |"));
    let first = report
        .lines()
        .find(|line| line.starts_with("| ") && line.contains(" kernel "));
    assert!(
        report.find("FAILED") < report.find(first.unwrap()),
        "what failed comes first"
    );
    assert!(!report.contains(path) && !stdout.contains(path), "{report}");
    assert!(report.contains("MLX") && report.contains("6 blocks of 128"));
}

#[test]
fn a_quick_look_says_what_it_leaves_out() {
    let work = tempfile::tempdir().unwrap();
    let args = [
        "--model",
        TINY,
        "--quick",
        "--device",
        "cpu",
        "--verbose",
        "--report",
        "r.md",
        "--with-paths",
    ];
    let (code, stdout, stderr) = doctor(work.path(), &args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let skipped: Vec<&str> = stdout
        .lines()
        .filter(|line| line.starts_with("skipped"))
        .collect();
    assert_eq!(skipped.len(), 2, "{stdout}");
    assert!(skipped[0].contains("2 x 102 x 32760 x 128"), "{stdout}");
    assert!(
        skipped[1].contains("the transformers would have to be loaded"),
        "{stdout}"
    );
    assert!(stdout.contains("what was looked at is well"), "{stdout}");
    let report = fs::read_to_string(work.path().join("r.md")).unwrap();
    assert!(report.contains(TINY));
    let (code, _, stderr) = doctor(work.path(), &["--model", "nowhere", "--quick"]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("--model nowhere: no such file or folder"),
        "{stderr}"
    );
    let (code, _, stderr) = doctor(work.path(), &["--report", "no/such/r.md"]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("--report no/such/r.md: cannot write there"),
        "{stderr}"
    );
    assert_eq!(doctor(work.path(), &["--fast"]).0, 2);
}

/// On a healthy machine ten lines say so, in 80 columns; nothing is asked of the hub.
#[test]
fn a_healthy_machine_takes_ten_lines() {
    let work = tempfile::tempdir().unwrap();
    // Whoever were asked here would not answer.
    let run = |args: &[&str]| {
        let mut command = program();
        command
            .current_dir(work.path())
            .args(["doctor", "--quick", "--device", "cpu"]);
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
        ] {
            command.env_remove(name);
        }
        command
            .env("HF_HOME", work.path())
            .env("HF_ENDPOINT", "http://127.0.0.1:9");
        let output = command.args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let stdout = run(&[]);
    let names = [
        "machine",
        "kernels",
        "VAE",
        "guidance",
        "miniature",
        "disk",
        "hub",
        "480p",
        "720p",
    ];
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), names.len() + 1, "{stdout}");
    for (line, name) in lines.iter().zip(names) {
        assert!(line.starts_with(&format!("{name:<11}")), "{stdout}");
    }
    assert!(lines[4].ends_with("its clip is the known one"), "{stdout}");
    assert!(
        lines[6].contains("no token") && lines[6].contains("not asked"),
        "{stdout}"
    );
    assert!(
        lines[9].starts_with("what was looked at is well"),
        "{stdout}"
    );
    fs::write(work.path().join("token"), "hf_secret").unwrap();
    let json = run(&["--json"]);
    assert!(!json.contains("hf_secret"));
    let json: Value = serde_json::from_str(&json).unwrap();
    let hub = &json["around"]["hub"];
    assert_eq!(
        (&hub["token"], &hub["answers"]),
        (&Value::Bool(true), &Value::Null)
    );
    assert!(json["around"]["free_here"].as_u64() > Some(0));
    assert_eq!(json["around"]["fits"].as_array().unwrap().len(), 4);
}
