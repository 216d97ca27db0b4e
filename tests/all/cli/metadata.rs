//! What clips keep of how they were made, and `show`.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::cli::{Bench, Ran, program, run};

fn show(bench: &Bench, args: &[&str]) -> Ran {
    let mut command = program();
    command.current_dir(bench.work.path()).arg("show");
    run(command.args(args))
}

/// What `show --json` says of a clip.
pub fn shown(bench: &Bench, file: &str) -> Value {
    let ran = show(bench, &[file, "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[test]
fn every_kind_of_clip_says_how_it_was_made() {
    let bench = Bench::new("a");
    let more = [
        "--guide-scale",
        "1.5,3.25",
        "--negative-prompt",
        "it's\n一",
        "--strip",
        "strip.png",
        "--cache",
        "easycache,threshold=0.5",
    ];
    let files = ["clip.mp4", "clip.gif", "frames/"];
    for file in files {
        bench.small(file, &more).assert_wrote(file);
    }
    let record = shown(&bench, "clip.mp4");
    for (key, value) in [
        (
            "software",
            json!(concat!("wan-i2v ", env!("CARGO_PKG_VERSION"))),
        ),
        ("prompt", json!("a cat in the rain")),
        ("negative_prompt", json!("it's\n一")),
        ("width", json!(32)),
        ("frames", json!(5)),
        ("fps", json!(16.0)),
        ("steps", json!(2)),
        ("solver", json!("unipc")),
        ("guide_scale", json!({ "low": 1.5, "high": 3.25 })),
        ("format", json!(2)),
        ("guide_interval", json!([0.0, 1.0])),
        (
            "cache",
            json!({ "method": "easycache", "threshold": 0.5, "retention": 1, "cutoff": 1 }),
        ),
        ("seed", json!(7)),
        ("resize", json!("lanczos")),
        ("device", json!("cpu")),
        ("dtype", json!("f32")),
    ] {
        assert_eq!(record[key], value, "{key}");
    }
    assert_eq!(record["image"]["name"], "start.png");
    let root = bench.checkpoint.root();
    let name = root.file_name().unwrap().to_str().unwrap();
    assert_eq!(record["model"]["name"], name);
    // But for the file that is not to be replaced all say the same.
    let same = |file: &str| {
        let mut record = shown(&bench, file);
        record["command"].as_array_mut().unwrap().pop();
        record
    };
    for file in ["clip.gif", "frames", "frames/frame_00003.png", "strip.png"] {
        assert_eq!(same(file), same("clip.mp4"), "{file}");
    }
    // No folder of this machine is in there.
    let folder = root.parent().unwrap().to_str().unwrap();
    for file in [
        "clip.mp4",
        "clip.gif",
        "frames/frame_00000.png",
        "strip.png",
    ] {
        let bytes = fs::read(bench.path(file)).unwrap();
        let found = bytes.windows(folder.len()).any(|w| w == folder.as_bytes());
        assert!(!found, "{file} holds {folder}");
    }
    let text = String::from_utf8(show(&bench, &["clip.gif"]).stdout).unwrap();
    for line in [
        "prompt    a cat in the rain\n",
        "negative  it's\n          一\n",
        "picture   start.png\n",
        "clip      32 x 32 pixels, 5 frames at 16 fps\n",
        "sampling  2 steps of unipc, shift 5, seed 7\n",
        "guidance  1.5 low-noise, 3.25 high-noise",
        " --negative-prompt $'it\\'s\\n一' --size 32x32 ",
        " --output clip-again.gif\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
}

#[test]
fn the_command_renders_the_same_clip_again() {
    let bench = Bench::new("a");
    let more = [
        "--prompt=-it's $HOME\t\"x\" \\ 一只猫",
        "--solver",
        "euler",
        "--shift",
        "2.5",
        "--fps",
        "23.976",
        "--guide-scale",
        "-0.1,2",
        "--guide-interval",
        "0,0.5",
        "--negative-prompt",
        "",
        "--dtype",
        "bf16",
        "--resize",
        "bicubic",
        "--seed",
        "18446744073709551615",
    ];
    let mut command = bench.command();
    command.args(["--size", "32x48", "--frames", "5", "--steps", "2"]);
    let ran = run(command.args(["--output", "clip.mp4"]).args(more));
    ran.assert_wrote("clip.mp4");
    let text = String::from_utf8(show(&bench, &["clip.mp4"]).stdout).unwrap();
    let line = text.lines().last().unwrap();
    // Where the picture and the model are the command does not say.
    fs::copy(bench.picture(), bench.path("start.png")).unwrap();
    let name = bench.checkpoint.root().file_name().unwrap();
    std::os::unix::fs::symlink(bench.checkpoint.root(), bench.path(name.to_str().unwrap()))
        .unwrap();
    let program = env!("CARGO_BIN_EXE_wan-i2v");
    let script = format!("wan-i2v() {{ '{program}' \"$@\"; }}\n{line}");
    let mut bash = Command::new("bash");
    bash.env("XDG_CONFIG_HOME", "/nowhere");
    let ran = run(bash.current_dir(bench.work.path()).args(["-c", &script]));
    ran.assert_wrote("clip-again.mp4");
    assert!(
        fs::read(bench.path("clip.mp4")).unwrap()
            == fs::read(bench.path("clip-again.mp4")).unwrap()
    );
}

#[test]
fn a_model_is_told_from_another() {
    let bench = Bench::new("a");
    let one = ["--steps", "1", "--guide-scale", "1", "--frames", "1"];
    let fingerprint = |more: &[&str]| {
        bench
            .small("clip.gif", &[&one[..], more].concat())
            .assert_wrote("clip.gif");
        shown(&bench, "clip.gif")["model"].clone()
    };
    let before = fingerprint(&[]);
    assert_eq!(before["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(fingerprint(&["--seed", "9"]), before);
    // A part from elsewhere is named without its folder.
    let vae = bench.checkpoint.path("vae");
    let other = fingerprint(&["--vae", vae.to_str().unwrap()]);
    assert_eq!(other["parts"], json!({"--vae": "vae"}));
    assert_eq!(other["fingerprint"], before["fingerprint"]);
    let file = "transformer_2/diffusion_pytorch_model.safetensors";
    bench.checkpoint.edit_tensors(file, |tensors| {
        let weight = tensors.get_mut("blocks.0.attn1.to_q.weight").unwrap();
        let middle = weight.bytes.len() / 2;
        weight.bytes[middle] ^= 1;
    });
    assert_ne!(fingerprint(&[])["fingerprint"], before["fingerprint"]);
}

#[test]
fn metadata_can_be_left_out() {
    let bench = Bench::new("a");
    let more = [
        "--no-metadata",
        "--strip",
        "strip.png",
        "--steps",
        "1",
        "--guide-scale",
        "1",
    ];
    for file in ["clip.mp4", "clip.gif", "frames/"] {
        bench.small(file, &more).assert_wrote(file);
        show(&bench, &[file])
            .assert_refused(1, &["holds no record of how it was made", "--no-metadata"]);
    }
    for file in [
        "clip.mp4",
        "clip.gif",
        "frames/frame_00000.png",
        "strip.png",
    ] {
        let bytes = fs::read(bench.path(file)).unwrap();
        for text in ["wan-i2v", "a cat in the rain", "start.png"] {
            let found = bytes.windows(text.len()).any(|w| w == text.as_bytes());
            assert!(!found, "{file} holds {text}");
        }
    }
}

#[test]
fn files_of_others_are_refused() {
    let bench = Bench::new("a");
    let gif = |comment: &str| {
        let mut file = b"GIF89a\x10\0\x10\0\0\0\0\x21\xfe".to_vec();
        for block in comment.as_bytes().chunks(255) {
            file.push(block.len() as u8);
            file.extend(block);
        }
        file.extend(b"\0;");
        fs::write(bench.path("file.gif"), file).unwrap();
    };
    let refused = |file: &str, parts: &[&str]| show(&bench, &[file]).assert_refused(1, parts);
    refused("nothing.mp4", &["nothing.mp4", "No such file"]);
    refused(".", &["holds no frames"]);
    fs::write(bench.path("text.mp4"), "a text").unwrap();
    refused("text.mp4", &["text.mp4", "no MP4, GIF or PNG"]);
    gif("made by \u{1b}[2J");
    refused(
        "file.gif",
        &["is not of this program", "made by \\u{1b}[2J"],
    );
    for comment in [
        "",
        "{",
        "[]",
        r#"{"software": 7}"#,
        r#"{"software": "other 1"}"#,
    ] {
        gif(comment);
        refused("file.gif", &["file.gif", "is not of this program"]);
    }
    gif(r#"{"software": "wan-i2v 99\u001b", "format": 2}"#);
    refused("file.gif", &["wan-i2v 99\\u{1b} made it", "missing field"]);
    gif(r#"{"software": "wan-i2v 99", "format": 3}"#);
    let other = "wan-i2v 99 says how it was made in format 3; this version reads format 2";
    refused("file.gif", &[other, "\nhint: "]);
    // Made by the program of the first format.
    let old = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/format-1.gif"
    ));
    fs::write(bench.path("file.gif"), old).unwrap();
    let old = "wan-i2v 0.1.0 says how it was made in format 1; this version reads format 2";
    refused("file.gif", &[old, "\nhint: "]);
}
