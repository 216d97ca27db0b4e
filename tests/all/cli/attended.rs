//! What a person sees in a terminal: its width, its colours, and what it shows beside the text.

#![cfg(target_os = "linux")]

use std::process::Command;

use crate::cli::Bench;

const CLIP: &str = "--progress plain -p x --size 32x32 --frames 5 --steps 2 --seed 1 --device cpu";

/// A shell's lines in a terminal of so many columns: their exit code and what it shows. `$wan` is the
/// program, `$run` with a clip's flags.
fn shown(
    bench: &Bench,
    columns: usize,
    variables: &[(&str, &str)],
    lines: &str,
) -> (Option<i32>, String) {
    let mut command = Command::new("script");
    let inherited = [
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "TMUX",
        "STY",
        "COLORTERM",
    ];
    for name in inherited
        .into_iter()
        .chain(["TERM_PROGRAM", "WT_SESSION", "VTE_VERSION"])
    {
        command.env_remove(name);
    }
    let program = env!("CARGO_BIN_EXE_wan-i2v");
    let (model, picture) = (bench.checkpoint.root(), bench.picture());
    let run = format!(
        "{program} --model {} -i {} {CLIP}",
        model.display(),
        picture.display()
    );
    let output = command
        .args([
            "-qec",
            &format!("stty cols {columns} -onlcr\n{lines}"),
            "/dev/null",
        ])
        .current_dir(bench.work.path())
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm-256color")
        .env("XDG_CONFIG_HOME", "/nowhere")
        .env("XDG_CACHE_HOME", bench.path("cache"))
        .envs([("wan", program), ("run", &run)])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn no_line_is_wider_than_the_terminal_and_no_word_is_broken() {
    let bench = Bench::new("a");
    let long = "a/folder/with/a/rather/long/name/and/another/one/picture.png";
    let (code, clip) = shown(&bench, 80, &[], "$run -o clip.mp4");
    assert_eq!(code, Some(0), "{clip}");
    for (lines, parts) in [
        (
            "$run -o clip2.mp4 -v --color never --overwrite",
            vec!["clip      32 x 32", "sampling  unipc", "done in "],
        ),
        (
            "$wan inspect tiny",
            vec!["high-noise expert", "feed-forward", "wan-i2v can run"],
        ),
        (
            "$wan analyze clip.mp4 --frames",
            vec!["sharp", "noise", "black frames"],
        ),
        ("$wan compare tiny tiny", vec!["tolerance", "equal: "]),
        (
            "$wan sweep --vary steps=1,2 --output-dir s --dry-run -i $start -p x",
            vec!["passes", "2 runs"],
        ),
        (
            &format!("$wan --color never -i {long} -p x"),
            vec!["error: ", long, "No such"],
        ),
        (
            "$wan --color never -i x -p x --stepps 3 --frames 7",
            vec!["did you mean --steps?"],
        ),
    ] {
        let start = bench.picture();
        // Without what is no text.
        let start = [("start", start.to_str().unwrap()), ("TERM", "dumb")];
        let (_, wide) = shown(&bench, 1000, &start, lines);
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        for columns in [80, 60, 40] {
            let (_, text) = shown(&bench, columns, &start, lines);
            for part in &parts {
                assert!(
                    words(&text).join(" ").contains(&words(part).join(" ")),
                    "{part}: {text}"
                );
            }
            for line in text.lines() {
                let is_word = line.split_whitespace().count() <= 1;
                assert!(
                    line.chars().count() <= columns || is_word,
                    "{columns}: {line}"
                );
            }
            if lines.contains("--color never") && !lines.contains("-v") {
                assert_eq!(words(&text), words(&wide));
            }
        }
    }
}

#[test]
fn text_for_a_program_stays_in_its_lines() {
    let bench = Bench::new("a");
    let (_, text) = shown(
        &bench,
        40,
        &[],
        "$wan -i no.png -p x 2>&1 | cat; $wan inspect tiny | cat",
    );
    let error =
        "error: --image: cannot read the picture no.png: No such file or directory (os error 2)\n";
    assert!(text.contains(error), "{text}");
    assert!(
        text.lines()
            .any(|line| line.starts_with("part") && line.ends_with("dimensions"))
    );
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let bench = Bench::new("a");
    let error = "$wan -i no.png -p x";
    let red = "\u{1b}[1;31merror:\u{1b}[0m ";
    assert!(shown(&bench, 80, &[], error).1.contains(red));
    for (variables, lines) in [
        (&[("NO_COLOR", "1")][..], error),
        (&[("TERM", "dumb")], error),
        (&[], "$wan -i no.png -p x --color never"),
        (&[("WAN_I2V_COLOR", "never")], error),
        (&[], "$wan -i no.png -p x 2>&1 | cat"),
        (&[], "$wan --stepps --color=never"),
    ] {
        let (_, text) = shown(&bench, 80, variables, lines);
        assert!(
            text.contains("error: ") && !text.contains('\u{1b}'),
            "{lines}: {text:?}"
        );
    }
    for lines in [
        "$wan -i no.png -p x --color always 2>&1 | cat",
        "CLICOLOR_FORCE=1 $wan -i no.png -p x 2>&1 | cat",
    ] {
        assert!(shown(&bench, 80, &[], lines).1.contains(red), "{lines}");
    }
    let (_, text) = shown(&bench, 80, &[], "$run -o clip.mp4");
    assert!(text.contains("\u{1b}[1;32mdone in "), "{text:?}");
}

#[test]
fn progress_and_title_come_and_go() {
    let bench = Bench::new("a");
    let terminal = [("TERM_PROGRAM", "WezTerm")];
    let (begin, end) = (
        "\u{1b}[22;2t",
        "\u{1b}]9;4;0;\u{7}\u{1b}]2;\u{7}\u{1b}[23;2t",
    );
    let taken_back = |text: &str, what: &str| {
        let at = text
            .rfind(end)
            .unwrap_or_else(|| panic!("{what}: {text:?}"));
        assert!(
            text.find(begin) < text.find("\u{1b}]9;4;1;0\u{7}"),
            "{what}"
        );
        assert!(
            !text[at + end.len()..].contains("\u{1b}]"),
            "{what}: {text:?}"
        );
        assert_eq!(text.matches(end).count(), 1, "{what}");
    };
    let (code, text) = shown(&bench, 80, &terminal, "$run -o clip.mp4");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("\u{1b}]2;100% clip.mp4 - wan-i2v\u{7}"),
        "{text:?}"
    );
    taken_back(&text, "the end");
    for (signals, codes) in [("TERM", [143, 143]), ("STOP INT TERM CONT", [130, 143])] {
        let lines = format!(
            "bash -c 'rm -f *.wan-state; ${{run/--steps 2/--steps 900}} -o long.mp4 & \
             until [ -e long.mp4.wan-state ] || ! kill -0 $!; do sleep 0.05; done; \
             for signal in {signals}; do kill -$signal $!; done; wait $!'"
        );
        let (code, text) = shown(&bench, 80, &terminal, &lines);
        assert!(codes.contains(&code.unwrap()), "{signals}: {text}");
        taken_back(&text, signals);
    }
    // Weights that are damaged are found under way.
    bench
        .checkpoint
        .edit_tensors("vae/diffusion_pytorch_model.safetensors", |tensors| {
            let name = tensors
                .keys()
                .find(|name| name.starts_with("decoder"))
                .unwrap()
                .clone();
            let tensor = tensors.get_mut(&name).unwrap();
            tensor.bytes.fill(0xff);
        });
    let (code, text) = shown(&bench, 80, &terminal, "$run -o bad.mp4");
    assert_eq!(code, Some(1), "{text}");
    taken_back(&text, "an error");
    // Neither in another terminal nor where nobody looks.
    for (variables, lines) in [
        (&[("TERM", "dumb")][..], "$run -o clip3.mp4"),
        (&terminal, "$run -o clip4.mp4 2>&1 | cat"),
        (&terminal, "$run -o clip5.mp4 -q 2>&1"),
    ] {
        let (_, text) = shown(&bench, 80, variables, lines);
        assert!(!text.contains("\u{1b}]"), "{lines}: {text:?}");
    }
}

