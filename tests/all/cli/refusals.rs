//! Requests that are refused: one clear message, the right exit code, nothing written, and no
//! model loaded.

use std::fs;

use crate::cli::{Bench, program, run};

#[test]
fn settings_out_of_range_name_their_flag() {
    let bench = Bench::new("a");
    for (flags, parts) in [
        (
            &["--size", "8192x8192"][..],
            &["--output clip.mp4", "3840x2160", "8192x8192"][..],
        ),
        (
            &["--memory-budget", "0.115", "--size", "256x256"],
            &[
                "--memory-budget 0.115",
                "weights",
                "it fits with",
                "allow more with --memory-budget 0.",
            ],
        ),
        (
            // A model without a polynomial.
            &["--cache", "teacache"],
            &["--cache teacache", "wan_i2v.json", "--cache easycache"],
        ),
    ] {
        bench.small("clip.mp4", flags).assert_refused(1, parts);
    }
    bench
        .small("frames/", &["--size", "8192x8192", "--frames", "4001"])
        .assert_refused(1, &["too large", "--frames", "--size"]);
    bench
        .small("clip.gif", &["--fps", "60"])
        .assert_refused(1, &["--output clip.gif", "50 frames a second"]);
    assert!(bench.written().is_empty());
}

#[test]
fn numbers_out_of_range_are_wrong_usage() {
    let bench = Bench::new("a");
    for (flag, value, part) in [
        ("--frames", "6", "such as 5"),
        ("--frames", "20", "4n + 1"),
        ("--frames", "0", "such as 1"),
        ("--frames", "4294967293", "4001"),
        ("--frames", "a", "expected a whole number"),
        (
            "--size",
            "100x64",
            "width 100 is not a multiple of 16 from 16 to 8192; the nearest is 96",
        ),
        ("--size", "64x100", "height 100"),
        ("--size", "0x0", "nearest is 16"),
        ("--size", "99999x16", "8192"),
        ("--size", "4294967280x16", "8192"),
        ("--area", "0", "1024 to 67108864"),
        ("--area", "720", "720p is a size by name"),
        ("--area", "1080", "480p or 720p"),
        ("--area", "18446744073709551615", "1024 to"),
        ("--steps", "0", "1 to 1000"),
        ("--steps", "4294967295", "1 to 1000"),
        ("--fps", "0", "0.1 to 240"),
        ("--fps", "nan", "0.1 to 240"),
        ("--fps", "inf", "0.1 to 240"),
        ("--fps", "-24", "0.1 to 240"),
        ("--shift", "-1", "positive"),
        ("--shift", "0", "positive"),
        ("--shift", "nan", "positive"),
        ("--guide-scale", "nan", "at most 1000"),
        ("--guide-scale", "1,inf", "at most 1000"),
        ("--guide-interval", "1,0", "from 0 to 1"),
        ("--guide-interval", "0.5,0.5", "from 0 to 1"),
        ("--guide-interval", "-0.1,1", "from 0 to 1"),
        ("--guide-interval", "0,1.1", "from 0 to 1"),
        ("--guide-interval", "0,nan", "from 0 to 1"),
        ("--checkpoint-every", "0", "from 1 to"),
        ("--preview-every", "x", "from 1 to"),
        ("--memory-budget", "0", "gigabytes"),
        ("--seed", "1.5", "whole number from 0"),
    ] {
        let ran = bench.small("clip.mp4", &[flag, value]);
        ran.assert_refused(2, &[flag, value, part]);
        assert!(!ran.stderr.contains("invalid digit"), "{}", ran.stderr);
    }
    assert!(bench.written().is_empty());
}

