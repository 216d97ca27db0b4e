//! Files without an end in the place of small ones, and pipes that nobody writes to: refused at once.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{Bench, Ran, program};

/// What stands in a file's place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stand {
    Zero,
    Pipe,
    /// Five gigabytes that take no room.
    Huge,
}

impl Stand {
    const ALL: [Self; 3] = [Self::Zero, Self::Pipe, Self::Huge];

    fn put(self, path: &Path) {
        let _ = fs::remove_file(path);
        match self {
            Self::Zero => symlink("/dev/zero", path).unwrap(),
            Self::Pipe => {
                let made = Command::new("mkfifo").arg(path).status().unwrap();
                assert!(made.success());
            }
            Self::Huge => File::create(path).unwrap().set_len(5 << 30).unwrap(),
        }
    }
}

/// Runs it, for a time in which nothing of five gigabytes is read by this program's tests.
fn soon(command: &mut Command) -> Ran {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.unwrap();
    let id = child.id().to_string();
    let waiting = thread::spawn(move || child.wait_with_output().unwrap());
    let start = Instant::now();
    while !waiting.is_finished() {
        if start.elapsed() > Duration::from_secs(60) {
            Command::new("kill").args(["-9", &id]).status().unwrap();
            panic!("it does not end: {command:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = waiting.join().unwrap();
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn wan(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(bench.work.path()).args(arguments);
    command
}

#[test]
fn no_file_of_a_model_is_read_without_an_end() {
    let bench = Bench::new("a");
    let model = bench.checkpoint.root().to_str().unwrap().to_owned();
    // Whether a model has to have it.
    for (file, needed) in [
        ("model_index.json", false),
        ("transformer/config.json", false),
        ("vae/config.json", false),
        ("text_encoder/config.json", false),
        ("scheduler/scheduler_config.json", false),
        ("tokenizer/tokenizer.json", true),
        ("transformer/diffusion_pytorch_model.safetensors", true),
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            false,
        ),
        ("wan_i2v.json", false),
    ] {
        let path = bench.checkpoint.path(file);
        let whole = fs::read(&path).ok();
        for stand in Stand::ALL {
            stand.put(&path);
            let mut clip = wan(
                &bench,
                &["--model", &model, "--prompt", "a", "--device", "cpu"],
            );
            clip.arg("--image").arg(bench.picture());
            let ran = soon(clip.args(["--size=32x32", "--frames=1", "--steps=1"]));
            // What a model need not have may count as missing.
            if needed || ran.code != Some(0) {
                ran.assert_refused(1, &[if needed { "" } else { file }]);
            }
            fs::remove_file(&path).unwrap();
        }
        if let Some(whole) = whole {
            fs::write(&path, whole).unwrap();
        }
    }
}

#[test]
fn no_file_of_settings_or_jobs_is_read_without_an_end() {
    let bench = Bench::new("a");
    for stand in Stand::ALL {
        stand.put(&bench.path("config.toml"));
        let ran = soon(&mut wan(&bench, &["plan", "--config", "config.toml"]));
        ran.assert_refused(2, &["config.toml"]);
        fs::create_dir_all(bench.path("home/wan-i2v")).unwrap();
        stand.put(&bench.path("home/wan-i2v/config.toml"));
        let mut plan = wan(&bench, &["plan"]);
        let ran = soon(plan.env("XDG_CONFIG_HOME", bench.path("home")));
        ran.assert_refused(2, &["config.toml"]);
        for arguments in [
            &["show", "file"][..],
            &["analyze", "file"],
            &["compare", "file", "file"],
            &["compare", "tiny", "file"],
            &["inspect", "file"],
            &["plan", "--model", "file"],
        ] {
            stand.put(&bench.path("file"));
            let ran = soon(&mut wan(&bench, arguments));
            assert!(
                matches!(ran.code, Some(1 | 2)),
                "{stand:?} {arguments:?}: {}",
                ran.stderr
            );
            ran.assert_refused(ran.code.unwrap(), &["file"]);
        }
        // What may be a pipe ends by the count of bytes.
        if stand == Stand::Pipe {
            continue;
        }
        for name in ["jobs.jsonl", "jobs.csv", "jobs.toml"] {
            stand.put(&bench.path(name));
            let ran = soon(&mut wan(
                &bench,
                &["batch", name, "--output-dir", "out", "--dry-run"],
            ));
            ran.assert_refused(1, &[name, "bytes"]);
        }
        let mut clip = bench.clip("clip.mp4", &["--prompt", "@file"]);
        soon(&mut clip).assert_refused(1, &["--prompt @file", "1 MiB"]);
    }
}

/// What the program keeps for itself is made again where it is not what it wrote.
#[test]
fn nothing_that_is_kept_is_read_without_an_end() {
    let bench = Bench::new("a");
    let state = bench.state("clip.mp4");
    fs::create_dir(bench.path("out")).unwrap();
    fs::create_dir_all(bench.path("cache/wan-i2v")).unwrap();
    for stand in Stand::ALL {
        stand.put(&state);
        let ran = soon(&mut bench.clip("clip.mp4", &[]));
        ran.assert_refused(1, &["clip.mp4.wan-state"]);
        fs::remove_file(&state).unwrap();
        stand.put(&bench.path("out/wan-batch.json"));
        let job = r#"{"name": "a", "prompt": "a cat"}"#;
        let ran = soon(
            bench
                .batch("jobs.jsonl", job, &["--dry-run"])
                .env("XDG_CACHE_HOME", bench.path("cache")),
        );
        assert_eq!(ran.code, Some(0), "{stand:?}: {}", ran.stderr);
        stand.put(&bench.path("cache/wan-i2v/rates.json"));
        let mut plan = wan(&bench, &["plan", "--device", "cpu"]);
        let ran = soon(plan.env("XDG_CACHE_HOME", bench.path("cache")));
        assert_eq!(ran.code, Some(0), "{stand:?}: {}", ran.stderr);
        let _ = fs::remove_file(bench.path("cache/wan-i2v/rates.json"));
    }
}

/// Rates that no machine has are measured again; which these are, `Rates` tests.
#[test]
fn implausible_rates_are_not_believed() {
    let bench = Bench::new("a");
    let rates = bench.path("cache/wan-i2v/rates.json");
    let plan = || {
        let mut plan = wan(&bench, &["plan", "--device", "cpu", "--json"]);
        let ran = soon(plan.env("XDG_CACHE_HOME", bench.path("cache")));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let seconds = |json: &[u8]| {
            let plan: Value = serde_json::from_slice(json).unwrap();
            plan["forecast"]["seconds"].as_f64()
        };
        seconds(&ran.stdout)
    };
    assert!(plan().is_some_and(|seconds| (0.0..1e6).contains(&seconds)));
    let measured: Value = serde_json::from_slice(&fs::read(&rates).unwrap()).unwrap();
    let mut lies = measured.clone();
    lies[0]["products"] = serde_json::from_str("1e-320").unwrap();
    fs::write(&rates, lies.to_string()).unwrap();
    let seconds = plan();
    assert!(
        seconds.is_some_and(|s| (0.0..1e6).contains(&s)),
        "{seconds:?}"
    );
    let kept: Value = serde_json::from_slice(&fs::read(&rates).unwrap()).unwrap();
    assert!(kept[0]["products"].as_f64().unwrap() > 1e3, "{kept}");
}
