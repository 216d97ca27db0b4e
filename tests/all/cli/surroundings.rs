//! Systems that refuse what others grant: the program does with less, or says so.

#[cfg(target_os = "linux")]
use std::{fs, process::Command};

#[cfg(target_os = "linux")]
use serde_json::Value;
use wan_i2v::persist::{SavedRun, file};

#[cfg(target_os = "linux")]
use crate::cli::program;
use crate::cli::{Bench, run};

/// As in a container or a sandbox.
#[cfg(target_os = "linux")]
#[test]
fn without_proc_a_clip_is_planned_and_made() {
    let bench = Bench::new("a");
    let script = "mount -t tmpfs none /proc || exit 77; exec \"$@\"";
    let mut plan = program();
    plan.args(["plan", "--json", "--device=cpu"]);
    let plan = run(&mut bench.unshared(script, &plan));
    if plan.code == Some(77) || plan.stderr.starts_with("unshare") {
        eprintln!("skipped: this system lets no file system be mounted");
        return;
    }
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert!(plan["memory_budget"].as_u64().unwrap() > 1 << 28, "{plan}");
    let ran = run(&mut bench.unshared(script, &bench.clip("clip.mp4", &[])));
    ran.assert_wrote("clip.mp4");
}

/// The limit counts a user's threads, and not root's.
#[cfg(target_os = "linux")]
#[test]
fn with_few_threads_a_clip_is_planned_or_an_error_says_why() {
    // Where another user may run it.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let copy = folder.path().join("wan-i2v");
    let limited = |most: usize| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=64123", "--clear-groups", "--", "prlimit"]);
        command.args([&format!("--nproc={most}"), "--"]).arg(&copy);
        for variable in ["HOME", "XDG_CACHE_HOME"] {
            command.env_remove(variable);
        }
        run(command
            .args(["plan", "--device=cpu"])
            .env("OPENBLAS_NUM_THREADS", "1"))
    };
    fs::copy(program().get_program(), &copy).unwrap();
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    if limited(1000).code != Some(0) {
        eprintln!("skipped: this system lets nobody else run the program");
        return;
    }
    for most in [1, 2, 3, 5, 9, 13, 14, 15] {
        let ran = limited(most);
        assert!(
            matches!(ran.code, Some(0 | 1)),
            "{most}: {:?} {}",
            ran.code,
            ran.stderr
        );
        if ran.code == Some(1) {
            ran.assert_refused(1, &["the system allows no further thread", "ulimit -u"]);
        }
    }
}

/// States that no run has left, under a right checksum.
#[test]
fn a_state_that_lies_is_refused() {
    let bench = Bench::new("a");
    bench.killed_after(3, "clip.mp4", &[]);
    let path = bench.state("clip.mp4");
    let saved = SavedRun::read(&path).unwrap();
    let refused = |change: &dyn Fn(&mut SavedRun)| {
        let mut lies = saved.clone();
        change(&mut lies);
        file::write(&path, &lies.identity, &lies.state).unwrap();
        let ran = run(&mut bench.clip("clip.mp4", &[]));
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("cannot be resumed"), "{}", ran.stderr);
    };
    for step in [0, 1, 6, u32::MAX as usize, usize::MAX] {
        refused(&|lies| lies.state.set_count("step", step));
    }
    for name in ["passes.computed", "passes.reused"] {
        refused(&|lies| lies.state.set_count(name, usize::MAX));
    }
    for name in ["latents", "condition", "text.prompt", "solver.last"] {
        refused(&|lies| {
            let array = lies.state.array(name).unwrap();
            let array = array.reshape(&[-1]).unwrap();
            lies.state.set(name, &array);
        });
    }
}
