//! What the program says of itself: help, suggestions, completions, man pages.

use std::fs;

use crate::cli::{Bench, program, run};

pub(super) const COMMANDS: [&str; 13] = [
    "batch",
    "sweep",
    "pull",
    "convert",
    "inspect",
    "plan",
    "show",
    "analyze",
    "compare",
    "doctor",
    "tune",
    "completions",
    "man",
];

pub(super) fn said(arguments: &[&str]) -> String {
    let ran = run(program().args(arguments).env("COLUMNS", "100"));
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(0), ""),
        "{arguments:?}"
    );
    String::from_utf8(ran.stdout).unwrap()
}

/// The lines that begin with a flag, and what is said of it in the lines after.
fn flags(help: &str) -> Vec<(String, String)> {
    let mut flags: Vec<(String, String)> = Vec::new();
    for line in help.lines().map(str::trim) {
        // A hyphen alone is a value.
        if line.starts_with('-') && !line.starts_with("- ") {
            // On its own line, or in the second column.
            let (flag, text) = line.split_once("  ").unwrap_or((line, ""));
            flags.push((flag.to_owned(), text.trim().to_owned()));
        } else if let Some((_, text)) = flags.last_mut() {
            *text += line;
        }
    }
    flags
}

#[test]
fn help_is_grouped_and_says_of_every_flag_what_it_is() {
    let (short, long) = (said(&["-h"]), said(&["--help"]));
    for heading in ["Input", "Model", "Output", "Sampling", "About"] {
        for help in [&short, &long] {
            assert!(
                help.contains(&format!("\n{heading}:\n")),
                "{heading}: {help}"
            );
        }
    }
    for group in ["Make clips", "Models", "Look", "Machine", "Shell"] {
        assert!(short.contains(&format!("\n  {group}  ")), "{short}");
        assert!(long.contains(&format!("\n{group}:\n")), "{long}");
    }
    assert!(short.lines().count() <= 40, "{short}");
    assert!(!short.contains("--dense-above") && long.contains("--dense-above"));
    assert!(short.contains("wan-i2v --help") && long.contains("\nExamples:\n"));
    for command in COMMANDS {
        assert!(long.contains(&format!("\n  {command} ")), "{command}");
    }
    for code in ["0", "1", "2", "101", "130", "143"] {
        let at = format!("\n{code:>5}  ");
        assert!(long.contains(&at), "{code}");
    }
    for short in [
        "-i, --image",
        "-p, --prompt",
        "-m, --model",
        "-o, --output",
        "-s, --seed",
    ] {
        assert!(long.contains(short), "{short}");
    }
    let mut counted = 0;
    for command in [""].iter().chain(&COMMANDS) {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        for (flag, text) in flags(&said(&arguments)) {
            assert!(text.len() > 5, "{command} {flag} says {text:?}");
            counted += 1;
        }
    }
    assert!(counted > 80, "{counted}");
}

