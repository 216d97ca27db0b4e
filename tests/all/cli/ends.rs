//! `--last-image`.

use std::fs;

use image::RgbImage;
use npyz::NpyFile;

use crate::cli::running::bytes;
use crate::cli::{Bench, program, run};

impl Bench {
    /// A picture of this many pixels, one colour.
    fn flat(&self, name: &str, width: u32, height: u32, level: u8) -> String {
        let path = self.checkpoint.path(name);
        let picture = RgbImage::from_pixel(width, height, image::Rgb([level, 90, 30]));
        picture.save(&path).unwrap();
        path.into_os_string().into_string().unwrap()
    }
}

#[test]
fn a_last_picture_is_part_of_the_clip_and_of_what_is_told_of_it() {
    let bench = Bench::new("a");
    let last = bench.flat("last.png", 80, 72, 200);
    bench.small("alone.mp4", &[]).assert_wrote("alone.mp4");
    let flags = ["--last-image", &last, "--dump", "dump"];
    let ran = bench.small("clip.mp4", &flags);
    ran.assert_wrote("clip.mp4");
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    assert!(bytes(&bench.path("clip.mp4")) != bytes(&bench.path("alone.mp4")));
    // Five pixel frames: the second latent frame's last channel is the last picture's.
    let mask = fs::read(bench.path("dump/mask.npy")).unwrap();
    let mask = NpyFile::new(&mask[..]).unwrap();
    assert_eq!(mask.shape(), [4, 2, 4, 4]);
    let mask: Vec<f32> = mask.into_vec().unwrap();
    for (plane, values) in mask.chunks(16).enumerate() {
        let given = [0, 2, 4, 6, 7].contains(&plane);
        assert_eq!(values, [f32::from(u8::from(given)); 16], "plane {plane}");
    }

    let shown = run(program()
        .current_dir(bench.work.path())
        .args(["show", "clip.mp4"]));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("\nlast      last.png\n"), "{text}");
    assert!(text.contains(" --last-image last.png "), "{text}");
    let shown = run(program()
        .current_dir(bench.work.path())
        .args(["show", "alone.mp4"]));
    assert!(!String::from_utf8(shown.stdout).unwrap().contains("last"));
}

#[test]
fn a_run_goes_on_with_the_same_last_picture_only() {
    let bench = Bench::new("a");
    let (one, other) = (
        bench.flat("1.png", 40, 36, 0),
        bench.flat("2.png", 40, 36, 9),
    );
    let steps = bench.killed_after(2, "clip.mp4", &["--last-image", &one]);
    for flags in [&["--last-image", &other][..], &[]] {
        let refused = run(&mut bench.clip("clip.mp4", flags));
        refused.assert_refused(1, &["other settings", "the last picture: "]);
    }
    let ran = run(&mut bench.clip("clip.mp4", &["--last-image", &one]));
    assert!(
        ran.stderr
            .contains(&format!("resuming after step {steps},")),
        "{}",
        ran.stderr
    );
    ran.assert_wrote("clip.mp4");
    let whole = run(&mut bench.clip("whole.mp4", &["--last-image", &one]));
    whole.assert_wrote("whole.mp4");
    assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
}

#[test]
fn last_pictures_that_cannot_be_are_refused() {
    let bench = Bench::new("a");
    let last = bench.flat("last.png", 40, 36, 1);
    let typo = last.replace("last.png", "lsat.png");
    let meant = format!("did you mean {last}?");
    for (flags, parts) in [
        (
            &["--last-image", &last, "--frames", "1"][..],
            &["--last-image needs more --frames than 1"][..],
        ),
        (
            &["--last-image", &typo],
            &["--last-image", "No such file", &meant],
        ),
        (
            &["--last-image", &last, "--strip", &last],
            &["--strip", "would replace the last picture"],
        ),
    ] {
        bench.small("clip.mp4", flags).assert_refused(1, parts);
    }
    fs::create_dir(bench.path("frames")).unwrap();
    let frame = bench.path("frames/frame_00080.png");
    fs::copy(&last, &frame).unwrap();
    let flags = ["--last-image", frame.to_str().unwrap()];
    let parts = ["--output frames", "would replace the last picture"];
    bench.small("frames", &flags).assert_refused(1, &parts);
    // Another shape is no reason to refuse it, and is fitted by itself.
    let wide = bench.flat("wide.png", 80, 36, 1);
    let ran = bench.small("clip.mp4", &["--last-image", &wide]);
    ran.assert_wrote("clip.mp4");
    let said = "last      wide.png, 80 x 36 pixels, cropped to 36 x 36 (";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}
