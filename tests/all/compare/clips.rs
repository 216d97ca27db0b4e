//! Two clips: known differences are found, and said in words.

use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;
use wan_i2v::media::clip::{ClipSpec, ClipWriter};

use crate::compare::command::run;
use crate::support::{TINY, assert_holds};

/// A frame of whole-number formulas, another one for each number.
fn frame(number: u32) -> RgbImage {
    RgbImage::from_fn(32, 24, |x, y| {
        Rgb([
            (x * 7 + number * 5) as u8,
            (y * 9) as u8,
            (x * y + number) as u8,
        ])
    })
}

fn write(folder: &Path, name: &str, fps: f64, frames: &[RgbImage]) {
    let spec = ClipSpec {
        width: frames[0].width(),
        height: frames[0].height(),
        fps,
    };
    let mut clip = ClipWriter::create(&folder.join(name), &spec, None).unwrap();
    for frame in frames {
        clip.push(frame).unwrap();
    }
    clip.finish().unwrap();
}

#[test]
fn a_difference_is_found_with_its_frame_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let frames: Vec<RgbImage> = (0..12).map(frame).collect();
    let mut changed = frames.clone();
    changed[9].get_pixel_mut(17, 5)[1] ^= 0x40;
    changed[10].get_pixel_mut(2, 3)[0] ^= 0x01;
    write(folder.path(), "a/", 16.0, &frames);
    write(folder.path(), "b/", 16.0, &changed);
    write(folder.path(), "same/", 16.0, &frames);
    let run = |args: &[&str]| run(folder.path(), args);

    let (code, stdout, _) = run(&["a", "same"]);
    assert_eq!(code, 0, "{stdout}");
    let verdict = "equal: all 12 frames are the same, byte for byte\n";
    assert!(stdout.ends_with(verdict), "{stdout}");

    let (code, stdout, _) = run(&["a", "b"]);
    assert_eq!(code, 1);
    assert_holds(
        &stdout,
        &[
            "32x24",
            "largest difference: 64 levels, in frame 9 at 17, 5 (from the left, from the top)",
            "settings: not both clips say how they were made",
            "different: 2 of 12 frames differ, from frame 9 on; PSNR 56.4 dB: nobody sees that",
        ],
    );
    let (code, stdout, _) = run(&["a", "b", "--most", "1"]);
    assert_eq!(code, 1);
    assert_holds(&stdout, &["\n    9 ", "and 1 more that differ no more"]);
    // 64 of 255 levels are 0.251.
    let (code, stdout, _) = run(&["a", "b", "--tolerance", "0.26"]);
    assert_eq!(code, 0);
    assert_holds(&stdout, &["alike: no level differs by more than 64 of 255"]);
    assert_eq!(run(&["a", "b", "--tolerance", "0.25"]).0, 1);

    let (code, stdout, _) = run(&["a", "b", "--json", "--png", "diff.png"]);
    assert_eq!(code, 1);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["what"], "clips");
    assert_eq!(
        (&json["equal"], &json["inside"]),
        (&false.into(), &false.into())
    );
    assert_eq!(json["frames"].as_array().unwrap().len(), 12);
    let row = &json["frames"][9];
    assert_eq!((&row["largest"], &row["frame"]), (&64.into(), &9.into()));
    assert_eq!(row["at"], serde_json::json!([17, 5]));
    assert_eq!(json["frames"][0]["psnr"], Value::Null);
    // 10 log10(255² * 32 * 24 * 3 / 64²).
    let psnr = row["psnr"].as_f64().unwrap();
    assert!((psnr - 45.632).abs() < 1e-2, "{psnr}");
    // Frame 9 is among the pictures, and so is where it differs: three rows of six.
    let strip = image::open(folder.path().join("diff.png"))
        .unwrap()
        .into_rgb8();
    assert_eq!(strip.width(), 6 * (7 * 32 + 4) + 4);
    assert_eq!(strip.height(), 3 * (7 * 24 + 30 + 28));
    let bright = strip.rows().rev().take(7 * 24 + 30).flatten();
    assert!(
        bright
            .filter(|pixel| pixel[1] > 180 && pixel[0] < 40)
            .count()
            >= 49
    );
    let (code, _, stderr) = run(&["a", "b", "--png", "a/frame_00000.png"]);
    assert_eq!(code, 2);
    assert_holds(&stderr, &["--png", "would replace what is compared"]);
}

#[test]
fn clips_of_all_kinds_are_compared_and_what_has_no_like_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let frames: Vec<RgbImage> = (0..5).map(frame).collect();
    write(folder.path(), "clip.mp4", 16.0, &frames);
    write(folder.path(), "clip.gif", 16.0, &frames);
    write(folder.path(), "frames/", 16.0, &frames);
    write(folder.path(), "slow.gif", 8.0, &frames);
    write(folder.path(), "short/", 16.0, &frames[..2]);
    let small = RgbImage::from_pixel(16, 16, Rgb([9; 3]));
    write(folder.path(), "small/", 16.0, &[small.clone(), small]);
    let run = |a: &str, b: &str| run(folder.path(), &["compare", a, b][1..]);
    for (a, b, code, said) in [
        ("clip.mp4", "clip.mp4", 0, "equal: all 5 frames"),
        ("frames", "nowhere", 2, "B: nowhere: no such file or folder"),
        (
            "clip.mp4",
            "frames",
            1,
            "5 of 5 frames differ, from frame 0 on; PSNR ",
        ),
        ("clip.gif", "clip.mp4", 1, "MP4   32x24       5     16"),
        (
            "slow.gif",
            "clip.gif",
            1,
            "A plays 7.94 frames a second and B 16.13",
        ),
        (
            "frames",
            "short",
            1,
            "different: A has 5 frames and B has 2; all 2 frames that both have are the same",
        ),
        (
            "short",
            "frames",
            1,
            "different: A has 2 frames and B has 5",
        ),
        (
            "frames",
            "small",
            1,
            "the frames are 32x24 pixels in A and 16x16 in B",
        ),
        // Frames and a model are no pair.
        (
            "frames",
            TINY,
            2,
            "A: frames: a clip or a picture; expected",
        ),
    ] {
        let (found, stdout, stderr) = run(a, b);
        assert_eq!(found, code, "{a} {b}: {stdout}{stderr}");
        assert_holds(&(stdout + &stderr), &[said]);
    }
    // A damaged clip is an error, whichever it is.
    let whole = std::fs::read(folder.path().join("clip.mp4")).unwrap();
    std::fs::write(folder.path().join("cut.mp4"), &whole[..whole.len() / 2]).unwrap();
    for (a, b) in [("cut.mp4", "frames"), ("frames", "cut.mp4")] {
        let (code, stdout, stderr) = run(a, b);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert_holds(&stderr, &["cannot read", "cut.mp4"]);
    }
}
