//! Runs that are killed, and go on to the same bytes, or are refused to.

use std::fs;

use serde_json::Value;

use crate::cli::running::{FLAGS, Running, bytes, succeed};
use crate::cli::{Bench, run};

#[test]
fn killed_at_every_event_it_goes_on_to_the_same_bytes() {
    const SHORT: [&str; 4] = ["--frames", "5", "--steps", "3"];
    let bench = Bench::new("a");
    let whole = succeed(bench.clip("whole.mp4", &SHORT).args(["--progress", "json"]));
    let expected = bytes(&bench.path("whole.mp4"));
    fs::remove_file(bench.path("whole.mp4")).unwrap();
    let events = whole.stderr.lines().count();
    assert!(events > 25, "{}", whole.stderr);
    let (mut steps, mut resumed) = (0, 0);
    for kill_at in 0..events {
        let mut running = Running::start(&mut bench.clip("clip.mp4", &SHORT));
        for _ in 0..=kill_at {
            running.next();
        }
        running.kill();
        // The clip is there whole or not at all.
        let clip = bench.path("clip.mp4");
        assert!(!clip.exists() || bytes(&clip) == expected);
        let has_state = bench.state("clip.mp4").exists();
        let ran = succeed(bench.clip("clip.mp4", &SHORT).args(["--progress", "json"]));
        assert!(bytes(&clip) == expected, "killed at event {kill_at}");
        bench.assert_only(&["clip.mp4"]);
        fs::remove_file(clip).unwrap();
        assert_eq!(ran.stderr.contains(r#""event":"resume""#), has_state);
        resumed += usize::from(has_state);
        steps += ran.stderr.matches(r#""event":"step""#).count();
    }
    println!("measured: {events} kills, {resumed} resumed, {steps} steps after them");
    assert!(resumed > events / 3);
    // Nothing that was saved is computed again.
    assert!(steps < events * 3 * 3 / 4, "{steps}");
}

#[test]
fn killed_after_every_step_with_every_solver_cache_and_precision() {
    let bench = Bench::new("a");
    fs::write(
        bench.checkpoint.path("wan_i2v.json"),
        r#"{"teacache": [1.0, 0.0]}"#,
    )
    .unwrap();
    for (name, flags) in [
        ("dpm.mp4", &["--solver", "dpm++"][..]),
        ("euler.gif", &["--solver", "euler", "--guide-scale", "1"]),
        ("bf16.mp4", &["--dtype", "bf16"]),
        ("interval/", &["--guide-interval", "0.3,0.9"]),
        (
            "easy.mp4",
            &["--cache", "easycache,threshold=9", "--steps", "9"],
        ),
        (
            "tea.mp4",
            &["--cache", "teacache,threshold=9", "--steps", "9"],
        ),
    ] {
        let whole = succeed(bench.clip(name, flags).args(["--progress", "json"]));
        let expected = bytes(&bench.path(name));
        let remove = || match name.ends_with('/') {
            true => fs::remove_dir_all(bench.path(name)).unwrap(),
            false => fs::remove_file(bench.path(name)).unwrap(),
        };
        remove();
        let last = whole.stderr.lines().last().unwrap();
        let last: Value = serde_json::from_str(last).unwrap();
        let reused = last["passes"]["reused"].as_u64().unwrap();
        assert_eq!(reused > 2, flags[0] == "--cache", "{name}: {last}");

        let steps = last["settings"]["steps"].as_u64().unwrap();
        let mut is_new = true;
        for step in 0..=steps {
            // From the last step on, each run a step further.
            let mut running = Running::start(&mut bench.clip(name, flags));
            let event = running.wait_for(if is_new { "saved" } else { "resume" });
            if step < steps {
                let mut saved = event["step"].as_u64().unwrap();
                assert!(is_new || saved >= step.saturating_sub(1));
                while saved < step {
                    saved = running.wait_for("saved")["step"].as_u64().unwrap();
                }
                running.kill();
                is_new = !bench.state(name).exists();
                if is_new {
                    // It was quicker than the signal; the next one starts anew.
                    assert!(bytes(&bench.path(name)) == expected, "{name}");
                    remove();
                }
            } else {
                assert_eq!(running.end().0, Some(0));
            }
        }
        assert!(bytes(&bench.path(name)) == expected, "{name}");
        assert!(!bench.state(name).exists(), "{name}");
    }
}

#[test]
fn another_run_is_refused_with_the_difference() {
    let bench = Bench::new("a");
    let steps = bench.killed_after(3, "clip.mp4", &[]);
    let made = format!("{steps} steps");
    let saved = fs::read(bench.state("clip.mp4")).unwrap();
    let refused = |more: &[&str], parts: &[&str]| {
        let ran = run(&mut bench.clip("clip.mp4", more));
        ran.assert_refused(1, parts);
        ran.assert_refused(1, &["clip.mp4.wan-state", &made, "--resume never"]);
        assert!(fs::read(bench.state("clip.mp4")).unwrap() == saved);
        let named = ran.stderr.matches(" then, ").count();
        assert_eq!(named, 1, "{}", ran.stderr);
    };
    for (flags, part) in [
        (&["--seed", "8"][..], "--seed: 7 then, 8 now"),
        (&["--steps", "6"], "--steps: 5 then, 6 now"),
        (&["--frames", "5"], "--frames: 9 then, 5 now"),
        (&["--size", "48x32"], "--size: 32x32 then, 48x32 now"),
        (&["--shift", "3"], "--shift: 5 then, 3 now"),
        (&["--solver", "euler"], "--solver: unipc then, euler now"),
        (
            &["--guide-scale", "2"],
            "--guide-scale: 3.5,3.5 then, 2,2 now",
        ),
        (
            &["--guide-interval", "0,0.5"],
            "--guide-interval: 0,1 then, 0,0.5",
        ),
        (&["--cache", "easycache"], "--cache: "),
        (&["--resize", "bicubic"], "--resize: lanczos then, bicubic"),
        (&["--dtype", "bf16"], "--dtype: f32 then, bf16 now"),
        (
            &["--text-bits", "8"],
            "bits of the text encoder: as stored then, 8",
        ),
    ] {
        refused(flags, &[part]);
    }
    // The prompt's tokens go with it.
    let ran = run(&mut bench.clip("clip.mp4", &["--prompt", "a dog"]));
    ran.assert_refused(1, &["--prompt: a cat in the rain then, a dog now"]);
    let ran = run(&mut bench.clip("clip.mp4", &["--negative-prompt", "a dog"]));
    ran.assert_refused(1, &["--negative-prompt: ", "then, a dog now"]);

    let picture = fs::read(bench.picture()).unwrap();
    let mut other = image::open(bench.picture()).unwrap().to_rgb8();
    other.get_pixel_mut(3, 4).0[1] ^= 1;
    other.save(bench.picture()).unwrap();
    refused(&[], &["the picture: "]);
    fs::write(bench.picture(), picture).unwrap();

    // A bit of a weight in every part.
    for (file, part) in [
        (
            "transformer/diffusion_pytorch_model",
            "the high-noise expert: ",
        ),
        (
            "transformer_2/diffusion_pytorch_model",
            "the low-noise expert: ",
        ),
        ("vae/diffusion_pytorch_model", "the VAE: "),
        ("text_encoder/model", "the text encoder: "),
    ] {
        let path = bench.checkpoint.path(&format!("{file}.safetensors"));
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(&path, changed).unwrap();
        refused(&[], &[part]);
        fs::write(&path, whole).unwrap();
    }

    // What the latents do not depend on may change: rate, format, place.
    let state = bench.state("clip.mp4");
    let from = ["--resume", state.to_str().unwrap(), "--fps", "8"];
    let ran = succeed(&mut bench.clip("other.gif", &from));
    assert!(
        ran.stderr
            .contains(&format!("resuming after step {steps},")),
        "{}",
        ran.stderr
    );
    // What was named is only read.
    bench.assert_only(&["clip.mp4.wan-state", "other.gif"]);
    assert!(fs::read(&state).unwrap() == saved);

    // And anew, if it is to be.
    let anew = ["--seed", "8", "--resume", "never"];
    let ran = succeed(&mut bench.clip("clip.mp4", &anew));
    assert!(!ran.stderr.contains("resuming"), "{}", ran.stderr);
    bench.assert_only(&["clip.mp4", "other.gif"]);
}

#[test]
fn a_damaged_state_is_not_lost_silently() {
    let bench = Bench::new("a");
    bench.killed_after(3, "clip.mp4", &[]);
    let state = bench.state("clip.mp4");
    let whole = fs::read(&state).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &[], &flipped] {
        fs::write(&state, damaged).unwrap();
        let ran = run(&mut bench.clip("clip.mp4", &[]));
        ran.assert_refused(1, &["clip.mp4.wan-state", "damaged", "--resume never"]);
        assert!(fs::read(&state).unwrap() == damaged);
    }
    let missing = run(&mut bench.clip("clip.mp4", &["--resume", "nowhere"]));
    missing.assert_refused(1, &["--resume", "nowhere"]);
    succeed(&mut bench.clip("clip.mp4", &["--resume", "never"]));
    bench.assert_only(&["clip.mp4"]);
}

/// `tests/data/format-1.wan-state` was written by the program of that format.
#[test]
fn a_state_of_the_first_format_is_refused() {
    let bench = Bench::new("a");
    let old = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/format-1.wan-state"
    ));
    let state = bench.state("clip.mp4");
    fs::write(&state, old).unwrap();
    let ran = run(&mut bench.clip("clip.mp4", &[]));
    ran.assert_refused(
        1,
        &[
            "clip.mp4.wan-state",
            "its format is 1, and this program's is 2",
            "\nhint: resume it with the program that wrote it",
            "\nhint: --resume never",
        ],
    );
    assert!(fs::read(&state).unwrap() == old);
    succeed(&mut bench.clip("clip.mp4", &["--resume", "never"]));
    bench.assert_only(&["clip.mp4"]);
}