#[test]
fn a_terminal_without_pictures_shows_blocks() {
    let bench = Bench::new("a");
    let (code, text) = shown(&bench, 60, &[], "$run -o clip.mp4 --preview -");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("\u{1b}[38;5;") && text.contains('▀'),
        "{text:?}"
    );
    let (_, text) = shown(
        &bench,
        60,
        &[("COLORTERM", "truecolor")],
        "$run -o clip2.mp4 --preview -",
    );
    assert!(
        text.contains("\u{1b}[38;2;") && text.contains('▀'),
        "{text:?}"
    );
    let rows = text.split("\u{1b}[1B");
    let widest = rows.map(|row| row.matches('▀').count()).max();
    assert!((20..60).contains(&widest.unwrap()), "{widest:?}");
}

#[test]
fn an_end_is_notified_of() {
    let bench = Bench::new("a");
    let iterm = [("TERM_PROGRAM", "iTerm.app")];
    let (_, text) = shown(&bench, 80, &iterm, "$run -o clip.mp4 --notify");
    assert!(
        text.contains("\u{1b}]9;clip.mp4 is complete after "),
        "{text:?}"
    );
    // Once, also of a run that has gone on in a fresh process.
    let failing = [
        iterm[0],
        (
            "WAN_TEST_GPU_ERROR",
            "2/1/[malloc] Unable to allocate 7 bytes.",
        ),
    ];
    let lines = "$run -o again.mp4 --notify";
    let (code, text) = shown(&bench, 80, &failing, lines);
    assert_eq!(code, Some(0), "{text:?}");
    assert!(text.contains("try 1 of 3"), "{text:?}");
    assert_eq!(text.matches("\u{1b}]9;").count(), 1, "{text:?}");
    let (_, text) = shown(&bench, 80, &iterm, "$run -o none/clip.mp4 --notify");
    assert!(text.contains("\u{1b}]9;no clip: --output"), "{text:?}");
    let (_, text) = shown(&bench, 80, &[], "$run -o clip2.mp4 --notify");
    assert!(text.contains('\u{7}'), "{text:?}");
}
