//! What people type who know other programs, or forget a flag or a quote.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::cli::running::Running;
use crate::cli::{Bench, Ran, program, run};

impl Bench {
    fn typed(&self, words: &[&str]) -> Ran {
        run(program().current_dir(self.work.path()).args(words))
    }

    /// The command that is suggested.
    fn hint(&self, words: &[&str]) -> String {
        let ran = self.typed(words);
        ran.assert_refused(2, &["\nhint: "]);
        let (_, hint) = ran.stderr.split_once("\nhint: ").unwrap();
        hint.trim_end().to_owned()
    }

    /// What `plan --json` makes of flags.
    fn planned(&self, flags: &[&str]) -> Value {
        let all = [&["plan", "--json", "--device", "cpu"], flags].concat();
        let ran = self.typed(&all);
        assert_eq!(ran.code, Some(0), "{flags:?}: {}", ran.stderr);
        serde_json::from_slice(&ran.stdout).unwrap()
    }
}

#[test]
fn words_without_a_flag_or_quotes_get_the_right_command() {
    let bench = Bench::new("a");
    for (words, command) in [
        (
            &["start.png", "the cat jumps"][..],
            "wan-i2v --image start.png --prompt 'the cat jumps'",
        ),
        (
            &["start.png", "the", "cat's", "tail", "--steps", "5"],
            r"wan-i2v --image start.png --prompt 'the cat'\''s tail' --steps 5",
        ),
        (
            &[
                "-i", "a.png", "--prompt", "the", "cat", "jumps", "--cfg", "2",
            ],
            "wan-i2v --image a.png --prompt 'the cat jumps' --guide-scale 2",
        ),
        (
            &["-n", "bad", "hands", "-i", "a.png", "-p=the", "cat", "-q"],
            "wan-i2v --image a.png --prompt 'the cat' --negative-prompt 'bad hands' --quiet",
        ),
        (
            &["-i", "my", "cat.png", "-p", "x"],
            "wan-i2v --image 'my cat.png' --prompt x",
        ),
        (
            &["a.png", "b.JPG", "from", "one", "to", "the", "other"],
            "wan-i2v --image a.png --last-image b.JPG --prompt 'from one to the other'",
        ),
        (
            &["generate", "-i", "a.png", "-p", "a cat", "-o=-x.mp4"],
            "wan-i2v --image a.png --prompt 'a cat' --output=-x.mp4",
        ),
        (
            &["a cat jumps"],
            "wan-i2v --image PICTURE --prompt 'a cat jumps'",
        ),
        (
            &["https://a.b/c", "$HOME"],
            "wan-i2v --image https://a.b/c --prompt '$HOME'",
        ),
        (
            &["plan", "a.png", "the", "cat"],
            "wan-i2v plan --image a.png --prompt 'the cat'",
        ),
        (
            &[
                "batch",
                "jobs.csv",
                "--output-dir",
                "out",
                "-p",
                "the",
                "cat",
            ],
            "wan-i2v batch jobs.csv --prompt 'the cat' --output-dir out",
        ),
        (&["-p", "x", "-i", "a.png", "show"], "wan-i2v show ..."),
        (
            &["-i", "a.png", "-p", "show", "plan", "b"],
            "wan-i2v --image a.png --prompt 'show plan b'",
        ),
        (
            &["surplus"],
            "wan-i2v --image PICTURE --prompt 'TEXT' makes a clip; all commands: wan-i2v --help",
        ),
        (&["man", "a", "b"], "all flags: wan-i2v man --help"),
        (&["show"], "all flags: wan-i2v show --help"),
        (
            &[],
            "such as wan-i2v --image start.png --prompt 'what happens'; all flags: wan-i2v --help",
        ),
    ] {
        assert_eq!(bench.hint(words), command, "{words:?}");
    }
    assert!(bench.written().is_empty());
}

