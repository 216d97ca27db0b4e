//! Runs that are told to stop, get in each other's way, or lose their disk or their readers.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use crate::cli::running::{Running, bytes, succeed};
use crate::cli::{Bench, run};

#[test]
fn a_signal_lets_the_step_end_and_says_how_to_go_on() {
    let bench = Bench::new("a");
    // More than a pipe holds: the run waits to be read.
    let flags = ["--steps", "130"];
    succeed(&mut bench.clip("whole.mp4", &flags));
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut running = Running::start(&mut bench.clip("clip.mp4", &flags));
        let step = running.wait_for("step")["step"].as_u64().unwrap();
        running.signal(signal);
        let (ended, events) = running.end();
        assert_eq!(ended, Some(code), "{events:#?}");
        let last = events.last().unwrap();
        assert_eq!(
            (&last["event"], &last["exit_code"]),
            (&"error".into(), &code.into())
        );
        let message = last["message"].as_str().unwrap();
        assert!(
            message.contains("the same command resumes from there"),
            "{message}"
        );
        bench.assert_only(&["clip.mp4.wan-state", "whole.mp4"]);

        let (ended, events) = Running::start(&mut bench.clip("clip.mp4", &flags)).end();
        assert_eq!(ended, Some(0));
        let resume = events.iter().find(|e| e["event"] == "resume").unwrap();
        let from = resume["step"].as_u64().unwrap();
        assert!(from >= step, "{resume}");
        let said = format!("after step {from} ");
        assert!(message.contains(&said), "{message}");
        let first = events.iter().find(|e| e["event"] == "step");
        assert!(first.is_none_or(|first| first["step"] == from + 1));
        assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
        fs::remove_file(bench.path("clip.mp4")).unwrap();
    }
    // In a terminal's words.
    let mut command = bench.clip("clip.mp4", &flags);
    command.arg("--verbose");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("step 2/130") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let end = "\nerror: the run was interrupted\nhint: the state after step ";
    assert!(said.contains(end), "{said}");
}

