//! The command as a user runs it.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use wan_i2v::media::clip::{ClipSpec, ClipWriter};

use crate::compare::{floats, npy};
use crate::support::TINY;
use crate::support::isolated::program;

pub fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = program();
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .current_dir(folder)
        .arg("compare")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn the_exit_code_says_whether_they_agree() {
    let folder = tempfile::tempdir().unwrap();
    for (name, first) in [("a", 1.0), ("b", 1.0), ("c", 1.5), ("d", f32::NAN)] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        for (tensor, value) in [("noise", first), ("frames", 0.0), ("condition", 0.0)] {
            let path = folder.path().join(format!("{name}/{tensor}.npy"));
            npy(&path, "<f4", false, &[2], &floats(&[value, 2.0]));
        }
    }
    let run = |args: &[&str]| run(folder.path(), args);
    let (code, stdout, _) = run(&["a", "b"]);
    assert_eq!(code, 0);
    assert!(
        stdout.ends_with("equal: 3 tensors, every value the same\n"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["a", "c"]);
    assert_eq!(code, 1);
    assert!(
        stdout.contains("first departs: noise, the initial noise"),
        "{stdout}"
    );
    assert!(
        stdout.ends_with(
            "different: 1 of 3 tensors differ by more than their tolerance, at worst 2500 times as much\n"
        ),
        "{stdout}"
    );
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines[1].starts_with("condition") && lines[2].starts_with("noise"),
        "{stdout}"
    );
    assert!(
        lines[2].contains("[2]") && lines[2].ends_with("[0]"),
        "{stdout}"
    );
    assert_eq!(run(&["a", "c", "--tolerance", "0.3"]).0, 0);
    let (code, stdout, _) = run(&["a", "d", "--tolerance", "1e9", "--most", "1"]);
    assert_eq!(code, 1);
    assert!(
        stdout.contains("0 values of A and 1 of B are not finite"),
        "{stdout}"
    );
    assert!(
        stdout.contains("and 2 more that are no worse (--all)"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["a", "c", "--json"]);
    assert_eq!(code, 1);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["departs"]["name"], "noise");
    assert_eq!(json["inside"], false);
    assert_eq!(json["rows"][1]["max"], 0.5);
    assert_eq!(json["rows"][1]["first"], serde_json::json!([0]));
    assert_eq!((&json["a"], &json["b"]), (&"a".into(), &"c".into()));
    for (args, part) in [
        (&["a", "nowhere"][..], "B nowhere: no such file"),
        (&["a", "a/noise.npy"], "expected two folders of --dump"),
        (&["a"], "<B>"),
        (&["a", "b", "--tolerance", "-1"], "--tolerance"),
        (&["a", "b", "--tolerance", "nan"], "--tolerance"),
    ] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
}

#[test]
fn clips_are_compared_with_clips_alone() {
    let folder = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::from_pixel(16, 16, image::Rgb([90, 120, 30]));
    for name in ["picture.png", "picture.jpg", "clip.gif"] {
        picture.save(folder.path().join(name)).unwrap();
    }
    for name in ["clip.mp4", "frames/"] {
        let spec = ClipSpec {
            width: 16,
            height: 16,
            fps: 16.0,
        };
        let mut clip = ClipWriter::create(&folder.path().join(name), &spec, None).unwrap();
        clip.push(&picture).unwrap();
        clip.finish().unwrap();
    }
    for name in [
        "clip.mp4",
        "clip.gif",
        "frames",
        "picture.png",
        "picture.jpg",
    ] {
        let (code, stdout, stderr) = run(folder.path(), &["tiny", name]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{name}");
        let said = format!("B: {name}: a clip or a picture; expected a folder of --dump");
        assert!(stderr.contains(&said), "{stderr}");
        assert!(stderr.contains("`wan-i2v analyze`"), "{stderr}");
    }
    // What is neither is told of as what it is named for.
    std::fs::write(folder.path().join("cut.safetensors"), b"no tensors at all").unwrap();
    let (code, _, stderr) = run(folder.path(), &["cut.safetensors", "tiny"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("cut.safetensors"), "{stderr}");
    assert!(!stderr.contains("analyze"), "{stderr}");
}

/// As the report that this project grew from compares weights.
#[test]
fn converted_against_original() {
    let folder = tempfile::tempdir().unwrap();
    let converted = program()
        .current_dir(folder.path())
        .args(["convert", TINY, "four", "--bits", "4"])
        .output()
        .unwrap();
    assert!(converted.status.success(), "{converted:?}");
    let (code, stdout, _) = run(folder.path(), &[TINY, "four"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("f16, 4-bit"), "{stdout}");
    assert!(
        stdout.contains("alike: 570 tensors, each within its tolerance: rounding explains"),
        "{stdout}"
    );
    assert_eq!(
        run(folder.path(), &["tiny", "four", "--tolerance", "0.01"]).0,
        1
    );
    let (code, stdout, _) = run(folder.path(), &["tiny", TINY]);
    assert_eq!(code, 0);
    assert!(stdout.contains("equal: 570 tensors"), "{stdout}");
}