/// A shell reads the hint as the words that were meant.
#[test]
fn the_suggested_command_is_quoted_for_a_shell() {
    let bench = Bench::new("a");
    let words = ["it's", "$(false)", "\"a\"\nb", "\\n", "*"];
    let hint = bench.hint(&[&["a.png"], &words[..]].concat());
    let script = format!("wan-i2v() {{ printf '%s\\0' \"$@\"; }}; {hint}");
    let ran = run(Command::new("bash").args(["-c", &script]));
    let read = String::from_utf8(ran.stdout).unwrap();
    let read: Vec<&str> = read.split_terminator('\0').collect();
    assert_eq!(read, ["--image", "a.png", "--prompt", &words.join(" ")]);
}

#[test]
fn what_other_programs_have_and_this_one_has_not_gets_advice() {
    let bench = Bench::new("a");
    for (flag, part) in [
        ("--lora_scale=0.8", "--lora PATH:0.8"),
        ("--scheduler=beta", "--solver chooses the solver"),
        ("--guidance_scale_2=3", "--guide-scale LOW,HIGH"),
        ("--resolution=480p", "--area 480p"),
        ("--task=i2v-A14B", "leave it out"),
        ("--offload_model=True", "--memory-budget"),
        ("--num_videos=4", "sweep --vary seed=1..4"),
        ("--teacache=0.2", "--cache teacache"),
    ] {
        let ran = bench.typed(&["-i", "a.png", "-p", "x", flag]);
        ran.assert_refused(
            2,
            &[&format!("unknown flag {}", &flag[..5]), "\nhint: ", part],
        );
    }
    // Wherever flags have names.
    fs::write(bench.path("a.toml"), "lora-scale = 1\n").unwrap();
    bench.typed(&["plan", "--config", "a.toml"]).assert_refused(
        2,
        &["a.toml: \"lora-scale\" is no setting", "--lora PATH:0.8"],
    );
    let mut set = program();
    set.current_dir(bench.work.path())
        .args(["plan", "--json", "--device=cpu"]);
    let ran = run(set.env("WAN_I2V_LORA_SCALE", "1"));
    assert!(
        ran.stderr
            .contains("WAN_I2V_LORA_SCALE sets nothing\nhint: the strength"),
        "{}",
        ran.stderr
    );
}

