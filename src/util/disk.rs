//! Room on disk, and how sizes are told.

use std::path::Path;

use anyhow::{Context, Result};

use super::show::Show;

/// The bytes that a user may still write below `path`, which need not be there yet.
///
/// # Errors
/// When the file system cannot be asked.
pub fn free_disk(path: &Path) -> Result<u64> {
    let absolute = std::path::absolute(path)
        .with_context(|| format!("cannot tell where {} is", path.shown()))?;
    let there = absolute
        .ancestors()
        .find(|folder| folder.exists())
        .with_context(|| format!("{} has no folder above it", path.shown()))?;
    let stat = rustix::fs::statvfs(there)
        .with_context(|| format!("cannot tell how much room there is in {}", there.shown()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A size for people, in decimal units as the hub and macOS show it: `9.99 GB`.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            // Hundredths, rounded down: what is said to fit has to fit.
            let hundredths = u128::from(bytes) * 100 / u128::from(*unit);
            format!("{}.{:02} {name}", hundredths / 100, hundredths % 100)
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size_text(0), "0 bytes");
        assert_eq!(size_text(999), "999 bytes");
        assert_eq!(size_text(1_000), "1.00 kB");
        assert_eq!(size_text(9_999_999_999), "9.99 GB");
        assert_eq!(size_text(u64::MAX), "18446744.07 TB");
    }

    #[test]
    fn room_is_told_for_a_folder_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let there = free_disk(folder.path()).unwrap();
        assert!(there > 0);
        assert!(free_disk(&folder.path().join("not/there/yet")).unwrap() > 0);
    }
}
