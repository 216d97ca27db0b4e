//! Runs that succeed.

use std::fs::{self, File};
use std::path::Path;

use image::RgbImage;
use npyz::NpyFile;

use crate::cli::{Bench, names, program, run};

#[test]
fn an_mp4_is_written_and_its_path_printed() {
    let bench = Bench::new("a");
    let ran = bench.small("clip.mp4", &["-v"]);
    ran.assert_wrote("clip.mp4");
    assert_eq!(bench.written(), ["clip.mp4".to_owned()].into());
    let clip = fs::read(bench.path("clip.mp4")).unwrap();
    assert_eq!(&clip[4..8], b"ftyp");
    for line in [
        "clip      32 x 32 pixels, 5 frames (0.3 s at 16 fps), 2 steps, seed 7\n",
        "; f32 on cpu\n",
        "sampling  unipc, shift 5, guidance 3.5,3.5 ",
        "denoising: step 1/2, high-noise expert, t = 999",
        "denoising: step 2/2, low-noise expert, t = 833",
        "decoding: ",
    ] {
        assert!(ran.stderr.contains(line), "{line:?} in {}", ran.stderr);
    }

    // The same command over the old clip gives the same bytes; another seed, other ones.
    bench.small("clip.mp4", &[]).assert_wrote("clip.mp4");
    assert!(fs::read(bench.path("clip.mp4")).unwrap() == clip);
    // PyTorch's generator takes the low 32 bits.
    let high = (7 + (1_u64 << 63)).to_string();
    let [clip, other, high] = ["7", "8", &high].map(|seed| {
        let ran = bench.small("seed.mp4", &["--no-metadata", "--seed", seed]);
        ran.assert_wrote("seed.mp4");
        fs::read(bench.path("seed.mp4")).unwrap()
    });
    assert!(other != clip);
    assert!(high == clip);
}

#[test]
fn a_gif_and_a_folder_hold_the_frames() {
    let bench = Bench::new("a");
    let small = ["--steps", "1", "--guide-scale", "1"];
    bench.small("clip.gif", &small).assert_wrote("clip.gif");
    assert!(
        fs::read(bench.path("clip.gif"))
            .unwrap()
            .starts_with(b"GIF89a")
    );
    bench.small("frames/", &small).assert_wrote("frames/");
    let expected = (0..5).map(|i| format!("frame_{i:05}.png")).collect();
    assert_eq!(names(&bench.path("frames")), expected);
    let frame = image::open(bench.path("frames/frame_00004.png")).unwrap();
    assert_eq!((frame.width(), frame.height()), (32, 32));

    // Into the same folder, a shorter clip: nothing of the longer one stays.
    let one = [&small[..], &["--frames", "1"]].concat();
    bench.small("frames", &one).assert_wrote("frames");
    assert_eq!(
        names(&bench.path("frames")),
        ["frame_00000.png".to_owned()].into()
    );
    assert_eq!(
        bench.written(),
        ["clip.gif".to_owned(), "frames".to_owned()].into()
    );
}

/// Shape of a dumped array, and whether it holds integers.
fn dumped(folder: &Path, name: &str) -> (Vec<u64>, bool) {
    let file = File::open(folder.join(format!("{name}.npy"))).unwrap();
    let npy = NpyFile::new(std::io::BufReader::new(file)).unwrap();
    let shape = npy.shape().to_vec();
    let dtype = npy.dtype().descr();
    let count: u64 = shape.iter().product();
    let integers = match dtype.as_str() {
        "'<i8'" => true,
        "'<f4'" => false,
        other => panic!("{name} is {other}"),
    };
    if integers {
        assert_eq!(npy.into_vec::<i64>().unwrap().len() as u64, count);
    } else {
        let values = npy.into_vec::<f32>().unwrap();
        assert_eq!(values.len() as u64, count);
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
    }
    (shape, integers)
}