#[test]
fn seconds_and_sides_become_frames_and_sizes() {
    let bench = Bench::new("a");
    let picture = bench.picture();
    let picture = picture.to_str().unwrap();
    let of = |flags: &[&str]| {
        let plan = bench.planned(flags);
        ["width", "height", "frames"].map(|name| plan[name].as_u64().unwrap())
    };
    assert_eq!(of(&["--seconds", "5", "--fps", "16"]), [64, 64, 81]);
    assert_eq!(of(&["--seconds", "0.5", "--fps", "24"]), [64, 64, 13]);
    assert_eq!(of(&["--num-frames", "9"]), [64, 64, 9]);
    assert_eq!(of(&["-W", "96", "-H", "32"]), [96, 32, 17]);
    // The picture has 40 x 36 pixels.
    assert_eq!(of(&["-i", picture, "--width", "96"])[..2], [96, 80]);
    assert_eq!(of(&["-i", picture, "--height", "96"])[..2], [112, 96]);
    for (flags, part) in [
        (
            &["--seconds", "1000", "--fps", "16"][..],
            "16001 frames at 16 fps: expected 4n + 1",
        ),
        (&["--seconds", "0"], "more than 0"),
        (&["--seconds", "x"], "seconds, such as 5"),
        (
            &["--seconds", "5", "--frames", "5"],
            "cannot be used with '--frames",
        ),
        (
            &["-W", "100"],
            "100 is not a multiple of 16 from 16 to 8192; the nearest is 96",
        ),
        (&["-W", "96", "--size", "96x96"], "cannot be used with"),
        (&["-H", "96", "--area", "480p"], "cannot be used with"),
    ] {
        let ran = bench.typed(&[&["plan", "--device=cpu"], flags].concat());
        assert!(
            matches!(ran.code, Some(1 | 2)) && ran.stderr.contains(part),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn other_names_are_taken_from_variables_files_and_jobs_too() {
    let bench = Bench::new("a");
    fs::write(
        bench.path("a.toml"),
        "num_inference_steps = 5\nseconds = 0.5\nfps = 16\n",
    )
    .unwrap();
    let of = |command: &mut Command| -> [u64; 2] {
        command.current_dir(bench.work.path());
        let ran = run(command.args(["plan", "--json", "--device=cpu", "--config", "a.toml"]));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let plan: Value = serde_json::from_slice(&ran.stdout).unwrap();
        ["steps", "frames"].map(|name| plan[name].as_u64().unwrap())
    };
    assert_eq!(of(&mut program()), [5, 9]);
    assert_eq!(of(program().env("WAN_I2V_SAMPLE_STEPS", "6")), [6, 9]);
    // What is stronger rules out the other way to say it.
    assert_eq!(of(program().env("WAN_I2V_NUM_FRAMES", "13")), [5, 13]);
    let twice = "steps = 5\nsample_steps = 6\n";
    fs::write(bench.path("b.toml"), twice).unwrap();
    bench
        .typed(&["plan", "--config", "b.toml"])
        .assert_refused(2, &["steps\" is there twice"]);
    let picture = bench.picture();
    let job = serde_json::json!({
        "image_path": picture, "prompt": "a cat", "num_frames": 5, "infer_steps": 2, "base_seed": 3,
        "cfg": 1, "size": "32*32"
    });
    fs::write(bench.path("jobs.jsonl"), job.to_string()).unwrap();
    let ran = bench.typed(&[
        "batch",
        "jobs.jsonl",
        "--output-dir",
        "out",
        "--device",
        "cpu",
    ]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let shown = bench.typed(&["show", "--json", "out/start_3.mp4"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(
        [&shown["frames"], &shown["steps"], &shown["seed"]],
        [5, 2, 3]
    );
}

#[test]
fn a_saved_run_says_how_far_it_is_and_how_to_go_on() {
    let bench = Bench::new("a");
    // More than a pipe holds: the run waits to be read.
    let flags = ["--steps", "130"];
    let mut running = Running::start(&mut bench.clip("clip.mp4", &flags));
    running.wait_for("step");
    running.signal("-INT");
    assert_eq!(running.end().0, Some(130));
    // By its own name, and by that of the clip that it is to be.
    for file in ["clip.mp4.wan-state", "clip.mp4"] {
        let ran = bench.typed(&["show", file]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let text = String::from_utf8(ran.stdout).unwrap();
        assert!(
            text.contains(" of 130 steps are taken") && text.contains("prompt  "),
            "{text}"
        );
        let json = bench.typed(&["show", "--json", file]).stdout;
        let json: Value = serde_json::from_slice(&json).unwrap();
        let taken = json["steps_taken"].as_u64().unwrap();
        assert!(
            (1..130).contains(&taken) && json["settings"]["steps"] == "130",
            "{json}"
        );
        // What a shell makes of the command is what was run.
        let (_, command) = text.split_once("\nthis resumes it:\n").unwrap();
        let script = format!("wan-i2v() {{ printf '%s\\0' \"$PWD\" \"$@\"; }}; {command}");
        let read = run(Command::new("bash").args(["-c", &script])).stdout;
        let read = String::from_utf8(read).unwrap();
        let mut words = read.split_terminator('\0').map(str::to_owned);
        let folder = bench.work.path().canonicalize().unwrap();
        assert_eq!(words.next(), folder.to_str().map(str::to_owned));
        let arguments = json["started"]["arguments"].as_array().unwrap();
        let arguments = arguments
            .iter()
            .map(|word| word.as_str().unwrap().to_owned());
        assert_eq!(words.collect::<Vec<_>>(), arguments.collect::<Vec<_>>());
    }
}
