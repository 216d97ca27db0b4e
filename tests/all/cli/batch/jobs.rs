//! Files of jobs, names of clips, and what a second run does.

use std::fs;
use std::time::SystemTime;

use super::{count, paths, told};
use crate::cli::running::succeed;
use crate::cli::{Bench, Ran, run};

const TWO: &str = r#"{"name": "a", "prompt": "a cat", "seed": 1}
{"name": "b", "prompt": "a dog", "seed": 2}"#;

/// Names and whether each can be made, as `--dry-run` says; nothing is left of it.
fn plan(bench: &Bench, name: &str, jobs: &str, more: &[&str]) -> (Ran, Vec<(String, String)>) {
    let ran = run(bench.batch(name, jobs, more).arg("--dry-run"));
    assert!(!bench.path("out").exists());
    let text = String::from_utf8(ran.stdout.clone()).unwrap();
    let lines = text.lines().skip(1).take_while(|line| !line.is_empty());
    let clips = lines
        .map(|line| {
            let cells: Vec<&str> = line.split("  ").filter(|cell| !cell.is_empty()).collect();
            let state = match line.contains(" failed") {
                true => "failed".to_owned(),
                false => cells[2].trim().to_owned(),
            };
            (cells[0].trim().to_owned(), state)
        })
        .collect();
    (ran, clips)
}

