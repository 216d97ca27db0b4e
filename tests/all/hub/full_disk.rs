//! A disk that runs full: a small file system in memory, mounted where only a process of its own
//! sees it, so that neither root nor a cleanup is needed.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::hub::server::COMMIT;
use crate::hub::{Bench, assert_large_cached, content, repo};

const FOLDER: &str = "WAN_I2V_TEST_SMALL_DISK";

/// More than the disk holds.
const LEN: usize = 1_500_000;

#[test]
fn a_full_disk_keeps_what_was_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=1m none \"$0\" || exit 77; exec \"$@\"";
    let run = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", mount])
        .arg(folder.path())
        .arg(env::current_exe().unwrap())
        .args([
            "--exact",
            "hub::full_disk::on_a_small_disk",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, folder.path())
        .output();
    match run {
        Ok(run) if run.status.success() => {
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(said.contains("1 passed"), "{said}");
        }
        Ok(run) if run.status.code() == Some(101) => {
            let said = String::from_utf8_lossy(&run.stderr);
            panic!("{}{said}", String::from_utf8_lossy(&run.stdout));
        }
        // No such program (macOS), or no such right (some containers).
        _ => eprintln!("skipped: this system lets no small file system be mounted"),
    }
}

#[test]
#[ignore = "runs in the small file system that the test above makes"]
fn on_a_small_disk() {
    let Ok(folder) = env::var(FOLDER) else {
        return;
    };
    let mut bench = Bench::new();
    let real = bench.config.cache.clone();
    bench.config.cache = Path::new(&folder).join("hub");
    bench.server.large("w", &content(LEN));
    let error = format!("{:#}", bench.fetch("w").unwrap_err());
    assert!(error.contains("the disk is full"), "{error}");
    assert!(error.contains("kB are still missing and"), "{error}");
    assert!(
        error.contains("the same command resumes from there"),
        "{error}"
    );
    let kept = std::fs::read(&bench.parts()[0]).unwrap();
    assert!(kept.len() > 900_000 && content(LEN).starts_with(&kept));

    // Once there is room, only the rest is fetched.
    let blobs = real.join("models--owner--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(bench.parts()[0].file_name().unwrap());
    std::fs::copy(&bench.parts()[0], part).unwrap();
    bench.config.cache = real;
    let file = bench.file("w");
    bench
        .hub()
        .fetch(&repo(), COMMIT, &file, &mut |_| {})
        .unwrap();
    assert_large_cached(&bench, "w", &content(LEN));
    let range = format!("bytes={}-", kept.len());
    assert!(
        bench
            .server
            .log()
            .iter()
            .all(|request| request.range.as_ref() == Some(&range))
    );
}
