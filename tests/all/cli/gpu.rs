//! Errors of the GPU, injected where MLX reports them: the program goes on in a fresh process, or says why
//! not.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use wan_i2v::persist::SavedRun;

use crate::cli::running::{Running, bytes, succeed};
use crate::cli::{Bench, run};

const TIMEOUT: &str = "[METAL] Command buffer execution failed: Caused GPU Timeout Error \
                       (00000002:kIOGPUCommandBufferCallbackErrorTimeout).";
const MEMORY: &str = "[METAL] Command buffer execution failed: Insufficient Memory \
                      (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).";
const LOST: &str = "[METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU \
                    errors) (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored).";

/// Has the step or decoded part `at` of each process fail, while fewer than `tries` got no further.
fn failing<'c>(command: &'c mut Command, at: usize, tries: usize, text: &str) -> &'c mut Command {
    command.env("WAN_TEST_GPU_ERROR", format!("{at}/{tries}/{text}"))
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn a_run_that_the_gpu_ends_goes_on_to_the_same_bytes() {
    let bench = Bench::new("a");
    succeed(&mut bench.clip("whole.mp4", &[]));
    let expected = bytes(&bench.path("whole.mp4"));
    // In a step, and in each of the three parts that are decoded after five of them.
    for (at, text) in [(1, LOST), (3, TIMEOUT), (6, LOST), (8, TIMEOUT)] {
        let ran = run(failing(&mut bench.clip("clip.mp4", &[]), at, 1, text));
        ran.assert_wrote("clip.mp4");
        assert!(bytes(&bench.path("clip.mp4")) == expected, "{at}");
        bench.assert_only(&["clip.mp4", "whole.mp4"]);
        let saved = (at - 1).min(5);
        let from = match saved {
            0 => "starting over".to_owned(),
            _ => format!("resuming after step {saved}"),
        };
        let line = format!("; {from} in a fresh process, try 1 of 3\n");
        assert_eq!(count(&ran.stderr, &line), 1, "{at}: {}", ran.stderr);
        assert_eq!(count(&ran.stderr, "warning: the GPU "), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(text), "{}", ran.stderr);
        fs::remove_file(bench.path("clip.mp4")).unwrap();
    }
}

#[test]
fn it_goes_on_as_long_as_it_gets_further() {
    let bench = Bench::new("a");
    succeed(&mut bench.clip("whole.mp4", &[]));
    // Each process takes one step. What is asked for once (a new beginning) is done once.
    let ran = run(failing(
        &mut bench.clip("clip.mp4", &["--resume", "never"]),
        2,
        9,
        LOST,
    ));
    assert_eq!(count(&ran.stderr, "try 1 of 3"), 5, "{}", ran.stderr);
    // Decoding saves nothing, and has three parts.
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("resuming after step 5 in a fresh process, try 3 of 3")
    );
    let ran = succeed(&mut bench.clip("clip.mp4", &[]));
    assert!(
        ran.stderr.contains("resuming after step 5"),
        "{}",
        ran.stderr
    );
    assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
}

#[test]
fn what_comes_again_and_again_ends_the_run() {
    let bench = Bench::new("a");
    let ran = run(failing(&mut bench.clip("clip.mp4", &[]), 1, 9, TIMEOUT));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(
        count(&ran.stderr, "in a fresh process, try "),
        3,
        "{}",
        ran.stderr
    );
    let error = &ran.stderr[ran.stderr.find("error: ").unwrap()..];
    for part in [
        "took too long and was interrupted, 4 times without a step in between: step 1 of 5 ",
        TIMEOUT,
        "\nhint: ",
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1",
        "let the display sleep",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!bench.path("clip.mp4").exists());
}

#[test]
fn who_wants_no_retry_gets_a_saved_run() {
    let bench = Bench::new("a");
    succeed(&mut bench.clip("whole.mp4", &[]));
    let ran = run(failing(
        &mut bench.clip("clip.mp4", &["--no-retry"]),
        3,
        9,
        LOST,
    ));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(!ran.stderr.contains("fresh process"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("(--no-retry): step 3 of 5"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("hint: the state after step 2"),
        "{}",
        ran.stderr
    );
    bench.assert_only(&["clip.mp4.wan-state", "whole.mp4"]);
    let ran = succeed(&mut bench.clip("clip.mp4", &["--no-retry"]));
    assert!(
        ran.stderr.contains("resuming after step 2"),
        "{}",
        ran.stderr
    );
    assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));

    // Nor is there anything to resume where nothing was saved; a variable is as good as a flag.
    let ran = run(failing(
        &mut bench.clip("other.mp4", &["--no-checkpoint"]),
        3,
        9,
        LOST,
    ));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("nothing was saved (--no-checkpoint)"),
        "{}",
        ran.stderr
    );
    let mut command = bench.clip("other.mp4", &[]);
    let ran = run(failing(command.env("WAN_I2V_NO_RETRY", "1"), 1, 9, LOST));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(!ran.stderr.contains("fresh process"), "{}", ran.stderr);
}