#[test]
fn wrong_usage_names_its_flag_and_ends_with_2() {
    let bench = Bench::new("a");
    for (flags, parts) in [
        (
            &["--guide-scale", "a,b"][..],
            &["--guide-scale", "a,b", "3.0,4.0"][..],
        ),
        (&["--guide-scale", "1,2,3"], &["--guide-scale", "1,2,3"]),
        (&["--guide-scale", ""], &["--guide-scale"]),
        (&["--guide-interval", "1"], &["--guide-interval", "0,0.5"]),
        (&["--guide-interval", "a,b"], &["--guide-interval", "0,0.5"]),
        (
            &["--cache", "foo"],
            &["--cache", "foo", "off, teacache or easycache"],
        ),
        (
            &["--cache", "easycache,threshold=-1"],
            &["--cache", "threshold is -1", "positive"],
        ),
        (
            &["--cache", "easycache,threshold=nan"],
            &["--cache", "threshold is NaN", "positive"],
        ),
        (
            &["--cache", "easycache,threshold=0"],
            &["--cache", "threshold is 0", "positive"],
        ),
        (
            &["--cache", "easycache,retention=1.5"],
            &["--cache", "retention", "1.5"],
        ),
        (
            &["--cache", "easycache,cutoff=-1"],
            &["--cache", "cutoff", "-1"],
        ),
        (
            &["--cache", "easycache,warmup=3"],
            &["--cache", "warmup", "retention=N"],
        ),
        (&["--size", "64"], &["--size", "832x480"]),
        (&["--size", "-64x64"], &["--size", "-64x64"]),
        (&["--size", "64x"], &["--size", "64x"]),
        (&["--size", "4294967296x16"], &["--size", "4294967296x16"]),
        (&["--area", "1080p"], &["--area", "480p"]),
        (&["--area", "-5"], &["--area", "-5"]),
        (
            &["--area", "480p", "--size", "64x64"],
            &["--area", "--size", "cannot be used with"],
        ),
        (&["--frames", "five"], &["--frames", "five"]),
        (&["--frames", "-5"], &["--frames", "-5"]),
        (&["--steps", "-1"], &["--steps", "-1"]),
        (&["--steps", "1.5"], &["--steps", "1.5"]),
        (&["--fps", "fast"], &["--fps", "fast"]),
        (&["--seed", "-1"], &["--seed", "-1"]),
        (
            &["--seed", "18446744073709551616"],
            &["--seed", "18446744073709551616"],
        ),
        (&["--solver", "heun"], &["--solver", "unipc, dpm++, euler"]),
        (&["--resize", "nearest"], &["--resize", "lanczos, bicubic"]),
        (&["--dtype", "int8"], &["--dtype", "f32, f16, bf16"]),
        (&["--device", "tpu"], &["--device", "gpu, cpu"]),
        (&["--stepps", "3"], &["--stepps", "--steps"]),
        (&["surplus"], &["surplus"]),
        (
            &["--seed", "8", "--seed", "9"],
            &["--seed", "multiple times"],
        ),
    ] {
        bench.small("clip.mp4", flags).assert_refused(2, parts);
    }
    let bare = run(&mut program());
    bare.assert_refused(2, &["--image", "--prompt"]);
    assert!(bench.written().is_empty());
}

#[test]
fn empty_prompts_are_refused() {
    let bench = Bench::new("a");
    for prompt in [
        "",
        "   ",
        "\n\t\u{3000}",
        "&nbsp;",
        "&amp;nbsp; &#32;",
        "\u{1b}[0m",
        "\u{7f}\u{1}",
    ] {
        let mut command = bench.command();
        command.args(["--output", "clip.mp4"]);
        let ran = run(command.arg(format!("--prompt={prompt}")));
        ran.assert_refused(2, &["--prompt", "it is empty"]);
    }
    assert!(bench.written().is_empty());
}

