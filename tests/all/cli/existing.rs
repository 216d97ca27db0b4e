//! What is there already is not replaced unless that is asked for.

use std::fs;
use std::os::unix::fs::symlink;

use image::RgbImage;

use crate::cli::{Bench, Ran, program, run};

/// One step of one frame.
const QUICK: [&str; 8] = [
    "--size",
    "16x16",
    "--frames",
    "1",
    "--steps",
    "1",
    "--guide-scale",
    "1",
];

/// A run of the miniature on a picture, with a default name unless the flags have one.
fn on(bench: &Bench, picture: &str, more: &[&str]) -> Ran {
    let mut command = program();
    command.current_dir(bench.work.path());
    command.args(["-p", "x", "-i", picture]).args(QUICK);
    run(command.args(more))
}

fn picture(bench: &Bench, path: &str, level: u8) {
    let path = bench.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(16, 16, image::Rgb([level; 3]))
        .save(path)
        .unwrap();
}

#[test]
fn default_names_are_numbered_and_a_clip_is_made_once() {
    let bench = Bench::new("a");
    picture(&bench, "a/p.png", 10);
    picture(&bench, "b/p.png", 200);
    let seed = ["--seed", "5"];
    on(&bench, "a/p.png", &seed).assert_wrote("p-5.mp4");
    on(&bench, "b/p.png", &seed).assert_wrote("p-5-2.mp4");
    let first = fs::read(bench.path("p-5.mp4")).unwrap();
    assert!(first != fs::read(bench.path("p-5-2.mp4")).unwrap());
    for (folder, name) in [("a", "p-5.mp4\n"), ("b", "p-5-2.mp4\n")] {
        let again = on(&bench, &format!("{folder}/p.png"), &seed);
        assert_eq!((again.code, again.stdout), (Some(0), name.into()));
        assert!(
            again.stderr.contains("has made it before"),
            "{}",
            again.stderr
        );
        assert!(!again.stderr.contains("denoising"), "{}", again.stderr);
    }
    // A link leads to somewhere else.
    symlink("elsewhere.mp4", bench.path("p-6.mp4")).unwrap();
    on(&bench, "a/p.png", &["--seed", "6"]).assert_wrote("p-6-2.mp4");
    // A name that leaves no room for the seed is cut.
    picture(&bench, &format!("{}.png", "é".repeat(125)), 3);
    let long = format!("{}-5.mp4", "é".repeat(100));
    on(&bench, &format!("{}.png", "é".repeat(125)), &seed).assert_wrote(&long);
    on(&bench, "b/p.png", &[&seed[..], &["--overwrite"]].concat()).assert_wrote("p-5.mp4");
    assert!(first != fs::read(bench.path("p-5.mp4")).unwrap());
}