#[test]
fn the_three_kinds_of_file_ask_for_the_same_clips() {
    let bench = Bench::new("a");
    let jsonl = r#"{"name": "a", "prompt": "a cat", "seed": "1..2", "no_metadata": true}
        {"prompt": "a dog, too", "steps": 2, "guide-scale": [1, 2.5], "area": 1024}"#;
    let csv = "name,prompt,seed,no-metadata,steps,guide_scale,area\n\
               a,a cat,1..2,true,,,\n\
               ,\"a dog, too\",,,2,\"1,2.5\",1024\n";
    let toml = "[defaults]\nprompt = 'a cat'\n\
                [[job]]\nname = 'a'\nseed = [1, 2]\nno-metadata = true\n\
                [[job]]\nprompt = 'a dog, too'\nsteps = 2\nguide_scale = '1,2.5'\narea = 1024";
    let mut seen = Vec::new();
    for (name, jobs) in [("a.jsonl", jsonl), ("a.csv", csv), ("a.toml", toml)] {
        let (ran, clips) = plan(&bench, name, jobs, &[]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        seen.push(clips);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    assert_eq!(
        seen[0][0],
        ("a_1.mp4".into(), "32x32, 5 frames, 3 steps".into())
    );
    assert_eq!(seen[0][1].0, "a_2.mp4");
    // A job that names neither has its picture's name, and a seed that is always the same.
    let (name, settings) = &seen[0][2];
    assert!(
        name.starts_with("start_") && settings.ends_with("2 steps"),
        "{name}"
    );
}

#[test]
fn what_is_said_last_goes_first() {
    let bench = Bench::new("a");
    let toml = "[defaults]\nsteps = 7\nframes = 9\nfps = 8\nseed = 4\n\
                [[job]]\nname = 'a'\nprompt = 'x'\n\
                [[job]]\nname = 'b'\nprompt = 'x'\nsteps = 2\narea = 2304\nseeds = '8,9'";
    let more = [
        "--steps",
        "5",
        "--output",
        "{index}-{name}-{take}-{image}.mp4",
    ];
    let (ran, clips) = plan(&bench, "a.toml", toml, &more);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // The command line goes before the file's defaults, and a job before both; a job's area takes
    // the size away.
    let expected = [
        ("1-a-1-start.mp4", "32x32, 5 frames, 5 steps"),
        ("2-b-1-start.mp4", "48x32, 5 frames, 2 steps"),
        ("2-b-2-start.mp4", "48x32, 5 frames, 2 steps"),
    ];
    let clips: Vec<(&str, &str)> = clips
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    assert_eq!(clips, expected);
    // Seeds of the command line are for jobs without.
    let (_, clips) = plan(
        &bench,
        "a.jsonl",
        "{\"prompt\": \"x\"}",
        &["--seeds", "3..4"],
    );
    assert_eq!(clips[1].0, "start_4.mp4");
}

#[test]
fn one_bad_job_is_reported_and_the_rest_go_on() {
    let bench = Bench::new("a");
    fs::write(bench.path("broken.png"), b"\x89PNG\r\n\x1a\nnothing").unwrap();
    let jobs = [
        r#"{"name": "a", "prompt": "a cat", "seed": 1}"#,
        r#"{"name": "b", "prompt": "a cat", "seed": 1, "image": "broken.png"}"#,
        r#"{"name": "c", "prompt": "a cat", "seed": 1, "image": "missing.png"}"#,
        r#"{"name": "d", "prompt": "a cat", "stepps": 3}"#,
        r#"{"name": "e", "prompt": "a cat", "steps": "many"}"#,
        r#"{"name": "f", "prompt": "a cat", "frames": 6}"#,
        r#"{"name": "g", "prompt": "a cat""#,
        r#"{"name": "a", "prompt": "another cat", "seed": 1}"#,
        r#"{"name": "i", "prompt": "a cat", "output": "{nam}.mp4"}"#,
        r#"{"name": "../k", "prompt": "a cat"}"#,
        r#"{"name": "l", "prompt": "a cat", "seed": "x"}"#,
        r#"{"name": "m", "prompt": "a cat", "progress": "json"}"#,
        r#"{"name": "n", "prompt": "a cat", "output": "out.txt"}"#,
        r#"{"name": "o", "prompt": "", "seed": 1}"#,
        r#"{"name": "z", "prompt": "a dog", "seed": 1}"#,
    ];
    let parts = [
        (2, "broken.png"),
        (3, "missing.png: No such file"),
        (4, "did you mean steps?"),
        (5, "invalid value 'many' for '--steps"),
        (6, "'6' for '--frames"),
        (7, "no JSON"),
        (8, "a_1.mp4 is also what jobs.jsonl, line 1 makes"),
        (9, "no field {nam}"),
        (10, "no slash"),
        (11, "expected a number from 0"),
        (12, "for the whole batch"),
        (13, "the extension is .txt"),
        (14, "it is empty; expected what happens in the clip"),
    ];
    let jobs = jobs.join("\n");
    let (ran, clips) = plan(&bench, "jobs.jsonl", &jobs, &[]);
    assert_eq!(ran.code, Some(1));
    let failed = clips.iter().filter(|(_, state)| state == "failed");
    assert_eq!(failed.count(), parts.len(), "{clips:#?}");
    let made = run(&mut bench.batch("jobs.jsonl", &jobs, &[]));
    assert_eq!(made.code, Some(1));
    assert_eq!(paths(&made), ["out/a_1.mp4", "out/z_1.mp4"]);
    for ran in [&ran, &made] {
        for (line, part) in parts {
            let place = format!("failed: jobs.jsonl, line {line}: ");
            let said = ran.stderr.lines().find(|said| said.starts_with(&place));
            let said = said.unwrap_or_else(|| panic!("{place} in {}", ran.stderr));
            assert!(said.contains(part), "{part:?} in {said}");
            assert_eq!(
                said.matches("jobs.jsonl, line").count(),
                1 + usize::from(line == 8)
            );
        }
    }
    let report = bench.report();
    assert_eq!(report.len(), 15);
    assert_eq!(report[0], ("jobs.jsonl, line 1".into(), "made".into()));
    assert_eq!(report[6], ("jobs.jsonl, line 7".into(), "failed".into()));
    assert!(made.stderr.contains("2 made, 0 there before, 13 failed"));
    let left: Vec<String> = crate::cli::names(&bench.path("out")).into_iter().collect();
    assert_eq!(left, ["a_1.mp4", "index.html", "wan-batch.json", "z_1.mp4"]);
}

#[test]
fn what_cannot_be_named_is_found_before_anything_is_computed() {
    let bench = Bench::new("a");
    let long = "x".repeat(300);
    let job = |output: &str| format!("{{\"prompt\": \"a cat\", \"output\": \"{output}\"}}");
    let outputs = [
        "first.mp4",
        &format!("{long}.mp4"),
        &format!("{long}/"),
        &format!("new/{long}.gif"),
        &format!("{long}/a.mp4"),
        "first.mp4/sub/a.mp4",
        "deep/b.mp4/c.mp4",
        "deep/b.mp4",
        ".wan-batch/x.mp4",
        "link/x.mp4",
        ".WAN-batch/x/",
        "wan-batch.json/",
        "index.html/",
    ];
    let parts = [
        (2, "too long"),
        (3, "too long"),
        (4, "too long"),
        (5, "too long"),
        (6, "lies in a file that jobs.jsonl, line 1 makes"),
        (8, "jobs.jsonl, line 7 makes a folder of that name"),
        (9, ".wan-batch is the batch's own"),
        (10, ".wan-batch is the batch's own"),
        (11, ".wan-batch is the batch's own"),
        (12, "wan-batch.json is the batch's own"),
        (13, "index.html is the batch's own"),
    ];
    fs::create_dir_all(bench.path("out/.wan-batch")).unwrap();
    std::os::unix::fs::symlink(".wan-batch", bench.path("out/link")).unwrap();
    let jobs = outputs.map(job).join("\n");
    let ran = run(&mut bench.batch("jobs.jsonl", &jobs, &[]));
    assert_eq!(ran.code, Some(1));
    assert_eq!(paths(&ran), ["out/first.mp4", "out/deep/b.mp4/c.mp4"]);
    for (line, part) in parts {
        let place = format!("failed: jobs.jsonl, line {line}: ");
        let said = ran.stderr.lines().find(|said| said.starts_with(&place));
        let said = said.unwrap_or_else(|| panic!("{place} in {}", ran.stderr));
        assert!(said.contains(part), "{part:?} in {said}");
    }
    let left: Vec<String> = crate::cli::names(&bench.path("out")).into_iter().collect();
    assert_eq!(
        left,
        ["deep", "first.mp4", "index.html", "link", "wan-batch.json"]
    );
}

#[test]
fn what_others_put_into_the_batch_s_own_folder_stays() {
    let bench = Bench::new("a");
    fs::create_dir_all(bench.path("out/.wan-batch/mine")).unwrap();
    fs::write(bench.path("out/.wan-batch/mine/notes"), "mine").unwrap();
    let half = crate::cli::foreign::leftover("wan-batch.json");
    fs::write(bench.path("out").join(half), "half a report").unwrap();
    succeed(&mut bench.batch("jobs.jsonl", TWO, &[]));
    let left = crate::cli::names(&bench.path("out"));
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    let expected = [
        ".wan-batch",
        "a_1.mp4",
        "b_2.mp4",
        "index.html",
        "wan-batch.json",
    ];
    assert_eq!(left, expected);
    let own = crate::cli::names(&bench.path("out/.wan-batch"));
    assert!(own.len() == 1 && own.contains("mine"), "{own:?}");
    assert!(bench.path("out/.wan-batch/mine/notes").is_file());
}

#[test]
fn what_is_wrong_with_all_is_refused() {
    let bench = Bench::new("a");
    for (name, jobs, more, code, part) in [
        ("jobs.txt", TWO, &[][..], 1, ".jsonl, .csv or .toml"),
        ("jobs.toml", "[[job]", &[], 1, "TOML parse error"),
        ("jobs.jsonl", "", &[], 1, "there is no job in it"),
        (
            "jobs.toml",
            "[defaults]\nstep = 1\n[[job]]",
            &[],
            1,
            "did you mean steps?",
        ),
        ("jobs.jsonl", TWO, &["--steps", "x"], 2, "invalid value 'x'"),
        (
            "jobs.jsonl",
            TWO,
            &["--seeds", "1", "--seed", "1"],
            2,
            "cannot be used with",
        ),
        (
            "jobs.jsonl",
            TWO,
            &["--checkpoint", "x"],
            1,
            "are for one clip",
        ),
        ("jobs.jsonl", TWO, &["--resume", "x"], 1, "are for one clip"),
        (
            "jobs.jsonl",
            TWO,
            &["--jobs-at-once", "0"],
            2,
            "--jobs-at-once",
        ),
        (
            "jobs.jsonl",
            TWO,
            &["--memory-budget", "0.12", "--jobs-at-once", "100000"],
            1,
            "of these clips can be in flight at once",
        ),
    ] {
        let ran = run(&mut bench.batch(name, jobs, more));
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert!(ran.stderr.contains(part), "{part:?} in {}", ran.stderr);
        assert!(ran.stdout.is_empty());
    }
}

#[test]
fn a_second_run_makes_only_what_is_missing() {
    let bench = Bench::new("a");
    succeed(&mut bench.batch("jobs.jsonl", TWO, &[]));
    let clips = bench.clips();
    let age = |name: &str| -> SystemTime {
        let clip = fs::metadata(bench.path("out").join(name)).unwrap();
        clip.modified().unwrap()
    };
    let before = (age("a_1.mp4"), age("b_2.mp4"));
    let again = |more: &[&str], made: &[&str]| {
        let ran = succeed(&mut bench.batch("jobs.jsonl", TWO, more));
        assert_eq!(paths(&ran), made, "{}", ran.stderr);
        ran
    };
    let ran = again(&[], &[]);
    assert!(!ran.stderr.contains("loading"), "{}", ran.stderr);
    assert_eq!((age("a_1.mp4"), age("b_2.mp4")), before);
    fs::remove_file(bench.path("out/b_2.mp4")).unwrap();
    again(&[], &["out/b_2.mp4"]);
    assert!(bench.clips() == clips);
    assert_eq!(age("a_1.mp4"), before.0);
    // Another setting, another clip; another file under a clip's name is none.
    again(
        &["--fps", "8", "--overwrite"],
        &["out/a_1.mp4", "out/b_2.mp4"],
    );
    again(&["--fps", "8"], &[]);
    fs::copy(bench.path("out/a_1.mp4"), bench.path("out/b_2.mp4")).unwrap();
    again(&["--fps", "8", "--overwrite"], &["out/b_2.mp4"]);
    again(
        &["--fps", "8", "--resume", "never"],
        &["out/a_1.mp4", "out/b_2.mp4"],
    );
    // Where the file says nothing of itself, the report does.
    let bare = ["--fps", "8", "--no-metadata", "--overwrite"];
    again(&bare, &["out/a_1.mp4", "out/b_2.mp4"]);
    again(&bare[..3], &[]);
    let bare = ["--no-metadata", "--overwrite"];
    again(&bare, &["out/a_1.mp4", "out/b_2.mp4"]);
    fs::write(bench.path("out/b_2.mp4"), "another").unwrap();
    again(&bare, &["out/b_2.mp4"]);
    // A strip that is asked for is a part of it.
    let strips = ["--strip", "{name}.png", "--overwrite"];
    again(&strips, &["out/a_1.mp4", "out/b_2.mp4"]);
    let strips = &strips[..2];
    again(strips, &[]);
    fs::remove_file(bench.path("out/a.png")).unwrap();
    again(strips, &["out/a_1.mp4"]);
    // Folders of frames, too.
    let frames = ["--output", "{name}/{seed}/"];
    again(&frames, &["out/a/1/", "out/b/2/"]);
    again(&frames, &[]);
    fs::remove_file(bench.path("out/a/1/frame_00003.png")).unwrap();
    again(&frames, &["out/a/1/"]);
}

#[test]
fn pictures_and_models_of_a_job_are_found_from_its_file() {
    let bench = Bench::new("a");
    fs::create_dir_all(bench.path("jobs/pictures")).unwrap();
    fs::copy(bench.picture(), bench.path("jobs/pictures/x.png")).unwrap();
    let jobs = r#"{"prompt": "a cat", "image": "pictures/x.png", "seed": 1}
        {"prompt": "the red circle grows", "name": "tiny", "model": "tiny", "seed": 1, "size": "64x64"}"#;
    let (code, events) = told(&mut bench.batch("jobs/jobs.jsonl", jobs, &[]));
    assert_eq!(code, Some(0), "{events:#?}");
    assert_eq!(count(&events, "clip_end", "status", "made"), 2);
    // A model after the other.
    assert_eq!(count(&events, "load_end", "network", "text encoder"), 2);
    assert!(bench.path("out/x_1.mp4").is_file());
}
