//! The built-in miniature, used when no model is named.

use image::{Rgb, RgbImage};

use crate::cli::program;
use crate::support::TINY;

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
