//! Pictures that the system reads and this program does not: HEIC and AVIF, by macOS's `sips`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::util::files::read_small;
use crate::util::show::Show;

/// The system's program, where there is one.
pub(super) const PROGRAM: Option<&str> = if cfg!(target_os = "macos") {
    Some("/usr/bin/sips")
} else {
    None
};

/// Has `program`, called as sips is, make a PNG of a file's content; it has at most `most` bytes.
///
/// # Errors
/// When it cannot be run or makes none.
pub(super) fn to_png(program: &str, content: &[u8], most: u64) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let [from, to] = ["picture.heic", "picture.png"].map(|name| folder.path().join(name));
    let written = File::create(&from).and_then(|mut file| file.write_all(content));
    written.with_context(|| format!("cannot write {}", from.shown()))?;
    let run = Command::new(program)
        .args(["-s", "format", "png"])
        .arg(&from)
        .arg("--out")
        .arg(&to)
        .output()
        .with_context(|| format!("cannot run {}", Path::new(program).shown()))?;
    ensure!(
        run.status.success() && to.is_file(),
        "{program} cannot read it: {}",
        String::from_utf8_lossy(&run.stderr).trim().shown()
    );
    read_small(&to, most)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn another_program_makes_the_png() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("sips");
        let call = |script: &str| {
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
            to_png(program.to_str().unwrap(), b"content", 1 << 10)
        };
        let made =
            call("#!/bin/sh\n[ \"$1 $2 $3 $5\" = '-s format png --out' ] && cp \"$4\" \"$6\"\n");
        assert_eq!(made.unwrap(), b"content");
        let error = call("#!/bin/sh\necho no >&2; exit 3\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot read it: no"), "{error}");
        assert!(call("#!/bin/sh\nexit 0\n").is_err());
        assert!(to_png("/nowhere/sips", b"", 1).is_err());
    }
}
