//! What a run did not make stays as it is, and what another run writes is left to it.

use std::fs;
use std::os::unix::fs::symlink;

use crate::cli::running::{Running, bytes, succeed};
use crate::cli::{Bench, program, run};

/// The name of what a killed run has left of the file `target`.
pub fn leftover(target: &str) -> String {
    let hash = blake3::hash(target.as_bytes()).to_hex();
    format!(".wan-i2v-{}-abcdef", &hash[..12])
}

#[test]
fn what_has_a_name_near_the_clip_s_stays() {
    let bench = Bench::new("a");
    fs::create_dir_all(bench.path("others/sub")).unwrap();
    fs::write(bench.path("others/sub/notes"), "mine").unwrap();
    symlink("others", bench.path("clip.mp4.wan-state.tmp")).unwrap();
    fs::create_dir(bench.path("clip.gif.wan-state.tmp")).unwrap();
    fs::write(bench.path("clip.gif.wan-state.tmp/notes"), "mine").unwrap();
    // Of a clip, a folder of frames with something else in it, and a state.
    let folder = leftover("clip.gif");
    fs::create_dir(bench.path(&folder)).unwrap();
    fs::write(bench.path(&folder).join("notes"), "mine").unwrap();
    let mine = leftover("clip.gif.wan-state");
    fs::write(bench.path(&mine), "mine").unwrap();
    let before = bench.written();
    for output in ["clip.mp4", "clip.gif"] {
        for flags in [&[][..], &["--no-checkpoint"], &["--resume", "never"]] {
            succeed(&mut bench.clip(output, flags));
            fs::remove_file(bench.path(output)).unwrap();
            assert_eq!(bench.written(), before);
        }
    }
    for (folder, notes) in [
        ("others/sub", 1),
        ("clip.gif.wan-state.tmp", 1),
        (&folder, 1),
    ] {
        assert_eq!(bytes(&bench.path(folder)).len(), notes);
    }
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let bench = Bench::new("a");
    bench.killed_after(2, "clip.mp4", &[]);
    let state = fs::read(bench.state("clip.mp4")).unwrap();
    // As runs leave it that are killed while they write a clip, its strip, or a state.
    fs::write(bench.path(&leftover("clip.mp4")), "half a clip").unwrap();
    fs::write(bench.path(&leftover("strip.png")), "half a strip").unwrap();
    let half = &state[..state.len() / 2];
    fs::write(bench.path(&leftover("clip.mp4.wan-state")), half).unwrap();
    succeed(&mut bench.clip("clip.mp4", &["--strip", "strip.png"]));
    bench.assert_only(&["clip.mp4", "strip.png"]);
}

#[test]
fn what_is_analyzed_and_what_no_batch_has_made_stays() {
    let bench = Bench::new("a");
    succeed(&mut bench.clip("frames/", &["--size", "32x32"]));
    fs::copy(bench.path("frames/frame_00000.png"), bench.path("p.png")).unwrap();
    let before = bytes(&bench.path("frames"));
    for (flag, place) in [
        ("--png", "p.png"),
        ("--png", "frames/frame_00000.png"),
        ("--html", "./p.png"),
    ] {
        let mut analyze = program();
        analyze.current_dir(bench.path(""));
        analyze.args(["analyze", "frames", "--image", "p.png", flag, place]);
        run(&mut analyze).assert_refused(1, &[flag, "would replace what is analyzed"]);
    }
    assert_eq!(bytes(&bench.path("frames")), before);

    fs::create_dir(bench.path("out")).unwrap();
    let report = bench.path("out/wan-batch.json");
    fs::write(&report, "mine").unwrap();
    let batch = &mut bench.batch("jobs.jsonl", "{\"prompt\": \"a\"}", &[]);
    run(batch).assert_refused(1, &["wan-batch.json", "no batch has made this"]);
    assert_eq!(fs::read(&report).unwrap(), b"mine");
}

#[test]
fn the_state_of_a_clip_that_is_being_made_is_its_own() {
    let bench = Bench::new("a");
    let mut running = Running::start(&mut bench.clip("big.mp4", &["--steps", "60"]));
    running.wait_for("saved");
    let state = bench.state("big.mp4");
    let flags = ["--checkpoint", state.to_str().unwrap(), "--resume", "never"];
    run(&mut bench.clip("clip.mp4", &flags))
        .assert_refused(1, &["--checkpoint", "another wan-i2v"]);
    running.signal("-INT");
    assert_eq!(running.end().0, Some(130));
    assert!(state.is_file());
}