#[test]
fn a_signal_in_any_phase_stops_before_the_next_unit() {
    let bench = Bench::new("a");
    let flags = ["--frames", "33", "--size", "64x64"];
    succeed(&mut bench.clip("whole.mp4", &flags));
    for phase in ["text", "image", "decoding"] {
        let mut running = Running::start(&mut bench.clip("clip.mp4", &flags));
        while running.wait_for("phase_start")["phase"] != phase {}
        running.signal("-INT");
        let (code, events) = running.end();
        assert_eq!(code, Some(130), "{phase}: {events:#?}");
        assert!(!bench.path("clip.mp4").exists());
        succeed(&mut bench.clip("clip.mp4", &flags));
        assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
        bench.assert_only(&["clip.mp4", "whole.mp4"]);
        fs::remove_file(bench.path("clip.mp4")).unwrap();
    }
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let bench = Bench::new("a");
    let mut running = Running::start(&mut bench.clip("clip.mp4", &["--steps", "200"]));
    while running.wait_for("saved")["step"] != 1 {}
    // Two signals before the program can do anything about the first; which of them comes first is
    // the system's choice.
    for signal in ["-STOP", "-INT", "-TERM", "-CONT"] {
        running.signal(signal);
    }
    let mut rest = String::new();
    running.child.wait().unwrap();
    let code = running.child.wait().unwrap().code().unwrap();
    assert!([130, 143].contains(&code), "{code}");
    for line in running.events.by_ref() {
        rest += &line.unwrap();
    }
    assert!(!rest.contains(r#""event":"error""#), "{rest}");
    // What was saved is whole.
    let (code, events) = Running::start(&mut bench.clip("clip.mp4", &["--steps", "200"])).end();
    assert_eq!(code, Some(0));
    assert!(events.iter().any(|e| e["event"] == "resume"));
}

#[test]
fn two_runs_never_write_one_clip() {
    let bench = Bench::new("a");
    let mut first = Running::start(&mut bench.clip("clip.mp4", &["--steps", "250"]));
    // It waits to be read when the pipe is full.
    first.wait_for("step");
    for more in [&[][..], &["--resume", "never"], &["--no-checkpoint"]] {
        let flags = [&["--steps", "250"], more].concat();
        run(&mut bench.clip("clip.mp4", &flags))
            .assert_refused(1, &["another wan-i2v is writing clip.mp4"]);
    }
    // Nor one state.
    run(&mut bench.clip("other.mp4", &["--checkpoint", "clip.mp4"]))
        .assert_refused(1, &["another wan-i2v is writing clip.mp4"]);
    let others = succeed(&mut bench.clip("other.mp4", &[]));
    assert_eq!(others.stdout, b"other.mp4\n");
    // A run that is killed holds nothing back.
    first.wait_for("step");
    first.kill();
    succeed(&mut bench.clip("clip.mp4", &["--steps", "250"]));
    bench.assert_only(&["clip.mp4", "other.mp4"]);
}

#[test]
fn where_and_how_often_the_state_is_kept() {
    let bench = Bench::new("a");
    let saved = |more: &[&str]| {
        let again = [more, &["--overwrite"]].concat();
        let (code, events) = Running::start(&mut bench.clip("clip.mp4", &again)).end();
        assert_eq!(code, Some(0));
        let saved = events.iter().filter(|e| e["event"] == "saved");
        saved
            .map(|event| {
                let path = event["path"].as_str().unwrap().to_owned();
                assert!(event["bytes"].as_u64().unwrap() > 1000);
                (event["step"].as_u64().unwrap(), path)
            })
            .collect::<Vec<_>>()
    };
    let steps = |saved: Vec<(u64, String)>| saved.into_iter().map(|s| s.0).collect::<Vec<_>>();
    assert_eq!(steps(saved(&[])), [0, 1, 2, 3, 4, 5]);
    assert_eq!(steps(saved(&["--checkpoint-every", "2"])), [0, 2, 4, 5]);
    assert!(saved(&["--no-checkpoint"]).is_empty());
    fs::create_dir(bench.path("states")).unwrap();
    let elsewhere = ["--checkpoint", "states/a.state", "--checkpoint-every", "9"];
    let path = "states/a.state".to_owned();
    assert_eq!(saved(&elsewhere), [(0, path.clone()), (5, path)]);
    assert_eq!(fs::read_dir(bench.path("states")).unwrap().count(), 0);
    bench.assert_only(&["clip.mp4", "states"]);

    for (flags, code, parts) in [
        (
            &["--checkpoint-every", "0"][..],
            2,
            &["--checkpoint-every", "from 1 to"][..],
        ),
        (
            &["--no-checkpoint", "--checkpoint", "a"],
            2,
            &["cannot be used with"],
        ),
        (
            &["--checkpoint", "nowhere/a"],
            1,
            &["--checkpoint", "nowhere"],
        ),
    ] {
        let flags = [flags, &["--overwrite"]].concat();
        run(&mut bench.clip("clip.mp4", &flags)).assert_refused(code, parts);
    }
    let picture = fs::read(bench.picture()).unwrap();
    let picture_path = bench.picture().into_os_string().into_string().unwrap();
    for more in [&[][..], &["--resume", "never"]] {
        let flags = [&["--checkpoint", &picture_path, "--overwrite"], more].concat();
        run(&mut bench.clip("clip.mp4", &flags)).assert_refused(1, &["no saved run"]);
        assert!(fs::read(bench.picture()).unwrap() == picture);
    }
    // A run that was interrupted between two saved steps saves its last one.
    let flags = ["--steps", "200", "--checkpoint-every", "199"];
    let mut running = Running::start(&mut bench.clip("other.mp4", &flags));
    let step = running.wait_for("step")["step"].as_u64().unwrap();
    running.signal("-INT");
    let (code, events) = running.end();
    assert_eq!(code, Some(130));
    let saved = events.iter().find(|e| e["event"] == "saved").unwrap();
    assert!(saved["step"].as_u64().unwrap() >= step);
}

#[test]
fn a_folder_that_vanishes_loses_no_step() {
    let bench = Bench::new("a");
    let flags = ["--steps", "130"];
    succeed(&mut bench.clip("whole.mp4", &flags));
    fs::create_dir(bench.path("out")).unwrap();
    fs::create_dir(bench.path("tmp")).unwrap();
    let mut command = bench.clip("out/clip.mp4", &flags);
    let mut running = Running::start(command.env("TMPDIR", bench.path("tmp")));
    running.wait_for("step");
    fs::rename(bench.path("out"), bench.path("gone")).unwrap();
    let (code, events) = running.end();
    assert_eq!(code, Some(1));
    let warnings = events.iter().filter(|e| e["event"] == "warning");
    assert_eq!(warnings.count(), 1, "{events:#?}");
    let saved = events.iter().rev().find(|e| e["event"] == "saved").unwrap();
    assert_eq!(saved["step"], 130);
    let path = saved["path"].as_str().unwrap();
    assert!(path.starts_with(bench.path("tmp").to_str().unwrap()));
    let hint = events.iter().rev().find(|e| e["event"] == "note").unwrap();
    let hint = hint["message"].as_str().unwrap();
    assert!(hint.contains(&format!("with --resume {path}")), "{hint}");

    fs::create_dir(bench.path("out")).unwrap();
    let from = [&flags[..], &["--resume", path]].concat();
    let (code, events) = Running::start(&mut bench.clip("out/clip.mp4", &from)).end();
    assert_eq!(code, Some(0));
    assert!(!events.iter().any(|e| e["event"] == "step"));
    assert!(bytes(&bench.path("out/clip.mp4")) == bytes(&bench.path("whole.mp4")));
    assert_eq!(fs::read_dir(bench.path("out")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(bench.path("tmp")).unwrap().count(), 0);
}

/// A small file system in memory, where only a process of its own sees it.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_no_step() {
    let bench = Bench::new("a");
    succeed(&mut bench.clip("whole.mp4", &[]));
    bench.killed_after(1, "probe.mp4", &[]);
    let state = fs::metadata(bench.state("probe.mp4")).unwrap().len();
    fs::remove_file(bench.state("probe.mp4")).unwrap();
    for name in ["small", "tmp"] {
        fs::create_dir(bench.path(name)).unwrap();
    }
    // Room for one state and a clip, not for two states.
    let size = state + 20_000;
    let script = format!(
        "mount -t tmpfs -o size={size} none small || exit 77; \"$@\"; code=$?; \
         cp small/* . ; exit $code"
    );
    let clip = bench.clip("small/clip.mp4", &[]);
    let mut command = bench.unshared(&script, &clip);
    let ran = run(command
        .args(["--progress", "json"])
        .env("TMPDIR", bench.path("tmp")));
    if ran.code == Some(77) || ran.stderr.starts_with("unshare") {
        eprintln!("skipped: this system lets no small file system be mounted");
        return;
    }
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let warnings = ran.stderr.matches(r#""event":"warning""#).count();
    assert_eq!(warnings, 1, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("cannot be saved as small/clip.mp4.wan-state")
    );
    assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
    assert_eq!(fs::read_dir(bench.path("tmp")).unwrap().count(), 0);
}

#[test]
fn closed_pipes_lose_no_step() {
    let bench = Bench::new("a");
    let flags = ["--steps", "20"];
    succeed(&mut bench.clip("whole.mp4", &flags));
    let mut command = bench.clip("clip.mp4", &flags);
    command.arg("--verbose");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("step 2/20") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    drop((stderr, child.stdout.take()));
    // The path could not be told.
    assert_eq!(child.wait().unwrap().code(), Some(1));
    bench.assert_only(&["clip.mp4", "whole.mp4"]);
    assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
}
