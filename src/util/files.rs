//! Reading small files, within bounds.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::OFlags;

/// The most bytes of a configuration, an index or another file of settings: an index of A14B has
/// 0.1 MB.
pub(crate) const MAX_JSON: u64 = 16 << 20;

/// The most bytes of a job file: more than a million jobs.
pub(crate) const MAX_JOBS: u64 = 256 << 20;

/// The content of a regular file of at most `most` bytes. A pipe or a device in its place is refused
/// at once, where reading it could wait, or go on, forever.
///
/// # Errors
/// When it cannot be read, is no regular file or is larger.
pub(crate) fn read_small(path: &Path, most: u64) -> Result<Vec<u8>> {
    // Opening a pipe that nobody writes to would wait as well.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is no regular file");
    ensure!(
        metadata.len() <= most,
        "it has {} bytes; expected at most {most}",
        metadata.len()
    );
    read_to(file, most)
}

/// As [`read_small`], of what may be a pipe too.
///
/// # Errors
/// When it cannot be read or is larger.
pub(crate) fn read_stream(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_to(File::open(path)?, most)
}

fn read_to(file: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= most,
        "it has more than {most} bytes, the most that are read"
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_or_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read_small(&path, 10).unwrap(), [7; 10]);
        let error = |error: anyhow::Error| error.to_string();
        assert!(error(read_small(&path, 9).unwrap_err()).contains("has 10 bytes"));
        assert!(error(read_stream(&path, 9).unwrap_err()).contains("more than 9"));
        let zero = Path::new("/dev/zero");
        assert!(error(read_small(zero, 10).unwrap_err()).contains("no regular file"));
        assert!(error(read_stream(zero, 10).unwrap_err()).contains("more than 10"));
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        assert!(error(read_small(&pipe, 10).unwrap_err()).contains("no regular file"));
    }
}