#[test]
fn a_dump_holds_every_intermediate() {
    let bench = Bench::new("a");
    let flags = ["--size", "48x32", "--dump", "new/dump"];
    bench.small("clip.mp4", &flags).assert_wrote("clip.mp4");
    let folder = bench.path("new/dump");
    let latents = [16, 2, 4, 6];
    let mut expected: Vec<(String, Vec<u64>)> = vec![
        ("mask".into(), vec![4, 2, 4, 6]),
        ("condition".into(), vec![20, 2, 4, 6]),
        ("noise".into(), latents.into()),
        ("sigmas".into(), vec![3]),
        ("frames".into(), vec![5, 32, 48, 3]),
    ];
    for prompt in ["cond", "uncond"] {
        expected.push((format!("text_encoded_{prompt}"), vec![512, 48]));
        for expert in ["high", "low"] {
            let name = format!("text_embedding_{expert}_{prompt}");
            expected.push((name, vec![512, 132]));
        }
    }
    for step in ["step_000", "step_001"] {
        for what in ["cond", "uncond", "latents"] {
            expected.push((format!("{step}_{what}"), latents.into()));
        }
        expected.push((format!("{step}_time"), vec![6, 132]));
    }
    for (name, shape) in &expected {
        assert_eq!(dumped(&folder, name), (shape.clone(), false), "{name}");
    }
    assert_eq!(dumped(&folder, "timesteps"), (vec![2], true));
    for name in ["token_ids_cond", "token_ids_uncond"] {
        let (shape, integers) = dumped(&folder, name);
        assert!(shape.len() == 1 && shape[0] > 1 && integers, "{name}");
    }
    assert_eq!(names(&folder).len(), expected.len() + 3);

    // Without guidance there is no unconditional pass, and no step for it.
    let flags = ["--guide-scale", "1", "--dump", "single"];
    let ran = bench.small("single.mp4", &flags);
    ran.assert_wrote("single.mp4");
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    let single = names(&bench.path("single"));
    assert!(single.contains("step_001_cond.npy"));
    assert!(!single.iter().any(|name| name.contains("uncond")));
    // With guidance in one expert alone, only its steps have one.
    let flags = ["--guide-scale", "1,2", "--dump", "high"];
    bench.small("high.mp4", &flags).assert_wrote("high.mp4");
    let high = names(&bench.path("high"));
    assert!(high.contains("step_000_uncond.npy") && !high.contains("step_001_uncond.npy"));
}

#[test]
fn every_setting_changes_the_clip() {
    let bench = Bench::new("b");
    let frames = |name: &str, more: &[&str]| {
        let output = format!("{name}/");
        bench.small(&output, more).assert_wrote(&output);
        // The picture alone: what the file says of its settings differs with them.
        let frame = image::open(bench.path(name).join("frame_00004.png"));
        frame.unwrap().into_rgb8()
    };
    let steps = ["--steps", "3"];
    let mut clips = vec![("as it is", frames("plain", &steps))];
    for (name, more) in [
        ("dpm", &["--solver", "dpm++"][..]),
        ("euler", &["--solver", "euler"]),
        ("bf16", &["--dtype", "bf16"]),
        ("bicubic", &["--resize", "bicubic"]),
        ("shift", &["--shift", "1.5"]),
        ("guided", &["--guide-scale", "-1,2"]),
        ("negative", &["--negative-prompt", "a dog"]),
    ] {
        clips.push((name, frames(name, &[&steps[..], more].concat())));
    }
    for (i, (name, clip)) in clips.iter().enumerate() {
        for (other, twin) in &clips[..i] {
            assert!(clip != twin, "{name} equals {other}");
        }
    }
    // Which without guidance is not looked at, and that is said.
    let ran = bench.small(
        "off/",
        &["--negative-prompt", "a dog", "--guide-scale", "1"],
    );
    ran.assert_wrote("off/");
    let warning = "warning: --negative-prompt has no effect";
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);
    // An empty negative prompt is none, not the model's.
    let empty = frames("empty", &[&steps[..], &["--negative-prompt", ""]].concat());
    assert!(clips.iter().all(|(_, clip)| *clip != empty));
    let mut show = program();
    let shown = run(show.current_dir(bench.work.path()).args(["show", "empty"]));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("--negative-prompt '' "), "{shown}");
}

#[test]
fn the_picture_decides_the_shape_of_an_area() {
    let bench = Bench::new("a");
    let one = ["--frames", "1", "--steps", "1", "--guide-scale", "1"];
    let ran = bench.small("clip.mp4", &[&one[..], &["--area", "5000"]].concat());
    ran.assert_wrote("clip.mp4");
    // sqrt(5000 * 40 / 36) = 74.5 and sqrt(5000 * 36 / 40) = 67.1, rounded down to 16.
    assert!(ran.stderr.contains("64 x 64 pixels"), "{}", ran.stderr);
    // The names are settled with the checkpoint in hand; that there is none shows they parse.
    for area in ["480p", "720p"] {
        let more = ["--area", area, "--model", "nowhere"];
        let mut command = program();
        command.args(["--prompt", "x", "--output", "clip.gif"]);
        command.arg("--image").arg(bench.picture());
        let ran = run(command.current_dir(bench.work.path()).args(more));
        ran.assert_refused(1, &["--model nowhere"]);
    }
}

