//! Telling checkpoints apart without reading them whole.

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::Checkpoint;
use super::layout::PartName;
use super::store::TensorStore;
use crate::hex::to_hex;

/// Bytes that are looked at in the middle of each tensor.
const SAMPLE: usize = 64;

impl Checkpoint {
    /// A hash of what the files hold, 64 hexadecimal digits: every tensor's name, type, shape and
    /// 64 bytes of its values, and the boundary between the experts.
    ///
    /// Reads a page of the file per tensor, so other weights are told apart in well under a second;
    /// it is no proof that two checkpoints are equal to the last bit.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(self.boundary_timestep.to_le_bytes());
        for name in PartName::ALL {
            let store = TensorStore::open(self.location(name)?)?;
            hash.update(name.flag());
            for (name, entry) in store.entries() {
                let bytes = store.bytes(entry);
                let middle = bytes.len() / 2;
                let sample = bytes.iter().skip(middle).take(SAMPLE);
                let sample: Vec<u8> = sample.copied().collect();
                // Lengths keep neighbours from running into each other.
                let text = format!(
                    "{} {name} {} {:?} {}",
                    name.len(),
                    entry.encoding.name(),
                    entry.shape,
                    sample.len()
                );
                hash.update(text);
                hash.update(sample);
            }
        }
        Ok(to_hex(&hash.finalize()))
    }
}
