//! Completions, asked of the shells themselves. A shell that is not installed is not asked.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::help::{COMMANDS, said};
use crate::cli::run;

/// Lines whose last word is completed, with what is offered and what is not.
const LINES: [(&str, &[&str], &[&str]); 14] = [
    ("wan-i2v pul", &["pull"], &["plan"]),
    ("wan-i2v --negat", &["--negative-prompt"], &["--image"]),
    (
        "wan-i2v --fit ",
        &["crop", "pad", "stretch"],
        &["start.png"],
    ),
    (
        "wan-i2v -p x --solver ",
        &["unipc", "dpm++", "euler"],
        &["uni_pc"],
    ),
    (
        "wan-i2v --image sta",
        &["start.png", "start two.png"],
        &["other.png"],
    ),
    ("wan-i2v -i sta", &["start.png"], &["--seed"]),
    ("wan-i2v --resume oth", &["other.png"], &["start.png"]),
    ("wan-i2v pull --sh", &["--shard-size"], &["--steps"]),
    ("wan-i2v plan --solver d", &["dpm++"], &["euler"]),
    ("wan-i2v plan -i sta", &["start.png"], &["other.png"]),
    (
        "wan-i2v inspect --part ",
        &["high", "low", "text-encoder", "vae"],
        &["start.png"],
    ),
    ("wan-i2v sweep --va", &["--vary"], &["--vae-path"]),
    (
        "wan-i2v batch --output-dir fra",
        &["frames"],
        &["start.png"],
    ),
    ("wan-i2v completions z", &["zsh"], &["bash"]),
];

/// Drives zsh's line editor, and writes what it is offered into a file: there is no other way to
/// complete without a person.
const ZSH: &str = r#"
zmodload zsh/zpty zsh/zselect
zpty z zsh -f -i
zpty -w z "PS1= PS2=; stty -echo; OUT=$1; source ./init.zsh"
zpty -w -n z "$2"$'\t'
for i in {1..600}; do
  grep -q '^DONE$' $1 2>/dev/null && break
  zpty -r -t z chunk >/dev/null
  zselect -t 5
done
zpty -d z
"#;
const ZSH_INIT: &str = r#"
autoload -Uz compinit; compinit -u -D
source ./_wan-i2v
compadd() {
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return $?; fi
  local -a hits
  builtin compadd -A hits "$@"
  print -rl -- $hits >> $OUT
  builtin compadd "$@"
}
ready() { print -r -- DONE >> $OUT; }
comppostfuncs=(ready)
bindkey '^I' complete-word
"#;
/// As bash calls it, with the words that it splits the line into.
const BASH: &str = r#"
source ./script
# It knows no options outside of a completion; of these bash adds folders itself.
compopt() { [ "$2" != plusdirs ] || folders=1; }
words=($(complete -p wan-i2v)); declare -i at=0
until [ "${words[at]}" = -F ]; do at+=1; done
COMP_LINE=$1; read -r -a COMP_WORDS <<<"$1"
case $1 in *' ') COMP_WORDS+=("");; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"${words[at+1]}" wan-i2v "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
[ -z "${folders:-}" ] || compgen -d -- "${COMP_WORDS[COMP_CWORD]}"
"#;

fn has(shell: &str) -> bool {
    let mut command = Command::new(shell);
    let ran = command.args(["-c", "exit"]).stdout(Stdio::null()).status();
    let has = ran.is_ok();
    if !has {
        eprintln!("skipped: {shell} is not installed");
    }
    has
}

/// Checks what a shell offers for every line, and for the flags of every command.
fn check(shell: &str, offered: impl Fn(&Path, &str) -> String) {
    if !has(shell) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["start.png", "start two.png", "other.png"] {
        fs::write(at(name), "").unwrap();
    }
    fs::create_dir(at("frames")).unwrap();
    let script = said(&["completions", shell]);
    fs::write(at("script"), &script).unwrap();
    fs::write(at("_wan-i2v"), &script).unwrap();
    fs::write(at("init.zsh"), ZSH_INIT).unwrap();
    let offered = |line: &str| -> Vec<String> {
        let text = offered(folder.path(), line);
        // Fish adds what it is, folders end in a slash, blanks may be quoted.
        let words = text
            .lines()
            .map(|line| line.split('\t').next().unwrap_or_default());
        words
            .map(|word| word.trim_end_matches('/').replace("\\ ", " "))
            .collect()
    };
    for (line, right, wrong) in LINES {
        let words = offered(line);
        for word in right {
            assert!(
                words.iter().any(|w| w == word),
                "{shell}: {line}: no {word} in {words:?}"
            );
        }
        for word in wrong {
            assert!(
                !words.iter().any(|w| w == word),
                "{shell}: {line}: {word} in {words:?}"
            );
        }
    }
    for command in COMMANDS {
        let line = format!("wan-i2v {command} --he");
        assert!(
            offered(&line).contains(&"--help".to_owned()),
            "{shell}: {line}"
        );
    }
}

fn asked(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    command
        .env("HOME", folder)
        .env("XDG_CONFIG_HOME", folder)
        .env("TERM", "dumb");
    String::from_utf8(run(command.stdin(Stdio::null())).stdout).unwrap()
}

#[test]
fn bash_completes() {
    check("bash", |folder, line| {
        asked(folder, "bash", &["--norc", "-c", BASH, "bash", line])
    });
}

#[test]
fn zsh_completes() {
    check("zsh", |folder, line| {
        let out = folder.join("out");
        let _ = fs::remove_file(&out);
        asked(
            folder,
            "zsh",
            &["-f", "-c", ZSH, "zsh", out.to_str().unwrap(), line],
        );
        let text = fs::read_to_string(&out).unwrap_or_default();
        assert!(text.ends_with("DONE\n"), "{line}: {text}");
        text
    });
}

#[test]
fn fish_completes() {
    check("fish", |folder, line| {
        let ask = "source ./script; complete -C $argv[1]";
        asked(folder, "fish", &["--no-config", "-c", ask, line])
    });
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said(&["completions", shell]);
        for word in ["guide-scale", "wan-i2v", "inspect", "Denoising steps"] {
            // Bash shows no descriptions.
            let said = script.contains(word) || shell == "bash" && word.contains(' ');
            assert!(said, "{shell}: {word}");
        }
    }
}
