//! What an adapter's file is, without a model.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Serialize;

use super::keys::{self, Slot};
use super::{Form, named_expert};
use crate::sampling::Expert;
use crate::weights::store::{Location, TensorStore};

/// What is known of an adapter by its header.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Its file.
    pub path: String,
    /// Layers that are changed, by how.
    pub forms: BTreeMap<Form, usize>,
    /// The ranks that occur.
    pub ranks: BTreeSet<usize>,
    /// The alphas that occur; without any, they are the ranks.
    pub alphas: Vec<f64>,
    /// Layers that are changed.
    pub layers: usize,
    /// Blocks that they lie in: the last one's number and 1.
    pub blocks: usize,
    /// The network's width, where a layer shows it.
    pub width: Option<usize>,
    /// Layers of the image branch that Wan2.1 has.
    pub image_branch: usize,
    /// The expert that its name says.
    pub expert: Option<Expert>,
    /// Whether it holds changes of both experts.
    pub both_experts: bool,
    /// How its tensors are stored, with their number.
    pub stored_as: BTreeMap<String, usize>,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// The models that it was made for.
    pub fits: Vec<&'static str>,
}

/// What the files at `location` are, if they are an adapter.
///
/// # Errors
/// When they cannot be read.
pub fn describe(location: &Location) -> Result<Option<Description>> {
    let store = TensorStore::open(location)?;
    let mut keys = store.entries().keys().filter(|name| keys::is_key(name));
    // Quantized weights have an alpha, too (LightX2V's nvfp4).
    if keys.all(|name| name.ends_with(".alpha")) {
        return Ok(None);
    }
    let mut modules: BTreeMap<String, BTreeMap<Slot, &String>> = BTreeMap::new();
    let mut both = [false; 2];
    let mut description = Description {
        path: location.to_string(),
        forms: BTreeMap::new(),
        ranks: BTreeSet::new(),
        alphas: Vec::new(),
        layers: 0,
        blocks: 0,
        width: None,
        image_branch: 0,
        expert: named_expert(location),
        both_experts: false,
        stored_as: BTreeMap::new(),
        bytes: 0,
        fits: Vec::new(),
    };
    for (name, entry) in store.entries() {
        let encoding = entry.encoding.name().to_owned();
        *description.stored_as.entry(encoding).or_default() += 1;
        description.bytes += entry.byte_len() as u64;
        let Some((path, slot)) = keys::split(name) else {
            continue;
        };
        let (path, expert) = keys::bare(path);
        match expert {
            Some(Expert::HighNoise) => both[0] = true,
            Some(Expert::LowNoise) => both[1] = true,
            Some(Expert::Single) => both = [true; 2],
            None => {}
        }
        modules
            .entry(keys::flat(path))
            .or_default()
            .insert(slot, name);
    }
    description.both_experts = both == [true; 2];
    let shape = |name: &String| {
        store
            .entries()
            .get(name)
            .map_or(&[][..], |e| e.shape.as_slice())
    };
    for (module, slots) in &modules {
        if keys::of_image_branch(module) {
            description.image_branch += 1;
        }
        description.layers += 1;
        let block = keys::block_of(module).map_or(0, |block| block + 1);
        description.blocks = description.blocks.max(block);
        let has = |slot| slots.contains_key(&slot);
        let form = match () {
            () if has(Slot::Magnitude) => Form::Dora,
            () if has(Slot::Up) => Form::Lora,
            () if has(Slot::Hada([0, 0])) => Form::Loha,
            () if has(Slot::Kron(0)) || has(Slot::KronSide([0, 0])) => Form::Lokr,
            () => Form::Full,
        };
        *description.forms.entry(form).or_default() += 1;
        let rank_of = [
            Slot::Down,
            Slot::Hada([0, 1]),
            Slot::KronSide([0, 1]),
            Slot::KronSide([1, 1]),
        ];
        let rank = rank_of
            .iter()
            .find_map(|slot| shape(slots.get(slot)?).first());
        description.ranks.extend(rank);
        if let Some(name) = slots.get(&Slot::Alpha)
            && let Some(entry) = store.entries().get(*name)
            && shape(name).iter().product::<usize>() == 1
        {
            let mut value = [0.0];
            if entry
                .encoding
                .decode(store.bytes(entry), &mut value)
                .is_ok()
            {
                description.alphas.push(f64::from(value[0]));
            }
        }
        // Queries are as wide as the network, in every naming.
        if module.ends_with("self_attn_q") || module.ends_with("attn1_to_q") {
            let outputs = [Slot::Up, Slot::Hada([0, 0]), Slot::Weight];
            let outputs = outputs
                .iter()
                .find_map(|slot| shape(slots.get(slot)?).first());
            description.width = description.width.or(outputs.copied());
        }
    }
    description.alphas.sort_by(f64::total_cmp);
    description.alphas.dedup();
    description.fits = fits(&description);
    Ok(Some(description))
}

/// The published models that have such layers.
fn fits(description: &Description) -> Vec<&'static str> {
    let image = description.image_branch > 0;
    match (description.width, description.blocks) {
        (Some(5120) | None, 31..=40) if image => vec![
            "Wan2.1 I2V-14B",
            "Wan2.2 I2V-A14B and T2V-A14B, but for the image branch",
        ],
        (Some(5120) | None, 31..=40) => vec!["Wan2.2 I2V-A14B and T2V-A14B", "Wan2.1 14B"],
        (Some(3072), 1..=30) => vec!["Wan2.2 TI2V-5B"],
        (Some(1536), 1..=30) => vec!["Wan2.1 T2V-1.3B"],
        _ => Vec::new(),
    }
}