#[test]
fn a_model_s_own_settings_are_used() {
    let bench = Bench::new("a");
    fs::write(
        bench.checkpoint.path("wan_i2v.json"),
        r#"{"area": 1200, "frames": 1, "fps": 8, "steps": 1, "shift": 3, "guide_scale": [1, 1]}"#,
    )
    .unwrap();
    let mut command = bench.command();
    let ran = run(command.args(["--prompt", "x", "--output", "clip.gif"]));
    ran.assert_wrote("clip.gif");
    let line = "clip      32 x 32 pixels, 1 frame (0.1 s at 8 fps), 1 step, seed ";
    assert!(ran.stderr.contains(line), "{}", ran.stderr);
    // A seed that was drawn is told.
    assert_eq!(ran.stderr.matches("seed ").count(), 1, "{}", ran.stderr);
}

#[test]
fn prompts_of_any_kind_are_taken() {
    let bench = Bench::new("a");
    let small = ["--frames", "1", "--steps", "1", "--guide-scale", "1"];
    let with = |prompt: &str| {
        let mut command = bench.command();
        command.args(
            [
                &small[..],
                &["--size", "16x16", "--overwrite", "--output", "clip.mp4"],
            ]
            .concat(),
        );
        let ran = run(command.arg(format!("--prompt={prompt}")));
        ran.assert_wrote("clip.mp4");
        ran.stderr
    };
    for prompt in [
        "-x",
        "--output",
        "👩‍👩‍👧‍👦 🏳️‍🌈 \u{202e}txet",
        "\u{feff}一只猫\u{3000}在雨中",
        "e\u{301}\u{301}\u{301}\u{200b}\u{200d}",
        "</s><s><pad><extra_id_0>",
        "a\r\n\tb\u{1b}[31m\u{7f}",
        "\u{10ffff}\u{e000}\u{fffd}",
    ] {
        let stderr = with(prompt);
        assert!(!stderr.contains("warning"), "{prompt:?}: {stderr}");
    }
    let long: Vec<String> = (0..600).map(|i| format!("w{i}")).collect();
    let stderr = with(&long.join(" "));
    let start = stderr.find("warning: --prompt has ").expect("a warning");
    let line = stderr[start..].lines().next().unwrap();
    assert!(line.contains("tokens, cut to 512: kept up to '…"), "{line}");
    // Both quotes are of the prompt, and neighbours in it.
    let quotes: Vec<&str> = line.split('\'').collect();
    let before = quotes[1].trim_start_matches('…');
    let after = quotes[3].trim_end_matches('…');
    let text = long.join(" ");
    let end = text.find(before).unwrap() + before.len();
    assert!(text[end..].trim_start().starts_with(after), "{line}");
}

