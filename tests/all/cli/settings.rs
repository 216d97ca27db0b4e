//! Settings from variables and files, and which of them comes first.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::cli::{Bench, Ran, program, run};

impl Bench {
    /// Puts a file of settings where the program looks for it.
    fn config(&self, text: &str) -> PathBuf {
        let path = self.path("home/wan-i2v/config.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A command that looks for it there.
    fn set(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.current_dir(self.work.path()).args(arguments);
        command.env("XDG_CONFIG_HOME", self.path("home"));
        command
    }
}

impl Ran {
    /// What `plan --json` says.
    fn plan(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

#[test]
fn the_command_line_comes_before_variables_and_these_before_the_file() {
    let bench = Bench::new("a");
    let plan = |command: &mut Command| {
        let plan = run(command).plan();
        ["steps", "frames", "width"].map(|name| plan[name].as_u64().unwrap())
    };
    let flags = ["plan", "--json", "--device=cpu"];
    let built_in = plan(&mut bench.set(&flags));
    assert_eq!(built_in, [12, 17, 64]);
    bench.config("steps = 5\nframes = 9\nsize = \"32x32\"\n[generate]\nframes = 13\n");
    assert_eq!(plan(&mut bench.set(&flags)), [5, 13, 32]);
    assert_eq!(plan(bench.set(&flags).arg("--no-config")), built_in);
    let off = plan(bench.set(&flags).env("WAN_I2V_NO_CONFIG", "1"));
    assert_eq!(off, built_in);
    let mut set = bench.set(&flags);
    assert_eq!(plan(set.env("WAN_I2V_STEPS", "6")), [6, 13, 32]);
    // An empty variable is none.
    assert_eq!(plan(set.env("WAN_I2V_FRAMES", "")), [6, 13, 32]);
    assert_eq!(plan(set.args(["--steps", "7"])), [7, 13, 32]);
    // What conflicts with what comes first is left out.
    assert_eq!(plan(set.args(["--area", "2304"])), [7, 13, 48]);
    // A command's own section comes before what is for clips in general.
    bench.config("steps = 5\n[generate]\nsteps = 6\n[plan]\nsteps = 8\n");
    assert_eq!(plan(&mut bench.set(&flags)), [8, 17, 64]);
    // Elsewhere.
    fs::write(bench.path("other.toml"), "steps = 9\n").unwrap();
    let mut other = bench.set(&flags);
    assert_eq!(plan(other.env("WAN_I2V_CONFIG", "other.toml")), [9, 17, 64]);
    fs::write(bench.path("third.toml"), "").unwrap();
    assert_eq!(plan(other.arg("--config=third.toml")), built_in);
}

#[test]
fn a_file_may_set_everything_that_a_clip_needs() {
    let bench = Bench::new("a");
    let model = bench.checkpoint.root().to_str().unwrap();
    let picture = bench.picture();
    let config = bench.config(&format!(
        "model = {model:?}\nimage = {picture:?}\nprompt = '''\n--a \"cat\" '''\n\
         size = '32x32'\nframes = 5\nsteps = 2\nguide_scale = [1.5, 2]\nno-metadata = true\n\
         no-checkpoint = false\noutput = 'set.mp4'\n[pull]\nbits = 4\n"
    ));
    let ran = run(bench
        .set(&["--device", "cpu", "-v"])
        .env("WAN_I2V_SEED", "9"));
    ran.assert_wrote("set.mp4");
    assert!(
        ran.stderr.contains("guidance 1.5,2 ") && ran.stderr.contains("seed 9\n"),
        "{}",
        ran.stderr
    );
    // It says what it did not read from the command line.
    let said = format!("set by WAN_I2V_SEED; {}: frames, ", config.display());
    assert!(ran.stderr.contains(&said), "{}", ran.stderr);
    let shown = run(program().arg("show").arg(bench.path("set.mp4")));
    assert_eq!(shown.code, Some(1), "no-metadata");
    // A variable can take back what the file switches on.
    let mut set = bench.set(&["--device", "cpu", "--quiet", "--overwrite"]);
    let ran = run(set.env("WAN_I2V_NO_METADATA", "false"));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let shown = run(program().arg("show").arg(bench.path("set.mp4")));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("--a \"cat\""));
}

#[test]
fn who_names_a_model_means_it_whole() {
    let bench = Bench::new("a");
    bench.config("model = 'somewhere'\nvae = 'nowhere'\n");
    let ran = run(&mut bench.set(&["plan", "--json", "--device=cpu", "--model=tiny"]));
    assert_eq!(ran.plan()["width"], 64);
}

#[test]
fn what_cannot_be_read_is_named_and_breaks_nothing_else() {
    let bench = Bench::new("a");
    for (text, parts) in [
        ("steps = ", &["config.toml, line 1: "][..]),
        ("steps = 1\n\nsteps = 2", &["config.toml, line 3: "]),
        (
            "stepps = 1",
            &[
                "config.toml: \"stepps\" is no setting",
                "did you mean steps?",
            ],
        ),
        (
            "steps = 'many'",
            &["config.toml: steps: invalid value 'many'"],
        ),
        ("shift = nan", &["config.toml: shift: invalid value 'NaN'"]),
        (
            "steps = true",
            &["config.toml: steps is true; expected a text"],
        ),
        (
            "quiet = 3",
            &["config.toml: quiet is 3; expected true or false"],
        ),
        ("config = 'x'", &["config.toml: \"config\" is no setting"]),
        ("help = true", &["config.toml: \"help\" is no setting"]),
        (
            "solver = 'unipx'",
            &["config.toml: solver: ", "'unipx'", "mean unipc?"],
        ),
        (
            "size = '32x32'\narea = 9999",
            &["config.toml: ", "cannot be used with"],
        ),
        (
            "[plans]\nsteps = 1",
            &["config.toml: [plans]", "did you mean plan?"],
        ),
        ("[show]\njson = true", &["config.toml: [show]"]),
        (
            "[generate]\nstep = 1",
            &["config.toml, [generate]: \"step\""],
        ),
        (
            "[generate.deep]\nx = 1",
            &["config.toml, [generate]: \"deep\""],
        ),
    ] {
        bench.config(text);
        let ran = run(&mut bench.set(&["--image=none.png", "--prompt=x"]));
        ran.assert_refused(2, parts);
        for fine in [
            &["--help"][..],
            &["-h"],
            &["--version"],
            &["plan", "--help"],
        ] {
            assert_eq!(run(&mut bench.set(fine)).code, Some(0), "{text}");
        }
        let mut without = bench.set(&["plan", "--no-config", "--device=cpu", "--json"]);
        run(&mut without).plan();
    }
    fs::write(bench.path("home/wan-i2v/config.toml"), b"steps = 1 # \xff").unwrap();
    run(&mut bench.set(&["plan"])).assert_refused(2, &["config.toml", "UTF-8"]);
    // No command line is wrong because of a file.
    run(&mut bench.set(&["plan", "--stepps=1"])).assert_refused(2, &["unknown flag --stepps"]);
    let mut missing = bench.set(&["plan", "--config", "none.toml"]);
    run(&mut missing).assert_refused(2, &["none.toml", "No such file"]);
    let mut folder = bench.set(&["plan", "--config", "home"]);
    run(&mut folder).assert_refused(2, &["home", "it is a folder"]);
    fs::remove_file(bench.path("home/wan-i2v/config.toml")).unwrap();
    for (name, value, parts) in [
        (
            "WAN_I2V_STEPS",
            "x",
            &["WAN_I2V_STEPS: invalid value 'x'"][..],
        ),
        (
            "WAN_I2V_QUIET",
            "maybe",
            &["WAN_I2V_QUIET is \"maybe\"", "1 or 0"],
        ),
        (
            "WAN_I2V_CONFIG",
            "none.toml",
            &["none.toml", "No such file"],
        ),
    ] {
        let mut set = bench.set(&["--image=none.png", "--prompt=x"]);
        run(set.env(name, value)).assert_refused(2, parts);
    }
    let mut set = bench.set(&["plan", "--json", "--device=cpu"]);
    let ran = run(set.env("WAN_I2V_STEP", "3"));
    ran.plan();
    let warned = "warning: WAN_I2V_STEP sets nothing\nhint: did you mean WAN_I2V_STEPS?";
    assert!(ran.stderr.contains(warned), "{}", ran.stderr);
}