#[test]
fn pictures_that_cannot_be_read_are_refused() {
    let bench = Bench::new("a");
    let png = fs::read(bench.picture()).unwrap();
    let mut flat = png.clone();
    // The width in a PNG's header.
    flat[16..20].fill(0);
    let folder = bench.checkpoint.root();
    for (name, content) in [
        ("empty.png", Vec::new()),
        ("text.png", b"not a picture".to_vec()),
        ("cut.png", png[..png.len() / 2].to_vec()),
        ("flat.png", flat),
        ("header.jpg", b"\xff\xd8\xff\xe0".to_vec()),
        ("other.gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec()),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
    for name in [
        "missing.png",
        "empty.png",
        "text.png",
        "cut.png",
        "flat.png",
        "header.jpg",
        "other.gif",
        "vae",
    ] {
        let path = folder.join(name);
        let mut command = program();
        command.current_dir(bench.work.path());
        command.arg("--model").arg(folder).arg("--image").arg(&path);
        let ran = run(command.args(["--prompt", "x", "--output", "clip.mp4"]));
        let path = path.to_str().unwrap();
        ran.assert_refused(1, &["--image", path]);
        assert_eq!(ran.stderr.matches(path).count(), 1, "{}", ran.stderr);
    }
    assert!(bench.written().is_empty());
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let bench = Bench::new("a");
    fs::write(bench.path("file"), "mine").unwrap();
    let before = bench.written();
    for (output, parts) in [
        ("clip.avi", &["clip.avi", ".avi", ".mp4 or .gif"][..]),
        ("clip", &["no extension", ".mp4 or .gif"]),
        (".mp4", &["no extension"]),
        ("nowhere/clip.mp4", &["nowhere/clip.mp4", "does not exist"]),
        ("nowhere/frames/", &["nowhere/frames/", "does not exist"]),
        ("file/", &["file/", "not a folder"]),
        ("file/clip.gif", &["file/clip.gif"]),
        ("/proc/clip.mp4", &["/proc/clip.mp4"]),
    ] {
        if cfg!(not(target_os = "linux")) && output.starts_with("/proc") {
            continue;
        }
        bench
            .small(output, &[])
            .assert_refused(1, &[&["--output"][..], parts].concat());
    }
    bench.small("", &[]).assert_refused(2, &["--output"]);
    for dump in ["file", "file/dump"] {
        let ran = bench.small("clip.mp4", &["--dump", dump]);
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stderr.contains(&format!("--dump {dump}")),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("text:"), "{}", ran.stderr);
    }
    assert_eq!(bench.written(), before);
    assert_eq!(fs::read(bench.path("file")).unwrap(), b"mine");
}

#[test]
fn the_picture_is_never_overwritten() {
    let bench = Bench::new("a");
    let folder = bench.path("frames");
    fs::create_dir(&folder).unwrap();
    // The last frame of an older clip, as the start of the next.
    let frame = folder.join("frame_00080.png");
    fs::copy(bench.picture(), &frame).unwrap();
    // A picture whatever its name says.
    fs::copy(bench.picture(), bench.path("start.gif")).unwrap();
    let with = |image: &str, output: &str| {
        let mut command = program();
        command.current_dir(bench.work.path());
        command.arg("--model").arg(bench.checkpoint.root());
        run(command.args(["--prompt", "x", "--image", image, "--output", output]))
    };
    let replaced = "would replace the start picture";
    for (image, output) in [
        ("frames/frame_00080.png", "frames"),
        ("./frames/../frames/frame_00080.png", "frames/"),
        ("start.gif", "start.gif"),
        ("start.gif", "frames/../start.gif"),
    ] {
        with(image, output).assert_refused(1, &["--output", output, replaced]);
    }
    assert_eq!(
        fs::read(&frame).unwrap(),
        fs::read(bench.picture()).unwrap()
    );
    assert_eq!(bench.written().len(), 2);
}

#[test]
fn models_that_cannot_be_used_are_refused_before_anything_is_made() {
    let bench = Bench::new("a");
    let model = |path: &str| {
        let mut command = program();
        command.current_dir(bench.work.path());
        command.arg("--image").arg(bench.picture());
        command.args(["--model", path, "--prompt", "x"]);
        run(command.args(["--output", "clip.mp4", "--dump", "dump"]))
    };
    model("nowhere").assert_refused(1, &["--model nowhere", "no such file or folder"]);
    model(".").assert_refused(
        1,
        &["--model .", "model_index.json", "no part of a Wan model"],
    );
    let scratch = &bench.checkpoint;
    let vae = scratch.path("vae/diffusion_pytorch_model.safetensors");
    let file = fs::read(&vae).unwrap();
    fs::write(&vae, &file[..file.len() - 4]).unwrap();
    let dump = ["--dump", "dump"];
    bench
        .small("clip.mp4", &dump)
        .assert_refused(1, &[vae.to_str().unwrap(), "download it again"]);
    fs::write(&vae, file).unwrap();
    let tokenizer = scratch.path("tokenizer/tokenizer.json");
    let json = fs::read(&tokenizer).unwrap();
    for broken in [&json[..json.len() / 2], b"", b"{}", b"null"] {
        fs::write(&tokenizer, broken).unwrap();
        bench
            .small("clip.mp4", &dump)
            .assert_refused(1, &[tokenizer.to_str().unwrap(), "not a usable tokenizer"]);
    }
    fs::remove_file(&tokenizer).unwrap();
    bench
        .small("clip.mp4", &dump)
        .assert_refused(1, &[scratch.root().to_str().unwrap(), "--tokenizer PATH"]);
    fs::write(&tokenizer, json).unwrap();
    if cfg!(not(target_os = "macos")) {
        let gpu = [&dump[..], &["--device", "gpu"]].concat();
        bench
            .small("clip.mp4", &gpu)
            .assert_refused(1, &["--device gpu", "--device cpu"]);
    }
    assert!(bench.written().is_empty());
}
