//! The commands that fetch, as a user types them.

use std::fs;
use std::path::Path;
use std::process::Command;

use image::RgbImage;
use wan_i2v::hub::pull;

use crate::hub::converting::{options, reference};
use crate::hub::models::{HIGH, Model, assert_same};
use crate::hub::program::{Ran, finish};
use crate::hub::server::{COMMIT, Fault};
use crate::hub::{Bench, content, repo};

/// The arguments of a small clip.
fn clip<'a>(model: &'a str, output: &'a str) -> Vec<&'a str> {
    let mut args = vec!["--model", model, "--output", output];
    args.extend(["--image", "start.png", "--prompt", "a red circle"]);
    args.extend(["--frames", "5", "--steps", "1", "--guide-scale", "1"]);
    args.extend(["--seed", "7", "--device", "cpu"]);
    args
}

fn assert_says(ran: &Ran, parts: &[&str]) {
    for part in parts {
        assert!(ran.stderr.contains(part), "{part:?} in {}", ran.stderr);
    }
}

#[test]
fn a_model_is_pulled_once_and_used_by_name() {
    let mut model = Model::miniature();
    model.0.insert("assets/logo.png".into(), vec![0; 1_500_000]);
    let bench = Bench::serving(&model);
    RgbImage::from_fn(64, 64, |x, y| {
        image::Rgb([(x * 4) as u8, (y * 4) as u8, 90])
    })
    .save(bench.folder.path().join("start.png"))
    .unwrap();
    bench
        .offline(&["pull", "owner/model"])
        .assert_fails(&["owner/model is not in the cache", "HF_HUB_OFFLINE=1"]);
    bench.offline(&clip("owner/model", "a.mp4")).assert_fails(&[
        "no such file or folder",
        "not in the cache",
        "HF_HUB_OFFLINE=1",
    ]);
    assert!(bench.server.log().is_empty(), "offline is offline");

    // Not there yet: nothing is fetched unasked, but what describes it.
    let snapshot = bench.repo_folder().join("snapshots").join(COMMIT);
    bench.run(&clip("owner/model", "a.mp4")).assert_fails(&[
        "--model owner/model: not on this machine",
        "11.6 MB are to be fetched",
        "wan-i2v pull owner/model",
        "--yes",
    ]);
    let ran = bench.run(&["plan", "-m", "owner/model", "--frames", "5", "--steps", "2"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("denoising (low-noise)"),
        "{}",
        ran.stdout
    );
    let ran = bench.run(&["doctor", "-m", "owner/model", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("on the hub alone"), "{}", ran.stdout);
    fs::write(
        bench.folder.path().join("jobs.jsonl"),
        r#"{"image": "start.png", "prompt": "x", "model": "owner/model", "frames": 5}"#,
    )
    .unwrap();
    let batch = ["batch", "jobs.jsonl", "--output-dir", "out", "--dry-run"];
    let ran = bench.run(&batch);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for (code, source) in [
        (1, &["convert", "owner/model", "converted"][..]),
        (2, &["compare", "owner/model", "x"]),
    ] {
        let ran = bench.run(source);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert_says(&ran, &["wan-i2v pull owner/model"]);
    }
    assert!(!snapshot.exists());
    bench.server.log();

    // Agreed to: fetched first.
    let ran = bench.run(&[&clip("owner/model", "a.mp4")[..], &["--yes"]].concat());
    assert_eq!(ran.path(), "a.mp4");
    assert_says(
        &ran,
        &[
            "11.6 MB in 11 files (diffusers)",
            "1.5 MB not needed",
            "done in ",
        ],
    );
    assert_eq!(bench.asked().len(), 4, "the weights");
    assert!(snapshot.join(HIGH).exists() && !snapshot.join("assets").exists());

    // Now the hub is not asked for anything but the listing, or not at all.
    let ran = bench.run(&["pull", "owner/model"]);
    assert_eq!(Path::new(ran.path()), snapshot);
    assert_says(&ran, &["11.6 MB of it there already"]);
    assert_eq!(bench.server.log().len(), 1);
    let ran = bench.offline(&["pull", "owner/model"]);
    assert_eq!(Path::new(ran.path()), snapshot);
    let ran = bench.run(&clip("owner/model", "b.mp4"));
    assert_eq!(ran.path(), "b.mp4");
    let ran = bench.offline(&["inspect", "owner/model"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("wan-i2v can run this model"),
        "{}",
        ran.stdout
    );
    assert!(bench.server.log().is_empty());
    let [a, b] = ["a.mp4", "b.mp4"].map(|name| fs::read(bench.folder.path().join(name)).unwrap());
    assert!(a == b);

    // A conversion takes what the cache has, and leaves it there.
    let target = bench.target();
    let path = target.to_str().unwrap();
    let bits = ["--bits", "4", "--text-bits", "8", "--shard-size", "0"];
    let args = [&["pull", "owner/model", "--output", path], &bits[..]].concat();
    bench.offline(&args).path();
    assert!(bench.server.log().is_empty());
    model.0.remove("assets/logo.png");
    assert_same(&target, &reference(&model, &options(), bench.folder.path()));
    assert!(snapshot.join(HIGH).exists());
}

/// Its settings tell; none of its weights are fetched.
#[test]
fn a_repository_of_another_model_is_named_before_its_weights_come() {
    type Change = fn(&mut serde_json::Value);
    let other: [(&str, &str, Change); 3] = [
        ("model_index.json", "a VACE model", |json| {
            json["_class_name"] = "WanVACEPipeline".into();
        }),
        ("model_index.json", "Wan2.2 Animate", |json| {
            json["_class_name"] = "WanAnimatePipeline".into();
        }),
        ("transformer/config.json", "Fun-Control", |json| {
            json["in_channels"] = 52.into();
        }),
    ];
    for (path, what, change) in other {
        let mut model = Model::miniature();
        model.edit_json(path, change);
        let bench = Bench::serving(&model);
        let hint = "\nhint: take Wan-AI/Wan2.2-I2V-A14B";
        for model in ["owner/model", "hf.co/owner/model"] {
            let pull = bench.run(&["pull", model]);
            pull.assert_fails(&[what, hint]);
        }
        let log = bench.server.log();
        let weights = |path: &str| path.contains(".safetensors");
        assert!(log.iter().all(|request| !weights(&request.path)), "{log:?}");
    }
}

/// Offline, a branch that the cache has no note of is not the same as a model that is not there.
#[test]
fn a_missing_reference_is_said() {
    let bench = Bench::serving(&Model::miniature());
    bench
        .run(&["pull", "https://huggingface.co/owner/model"])
        .path();
    std::fs::remove_dir_all(bench.repo_folder().join("refs")).unwrap();
    let said = [
        "no note of which commit",
        "refs/main",
        "hint: name the commit: owner/model@",
    ];
    bench.offline(&["pull", "owner/model"]).assert_fails(&said);
    let commit = format!("owner/model@{COMMIT}");
    bench.offline(&["pull", &commit]).path();
}

#[test]
fn refusals() {
    let bench = Bench::serving(&Model::miniature().only(&["transformer"]));
    bench
        .run(&["pull", "owner/model", "--bits", "4"])
        .assert_fails(&["--bits converts while pulling", "--output DIR"]);
    bench.run(&["pull", "model"]).assert_fails(&[
        "\"model\" is no repository of the hub",
        "owner/name[@revision]",
    ]);
    bench
        .run(&["pull", "owner/model", "--output", "."])
        .assert_fails(&["--output: . already exists"]);
    assert!(bench.server.log().is_empty());
    bench
        .run(&["pull", "owner/none"])
        .assert_fails(&["there is no repository owner/none"]);
    bench
        .run(&["pull", "owner/model@v9"])
        .assert_fails(&["owner/model has no revision \"v9\""]);
    bench
        .run(&["pull", "owner/model", "nothing.gguf"])
        .assert_fails(&["the repository has no file \"nothing.gguf\""]);
    let png = bench.folder.path().join("start.png");
    RgbImage::new(64, 64).save(png).unwrap();
    for (model, said) in [
        ("models/wan", "no repository models/wan"),
        // A revision with slashes is one all the same.
        ("owner/model@refs/pr/1", "has no revision \"refs/pr/1\""),
    ] {
        let path = format!("--model {model}: no such file or folder, and the hub: ");
        bench
            .run(&clip(model, "a.mp4"))
            .assert_fails(&[&path, said]);
    }
    let log = bench.server.log().len();
    for path in ["./models/wan", "models/a/b", "a.safetensors", "/models/wan"] {
        let ran = bench.run(&["inspect", path]);
        ran.assert_fails(&[&format!("PATH {path}: no such file or folder")]);
        assert!(!ran.stderr.contains("hub"), "{}", ran.stderr);
    }
    assert_eq!((log, bench.server.log().len()), (5, 0));
    bench.server.require("hf_right");
    bench
        .run(&["pull", "owner/model"])
        .assert_fails(&["owner/model: not found, or private", "set HF_TOKEN"]);
    let mut command = bench.command(&["pull", "owner/model"]);
    let ran = finish(command.env("HF_TOKEN", "hf_wrong"));
    ran.assert_fails(&["the hub refuses the token"]);
    assert!(!ran.stderr.contains("hf_wrong"), "{}", ran.stderr);
}

/// Runs the program where its target and its cache are on a disk of so many megabytes; `None`
/// where no such disk can be made.
fn on_small_disk(bench: &Bench, megabytes: u32, args: &[&str]) -> Option<Ran> {
    let disk = bench.folder.path().join("small");
    fs::create_dir_all(&disk).unwrap();
    let mount = format!("mount -t tmpfs -o size={megabytes}m none \"$0\" || exit 77; exec \"$@\"");
    let program = bench.command(args);
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
        .arg(&disk)
        .arg(program.get_program())
        .args(args)
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", &disk)
        .current_dir(bench.folder.path());
    match command.output() {
        Ok(run)
            if matches!(run.status.code(), Some(0 | 1)) && !run.stderr.starts_with(b"unshare") =>
        {
            Some(Ran {
                code: run.status.code(),
                stdout: String::from_utf8(run.stdout).unwrap(),
                stderr: String::from_utf8(run.stderr).unwrap(),
            })
        }
        _ => {
            eprintln!("skipped: this system lets no small file system be mounted");
            None
        }
    }
}

#[test]
fn no_room() {
    let bench = Bench::serving(&Model::miniature());
    let Some(ran) = on_small_disk(&bench, 8, &["pull", "owner/model"]) else {
        return;
    };
    ran.assert_fails(&[
        "11.61 MB are to be fetched",
        "has room for 8.",
        "HF_HUB_CACHE",
    ]);
    // The result and the largest file: 8.5 and 5.6 MB.
    let args = [
        "pull",
        "owner/model",
        "--bits",
        "4",
        "--output",
        "small/out/model",
    ];
    let ran = on_small_disk(&bench, 12, &args).unwrap();
    ran.assert_fails(&[
        "--output small/out/model: about 1",
        "are needed there and 12.",
    ]);
    assert_eq!(bench.asked(), [], "before anything large is fetched");
    let ran = on_small_disk(&bench, 16, &args).unwrap();
    assert_eq!(ran.path(), "small/out/model");
}

#[test]
fn sizes_that_cannot_be() {
    let bench = Bench::new();
    let huge = u64::MAX - 5;
    let file = |path: &str| {
        let sha = "a".repeat(64);
        format!(
            r#"{{"rfilename": "{path}", "size": {huge}, "lfs": {{"sha256": "{sha}", "size": {huge}}}}}"#
        )
    };
    let files: Vec<String> = ["high", "low"]
        .map(|name| file(&format!("{name}_noise.safetensors")))
        .into();
    bench.server.listing(&format!(
        r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#,
        files.join(",")
    ));
    let names = ["high_noise.safetensors", "low_noise.safetensors"];
    let pull = ["pull", "owner/model", names[0], names[1]];
    bench.run(&pull).assert_fails(&["TB are to be fetched"]);
    let output = [&pull[..], &["--output", "out"]].concat();
    bench.run(&output).assert_fails(&["--output out: about"]);
}

#[test]
fn what_is_there_needs_no_room() {
    let bench = Bench::new();
    let content = content(400_000);
    let path = "transformer/diffusion_pytorch_model.safetensors";
    bench.server.small("model_index.json", b"{}");
    bench.server.large(path, &content);
    bench
        .server
        .stuck(path, &[Fault::Cut(300_000), Fault::Cut(0)]);
    let there = |bench: &Bench, commit: &str| {
        let (_, selection) = pull::select(&bench.hub(), &repo(), &[]).unwrap();
        bench.hub().fetched_bytes(&repo(), commit, &selection)
    };
    assert_eq!(there(&bench, COMMIT), 0);
    bench.fetch(path).unwrap_err();
    assert_eq!(there(&bench, COMMIT), 300_000);
    bench.server.faults(path, &[]);
    bench.fetch(path).unwrap();
    assert_eq!(there(&bench, COMMIT), 400_000);
    // Another commit with the same file.
    assert_eq!(there(&bench, &"b".repeat(40)), 400_000);
}

#[test]
fn a_branch_that_moves_on() {
    let model = Model::miniature().only(&["transformer", "transformer_2"]);
    let bench = Bench::serving(&model);
    bench.server.stuck(HIGH, &[Fault::Status(404, "")]);
    bench.convert_error();
    bench.server.faults(HIGH, &[]);
    bench.server.commit(&"b".repeat(40));
    let path = bench.target();
    let path = path.to_str().unwrap();
    let bits = ["--bits", "4", "--text-bits", "8", "--shard-size", "0"];
    let pull = |id| [&["pull", id, "--output", path], &bits[..]].concat();
    let begun = format!("owner/model@{COMMIT}");
    bench.run(&pull("owner/model")).assert_fails(&[&begun]);
    bench.server.commit(COMMIT);
    bench.run(&pull(&begun)).path();
}

#[test]
fn a_picture_is_fetched_by_its_address() {
    let bench = Bench::serving(&Model::miniature().only(&["transformer"]));
    let picture = bench.folder.path().join("start.png");
    RgbImage::from_pixel(64, 64, image::Rgb([90, 120, 30]))
        .save(&picture)
        .unwrap();
    bench.server.large("cat.png", &fs::read(&picture).unwrap());
    bench.server.require("hf_right");
    let of = |path: &str| format!("{}/owner/model/resolve/{COMMIT}/{path}", bench.server.url());
    let small = [
        "--prompt", "x", "--frames", "1", "--steps", "1", "--seed", "3",
    ];
    let with = |image: &str| {
        [&small[..], &["--image", image]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |image: &str, offline: bool| {
        let args = with(image);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match offline {
            true => bench.offline(&args),
            false => bench.run(&args),
        }
    };
    // No token is sent, so what needs one is refused.
    run(&of("cat.png"), false).assert_fails(&["--image http", "the server answers 401"]);
    run(&of("cat.png"), true).assert_fails(&["--image http", "HF_HUB_OFFLINE=1"]);
    run("http://pictures.example/cat.png", false).assert_fails(&["begins with https://"]);
    let open = Bench::serving(&Model::miniature().only(&["transformer"]));
    open.server.large("cat.png", &fs::read(&picture).unwrap());
    let url = format!("{}/owner/model/resolve/{COMMIT}/cat.png", open.server.url());
    assert_eq!(run(&url, false).path(), "cat-3.mp4");
}