/// Nobody writes into it.
#[test]
fn a_pipe_as_a_picture_does_not_hang() {
    let bench = Bench::new("a");
    let made = std::process::Command::new("mkfifo")
        .arg(bench.path("pipe"))
        .status();
    assert!(made.unwrap().success());
    let mut command = program();
    command.current_dir(bench.path(""));
    command.args(["plan", "--image", "pipe"]);
    run(&mut command).assert_refused(1, &["pipe"]);
}

#[test]
fn man_pages_replace_links_and_not_what_they_lead_to() {
    let bench = Bench::new("a");
    fs::create_dir(bench.path("man")).unwrap();
    fs::write(bench.path("thesis"), "three years").unwrap();
    symlink("../thesis", bench.path("man/wan-i2v.1")).unwrap();
    succeed(program().current_dir(bench.path("")).args(["man", "man"]));
    assert_eq!(fs::read(bench.path("thesis")).unwrap(), b"three years");
}

#[test]
fn a_file_that_is_no_saved_run_is_not_replaced() {
    let bench = Bench::new("a");
    let model = bench
        .checkpoint
        .path("vae/diffusion_pytorch_model.safetensors");
    let text = model.to_str().unwrap();
    let before = fs::read(&model).unwrap();
    for more in [&[][..], &["--resume", "never"]] {
        let flags = [&["--checkpoint", text], more].concat();
        run(&mut bench.clip("clip.mp4", &flags)).assert_refused(1, &["no saved run", text]);
        assert!(fs::read(&model).unwrap() == before);
    }
    // Nor where the state is kept by itself, even if none is.
    let state = bench.state("clip.mp4");
    fs::write(&state, "mine").unwrap();
    for more in [
        &[][..],
        &["--resume", "never"],
        &["--no-checkpoint", "--resume", "never"],
    ] {
        let ran = run(&mut bench.clip("clip.mp4", more));
        ran.assert_refused(1, &["clip.mp4.wan-state", "no saved run"]);
        assert_eq!(fs::read(&state).unwrap(), b"mine");
    }
    bench.assert_only(&["clip.mp4.wan-state"]);
}

#[test]
fn a_folder_of_frames_has_one_writer_however_it_is_spelt() {
    let bench = Bench::new("a");
    fs::create_dir_all(bench.path("frames/sub")).unwrap();
    symlink("frames", bench.path("link")).unwrap();
    let mut first = Running::start(&mut bench.clip("frames/", &["--steps", "250"]));
    first.wait_for("step");
    for output in ["link", "link/", "frames/sub/..", "./frames"] {
        let ran = run(&mut bench.clip(output, &[]));
        ran.assert_refused(1, &["another wan-i2v is writing", output]);
    }
    let mut inside = bench.clip(".", &[]);
    let ran = run(inside.current_dir(bench.path("frames")));
    ran.assert_refused(1, &["another wan-i2v is writing ."]);
    first.kill();
    // It is not its own obstacle.
    for output in ["link", "frames/sub/.."] {
        succeed(&mut bench.clip(output, &[]));
    }
    let mut inside = bench.clip(".", &[]);
    succeed(inside.current_dir(bench.path("frames")));
    assert_eq!(fs::read_dir(bench.path("frames")).unwrap().count(), 10);
}

/// A file system of its own in a folder that nothing can be created in, as other volumes are mounted.
#[cfg(target_os = "linux")]
#[test]
fn frames_go_into_the_root_of_a_volume() {
    let bench = Bench::new("a");
    fs::create_dir(bench.path("out")).unwrap();
    let script = "mount -t tmpfs none out && mkdir out/frames && mount -t tmpfs none out/frames && \
                  mount -o remount,ro out || exit 77; cd out/frames; \"$@\" && ls -A";
    let ran = run(&mut bench.unshared(script, &bench.clip(".", &[])));
    if ran.code == Some(77) || ran.stderr.starts_with("unshare") {
        eprintln!("skipped: this system lets no file system be mounted");
        return;
    }
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let left = String::from_utf8(ran.stdout).unwrap();
    let left: Vec<&str> = left.lines().skip(1).collect();
    assert_eq!(left.len(), 9, "{left:?}");
    assert!(
        left.iter().all(|name| name.starts_with("frame_")),
        "{left:?}"
    );
}
