//! Adapters: what somebody trained a model to do besides, as a small change of its weights.
//!
//! LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), LoHa and LoKr (arXiv:2309.14859) and whole changes
//! of single tensors, as `keys` reads them. An unquantized weight gets the change while it is loaded,
//! in float32. A quantized one stays as it is; what the change adds is computed beside it.

mod changes;
mod delta;
mod describe;
mod keys;
#[cfg(test)]
mod tests;

pub use changes::Form;
pub use describe::{Description, describe};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

use self::changes::{Change, Peft};
use self::keys::{Key, Modules};
use super::files::{EmbeddedFile, Files};
use super::layout::{PartName, expert_of};
use super::store::{Location, TensorStore};
use crate::model::TensorSpec;
use crate::sampling::Expert;
use crate::util::show::Show;

/// How many keys an error lists.
const MAX_LISTED: usize = 8;

/// Where an adapter is.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, or a folder with a file for each expert.
    Disk(PathBuf),
    /// A folder in the program.
    Embedded(&'static [EmbeddedFile]),
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Disk(one), Self::Disk(other)) => one == other,
            (Self::Embedded(one), Self::Embedded(other)) => one.as_ptr() == other.as_ptr(),
            _ => false,
        }
    }
}

/// An adapter as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Where it is.
    pub source: Source,
    /// What its change is multiplied by.
    pub strength: f64,
    /// The expert that it is for; without one, its name or its tensors say.
    pub expert: Option<Expert>,
}

/// An adapter of one expert, whose tensors' names and shapes have been checked.
#[derive(Debug)]
pub struct Adapter {
    store: Rc<TensorStore>,
    strength: f64,
    /// By the canonical names of the tensors that they change.
    changes: BTreeMap<String, Vec<Change>>,
}

/// The adapters of a model, in their order.
#[derive(Debug, Default)]
pub struct Adapters {
    /// Of each transformer, in the order of [`Expert::ALL`].
    of: [Vec<Adapter>; 3],
    /// What users should know of them.
    pub warnings: Vec<String>,
}

impl Adapters {
    /// Opens adapters for experts with these tensors.
    ///
    /// # Errors
    /// Names the file and the tensor that does not fit, and what was expected.
    pub fn open(wanted: &[Wanted], experts: &[(Expert, Vec<TensorSpec>)]) -> Result<Self> {
        let mut adapters = Self::default();
        if wanted.is_empty() {
            return Ok(adapters);
        }
        let experts: Vec<_> = experts
            .iter()
            .map(|(expert, specs)| (*expert, Modules::of(specs), specs))
            .collect();
        let single = experts.iter().any(|(expert, ..)| *expert == Expert::Single);
        for one in wanted {
            for (location, expert) in one.files()? {
                let store = Rc::new(TensorStore::open(&location)?);
                // A name that says high or low means nothing to a model without experts.
                let said = one.expert.or(expert).filter(|_| !single);
                if let (Some(wanted), Some(named)) = (one.expert, expert)
                    && wanted != named
                {
                    adapters.warnings.push(format!(
                        "{location} is given to the {wanted} expert; its name says {named}"
                    ));
                }
                let both = changes::marks(&store);
                for (expert, modules, specs) in &experts {
                    // Of a model of which only one expert is there, or another one's.
                    if said.is_some_and(|said| said != *expert) {
                        continue;
                    }
                    // What holds both experts' tensors says whose each is.
                    let only = (both && !single && said.is_none()).then_some(*expert);
                    let (adapter, skipped) =
                        Adapter::open(&store, one.strength, modules, specs, only)?;
                    if skipped > 0 {
                        adapters.warn_of_image_branch(&location, skipped);
                    }
                    // So that a strength of 0 is as good as none to the last bit.
                    if one.strength != 0.0 {
                        adapters.of_mut(*expert).push(adapter);
                    }
                }
            }
        }
        Ok(adapters)
    }

