//! Where a job's settings come from, beside its own line.

use std::fs;

use serde_json::json;

use super::paths;
use crate::cli::metadata::shown;
use crate::cli::running::succeed;
use crate::cli::{Bench, program, run};

#[test]
fn prompts_in_files_are_found_from_where_they_are_named() {
    let bench = Bench::new("a");
    for folder in ["texts", "jobs/texts"] {
        fs::create_dir_all(bench.path(folder)).unwrap();
    }
    for (path, text) in [
        ("jobs/texts/cat.txt", "a cat\n"),
        ("jobs/blur.txt", "blur"),
        ("dog.txt", "a dog"),
        // The same names where nobody means them.
        ("texts/cat.txt", "not this cat"),
        ("blur.txt", "not this blur"),
        ("jobs/dog.txt", "not this dog"),
    ] {
        fs::write(bench.path(path), text).unwrap();
    }
    let jobs = r#"{"name": "a", "prompt": "@texts/cat.txt", "negative_prompt": "@blur.txt"}
        {"name": "b"}
        {"name": "c", "prompt": "@@cat.txt"}
        {"name": "d", "prompt": "@texts/cta.txt"}
        {"name": "e", "negative-prompt": "@none.txt"}
        {"name": "f", "prompt": "@texts"}"#;
    let flags = ["--prompt", "@dog.txt", "--seed", "1"];
    let ran = run(&mut bench.batch("jobs/jobs.jsonl", jobs, &flags));
    assert_eq!(ran.code, Some(1));
    let made = ["out/a_1.mp4", "out/b_1.mp4", "out/c_1.mp4"];
    assert_eq!(paths(&ran), made, "{}", ran.stderr);
    let prompts = made.map(|clip| shown(&bench, clip)["prompt"].clone());
    assert_eq!(prompts, ["a cat", "a dog", "@cat.txt"]);
    assert_eq!(shown(&bench, "out/a_1.mp4")["negative_prompt"], "blur");
    for (line, parts) in [
        (
            4,
            &["--prompt @jobs/texts/cta.txt", "No such file", "cat.txt?"][..],
        ),
        (5, &["--negative-prompt @jobs/none.txt", "No such file"]),
        (6, &["--prompt @jobs/texts", "it is a folder"]),
    ] {
        let place = format!("failed: jobs/jobs.jsonl, line {line}: ");
        let said = ran.stderr.lines().find(|said| said.starts_with(&place));
        let said = said.unwrap_or_else(|| panic!("{place} in {}", ran.stderr));
        for part in parts {
            assert!(said.contains(part), "{part:?} in {said}");
        }
    }

    // What the file says of all its jobs is said there, too.
    let jobs = "[defaults]\nprompt = '@texts/cat.txt'\n[[job]]\nname = 'g'\nseed = 1";
    succeed(&mut bench.batch("jobs/jobs.toml", jobs, &[]));
    assert_eq!(shown(&bench, "out/g_1.mp4")["prompt"], "a cat");
}

#[test]
fn variables_are_settings_of_jobs_that_say_nothing_else() {
    let bench = Bench::new("a");
    let jobs = r#"{"name": "a"}
        {"name": "b", "prompt": "a cat", "seed": 2, "fps": 8, "solver": "unipc", "area": 2304}"#;
    let mut batch = bench.batch("jobs.jsonl", jobs, &["-v"]);
    for (name, value) in [
        ("PROMPT", "a dog"),
        ("SEED", "9"),
        ("FPS", "12"),
        ("SOLVER", "euler"),
        // The command line has its own.
        ("FRAMES", "9"),
        ("SIZE", "64x64"),
    ] {
        batch.env(format!("WAN_I2V_{name}"), value);
    }
    let ran = succeed(&mut batch);
    assert_eq!(paths(&ran), ["out/a_9.mp4", "out/b_2.mp4"]);
    for name in ["PROMPT", "SEED", "FPS", "SOLVER"] {
        let mut said = ran
            .stderr
            .lines()
            .filter(|line| line.starts_with("set by "));
        let name = format!("WAN_I2V_{name}");
        assert!(said.any(|line| line.contains(&name)), "{}", ran.stderr);
    }
    for (clip, prompt, fps, solver, width) in [
        ("out/a_9.mp4", "a dog", 12.0, "euler", 32),
        ("out/b_2.mp4", "a cat", 8.0, "unipc", 48),
    ] {
        let record = shown(&bench, clip);
        assert_eq!(record["prompt"], prompt);
        assert_eq!(record["fps"], fps);
        assert_eq!(record["solver"], solver);
        assert_eq!(
            (&record["width"], &record["frames"]),
            (&width.into(), &5.into())
        );
    }

    // The same settings from elsewhere ask for the same clips.
    let jobs = r#"{"name": "a", "prompt": "a dog", "seed": 9, "fps": 12, "solver": "euler"}"#;
    let ran = succeed(&mut bench.batch("others.jsonl", jobs, &[]));
    assert!(paths(&ran).is_empty(), "{}", ran.stderr);

    let mut batch = bench.batch("jobs.jsonl", jobs, &[]);
    run(batch.env("WAN_I2V_SHIFT", "x")).assert_refused(2, &["WAN_I2V_SHIFT: invalid value 'x'"]);
}

