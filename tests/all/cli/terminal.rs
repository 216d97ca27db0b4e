//! Names that command a terminal, or look like a message, reach neither.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cli::running::{Running, succeed};
use crate::cli::{Bench, Ran, program, run};
use crate::compare::{floats, npy};
use crate::support::scratch::Tensor;

/// Sets a terminal's title, clears it, turns the line's direction, and begins lines.
const EVIL: &str =
    "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}x\u{2066}\u{200b}\nerror: forged\nhint: forged";

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

impl Ran {
    /// Fails where something on a stream commands a terminal or looks like a message.
    fn assert_tame(&self) {
        for stream in [&self.stdout[..], self.stderr.as_bytes()] {
            let text = std::str::from_utf8(stream).unwrap();
            let unseen = |c: char| {
                c.is_control() && c != '\n'
                    || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            };
            assert!(!text.contains(unseen), "{text:?}");
            for line in text.lines() {
                let forged = ["error: forged", "hint: forged"];
                assert!(!forged.iter().any(|f| line.starts_with(f)), "{text}");
            }
        }
        assert!(
            self.stderr
                .lines()
                .filter(|l| l.starts_with("error:"))
                .count()
                <= 1
        );
    }

    /// Fails unless what is said of it holds the names.
    fn assert_names(&self) {
        self.assert_tame();
        let all = [&self.stdout[..], self.stderr.as_bytes()].concat();
        let all = String::from_utf8(all).unwrap();
        assert!(all.contains("forged"), "{all}");
    }
}

fn wan(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(bench.work.path()).args(arguments);
    command
}

#[test]
fn names_of_tensors_are_shown_and_obeyed_by_nobody() {
    let bench = Bench::new("a");
    let model = bench.checkpoint.root().to_str().unwrap().to_owned();
    bench.checkpoint.edit_tensors(VAE, |tensors| {
        tensors.insert(EVIL.into(), Tensor::f32(&[1], &[1.0]));
        tensors.insert(format!("a{EVIL}"), Tensor::f32(&[1], &[f32::NAN]));
    });
    for arguments in [
        &["inspect", &model][..],
        &["inspect", &model, "--json"],
        &["plan", "--model", &model],
    ] {
        run(&mut wan(&bench, arguments)).assert_names();
    }
    run(&mut wan(&bench, &["compare", &model, "tiny"])).assert_tame();
    bench.small("clip.mp4", &[]).assert_names();
    bench
        .small("clip.mp4", &["--progress", "json"])
        .assert_names();
    let file = bench.checkpoint.path(VAE);
    let file = file.to_str().unwrap();
    for more in ["--all", "--json"] {
        run(&mut wan(&bench, &["compare", file, file, more])).assert_tame();
    }
    // Dumps, whose tensors are files.
    let evil = EVIL.replace('/', "");
    for (folder, value) in [("a", 1.0), ("b", 2.0)] {
        fs::create_dir(bench.path(folder)).unwrap();
        for name in [evil.clone(), format!("{folder}{evil}")] {
            let path = bench.path(&format!("{folder}/{name}.npy"));
            npy(&path, "<f4", false, &[1], &floats(&[value]));
        }
    }
    for more in ["--all", "--json"] {
        run(&mut wan(&bench, &["compare", "a", "b", more])).assert_names();
    }
}

#[test]
fn a_tensor_name_of_any_length_fits_a_table() {
    let bench = Bench::new("a");
    let long = "x".repeat(70_000);
    bench.checkpoint.edit_tensors(VAE, |tensors| {
        tensors.insert(long.clone(), Tensor::f32(&[1], &[1.0]));
    });
    let model = bench.checkpoint.root().to_str().unwrap().to_owned();
    for arguments in [&["inspect", &model][..], &["compare", &model, "tiny"]] {
        let ran = run(&mut wan(&bench, arguments));
        assert_ne!(ran.code, Some(101), "{:.500}", ran.stderr);
    }
}

