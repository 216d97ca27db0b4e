//! What `plan` prints, and for which machine.

use serde_json::Value;

use super::Bench;
use crate::support::isolated::program;

fn plan(args: &[&str]) -> (Option<i32>, String, String) {
    let output = program().arg("plan").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_answer_comes_first_and_fits_80_columns() {
    let (code, stdout, _) = plan(&["--machine", "32"]);
    assert_eq!(code, Some(0), "{stdout}");
    let mut lines = stdout.lines();
    let first = lines.next().unwrap();
    assert!(
        first.starts_with("It fits: ")
            && first.ends_with("22.9 GB that a run may take on a Mac with 32 GB."),
        "{stdout}"
    );
    assert_eq!(
        lines.next(),
        Some("The built-in miniature: 64 x 64 pixels, 17 frames, 12 steps, 24 passes.")
    );
    assert_eq!(
        lines.next(),
        Some("With --preset lightning and adapters for it: 4 passes.")
    );
    assert!(
        !stdout.contains("time"),
        "its rates are not known: {stdout}"
    );
    for memory in ["16 GB", "24 GB", "32 GB", "48 GB", "64 GB", "128 GB"] {
        assert!(
            stdout.lines().any(|line| line.starts_with(memory)),
            "{stdout}"
        );
    }
    let is_table = |line: &&str| line.contains("  ");
    assert!(
        stdout.lines().filter(is_table).all(|line| line.len() <= 80),
        "{stdout}"
    );
    let (code, stdout, _) = plan(&["--device", "cpu"]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(
        stdout.lines().nth(1).unwrap().contains(" passes, about "),
        "{stdout}"
    );
}

/// What takes four passes already is not told of them.
#[test]
fn a_preset_s_cost_is_told_beside_the_usual_one() {
    let (_, stdout, stderr) = plan(&["--device", "cpu", "--json"]);
    let usual: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let few = &usual["in_four_steps"];
    assert_eq!(few["passes"], 4, "{few}");
    let seconds = |json: &Value| json["seconds"].as_f64().unwrap();
    assert!(seconds(few) < seconds(&usual["forecast"]), "{few}");
    let (_, stdout, stderr) = plan(&["--device", "cpu", "--json", "--preset", "lightning"]);
    let asked: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    assert_eq!(asked["forecast"]["passes"], 4, "{asked}");
    assert_eq!(asked["in_four_steps"], Value::Null);
}

#[test]
fn what_does_not_fit_is_said_first_and_refused_last() {
    let (code, stdout, stderr) = plan(&["--device", "cpu", "--memory-budget", "0.11"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stdout.starts_with("It does not fit: "), "{stdout}");
    assert!(
        stdout.contains("more than the 110.0 MB of --memory-budget"),
        "{stdout}"
    );
    assert!(
        stderr.starts_with("error: --memory-budget 0.110"),
        "{stderr}"
    );
}

/// Its GPU is planned for, wherever this runs, and nothing of this machine is measured.
#[test]
fn a_mac_that_is_not_here_is_answered_for() {
    let (_, stdout, stderr) = plan(&["--machine", "16", "--json"]);
    let json: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    assert_eq!(json["device"], "gpu (Metal)");
    assert_eq!(json["precision"], "bf16");
    assert_eq!(json["memory_budget"], 10_900_000_000_u64);
    assert_eq!(json["mac_memory_gb"], 16);
    assert_eq!(json["rates"], Value::Null);
    assert_eq!(json["forecast"]["seconds"], Value::Null);
    assert_eq!(json["published_on_macs"].as_array().unwrap().len(), 6);
    for (args, said) in [
        (&["--machine", "4"][..], "from 8 to 1024"),
        (&["--machine", "x"], "a Mac's memory in GB, such as 32"),
        (
            &["--machine", "16", "--device", "cpu"],
            "cannot be used with",
        ),
        (
            &["--machine", "16", "--memory-budget", "8"],
            "cannot be used with",
        ),
    ] {
        let (code, _, stderr) = plan(args);
        assert!(
            code == Some(2) && stderr.contains(said),
            "{args:?}: {stderr}"
        );
    }
}

#[test]
fn no_row_is_there_twice() {
    let bench = Bench::new("a");
    let model = bench.checkpoint.root().to_str().unwrap();
    for (bits, models) in [
        (&["--bits", "4"][..], ["4", "8"].as_slice()),
        (&[], &["as is", "8", "4"]),
    ] {
        let (code, stdout, stderr) = plan(&[&["--machine", "16", "--model", model], bits].concat());
        assert_eq!(code, Some(0), "{stderr}");
        let rows: Vec<&str> = stdout.lines().filter(|line| line.contains("  ")).collect();
        for (at, row) in rows.iter().enumerate() {
            assert!(!rows[..at].contains(row), "{stdout}");
        }
        let rows = rows
            .iter()
            .filter(|row| row.starts_with("480p") && row.contains(" 33 "));
        assert_eq!(rows.count(), models.len(), "{stdout}");
    }
}