#[test]
fn out_of_memory_goes_on_in_smaller_parts() {
    let bench = Bench::new("a");
    let clip = |name| bench.clip(name, &["--size", "96x96"]);
    let mut command = clip("clip.mp4");
    let (code, events) = Running::start(failing(&mut command, 2, 1, MEMORY)).end();
    assert_eq!(code, Some(0), "{events:#?}");
    let named = |name: &str| -> Vec<Value> {
        let events = events.iter();
        events
            .filter(|event| event["event"] == name)
            .cloned()
            .collect()
    };
    assert_eq!(named("resume")[0]["step"], 1);
    let text = named("warning")[0]["message"].to_string();
    assert!(
        text.contains("no memory left") && text.contains("in smaller parts"),
        "{text}"
    );

    // When no parts are small enough the run ends; the same command resumes what is saved, though it was
    // computed in other parts.
    let ran = run(failing(&mut clip("other.mp4"), 2, 9, MEMORY));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("in smaller parts, try "),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("cannot be computed in smaller parts"),
        "{}",
        ran.stderr
    );
    let saved = SavedRun::read(&bench.state("other.mp4")).unwrap();
    let items = saved.identity.items().iter();
    let mut joint = items.filter(|item| item.name.starts_with("joint passes"));
    assert_eq!(joint.next().unwrap().value, "false");
    let ran = succeed(&mut clip("other.mp4"));
    assert!(
        ran.stderr.contains("resuming after step "),
        "{}",
        ran.stderr
    );
    bench.assert_only(&["clip.mp4", "other.mp4"]);
}

#[test]
fn what_came_from_standard_input_is_there_again() {
    let bench = Bench::new("a");
    succeed(&mut bench.clip("whole.mp4", &[]));
    let prompt = bench.path("prompt.txt");
    fs::write(&prompt, "a cat in the rain\n").unwrap();
    let mut command = bench.clip("clip.mp4", &["--prompt", "-"]);
    command.stdin(Stdio::from(fs::File::open(&prompt).unwrap()));
    let ran = run(failing(&mut command, 2, 1, LOST));
    ran.assert_wrote("clip.mp4");
    assert!(
        ran.stderr.contains("resuming after step 1,"),
        "{}",
        ran.stderr
    );
    assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
}

#[test]
fn a_seed_and_a_name_that_were_left_open_stay() {
    let bench = Bench::new("a");
    let mut command = bench.command();
    command.args([
        "-p", "x", "--size", "32x32", "--frames", "5", "--steps", "3",
    ]);
    let ran = run(failing(command.args(["--device", "cpu"]), 2, 1, LOST));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let name = String::from_utf8(ran.stdout).unwrap();
    bench.assert_only(&[name.trim_end()]);
}

#[test]
fn a_batch_and_a_sweep_go_on_by_themselves() {
    let bench = Bench::new("a");
    let jobs = "{\"name\": \"a\", \"seed\": 1, \"prompt\": \"x\"}\n{\"name\": \"b\", \"seed\": 2, \"prompt\": \"x\"}\n";
    let batch = |more: &[&str]| bench.batch("jobs.jsonl", jobs, more);
    succeed(&mut batch(&["--jobs-at-once", "1"]));
    let expected = bench.clips();
    fs::remove_dir_all(bench.path("out")).unwrap();
    // Five parts a clip; the second clip's second step fails.
    let at_once = ["--jobs-at-once", "1"];
    let ran = run(failing(&mut batch(&at_once), 7, 1, LOST));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        count(
            &ran.stderr,
            "the batch goes on in a fresh process, try 1 of 3\n"
        ),
        1
    );
    assert_eq!(
        String::from_utf8(ran.stdout).unwrap(),
        "out/a_1.mp4\nout/b_2.mp4\n"
    );
    assert!(bench.clips() == expected);
    assert!(
        ran.stderr.contains("1 of them there already"),
        "{}",
        ran.stderr
    );
    fs::remove_dir_all(bench.path("out")).unwrap();

    // The one that failed is no clip that cannot be made: the same command goes on.
    let ran = run(failing(&mut batch(&["--no-retry"]), 2, 9, TIMEOUT));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("out/a_1.mp4: step 2 of 3"),
        "{}",
        ran.stderr
    );
    succeed(&mut batch(&at_once));
    assert!(bench.clips() == expected);

    let mut sweep = crate::cli::program();
    sweep.current_dir(bench.work.path());
    sweep.args([
        "sweep",
        "--output-dir",
        "swept",
        "--vary",
        "steps=2,3",
        "-p",
        "x",
    ]);
    sweep.arg("--model").arg(bench.checkpoint.root());
    sweep.arg("--image").arg(bench.picture());
    sweep.args(["--size", "32x32", "--frames", "5", "--device", "cpu"]);
    let ran = run(failing(&mut sweep, 2, 1, MEMORY));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        count(&ran.stderr, "in smaller parts, try 1 of 3\n"),
        1,
        "{}",
        ran.stderr
    );
}