#[test]
fn names_of_files_are_shown_and_obeyed_by_nobody() {
    let bench = Bench::new("a");
    let evil = EVIL.replace('/', "");
    fs::write(bench.path(&evil), "nothing").unwrap();
    fs::write(bench.path(&format!("{evil}.jsonl")), "{\"prompt\": 7").unwrap();
    for arguments in [
        &["inspect", &evil][..],
        &["show", &evil],
        &["analyze", &evil],
        &["compare", &evil, &evil],
        &["convert", &evil, "x"],
        &[
            "batch",
            &format!("{evil}.jsonl"),
            "--output-dir",
            "out",
            "--dry-run",
        ],
        &["plan", "--config", &evil],
        &["plan", "--model", &evil],
        &[&evil],
        &[&format!("--{evil}")],
        &["plan", &format!("--frames={evil}")],
        &["pull", &evil],
    ] {
        let ran = run(&mut wan(&bench, arguments));
        assert_ne!(ran.code, Some(0), "{arguments:?}");
        ran.assert_names();
    }
    let variable = |name: &str| run(wan(&bench, &["plan"]).env(name, &evil));
    variable("WAN_I2V_FRAMES").assert_names();
    variable("WAN_I2V_FRMES").assert_tame();
    // What is made has them too; a program gets the path as it is.
    let ran = bench.small(&format!("{evil}.mp4"), &["--strip", &format!("{evil}.png")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("{evil}.mp4\n").as_bytes());
    Ran {
        stdout: Vec::new(),
        ..ran
    }
    .assert_names();
    let json = bench.small(&format!("{evil}.gif"), &["--progress", "json"]);
    Ran {
        stdout: Vec::new(),
        ..json
    }
    .assert_names();
    let show = run(&mut wan(
        &bench,
        &["analyze", "--json", &format!("{evil}.mp4")],
    ));
    show.assert_tame();
}

#[test]
fn jobs_and_prompts_are_shown_and_obeyed_by_nobody() {
    let bench = Bench::new("a");
    let tame = EVIL.replace('\n', " ");
    let line = |fields: &[(&str, &str)]| {
        let fields = fields
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
        Value::Object(fields.collect()).to_string()
    };
    let jobs = [
        line(&[("prompt", EVIL)]),
        line(&[("prompt", "a"), ("name", EVIL)]),
        line(&[
            ("prompt", "a"),
            ("name", &tame.replace(|c: char| c.is_control(), "")),
        ]),
        line(&[("prompt", "a"), (EVIL, "1")]),
        line(&[("prompt", "a"), ("seed", EVIL)]),
        line(&[("prompt", "a"), ("frames", EVIL)]),
        line(&[("prompt", "a"), ("image", EVIL)]),
        line(&[("prompt", "a"), ("output", EVIL)]),
        format!("{{\"prompt\": {EVIL}"),
    ];
    let jobs = jobs.join("\n");
    for more in [&["--dry-run"][..], &[], &["--progress", "json"]] {
        let ran = run(&mut bench.batch("jobs.jsonl", &jobs, more));
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        if more == ["--dry-run"] {
            ran.assert_names();
        } else {
            Ran {
                stdout: Vec::new(),
                ..ran
            }
            .assert_names();
        }
    }
    let prompt = bench.path("prompt.txt");
    fs::write(&prompt, EVIL).unwrap();
    let flag = format!("--prompt=@{}", prompt.display());
    let mut clip = bench.command();
    clip.args([
        flag.as_str(),
        "--size=32x32",
        "--frames=1",
        "--steps=1",
        "--output=clip.mp4",
    ]);
    succeed(&mut clip).assert_tame();
    let show = succeed(&mut wan(&bench, &["show", "clip.mp4"]));
    show.assert_names();
    let show = succeed(&mut wan(&bench, &["show", "--json", "clip.mp4"]));
    show.assert_names();
    let json: Value = serde_json::from_slice(&show.stdout).unwrap();
    assert_eq!(json["prompt"], EVIL);
}

/// Events are the same after they are parsed.
#[test]
fn events_of_names_are_whole() {
    let bench = Bench::new("a");
    let name = format!("{}.mp4", EVIL.replace('/', ""));
    let mut running = Running::start(&mut bench.clip(&name, &[]));
    assert_eq!(running.wait_for("start")["output"], name.as_str());
    assert_eq!(running.wait_for("result")["output"], name.as_str());
    assert!(Path::new(&bench.path(&name)).is_file());
}
