//! What is done after a clip: `--exec` and `--open`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli::{Bench, run};

impl Bench {
    /// A program of this name that writes its arguments, a line each, to `NAME.log`, says something,
    /// and ends with `code`; and a folder for PATH.
    fn fake(&self, name: &str, code: i32) -> String {
        let folder = self.path("bin");
        fs::create_dir_all(&folder).unwrap();
        let log = self.path(&format!("{name}.log"));
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{}'\necho heard\nexit {code}\n",
            log.display()
        );
        fs::write(folder.join(name), script).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        format!("{}:{path}", folder.display())
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

fn small(bench: &Bench, output: &str, more: &[&str]) -> Command {
    let mut command = bench.command();
    command.args([
        "-p", "x", "--size", "32x32", "--frames", "1", "--steps", "1",
    ]);
    command
        .args(["--seed", "1", "--device", "cpu"])
        .arg(format!("--output={output}"))
        .args(more);
    command
}

#[test]
fn a_command_gets_the_clip_as_one_word() {
    let bench = Bench::new("a");
    let path = bench.fake("hear", 0);
    let name = "a b; $(touch c) 'd'.mp4";
    let ran =
        run(small(&bench, name, &["--exec", "hear --to='{} x' {} \"e f\""]).env("PATH", &path));
    // Stdout has the clip's path and nothing of the command's.
    ran.assert_wrote(name);
    assert!(ran.stderr.contains("heard\n"), "{}", ran.stderr);
    assert_eq!(bench.log("hear"), format!("--to={name} x\n{name}\ne f\n"));
    // It is run again where the clip is there already, and set by a variable.
    let mut again = small(&bench, name, &[]);
    let ran = run(again.env("PATH", &path).env("WAN_I2V_EXEC", "hear"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(bench.log("hear").ends_with(&format!("e f\n{name}\n")));
}

#[test]
fn a_command_that_fails_leaves_the_clip() {
    let bench = Bench::new("a");
    let path = bench.fake("fail", 7);
    let ran = run(small(&bench, "clip.mp4", &["--exec", "fail {}"]).env("PATH", &path));
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.stdout, b"clip.mp4\n");
    let error = "error: --exec: fail clip.mp4: it failed with exit code 7\nhint: the clip is complete: clip.mp4\n";
    assert!(ran.stderr.ends_with(error), "{}", ran.stderr);
    assert!(bench.path("clip.mp4").is_file());
    // One that is not there is found before anything is made.
    for (exec, part) in [
        ("nowhere-to-be-found {}", "in any folder of PATH"),
        ("./none", "no such program"),
    ] {
        run(&mut small(&bench, "x.mp4", &["--exec", exec])).assert_refused(1, &["--exec", part]);
    }
    for exec in ["", "a 'b"] {
        run(&mut small(&bench, "x.mp4", &["--exec", exec])).assert_refused(2, &["--exec"]);
    }
    assert!(!bench.path("x.mp4").exists());
}

#[test]
fn the_finished_clip_is_opened() {
    let bench = Bench::new("a");
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let path = bench.fake(opener, 0);
    let ran = run(small(&bench, "-clip.mp4", &[])
        .arg("--open")
        .env("PATH", &path));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // Nobody waits for it.
    let start = Instant::now();
    while bench.log(opener).is_empty() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(bench.log(opener), "./-clip.mp4\n");
}

#[test]
fn each_clip_of_a_batch_has_the_command_and_no_job_sets_one() {
    let bench = Bench::new("a");
    let path = bench.fake("hear", 0);
    let jobs = "{\"prompt\": \"a\", \"name\": \"a\", \"seed\": 1}\n{\"prompt\": \"b\", \"name\": \"b\", \"seed\": 1}\n";
    let ran = run(bench
        .batch("jobs.jsonl", jobs, &["--exec", "hear {}"])
        .env("PATH", &path));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(bench.log("hear"), "out/a_1.mp4\nout/b_1.mp4\n");
    let path = bench.fake("fail", 3);
    let more = ["--exec", "fail", "--output", "{name}-{seed}.mp4"];
    let ran = run(bench.batch("jobs.jsonl", jobs, &more).env("PATH", &path));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("--exec: fail out/b-1.mp4: it failed with exit code 3"),
        "{}",
        ran.stderr
    );
    for key in ["exec", "open", "notify"] {
        let jobs = format!("{{\"prompt\": \"a\", \"{key}\": \"hear {{}}\"}}\n");
        let ran = run(&mut bench.batch("jobs.jsonl", &jobs, &[]));
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stderr
                .contains(&format!("{key} is for the whole batch")),
            "{}",
            ran.stderr
        );
        let defaults = format!("[defaults]\n{key} = \"true\"\n[[job]]\nprompt = \"a\"\n");
        let ran = run(&mut bench.batch("jobs.toml", &defaults, &[]));
        assert!(
            ran.stderr
                .contains(&format!("{key} is for the whole batch")),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(bench.log("hear"), "out/a_1.mp4\nout/b_1.mp4\n");
}