#[test]
fn the_version_tells_what_computes() {
    let version = |flag| {
        let ran = run(program().arg(flag));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        String::from_utf8(ran.stdout).unwrap()
    };
    let long = version("--version");
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines[0], concat!("wan-i2v ", env!("CARGO_PKG_VERSION")));
    let (mlx, device) = lines[1].split_once(", backend ").unwrap();
    let number = mlx.strip_prefix("MLX ").unwrap();
    assert_eq!(number.split('.').count(), 3, "{long}");
    let (backend, library) = device.split_once(", ").unwrap();
    assert!(["cpu", "metal"].contains(&backend), "{long}");
    let path = library.strip_prefix("from ");
    assert!(path.is_none_or(|path| Path::new(path).is_file()), "{long}");
    assert!(path.is_some() || library == "built in", "{long}");
    assert!(
        lines[2].strip_prefix("device ").unwrap().len() > 3,
        "{long}"
    );
    assert_eq!(version("-V").lines().count(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn paths_need_not_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new("a");
    let odd = |name: &[u8]| std::ffi::OsStr::from_bytes(name).to_owned();
    let picture = bench.work.path().join(odd(b"st\xffart \xfe.png"));
    fs::copy(bench.picture(), &picture).unwrap();
    let output = odd(b"cl\xffip.mp4");
    let mut command = program();
    command.current_dir(bench.work.path());
    command.arg("--model").arg(bench.checkpoint.root());
    command.arg("--image").arg(&picture);
    command.arg("--output").arg(&output);
    command.args(["--size", "16x16", "--frames", "1", "--steps", "1"]);
    let ran = run(command.args(["--prompt", "x", "--guide-scale", "1"]));
    ran.assert_wrote(&output);
    assert!(bench.work.path().join(&output).is_file());
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_that_cannot_be_printed_is_an_error() {
    let bench = Bench::new("a");
    let mut command = bench.command();
    command.args(["--prompt", "x", "--output", "clip.mp4", "--size", "16x16"]);
    command.args(["--frames", "1", "--steps", "1", "--guide-scale", "1"]);
    command.stdout(File::create("/dev/full").unwrap());
    let ran = run(&mut command);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("error: the clip is complete"),
        "{}",
        ran.stderr
    );
    assert!(bench.path("clip.mp4").is_file());
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_does_not_end_the_run() {
    use std::process::Stdio;
    let bench = Bench::new("a");
    let mut command = bench.command();
    command.args(["--prompt", "x", "--output", "clip.mp4", "--size", "16x16"]);
    command.args(["--frames", "1", "--steps", "2", "--guide-scale", "1"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(bench.path("clip.mp4").is_file());
}

#[test]
fn a_picture_of_another_shape_is_cropped_padded_or_stretched() {
    let bench = Bench::new("a");
    // A bright middle between dark sides.
    let wide = RgbImage::from_fn(64, 32, |x, _| {
        image::Rgb([if (16..48).contains(&x) { 250 } else { 20 }; 3])
    });
    let path = bench.path("wide.png");
    wide.save(&path).unwrap();
    let fitted = |name: &str, more: &[&str]| {
        let mut command = program();
        command
            .current_dir(bench.work.path())
            .args(["-i", "wide.png", "-p", "x"]);
        command.args(["--frames", "1", "--steps", "1", "--seed", "1", "-o", name]);
        let ran = run(command.args(more));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stderr
    };
    let note = |stderr: &str| {
        stderr
            .lines()
            .find(|line| line.starts_with("picture   ") && line.contains("--fit"))
            .map(str::to_owned)
    };
    let crop = note(&fitted("crop.mp4", &[])).unwrap();
    assert!(
        crop.ends_with("64 x 32 pixels, cropped to 32 x 32 (or --fit pad, stretch)"),
        "{crop}"
    );
    let pad = note(&fitted("pad.mp4", &["--fit", "pad"])).unwrap();
    assert!(pad.contains("64 x 32 between black bars"), "{pad}");
    let stretch = note(&fitted("stretch.mp4", &["--fit", "stretch"])).unwrap();
    assert!(stretch.contains("stretched"), "{stretch}");
    // Its own shape has nothing to be said.
    assert_eq!(note(&fitted("same.mp4", &["--size", "64x32"])), None);
    // Another fit is another clip.
    let mut show = program();
    let shown = run(show
        .current_dir(bench.work.path())
        .args(["show", "pad.mp4"]));
    assert!(
        String::from_utf8(shown.stdout)
            .unwrap()
            .contains("--fit pad")
    );
}

#[test]
fn a_picture_comes_from_standard_input() {
    use std::process::Stdio;
    let bench = Bench::new("a");
    let mut command = program();
    command.current_dir(bench.work.path());
    command.args([
        "-i", "-", "-p", "x", "--frames", "1", "--steps", "1", "--seed", "5",
    ]);
    command.stdin(fs::File::open(bench.picture()).unwrap());
    run(&mut command).assert_wrote("picture-5.mp4");
    command.stdin(Stdio::null());
    run(&mut command).assert_refused(1, &["--image", "the file is empty"]);
    let mut both = program();
    let ran = run(both.args(["-i", "-", "-p", "-"]).stdin(Stdio::null()));
    ran.assert_refused(1, &["--image - and --prompt -"]);
}

#[test]
fn a_run_begins_with_its_forecast() {
    let bench = Bench::new("a");
    let ran = bench.small("clip.mp4", &[]);
    let line = ran
        .stderr
        .lines()
        .find(|line| line.starts_with("forecast  "));
    let line = line.unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(line.contains("of memory, 4 passes"), "{line}");
    assert!(ran.stderr.find("forecast  ") < ran.stderr.find("text: "));
}