#[test]
fn a_job_then_the_command_line_then_its_file_then_variables_then_the_config() {
    let bench = Bench::new("a");
    let config = "prompt = 'a dog'\nfps = 5\nshift = 5\nguide-scale = 5\nsolver = 'euler'\n\
                  no-metadata = true\nno-checkpoint = true\nvae = 'nowhere'\n";
    fs::write(bench.path("config.toml"), config).unwrap();
    let model = bench.checkpoint.root().display().to_string();
    let jobs = format!(
        "[defaults]\nfps = 3\nshift = 3\nguide-scale = 3\nseed = 3\nno-metadata = false\n\
         area = 2304\nmodel = {model:?}\n[[job]]\nname = 'a'\n\
         [[job]]\nname = 'b'\nfps = 1\nguide-scale = 1\nseed = 1\n"
    );
    let batch = |jobs: &str| {
        fs::write(bench.path("jobs.toml"), jobs).unwrap();
        let mut command = program();
        command
            .current_dir(bench.work.path())
            .args(["batch", "jobs.toml", "--output-dir", "out"])
            .args(["--config", "config.toml", "--device", "cpu"])
            .args([
                "--fps", "2", "--shift", "2", "--frames", "5", "--steps", "3",
            ])
            .arg("--image")
            .arg(bench.picture())
            .env("WAN_I2V_FPS", "4")
            .env("WAN_I2V_SHIFT", "4")
            .env("WAN_I2V_GUIDE_SCALE", "4")
            .env("WAN_I2V_SOLVER", "unipc")
            .env("WAN_I2V_SEED", "4")
            // Something else that the area of the jobs' file takes away.
            .env("WAN_I2V_SIZE", "48x48");
        command
    };
    let ran = succeed(&mut batch(&jobs));
    assert_eq!(
        paths(&ran),
        ["out/a_3.mp4", "out/b_1.mp4"],
        "{}",
        ran.stderr
    );
    for (clip, fps, guide) in [("out/a_3.mp4", 2.0, 3.0), ("out/b_1.mp4", 1.0, 1.0)] {
        let record = shown(&bench, clip);
        assert_eq!(record["prompt"], "a dog", "{record}");
        assert_eq!(record["fps"], fps);
        assert_eq!(record["shift"], 2.0);
        assert_eq!(
            record["guide_scale"],
            json!({ "low": guide, "high": guide })
        );
        assert_eq!(record["solver"], "unipc");
        assert_eq!(
            (&record["width"], &record["height"]),
            (&json!(48), &json!(32))
        );
    }

    // Seeds of the command line come before the file's, and these before a variable's.
    let one = format!("[defaults]\nmodel = {model:?}\n[[job]]\nname = 'a'\n");
    let own = one.replace("model", "seeds = '6,7'\nmodel");
    fs::write(
        bench.path("config.toml"),
        "prompt = 'a dog'\nsize = '32x32'\n[batch]\nseeds = '8,9'\n",
    )
    .unwrap();
    for (variable, jobs, more, expected) in [
        ("4", &one, &[][..], "a_4.mp4"),
        ("4", &own, &[], "a_6.mp4"),
        ("4", &own, &["--seeds", "2"], "a_2.mp4"),
        ("4", &own, &["--seed", "2"], "a_2.mp4"),
        ("", &one, &[], "a_8.mp4"),
        ("", &own, &[], "a_6.mp4"),
        ("", &one, &["--seed", "2"], "a_2.mp4"),
    ] {
        let mut dry = batch(jobs);
        let ran = succeed(
            dry.args(more)
                .arg("--dry-run")
                .env("WAN_I2V_SEED", variable),
        );
        let text = String::from_utf8(ran.stdout).unwrap();
        let first = text.lines().nth(1).unwrap_or_default();
        assert!(first.starts_with(expected), "{expected} in {text}");
    }
}
