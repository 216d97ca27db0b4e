//! Prompts from standard input and files.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::cli::{Bench, Ran, program, run};

impl Bench {
    /// A run with this prompt and more flags, and this text on standard input.
    fn prompted(&self, flags: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command();
        command.args(["--size=32x32", "--frames=1", "--steps=1", "--seed=7"]);
        command
            .args(["--device=cpu", "--output=clip.mp4", "--overwrite"])
            .args(flags);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may refuse before it reads.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What the clip says of its prompts.
    fn record(&self) -> (String, String, String) {
        let mut show: Command = program();
        let shown = run(show.args(["show", "--json"]).arg(self.path("clip.mp4")));
        let json: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let words = json["command"].as_array().unwrap();
        let at = words.iter().position(|word| word == "--prompt").unwrap();
        (
            text(&json["prompt"]),
            text(&json["negative_prompt"]),
            text(&words[at + 1]),
        )
    }
}

#[test]
fn prompts_come_from_where_they_are_told() {
    let bench = Bench::new("a");
    let (cat, blur) = ("a cat,\nin the rain 一只猫", "blur");
    fs::write(bench.path("cat.txt"), format!("\u{feff}{cat}\n")).unwrap();
    fs::write(bench.path("@blur"), format!("{blur}\r\n")).unwrap();
    for (flags, input) in [
        (["--prompt=-", "--negative-prompt=@@blur"], cat),
        (["--prompt=-", "--negative-prompt=@./@blur"], cat),
        (["-p@cat.txt", "--negative-prompt=-"], blur),
        (["-p@cat.txt", "-n@./@blur"], ""),
    ] {
        bench
            .prompted(&flags, format!("{input}\n").as_bytes())
            .assert_wrote("clip.mp4");
        let negative = if flags[1].contains("@@") {
            "@blur"
        } else {
            blur
        };
        let expected = (cat.to_owned(), negative.to_owned(), cat.to_owned());
        assert_eq!(bench.record(), expected, "{flags:?}");
    }
    // The command that `show` prints means the same.
    for (given, is) in [("@@cat.txt", "@cat.txt"), ("a@b", "a@b"), ("@@@", "@@")] {
        let flags = [&format!("--prompt={given}"), "--resume=never"];
        bench.prompted(&flags, b"").assert_wrote("clip.mp4");
        let (prompt, _, again) = bench.record();
        assert_eq!((prompt.as_str(), again.as_str()), (is, given));
    }
}

#[test]
fn prompts_that_cannot_be_read_are_refused() {
    let bench = Bench::new("a");
    fs::write(bench.path("cat.txt"), "a cat").unwrap();
    fs::write(bench.path("latin1.txt"), b"caf\xe9").unwrap();
    fs::write(bench.path("large.txt"), "a cat. ".repeat(200_000)).unwrap();
    fs::write(bench.path("empty.txt"), "\n\n").unwrap();
    fs::create_dir(bench.path("folder")).unwrap();
    for (flags, input, parts) in [
        (
            &["--prompt", "@cta.txt"][..],
            &b""[..],
            &["--prompt @cta.txt", "No such file", "did you mean cat.txt?"][..],
        ),
        (
            &["--prompt", "@none/x"],
            b"",
            &["--prompt @none/x", "no folder none"],
        ),
        (&["--prompt", "@"], b"", &["--prompt @: "]),
        (
            &["--prompt", "@folder"],
            b"",
            &["--prompt @folder", "it is a folder"],
        ),
        (
            &["--prompt", "@latin1.txt"],
            b"",
            &["UTF-8", "byte 3", "@latin1.txt"],
        ),
        (&["--prompt", "@large.txt"], b"", &["1 MiB", "@large.txt"]),
        (&["--prompt", "@empty.txt"], b"", &["--prompt is empty"]),
        (&["--prompt", "-"], b"", &["--prompt is empty"]),
        (
            &["--prompt", "-"],
            b"\xff",
            &["--prompt -: standard input", "UTF-8"],
        ),
        (
            &["--prompt", "x", "--negative-prompt", "@none"],
            b"",
            &["--negative-prompt @none", "No such file"],
        ),
        (
            &["--prompt", "-", "--negative-prompt", "-"],
            b"x",
            &["--negative-prompt -", "only be one of them"],
        ),
    ] {
        bench.prompted(flags, input).assert_refused(1, parts);
    }
    let endless = run(bench.command().arg("--prompt=@/dev/zero"));
    endless.assert_refused(1, &["--prompt @/dev/zero", "1 MiB"]);
    assert!(!bench.path("clip.mp4").exists());
}
