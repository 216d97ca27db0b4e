//! Where a conversion's tensors come from.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Event;
use crate::model::TensorSpec;
use crate::weights::adapter::{Adapter, Adapters, Wanted};
use crate::weights::config::PartConfig;
use crate::weights::layout::Layout;
use crate::weights::part::Part;
use crate::weights::store::Location;
use crate::weights::{Extras, PartName};

/// Brings a model's parts file by file.
pub trait ConvertSource {
    /// What is converted: another source has another identity.
    fn identity(&self) -> Value;
    /// The parts there are, in the order they are converted in.
    fn parts(&self) -> Vec<PartName>;
    /// A part's dimensions; `part` is its first file.
    ///
    /// # Errors
    /// When they cannot be told.
    fn config(&self, name: PartName, part: &Part) -> Result<PartConfig>;
    /// How many files a part comes in.
    fn shards(&self, name: PartName) -> usize;
    /// The bytes of one of them.
    fn shard_bytes(&self, name: PartName, shard: usize) -> u64;
    /// The bytes of all.
    fn total_bytes(&self) -> u64 {
        let files = |name| (0..self.shards(name)).map(move |shard| self.shard_bytes(name, shard));
        let bytes = self.parts().into_iter().flat_map(files);
        bytes.fold(0, u64::saturating_add)
    }
    /// Makes a file readable.
    ///
    /// # Errors
    /// When it cannot be had.
    fn open(
        &mut self,
        name: PartName,
        shard: usize,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Part>;
    /// Lets go of a file that has been converted.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn release(&mut self, name: PartName, shard: usize) -> Result<()>;
    /// What changes a part's tensors, in this order.
    fn adapters(&self, _name: PartName) -> &[Adapter] {
        &[]
    }
    /// What a model has besides weights.
    fn rest(&self) -> &Extras;
    /// Lets go of everything.
    ///
    /// # Errors
    /// When something cannot be removed.
    fn close(&mut self) -> Result<()>;
}

/// A model, or a part of one, on this machine's disk. Each part is one file to the conversion:
/// mapped, it costs no memory until it is read.
#[derive(Debug)]
pub struct LocalSource {
    parts: Vec<(PartName, Location, u64)>,
    rest: Extras,
    adapters: Adapters,
}

impl LocalSource {
    /// Opens every part of `layout` and checks its tensors by header.
    ///
    /// # Errors
    /// Names the file, tensor or field, what was found and what was expected.
    pub fn new(layout: &Layout) -> Result<Self> {
        let mut parts = Vec::new();
        for name in PartName::ALL {
            let Some(location) = layout.part(name) else {
                continue;
            };
            let part = Part::open(location, name.kind())?;
            let config = PartConfig::of(&part, name)?;
            let specs = config.specs()?;
            part.check(&specs)?;
            part.check_filled(&specs)?;
            let bytes = part.store().entries().values().map(|e| e.byte_len() as u64);
            parts.push((name, location.clone(), bytes.sum()));
        }
        Ok(Self {
            parts,
            rest: Extras::of(layout)?,
            adapters: Adapters::default(),
        })
    }

    /// The same with adapters, whose changes are put into the experts before they are quantized.
    ///
    /// # Errors
    /// When one does not fit, or an expert that one is for is not there.
    pub fn with_adapters(self, wanted: &[Wanted]) -> Result<Self> {
        let specs = |name| -> Result<Vec<TensorSpec>> {
            let (_, location, _) = self.part(name).context("no such part")?;
            PartConfig::of(&Part::open(location, name.kind())?, name)?.specs()
        };
        let there = PartName::ALL.into_iter().filter_map(|name| {
            let expert = name.expert()?;
            self.part(name).map(|_| Ok((expert, specs(name)?)))
        });
        let experts = there.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            adapters: Adapters::open(wanted, &experts)?,
            ..self
        })
    }

    /// What users should know of the adapters.
    pub fn warnings(&self) -> &[String] {
        &self.adapters.warnings
    }

    fn part(&self, name: PartName) -> Option<&(PartName, Location, u64)> {
        self.parts.iter().find(|part| part.0 == name)
    }
}

impl ConvertSource for LocalSource {
    fn identity(&self) -> Value {
        let files = self.parts.iter().map(|(name, location, ..)| {
            let files: Vec<Value> = location
                .names
                .iter()
                .map(|file| json!([file, location.files.stamp(file)]))
                .collect();
            (name.key().to_owned(), Value::from(files))
        });
        let mut identity: serde_json::Map<String, Value> = files.collect();
        for name in PartName::ALL {
            let adapters = self.adapters(name).iter();
            let adapters: Vec<Value> = adapters
                .map(|adapter| json!([adapter.fingerprint(), adapter.strength()]))
                .collect();
            if !adapters.is_empty() {
                identity.insert(format!("{}'s adapters", name.key()), adapters.into());
            }
        }
        Value::Object(identity)
    }

    fn parts(&self) -> Vec<PartName> {
        self.parts.iter().map(|part| part.0).collect()
    }

    fn config(&self, name: PartName, part: &Part) -> Result<PartConfig> {
        PartConfig::of(part, name)
    }

    fn shards(&self, _name: PartName) -> usize {
        1
    }

    fn shard_bytes(&self, name: PartName, _shard: usize) -> u64 {
        self.part(name).map_or(0, |part| part.2)
    }

    fn open(
        &mut self,
        name: PartName,
        _shard: usize,
        _on_event: &mut dyn FnMut(Event),
    ) -> Result<Part> {
        let part = self
            .part(name)
            .with_context(|| format!("there is no {name}"))?;
        Part::open(&part.1, name.kind())
    }

    fn release(&mut self, _name: PartName, _shard: usize) -> Result<()> {
        Ok(())
    }

    fn adapters(&self, name: PartName) -> &[Adapter] {
        self.adapters.of_part(name)
    }

    fn rest(&self) -> &Extras {
        &self.rest
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}