#[test]
fn a_seed_and_a_name_that_were_left_open_are_found_again() {
    let bench = Bench::new("a");
    let command = |more: &[&str]| {
        let mut command = bench.command();
        command
            .args(&FLAGS[..8])
            .args(["--device", "cpu"])
            .args(more);
        command
    };
    // Both open, then the seed alone.
    for more in [&[][..], &["--output", "clip.mp4"]] {
        let (start, steps) = bench.killed(2, || command(more));
        // Another run's is not taken.
        let other = [more, &["--shift", "3", "--progress", "json"]].concat();
        let ran = run(&mut command(&other));
        if more.is_empty() {
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            assert!(!ran.stderr.contains("resume"), "{}", ran.stderr);
        } else {
            assert!(
                ran.stderr.contains("--shift: 5 then, 3 now"),
                "{}",
                ran.stderr
            );
            assert!(!ran.stderr.contains("--seed"), "{}", ran.stderr);
        }
        let (code, events) = Running::start(&mut command(more)).end();
        assert_eq!(code, Some(0));
        let (resume, result) = (
            events.iter().find(|e| e["event"] == "resume").unwrap(),
            events.last().unwrap(),
        );
        assert_eq!(resume["step"], steps);
        assert_eq!(result["output"], start["output"]);
        assert_eq!(result["settings"]["seed"], start["settings"]["seed"]);
        assert!(!bench.written().iter().any(|name| name.contains("wan-")));
        // With nothing to go on from, another seed.
        let (_, events) = Running::start(&mut command(more)).end();
        assert_ne!(
            events.last().unwrap()["settings"]["seed"],
            start["settings"]["seed"]
        );
    }
}