    fn warn_of_image_branch(&mut self, location: &Location, skipped: usize) {
        let warning = format!(
            "{location}: {skipped} tensors for the image branch of Wan2.1, which this model has \
             not, are left out"
        );
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Those of an expert.
    pub fn of(&self, expert: Expert) -> &[Adapter] {
        &self.of[expert as usize]
    }

    /// Those of a part.
    pub(super) fn of_part(&self, part: PartName) -> &[Adapter] {
        part.expert().map_or(&[], |expert| self.of(expert))
    }

    fn of_mut(&mut self, expert: Expert) -> &mut Vec<Adapter> {
        &mut self.of[expert as usize]
    }
}

impl Wanted {
    /// Its files, each with the expert that its name says.
    fn files(&self) -> Result<Vec<(Location, Option<Expert>)>> {
        let found = match &self.source {
            Source::Embedded(files) => Location::all_in(&Files::embedded_root(files))?,
            Source::Disk(path) if path.is_dir() => Location::all_in(&Files::from(path.as_path()))?,
            Source::Disk(path) => vec![Location::at(path).context("--lora")?],
        };
        let named: Vec<_> = found.into_iter().map(|l| (named_expert(&l), l)).collect();
        match named.as_slice() {
            [(expert, location)] => return Ok(vec![(location.clone(), *expert)]),
            [(Some(one), _), (Some(other), _)] if one != other => {}
            _ => {
                let names: Vec<String> = named.iter().map(|(_, l)| l.to_string()).collect();
                let Source::Disk(path) = &self.source else {
                    bail!("the program's own adapter is not whole");
                };
                bail!(
                    "--lora {}: found {}; expected one file, or one whose name says high and one \
                     whose name says low\nhint: name the files with --lora-high and --lora-low",
                    path.shown(),
                    match names.is_empty() {
                        true => "no file with tensors".to_owned(),
                        false => names.join(", "),
                    }
                )
            }
        }
        let mine = |(expert, _): &(Option<Expert>, Location)| {
            self.expert.is_none() || *expert == self.expert
        };
        Ok(named
            .into_iter()
            .filter(mine)
            .map(|(expert, location)| (location, expert))
            .collect())
    }
}

/// The expert that a file's name says, or its folder's.
fn named_expert(location: &Location) -> Option<Expert> {
    let path = location.to_string();
    let mut parts = path.rsplit('/');
    let (file, folder) = (parts.next()?, parts.next().unwrap_or_default());
    expert_of(&format!("{folder}/{file}"))?.expert()
}

impl Adapter {
    /// Reads a file's names and shapes for an expert; also says how many of its tensors belong to
    /// an image branch that the expert has not.
    fn open(
        store: &Rc<TensorStore>,
        strength: f64,
        modules: &Modules,
        specs: &[TensorSpec],
        only: Option<Expert>,
    ) -> Result<(Self, usize)> {
        let location = store.location();
        let mut slots: BTreeMap<String, BTreeMap<keys::Slot, String>> = BTreeMap::new();
        let (mut skipped, mut beyond, mut unknown) = (0, None, Vec::new());
        for name in store.entries().keys() {
            match modules.read(name) {
                Key::Of { expert, .. } if only.is_some() && expert != only => {}
                Key::Of { module, slot, .. } => {
                    let before = slots.entry(module).or_default().insert(slot, name.clone());
                    if let Some(before) = before {
                        bail!(
                            "{location}: {} and {} are the same of one layer; expected one of them",
                            before.shown(),
                            name.shown()
                        );
                    }
                }
                Key::ImageBranch => skipped += 1,
                Key::Beyond { block } => beyond = beyond.max(Some(block)),
                Key::Unknown { module } => unknown.push((name, Some(module))),
                Key::Foreign => unknown.push((name, None)),
            }
        }
        if let Some(block) = beyond {
            bail!(
                "{location}: this adapter was made for {} blocks or more ({}); this model has {}",
                block + 1,
                made_for(block + 1),
                modules.blocks()
            );
        }
        if !unknown.is_empty() {
            let mut lines: Vec<String> = unknown
                .iter()
                .take(MAX_LISTED)
                .map(|(name, module)| {
                    let near = module.as_deref().and_then(|module| modules.nearest(module));
                    match near {
                        Some(near) => format!("{} (nearest layer: {near})", name.shown()),
                        None => name.shown().to_string(),
                    }
                })
                .collect();
            if unknown.len() > MAX_LISTED {
                lines.push(format!("and {} more", unknown.len() - MAX_LISTED));
            }
            bail!(
                "{location}: {} of {} tensors change no layer of this model:\n  {}\nhint: take an \
                 adapter made for Wan2.2 I2V-A14B",
                unknown.len(),
                store.entries().len(),
                lines.join("\n  ")
            );
        }
        let shapes: BTreeMap<&str, &[i32]> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), spec.shape.as_slice()))
            .collect();
        let peft = Peft::of(store).with_context(|| location.to_string())?;
        let mut changes: BTreeMap<String, Vec<Change>> = BTreeMap::new();
        for (module, slots) in slots {
            for (tensor, change) in changes::of_module(store, &module, &slots, &shapes, &peft)
                .with_context(|| location.to_string())?
            {
                changes.entry(tensor).or_default().push(change);
            }
        }
        ensure!(
            !changes.is_empty() || only.is_some(),
            "{location}: changes nothing of this model{}",
            match skipped {
                0 => "",
                _ => ": its tensors are for the image branch of Wan2.1",
            }
        );
        let store = Rc::clone(store);
        Ok((
            Self {
                store,
                strength,
                changes,
            },
            skipped,
        ))
    }

    /// Where it is, as users know it.
    pub fn name(&self) -> String {
        self.store.location().to_string()
    }

    /// Its file's name, or its folder's.
    pub fn file_name(&self) -> String {
        let name = self.name();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// What its change is multiplied by.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// A hash of its files, as of a part's.
    pub fn fingerprint(&self) -> String {
        self.store.fingerprint().to_string()
    }

    /// Tensors that it changes.
    pub fn tensors(&self) -> usize {
        self.changes.len()
    }

    /// Its forms, each with how many tensors have it and the ranks that occur.
    pub fn forms(&self) -> BTreeMap<Form, (usize, Vec<usize>)> {
        let mut forms: BTreeMap<Form, (usize, Vec<usize>)> = BTreeMap::new();
        for change in self.changes.values().flatten() {
            let (count, ranks) = forms.entry(change.form()).or_default();
            *count += 1;
            ranks.extend(change.rank());
            ranks.sort_unstable();
            ranks.dedup();
        }
        forms
    }

    fn on(&self, tensor: &str) -> &[Change] {
        self.changes.get(tensor).map_or(&[], Vec::as_slice)
    }
}

/// The published models that have so many blocks.
fn made_for(blocks: usize) -> &'static str {
    match blocks {
        0..=30 => "as Wan2.2 TI2V-5B and Wan2.1 1.3B have",
        31..=40 => "as Wan2.2 A14B and Wan2.1 14B have",
        _ => "more than any Wan model has",
    }
}
