//! `sweep`: clips over all combinations of some flags' values.

use std::fs;
use std::process::Command;

use serde_json::Value;
use wan_i2v::media::read;

use crate::cli::batch::kills::Chance;
use crate::cli::foreign::leftover;
use crate::cli::running::Running;
use crate::cli::{Bench, Ran, run};
use crate::support::isolated::program;

/// What every clip here is like.
const FLAGS: [&str; 8] = [
    "--prompt",
    "a cat in the rain",
    "--frames",
    "5",
    "--device",
    "cpu",
    "--shift",
    "4",
];

impl Bench {
    /// A sweep into the folder `made`.
    pub fn sweep(&self, more: &[&str]) -> Command {
        let mut command = program();
        command.current_dir(self.path("."));
        command.arg("sweep").args(["--output-dir", "made"]);
        command.arg("--model").arg(self.checkpoint.root());
        command.arg("--image").arg(self.picture());
        command.args(FLAGS).args(more);
        command
    }

    fn results(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("made/results.json")).unwrap()).unwrap()
    }
}

fn stdout(ran: &Ran) -> String {
    String::from_utf8(ran.stdout.clone()).unwrap()
}

#[test]
fn all_combinations_are_made_and_what_is_there_is_kept() {
    let bench = Bench::new("a");
    let vary = [
        "--size",
        "32x32",
        "--vary",
        "steps=1,2",
        "--vary",
        "guide-scale=1;2,3",
    ];
    let ran = run(&mut bench.sweep(&vary));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // 1, 2, 2 and 4.
    assert!(
        ran.stderr.contains(" of memory, 9 passes"),
        "{}",
        ran.stderr
    );
    let names = [
        "steps-1_guide-scale-1",
        "steps-1_guide-scale-2,3",
        "steps-2_guide-scale-1",
        "steps-2_guide-scale-2,3",
    ];
    let files = names
        .iter()
        .flat_map(|n| [format!("{n}.mp4"), format!("{n}.json")]);
    let sheets = [
        "grid.png",
        "grid.mp4",
        "index.html",
        "plots.svg",
        "results.csv",
        "results.json",
    ];
    let expected: std::collections::BTreeSet<String> =
        files.chain(sheets.map(str::to_owned)).collect();
    assert_eq!(crate::cli::names(&bench.path("made")), expected);

    // The table: a heading and a line for each run.
    let table = stdout(&ran);
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.lines().nth(4).unwrap().trim_start().starts_with("2 "));
    let csv = fs::read_to_string(bench.path("made/results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 5);
    assert!(
        csv.lines()
            .nth(2)
            .unwrap()
            .starts_with("1,\"2,3\",\"steps-1_guide-scale-2,3.mp4\",32,32,5,")
    );
    let results = bench.results();
    let passes = |run: usize| {
        results["runs"][run]["outcome"]["passes"][0]
            .as_u64()
            .unwrap()
    };
    assert_eq!([passes(0), passes(1), passes(2), passes(3)], [1, 2, 2, 4]);

    // Where everything is, it says at the end.
    let last = ran.stderr.lines().last().unwrap();
    for file in ["made/grid.png", "made/grid.mp4", "made/index.html"] {
        assert!(last.contains(file), "{file}: {last}");
    }

    // Every clip is what the flags give without a sweep.
    let alone = [
        "--steps",
        "2",
        "--guide-scale",
        "2,3",
        "--seed",
        "0",
        "--shift",
        "4",
    ];
    bench.small("alone.mp4", &alone).assert_wrote("alone.mp4");
    let clip = |name: &str| fs::read(bench.path(name)).unwrap();
    assert_eq!(clip("alone.mp4"), clip("made/steps-2_guide-scale-2,3.mp4"));

    // Cells are seven times as large as the clips, two rows and two columns of them.
    let sheet = image::open(bench.path("made/grid.png")).unwrap();
    assert!(sheet.width() >= 2 * 3 * 224 && sheet.height() >= 2 * 224);
    let mut frames = 0;
    read::frames(&bench.path("made/grid.mp4"), &mut |frame| {
        let (width, height) = frame.pixels.dimensions();
        assert!(width >= 2 * 224 && width < sheet.width() && height >= 2 * 224);
        frames += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(frames, 5);

    // A clip that is gone is made again, as are values that are new; the rest is kept.
    let before = clip("made/steps-1_guide-scale-1.mp4");
    fs::remove_file(bench.path("made/steps-1_guide-scale-1.mp4")).unwrap();
    let vary = [
        "--size",
        "32x32",
        "--vary",
        "steps=1,2",
        "--vary",
        "guide-scale=1;2,3;5",
    ];
    let ran = run(&mut bench.sweep(&vary));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        ran.stderr.matches("made already").count(),
        3,
        "{}",
        ran.stderr
    );
    assert_eq!(clip("made/steps-1_guide-scale-1.mp4"), before);
    assert_eq!(stdout(&ran).lines().count(), 7);

    // Clips of other settings that are called the same are not these.
    let done = |size: &str| {
        let flags = ["--size", size, "--dry-run", "--json"];
        let listed = run(bench.sweep(&vary[2..]).args(flags));
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let runs = listed["runs"].as_array().unwrap().clone();
        runs.iter().filter(|run| run["done"] == true).count()
    };
    assert_eq!([done("32x32"), done("48x32")], [6, 0]);
}

#[test]
fn a_run_that_fails_does_not_keep_the_others() {
    let bench = Bench::new("a");
    let ran =
        run(&mut bench.sweep(&["--sizes", "32x32,8192x8192,48x32", "--steps", "1", "--json"]));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let printed: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(printed, bench.results());
    let runs = printed["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    assert_eq!(runs[0]["outcome"]["width"], 32);
    assert_eq!(runs[2]["outcome"]["width"], 48);
    let error = runs[1]["error"].as_str().unwrap();
    assert!(
        error.contains("8192x8192") && error.contains("3840x2160"),
        "{error}"
    );
    assert!(
        ran.stderr.contains("warning: run size-8192x8192 failed"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("error: 1 of 3 runs failed"),
        "{}",
        ran.stderr
    );
    assert!(bench.path("made/grid.mp4").is_file());
    let csv = fs::read_to_string(bench.path("made/results.csv")).unwrap();
    assert!(csv.lines().nth(2).unwrap().contains("3840x2160"), "{csv}");
}

#[test]
fn a_dry_run_lists_and_makes_nothing() {
    let bench = Bench::new("a");
    let vary = [
        "--vary",
        "seed=1,2",
        "--vary",
        "no-metadata=true,false",
        "--size",
        "32x32",
    ];
    let ran = run(bench.sweep(&vary).args(["--dry-run", "--steps", "3"]));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let table = stdout(&ran);
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(
        table.contains("32x32") && table.contains("4 runs, about"),
        "{table}"
    );
    assert!(bench.written().is_empty());
}

#[test]
fn a_sweep_that_is_stopped_goes_on() {
    let bench = Bench::new("a");
    let flags = ["--vary", "seed=1,2,3", "--size", "32x32", "--steps", "60"];
    let mut running = Running::start(&mut bench.sweep(&flags));
    running.wait_for("clip_end");
    running.signal("-INT");
    let (code, events) = running.end();
    assert_eq!(code, Some(130), "{events:?}");
    let ran = run(&mut bench.sweep(&flags));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("made already"), "{}", ran.stderr);
    assert_eq!(stdout(&ran).lines().count(), 4);
}

#[test]
fn a_sweep_that_is_killed_leaves_nothing_in_the_end() {
    let bench = Bench::new("a");
    let flags = ["--vary", "seed=1,2", "--size", "32x32", "--steps", "2"];
    let mut chance = Chance(7);
    for _ in 0..12 {
        let mut running = Running::start(&mut bench.sweep(&flags));
        for _ in 0..1 + chance.below(40) {
            running.next();
        }
        running.kill();
    }
    // As a run leaves them that is killed while it writes: what it makes of all runs, a record, a lock.
    let made = [
        "results.csv",
        "results.json",
        "plots.svg",
        "grid.png",
        "grid.mp4",
        "index.html",
    ];
    fs::create_dir_all(bench.path("made")).unwrap();
    let _ = fs::remove_file(bench.path("made/seed-1.json"));
    for name in made.iter().chain(&["seed-1.json"]) {
        fs::write(bench.path("made").join(leftover(name)), "half").unwrap();
    }
    let lock = bench.path("made/.seed-1.mp4.wan-lock");
    for _ in 0..2 {
        let ran = run(&mut bench.sweep(&flags));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let names = crate::cli::names(&bench.path("made"));
        let clips = ["seed-1.json", "seed-1.mp4", "seed-2.json", "seed-2.mp4"];
        let expected = made.iter().chain(&clips).map(|name| (*name).to_owned());
        assert_eq!(names, expected.collect());
        // It was killed between the record and the end of the clip.
        fs::write(&lock, "").unwrap();
    }
}

#[test]
fn what_no_sweep_has_made_is_not_replaced() {
    let bench = Bench::new("a");
    let flags = ["--vary", "seed=1", "--size", "32x32"];
    fs::create_dir(bench.path("made")).unwrap();
    for name in ["results.csv", "results.json", "grid.png", "index.html"] {
        let path = bench.path("made").join(name);
        fs::write(&path, "{}").unwrap();
        run(&mut bench.sweep(&flags)).assert_refused(1, &[name, "has made this", "replaced"]);
        assert_eq!(fs::read(&path).unwrap(), b"{}");
        fs::remove_file(path).unwrap();
    }
    assert!(crate::cli::names(&bench.path("made")).is_empty());
    // Nor a run's record, nor the picture that the clips are made from.
    fs::write(bench.path("made/seed-1.json"), "mine").unwrap();
    let ran = run(&mut bench.sweep(&flags));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("no sweep has made this"),
        "{}",
        ran.stderr
    );
    assert_eq!(fs::read(bench.path("made/seed-1.json")).unwrap(), b"mine");
}

#[test]
fn what_is_varied_puts_aside_what_conflicts_with_it_elsewhere() {
    let bench = Bench::new("a");
    fs::write(
        bench.path("config.toml"),
        "area = 2304\nvae = 'nowhere'\nsteps = 7\n",
    )
    .unwrap();
    let flags = ["--config", "config.toml", "--dry-run", "--json"];
    let vary = ["--vary", "size=32x32,48x32", "--vary", "steps=1,2"];
    let mut sweep = bench.sweep(&vary);
    let ran = run(sweep.args(flags).env("WAN_I2V_AREA", "4096"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let listed: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let runs = listed["runs"].as_array().unwrap().iter();
    let runs: Vec<_> = runs.map(|run| (&run["width"], &run["passes"])).collect();
    let [narrow, wide] = [32, 48].map(Value::from);
    let [two, four] = [2, 4].map(Value::from);
    assert_eq!(
        runs,
        [
            (&narrow, &two),
            (&narrow, &four),
            (&wide, &two),
            (&wide, &four)
        ]
    );
}

#[test]
fn wrong_sweeps_are_refused() {
    let bench = Bench::new("a");
    for (flags, parts) in [
        (&[][..], &["nothing is varied", "--vary steps=6,12,24"][..]),
        (&["--vary", "stepz=1,2"], &["stepz", "did you mean steps?"]),
        (
            &["--vary", "output=a.mp4"],
            &["--vary output", "no setting of a clip"],
        ),
        (&["--vary", "steps=1,two"], &["two", "--steps"]),
        (&["--vary", "steps"], &["expected a flag and its values"]),
        (&["--vary", "steps=1,1"], &["the value 1 twice"]),
        (
            &["--vary", "size=32x32", "--sizes", "48x48"],
            &["size is varied twice"],
        ),
        (
            &["--vary", "area=480p", "--size", "32x32"],
            &["--area", "--size"],
        ),
    ] {
        let ran = run(&mut bench.sweep(flags));
        ran.assert_refused(2, parts);
        assert!(bench.written().is_empty());
    }
}
