//! Telling checkpoints apart without reading them whole.

use anyhow::{Context, Result};

use super::config::PartConfig;
use super::timing::PACKED;
use super::{Checkpoint, PartName};

impl Checkpoint {
    /// A hash that tells a part from another, 64 hexadecimal digits: of its configuration, and of
    /// its files as [`TensorStore::fingerprint`](super::store::TensorStore::fingerprint) has it.
    /// All parts are read once, the first time.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn part_fingerprint(&self, name: PartName) -> Result<&str> {
        let all = match self.fingerprints.get() {
            Some(all) => all,
            None => {
                let names = self.part_names().iter();
                let all = names.map(|&name| self.hash_part(name));
                let all = all.collect::<Result<_>>()?;
                self.fingerprints.get_or_init(|| all)
            }
        };
        let mut named = self.part_names().iter().zip(all);
        let found = named.find(|(part, _)| **part == name);
        let (_, hash) = found.with_context(|| format!("no {name}"))?;
        Ok(hash)
    }

    fn hash_part(&self, name: PartName) -> Result<String> {
        let config = match self.config(name)? {
            PartConfig::Expert(config) => format!("{config:?}"),
            PartConfig::Vae(config) => format!("{config:?}"),
            PartConfig::TextEncoder(config) => format!("{config:?}"),
            PartConfig::ImageEncoder(config) => format!("{config:?}"),
        };
        let files = self.part(name)?.store().fingerprint();
        // Other programs' weights are products of another form unless they are unpacked.
        let format = self.format(name)?;
        let kept = match format.packing {
            Some(packing) if format.stored != PACKED && self.loading.of(name).is_none() => {
                format!("\nkept as {packing}")
            }
            _ => String::new(),
        };
        let all = blake3::hash(format!("{config}\n{files}{kept}").as_bytes());
        Ok(all.to_hex().to_string())
    }

    /// A hash that tells the checkpoint from another: of its parts', and of the boundary between
    /// the experts. It is no proof that two checkpoints are equal to the last bit.
    ///
    /// # Errors
    /// As [`Self::part_fingerprint`].
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.boundary_timestep.to_le_bytes());
        for &name in self.part_names() {
            hash.update(self.part_fingerprint(name)?.as_bytes());
        }
        for (expert, _) in &self.experts {
            for adapter in self.adapters().of(*expert) {
                let of = format!(
                    "{expert} {} x {}",
                    adapter.fingerprint(),
                    adapter.strength()
                );
                hash.update(of.as_bytes());
            }
        }
        Ok(hash.finalize().to_hex().to_string())
    }
}