#[test]
fn an_output_of_another_run_is_refused_without_overwrite() {
    let bench = Bench::new("a");
    picture(&bench, "p.png", 10);
    fs::write(bench.path("mine.mp4"), "mine").unwrap();
    fs::write(bench.path("mine.png"), "mine").unwrap();
    fs::create_dir(bench.path("frames")).unwrap();
    fs::write(bench.path("frames/frame_00003.png"), "mine").unwrap();
    symlink("mine.mp4", bench.path("link.mp4")).unwrap();
    symlink("mine.png", bench.path("link.png")).unwrap();
    let before = bench.written();
    let config = bench.path("wan.toml");
    fs::write(&config, "output = \"mine.mp4\"\n").unwrap();
    for (flags, parts) in [
        (
            &["-o", "mine.mp4"][..],
            &["--output mine.mp4", "--overwrite"][..],
        ),
        (
            &["--config", "wan.toml"],
            &["--output mine.mp4", "--overwrite"],
        ),
        (&["-o", "frames/"], &["--output frames/", "--overwrite"]),
        (
            &["-o", "new.mp4", "--strip", "mine.png"],
            &["--strip mine.png", "--overwrite"],
        ),
        (&["-o", "link.mp4"], &["--output", "link.mp4", "is a link"]),
        (
            &["-o", "link.mp4", "--overwrite"],
            &["--output", "link.mp4", "is a link"],
        ),
        (
            &["-o", "new.mp4", "--strip", "link.png"],
            &["--strip", "link.png", "is a link"],
        ),
        (&["-o", "a/b/new.mp4"], &["a/b does not exist", "--parents"]),
        // The folder that was made for it is gone again.
        (&["-o", "a/b/new.avi", "--parents"], &[".mp4 or .gif"]),
    ] {
        on(&bench, "p.png", flags).assert_refused(1, parts);
    }
    fs::remove_file(config).unwrap();
    assert_eq!(bench.written(), before);
    for name in ["mine.mp4", "mine.png", "frames/frame_00003.png"] {
        assert_eq!(fs::read(bench.path(name)).unwrap(), b"mine");
    }
    // Another seed is another clip.
    on(&bench, "p.png", &["-o", "clip.mp4", "--seed", "1"]).assert_wrote("clip.mp4");
    let other = ["-o", "clip.mp4", "--seed", "2"];
    on(&bench, "p.png", &other).assert_refused(1, &["--output clip.mp4", "--overwrite"]);
    on(&bench, "p.png", &[&other[..], &["--overwrite"]].concat()).assert_wrote("clip.mp4");
    on(&bench, "p.png", &["-o", "a/b/new.mp4", "--parents"]).assert_wrote("a/b/new.mp4");
    // What a run has kept no record of is nobody's.
    let plain = ["-o", "plain.mp4", "--seed", "2", "--no-metadata"];
    on(&bench, "p.png", &plain).assert_wrote("plain.mp4");
    on(&bench, "p.png", &plain).assert_refused(1, &["--output plain.mp4", "--overwrite"]);
}

#[test]
fn a_batch_and_a_sweep_replace_nothing_that_they_have_not_made() {
    let bench = Bench::new("a");
    picture(&bench, "p.png", 10);
    fs::write(
        bench.path("jobs.toml"),
        "[[job]]\nname = \"a\"\nimage = \"p.png\"\nprompt = \"x\"\nseed = 1\n",
    )
    .unwrap();
    for folder in ["batch", "sweep"] {
        fs::create_dir(bench.path(folder)).unwrap();
    }
    let batch = |more: &[&str]| {
        let mut command = program();
        command.current_dir(bench.work.path());
        command
            .args(["batch", "jobs.toml", "--output-dir", "batch"])
            .args(QUICK);
        run(command.args(more))
    };
    let clip = bench.path("batch/a_1.mp4");
    fs::write(&clip, "mine").unwrap();
    let ran = batch(&[]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("--overwrite"), "{}", ran.stderr);
    assert_eq!(fs::read(&clip).unwrap(), b"mine");
    assert_eq!(batch(&["--resume", "never"]).code, Some(1));
    assert_eq!(batch(&["--overwrite"]).code, Some(0));
    assert!(fs::read(&clip).unwrap() != b"mine");
    // Its own is there already, whatever the flag.
    assert!(batch(&[]).stderr.contains("1 there before"));
    assert_eq!(batch(&["--resume", "never"]).code, Some(0));
    let sweep = |more: &[&str]| {
        let mut command = program();
        command.current_dir(bench.work.path());
        command.args(["sweep", "-p", "x", "-i", "p.png", "--vary", "shift=1,2"]);
        command.args(["--output-dir", "sweep"]).args(QUICK);
        run(command.args(more))
    };
    assert_eq!(sweep(&[]).code, Some(0));
    // The same runs of another seed would take the names.
    let ran = sweep(&["--seed", "9"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("--overwrite"), "{}", ran.stderr);
    assert_eq!(sweep(&["--seed", "9", "--overwrite"]).code, Some(0));
}