#[test]
fn what_may_be_meant_is_said() {
    let bench = Bench::new("a");
    for (arguments, meant) in [
        (&["pln"][..], "wan-i2v plan"),
        (&["shwo", "x.mp4"], "wan-i2v show"),
        (&["--imgae", "x"], "--image"),
        (&["--neg", "x"], "--negative-prompt"),
        (&["plan", "--stepps", "3"], "--steps"),
        (&["convert", "a", "b", "--bit", "4"], "--bits"),
        (&["plan", "--solver", "unipx"], "unipc"),
        (&["plan", "--device", "gpuu"], "gpu"),
        (&["-i=x", "-p=x", "--progress", "jsn"], "json"),
        (&["completions", "bsh"], "bash"),
        (&["inspect", "x", "--part", "hihg"], "high"),
    ] {
        let ran = run(program().current_dir(bench.work.path()).args(arguments));
        ran.assert_refused(2, &[&format!("\nhint: did you mean {meant}?")]);
    }
    // Nothing of another kind, and nothing far off.
    for (arguments, hint) in [
        (&["--plan"][..], "all flags: wan-i2v --help"),
        (&["--show", "x"], "all flags: wan-i2v --help"),
        (&["plan", "--pull"], "all flags: wan-i2v plan --help"),
        (&["--vary", "seed=1"], "--vary is a flag of wan-i2v sweep"),
        (
            &["show", "x", "--steps", "3"],
            "--steps is a flag of a clip",
        ),
        (&["steps", "3"], "--image PICTURE --prompt 'steps 3'"),
        (&["--lora-scale", "0.8"], "the strength follows the adapter"),
        (&["--xyzzy"], "all flags: wan-i2v --help"),
        (&["completions", "cmd"], "expected one of bash, elvish"),
    ] {
        let ran = run(program().current_dir(bench.work.path()).args(arguments));
        ran.assert_refused(2, &[hint]);
        assert!(!ran.stderr.contains("did you mean"), "{}", ran.stderr);
    }
    fs::write(bench.path("start.png"), "").unwrap();
    fs::create_dir(bench.path("wan2.2")).unwrap();
    for (arguments, meant) in [
        (&["-i", "strat.png", "-p", "x"][..], "start.png"),
        (&["plan", "-m", "./wan22"], "./wan2.2"),
        (&["plan", "--vae", "wan2"], "wan2.2"),
        (&["inspect", "wan.2.2"], "wan2.2"),
        (&["convert", "wan-2.2", "x"], "wan2.2"),
        (&["show", "start.pgn"], "start.png"),
        (&["plan", "--config", "strt.png"], "start.png"),
    ] {
        let ran = run(program().current_dir(bench.work.path()).args(arguments));
        assert!(matches!(ran.code, Some(1 | 2)), "{arguments:?}");
        let meant = format!("\nhint: did you mean {meant}?");
        assert!(ran.stderr.contains(&meant), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn man_pages_are_written_for_every_command() {
    let bench = Bench::new("a");
    let page = said(&["man"]);
    for part in [".TH wan-i2v 1", "guide\\-scale", "Exit codes", ".SH INPUT"] {
        assert!(page.contains(part), "{part}");
    }
    let ran = run(program()
        .current_dir(bench.work.path())
        .args(["man", "a/man1"]));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let written: Vec<String> = COMMANDS
        .iter()
        .map(|name| format!("wan-i2v-{name}.1"))
        .collect();
    for name in written.iter().map(String::as_str).chain(["wan-i2v.1"]) {
        let page = fs::read_to_string(bench.path("a/man1").join(name)).unwrap();
        assert!(page.contains(".SH NAME"), "{name}");
        let line = format!("a/man1/{name}\n");
        assert!(String::from_utf8_lossy(&ran.stdout).contains(&line));
    }
    fs::write(bench.path("file"), "").unwrap();
    let ran = run(program()
        .current_dir(bench.work.path())
        .args(["man", "file"]));
    ran.assert_refused(1, &["cannot write man pages into file"]);
}

/// Escapes are for terminals, and stderr and stdout are asked each by itself.
#[test]
fn nothing_is_coloured_in_a_pipe() {
    for arguments in [
        &["--help"][..],
        &["plan", "--json"],
        &["--nothing"],
        &["-i", "x", "-p", "x"],
    ] {
        let ran = run(program().args(arguments));
        assert!(
            !ran.stdout.contains(&0x1b) && !ran.stderr.contains('\u{1b}'),
            "{arguments:?}"
        );
    }
}

/// Crates are named with their versions: those of the program one a line, the rest of Cargo.lock in a
/// paragraph. `scripts/licenses` writes both.
#[test]
fn the_licences_of_everything_in_the_program_are_told() {
    let text = said(&["--licenses"]);
    let (linked, rest) = text
        .split_once("In Cargo.lock and not in the program")
        .unwrap();
    let (rest, texts) = rest.split_once("=====").unwrap();
    let rest = rest.split_once(':').unwrap().1.split_whitespace();
    let rest = rest.collect::<Vec<_>>().join(" ");
    let lock = include_str!("../../../Cargo.lock")
        .split("[[package]]")
        .skip(1);
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim_matches('"').to_owned()
    };
    let mut crates: Vec<String> = lock
        .filter(|package| package.contains("source ="))
        .map(|package| value(package, "name = ") + " " + &value(package, "version = "))
        .collect();
    crates.sort();
    let is_crate = |name: &&str| {
        name.split_once(' ')
            .is_some_and(|(_, version)| version.starts_with(|c: char| c.is_ascii_digit()))
    };
    let (all, _) = linked.split_once("Without a text").unwrap();
    let named = all
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, _)| name);
    let mut named: Vec<&str> = named.chain(rest.split(", ")).filter(is_crate).collect();
    named.sort_unstable();
    assert!(
        named == crates,
        "scripts/licenses writes THIRD-PARTY.txt again"
    );
    for linked in [
        "mlx-rs ",
        "tokenizers ",
        "mach-sys ",
        "rustls ",
        "openh264-sys2 ",
    ] {
        assert!(all.lines().any(|line| line.starts_with(linked)), "{linked}");
    }
    for notice in [
        "Copyright (c) 2013, Cisco Systems",
        "SIL OPEN FONT LICENSE",
        "UBUNTU FONT LICENCE",
        "Bitstream Vera",
        "Copyright (c) 2023 ml-explore",
    ] {
        assert!(texts.contains(notice), "{notice}");
    }
    // Not beside anything else.
    let ran = run(program().args(["--licenses", "--seed", "1"]));
    assert_eq!(ran.code, Some(2));
}
