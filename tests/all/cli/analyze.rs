//! `wan-i2v analyze`, as a user runs it.

use std::fs;

use image::{Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

use super::{Ran, names, run};
use crate::support::isolated::program;

/// Frames of a disc that moves, in `folder/name/`; those from `grey` on are grey.
fn write(folder: &TempDir, name: &str, grey: u32) {
    let path = folder.path().join(name);
    fs::create_dir(&path).unwrap();
    for number in 0..17_u32 {
        let frame = RgbImage::from_fn(64, 48, |x, y| {
            let (dx, dy) = (f64::from(x) - 20.0 - f64::from(number), f64::from(y) - 24.0);
            Rgb(match dx.hypot(dy) < 10.0 && number < grey {
                true => [210, 40, 40],
                false if number < grey => [90 + x as u8, 120, 100],
                false => [127; 3],
            })
        });
        frame
            .save(path.join(format!("frame_{number:05}.png")))
            .unwrap();
    }
}

fn analyze(folder: &TempDir, args: &[&str]) -> Ran {
    let mut command = program();
    run(command.current_dir(folder.path()).arg("analyze").args(args))
}

fn text(ran: &Ran) -> String {
    String::from_utf8(ran.stdout.clone()).unwrap()
}

#[test]
fn the_exit_code_tells_an_alarm() {
    let folder = TempDir::new().unwrap();
    write(&folder, "sound", 17);
    write(&folder, "grey", 9);
    let image = "sound/frame_00000.png";
    let sound = analyze(&folder, &["sound", "--image", image]);
    assert_eq!(sound.code, Some(0), "{}", text(&sound));
    assert!(text(&sound).starts_with("sound: 17 frames of 64x48 pixels, no alarm\n"));
    assert_eq!(sound.stderr, "");
    let grey = analyze(&folder, &["grey/", "--image", image]);
    assert_eq!(grey.code, Some(1));
    let said = text(&grey);
    assert!(
        said.contains("grey frames       found: from frame 9"),
        "{said}"
    );
    assert!(said.contains("grey frames: likely causes\n  - "), "{said}");
    // Without the picture the first frame is not judged.
    let unknown = text(&analyze(&folder, &["sound"]));
    assert!(
        unknown.contains("first frame       not checked"),
        "{unknown}"
    );
    // A row for each frame, if wanted.
    let rows = text(&analyze(&folder, &["sound", "--frames"]));
    assert_eq!(rows.lines().count(), unknown.lines().count() + 19, "{rows}");
}

#[test]
fn scripts_get_json() {
    let folder = TempDir::new().unwrap();
    write(&folder, "grey", 9);
    let ran = analyze(
        &folder,
        &["grey", "--json", "--image", "grey/frame_00000.png"],
    );
    assert_eq!(ran.code, Some(1));
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["alarm"], true);
    assert_eq!(report["size"]["width"], 64);
    assert_eq!(report["frames"].as_array().unwrap().len(), 17);
    assert!(report["frames"][9]["checkerboard"]["px8"].is_number());
    assert!(report["first_frame"]["psnr"].is_null());
    let verdicts = report["verdicts"].as_array().unwrap();
    let grey = verdicts.iter().find(|v| v["symptom"] == "grey").unwrap();
    assert_eq!(grey["status"], "alarm");
    assert_eq!((&grey["first"], &grey["to_end"]), (&9.into(), &true.into()));
    assert!(!grey["causes"].as_array().unwrap().is_empty());
}

#[test]
fn pages_are_written_beside_the_verdicts() {
    let folder = TempDir::new().unwrap();
    write(&folder, "sound", 17);
    let ran = analyze(
        &folder,
        &["sound", "--html", "page.html", "--png", "sheet.png"],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let page = fs::read_to_string(folder.path().join("page.html")).unwrap();
    assert!(page.contains("<h1>sound</h1>"));
    let sheet = image::open(folder.path().join("sheet.png")).unwrap();
    assert!(sheet.width() > 1000);
    assert_eq!(names(folder.path()).len(), 3);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let folder = TempDir::new().unwrap();
    write(&folder, "sound", 17);
    fs::write(folder.path().join("clip.mp4"), "nothing").unwrap();
    for (args, code, parts) in [
        (&["none.mp4"][..], 1, &["none.mp4"][..]),
        (
            &["clip.mp4"],
            1,
            &["clip.mp4", "no MP4, GIF or NumPy array"],
        ),
        (&["sound", "--image", "none.png"], 1, &["none.png"]),
        (&["sound", "--html", "page.txt"], 1, &["page.txt", ".html"]),
        (&["sound", "--png", "sheet.jpg"], 1, &["sheet.jpg", ".png"]),
        (
            &["sound", "--png", "none/sheet.png"],
            1,
            &["none", "does not exist"],
        ),
        (&["sound", "--resize", "bicubic"], 2, &["--image"]),
        (
            &["sound", "--image", "x", "--resize", "cubic"],
            2,
            &["lanczos, bicubic"],
        ),
        (&[], 2, &["FILE"]),
    ] {
        let ran = analyze(&folder, args);
        assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{args:?}");
        for part in parts {
            assert!(ran.stderr.contains(part), "{args:?}: {}", ran.stderr);
        }
    }
    assert_eq!(names(folder.path()).len(), 2);
}
