//! Where tunings are kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::runtime::{self, Device, Tuning};
use crate::util::files::{MAX_OWN, cache_folder, read_small};
use crate::util::show::Show;

/// So many machines, dtypes and versions of MLX are remembered.
const MOST: usize = 32;

/// A file of tunings by what they were measured on.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Device, MLX's version, dtype.
    machine: String,
    tuning: Tuning,
}

/// What a tuning holds for.
fn machine(untuned: Device) -> String {
    format!(
        "{} on the {}, MLX {}, {}",
        runtime::machine(),
        untuned.kind,
        runtime::mlx_version(),
        untuned.dtype
    )
}

impl Store {
    /// Beside the rates; none where the user has no folder for such.
    pub fn usual() -> Option<Self> {
        Some(Self(cache_folder()?.join("tuning.json")))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is kept for this device; nothing where it has not been tuned.
    pub fn find(&self, untuned: Device) -> Option<Tuning> {
        let machine = machine(untuned);
        let entries = self.entries().into_iter();
        let found = entries.rev().find(|entry| entry.machine == machine)?;
        Some(found.tuning).filter(Tuning::is_plausible)
    }

    fn entries(&self) -> Vec<Entry> {
        let read = read_small(&self.0, MAX_OWN).ok();
        read.and_then(|read| serde_json::from_slice(&read).ok())
            .unwrap_or_default()
    }

    /// Keeps what was chosen for this device.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&self, untuned: Device, tuning: Tuning) -> Result<()> {
        let machine = machine(untuned);
        let mut entries = self.entries();
        entries.retain(|entry| entry.machine != machine);
        entries.push(Entry { machine, tuning });
        let last = entries.len().saturating_sub(MOST);
        self.write(&entries[last..])
            .with_context(|| format!("{}: cannot write it", self.0.shown()))
    }

    /// In place of what was there before, whatever it was.
    fn write(&self, entries: &[Entry]) -> Result<()> {
        let folder = self.0.parent().context("it is in no folder")?;
        fs::create_dir_all(folder)?;
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut new, entries)?;
        new.persist(&self.0)?;
        Ok(())
    }

    /// Forgets all of them; whether there were any.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget(&self) -> Result<bool> {
        match fs::remove_file(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("{}: cannot remove it", self.0.shown()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DeviceKind, Precision};

    #[test]
    fn each_device_has_its_own_and_what_is_damaged_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store(folder.path().join("cache/tuning.json"));
        let [exact, half] = [Precision::F32, Precision::Bf16]
            .map(|precision| Device::new(DeviceKind::Cpu, Some(precision)));
        let chosen = Tuning {
            dense_above: Some(4),
            ..Tuning::NONE
        };
        assert_eq!(store.find(exact), None);
        assert!(!store.forget().unwrap());
        store.keep(exact, chosen).unwrap();
        store.keep(half, Tuning::NONE).unwrap();
        assert_eq!(store.find(exact), Some(chosen));
        assert_eq!(store.find(half), Some(Tuning::NONE));
        assert_eq!(
            store.find(Device::new(DeviceKind::Gpu, Some(Precision::F32))),
            None
        );
        store.keep(exact, Tuning::NONE).unwrap();
        assert_eq!(store.find(exact), Some(Tuning::NONE));
        // As nobody chooses, of another program, and no list at all.
        let text = fs::read_to_string(store.path()).unwrap();
        for damaged in [
            text.replace("{}", r#"{"dense_above": -7}"#),
            text.replace("{}", r#"{"unknown": 1}"#),
            "[".to_owned(),
        ] {
            fs::write(store.path(), damaged).unwrap();
            assert_eq!(store.find(exact), None);
        }
        store.keep(exact, chosen).unwrap();
        assert_eq!(store.find(exact), Some(chosen));
        assert!(store.forget().unwrap());
        assert_eq!(store.find(exact), None);
    }
}
