//! The transformers, of which one is in memory at a time.

use anyhow::{Result, bail};
use mlx_rs::memory;

use super::Interrupted;
use crate::model::dit::Dit;
use crate::progress::{Network, Progress, load};
use crate::runtime::{Device, wire};
use crate::util::show::chain;
use crate::weights::{Checkpoint, Expert};

/// Holds the expert that is in use, for as many clips as take turns with it.
#[derive(Debug)]
pub(super) struct Experts<'a> {
    checkpoint: &'a Checkpoint,
    loaded: Option<(Expert, Device, Dit)>,
    /// Why one cannot be loaded; the next clip need not try again.
    broken: Option<(Expert, String)>,
}

impl<'a> Experts<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self {
            checkpoint,
            loaded: None,
            broken: None,
        }
    }

    /// Makes `expert` the one that is loaded for `device`; returns the seconds that loading took unless it was
    /// loaded already. The other is dropped first: a Mac holds one at a time.
    ///
    /// # Errors
    /// When a weight is damaged, or the run shall stop here.
    pub(super) fn load(
        &mut self,
        expert: Expert,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<Option<f64>> {
        if self
            .loaded
            .as_ref()
            .is_some_and(|(loaded, of, _)| (*loaded, *of) == (expert, device))
        {
            return Ok(None);
        }
        if let Some((_, error)) = self.broken.as_ref().filter(|(which, _)| *which == expert) {
            bail!("{error}");
        }
        self.loaded = None;
        memory::clear_cache()?;
        let loaded = load(Network::Expert(expert), progress, || {
            self.checkpoint.load_expert(expert, device)
        });
        let (dit, seconds) = loaded.inspect_err(|error| {
            if !error.is::<Interrupted>() {
                self.broken = Some((expert, chain(error)));
            }
        })?;
        wire(memory::active_memory()? as u64);
        self.loaded = Some((expert, device, dit));
        Ok(Some(seconds))
    }

    /// The loaded one.
    pub(super) fn loaded(&self) -> Option<(Expert, &Dit)> {
        self.loaded.as_ref().map(|(expert, _, dit)| (*expert, dit))
    }

    /// Drops it.
    pub(super) fn release(&mut self) -> Result<()> {
        self.loaded = None;
        wire(0);
        Ok(memory::clear_cache()?)
    }
}
