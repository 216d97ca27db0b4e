//! Whether a model's files hold what was published: every byte of them is read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::digest::Hash;
use super::transfer::hash_of;
use crate::runtime::Mode;
use crate::util::show::{Show, chain};
use crate::weights::config::CONFIG;
use crate::weights::container::encoding::Encoding;
use crate::weights::convert::{REPORT, written_hashes};
use crate::weights::layout::{Layout, MODEL_INDEX, TokenizerAt};
use crate::weights::store::{Container, Entry, Location, TensorStore};
use crate::weights::{Files, PartName, SETTINGS};

/// What was found out about a file.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Its name.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// The whole file against the hash that the hub's cache knows.
    pub hash: Outcome,
    /// Its tensors against the checksums that the file, or the report of its conversion, holds.
    pub checksums: Outcome,
    /// Whether its tensors' values are finite numbers.
    pub values: Outcome,
}

/// How a comparison came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be; with what was compared.
    Right(String),
    /// Different; with what was found and expected.
    Wrong(String),
    /// Not compared; with the reason.
    Unknown(String),
}

impl Outcome {
    /// What is wrong.
    pub fn wrong(&self) -> Option<&str> {
        match self {
            Self::Wrong(what) => Some(what),
            _ => None,
        }
    }

    fn unknown(why: &str) -> Self {
        Self::Unknown(why.to_owned())
    }

    fn of(result: Result<String>) -> Self {
        result.map_or_else(|error| Self::Wrong(chain(&error)), Self::Right)
    }
}

impl Verified {
    /// Everything that is wrong.
    pub fn wrong(&self) -> impl Iterator<Item = &str> {
        let outcomes = [&self.hash, &self.checksums, &self.values];
        outcomes.into_iter().filter_map(Outcome::wrong)
    }
}

/// Reads every file of `layout`; `begin` hears of each, with its size, before it is read.
pub fn verify(layout: &Layout, begin: &mut dyn FnMut(&str, u64)) -> Vec<Verified> {
    let mut verified = Vec::new();
    for name in PartName::ALL {
        let Some(location) = layout.part(name) else {
            continue;
        };
        let mut written = written_hashes(&location.files);
        let written = written.remove(&name).unwrap_or_default();
        for file in &location.names {
            let mut found = small(&location.files, file, begin);
            (found.checksums, found.values) = tensors(&location.files, file, &written);
            verified.push(found);
        }
    }
    for (files, file) in others(layout) {
        // The parts of a folder may share its configuration.
        let path = files.name(&file);
        if verified.iter().all(|before| before.path != path) {
            verified.push(small(&files, &file, begin));
        }
    }
    verified
}

/// Compares every file of `layout` that lies in the hub's cache with its hash.
///
/// # Errors
/// Names the first that differs.
pub fn check_hashes(layout: &Layout, begin: &mut dyn FnMut(&str, u64)) -> Result<()> {
    let parts = PartName::ALL
        .into_iter()
        .filter_map(|name| layout.part(name));
    let weights = parts.flat_map(|part| part.names.iter().map(|file| (part.files.clone(), file)));
    let weights = weights.map(|(files, file)| (files, file.clone()));
    for (files, file) in weights.chain(others(layout)) {
        if let Some((path, hash)) = known(&files, &file) {
            begin(&files.name(&file), files.stamp(&file).0);
            compare(&path, &hash).with_context(|| files.name(&file))?;
        }
    }
    Ok(())
}

/// The files of a model without tensors.
fn others(layout: &Layout) -> Vec<(Files, String)> {
    let mut others = Vec::new();
    for name in PartName::ALL {
        if let Some(Location { files, index, .. }) = layout.part(name) {
            others.extend(index.iter().map(|index| (files.clone(), index.clone())));
            others.push((files.clone(), CONFIG.to_owned()));
        }
    }
    for file in [MODEL_INDEX, SETTINGS, CONFIG, REPORT] {
        others.extend(
            layout
                .root
                .iter()
                .map(|root| (root.clone(), file.to_owned())),
        );
    }
    if let Some(TokenizerAt::File(files, file)) = &layout.tokenizer {
        others.push((files.clone(), file.clone()));
    }
    others.retain(|(files, file)| files.has(file));
    others
}

/// What is known of any file: its hash.
fn small(files: &Files, file: &str, begin: &mut dyn FnMut(&str, u64)) -> Verified {
    let (path, bytes) = (files.name(file), files.stamp(file).0);
    begin(&path, bytes);
    let hash = match (known(files, file), files) {
        (Some((path, hash)), _) => Outcome::of(compare(&path, &hash)),
        (None, Files::Embedded { .. }) => Outcome::unknown("part of the program"),
        (None, Files::Folder(_)) => Outcome::unknown("not in the hub's cache"),
    };
    Verified {
        path,
        bytes,
        hash,
        checksums: Outcome::unknown("no tensors"),
        values: Outcome::unknown("no tensors"),
    }
}

/// The hash of a file in the hub's cache, which is the name of the blob that its link leads to.
fn known(files: &Files, file: &str) -> Option<(PathBuf, Hash)> {
    let Files::Folder(folder) = files else {
        return None;
    };
    let path = fs::canonicalize(folder.join(file)).ok()?;
    if path.parent()?.file_name()? != "blobs" {
        return None;
    }
    let hash = Hash::from_blob_name(path.file_name()?.to_str()?)?;
    Some((path, hash))
}

/// Compares a file with its hash.
fn compare(path: &Path, expected: &Hash) -> Result<String> {
    let read = || hash_of(path, expected, fs::metadata(path)?.len());
    let found = read().with_context(|| format!("cannot read {}", path.shown()))?;
    ensure!(
        found == *expected,
        "the file is not what was published: it has the {found}; expected {}\nhint: remove {} and \
         pull the model again",
        expected.hex(),
        path.shown()
    );
    Ok(match expected {
        Hash::Sha256(_) => "sha256".into(),
        Hash::GitBlob(_) => "git's sha1".into(),
    })
}

/// The tensors of a file: their checksums and their values.
fn tensors(files: &Files, file: &str, written: &BTreeMap<String, String>) -> (Outcome, Outcome) {
    let location = Location {
        files: files.clone(),
        names: vec![file.to_owned()],
        index: None,
    };
    let store = match TensorStore::open(&location) {
        Ok(store) => store,
        Err(error) => {
            let unread = Outcome::unknown("the file cannot be read");
            return (Outcome::Wrong(chain(&error)), unread);
        }
    };
    let (mut right, mut damaged, mut infinite) = (0, Vec::new(), Vec::new());
    for (name, entry) in store.entries() {
        if store.has_checksum(entry) {
            match store.verify(name, entry) {
                Ok(()) => right += 1,
                Err(_) => damaged.push(name.as_str()),
            }
        } else if let Some(expected) = written.get(name) {
            let found = blake3::hash(store.bytes(entry)).to_hex();
            match found.as_str() == expected {
                true => right += 1,
                false => damaged.push(name),
            }
        }
        if !store.is_finite(entry) || has_no_number(&store, name, entry) {
            infinite.push(name.as_str());
        }
        store.release(entry, 0..entry.byte_len());
    }
    let kind = match store.container() {
        Container::Pth => "CRC-32",
        _ => "BLAKE3",
    };
    let all = store.entries().len();
    let checksums = match (list(&damaged), right) {
        (Some(names), _) => Outcome::Wrong(format!("other bytes than were written in {names}")),
        (None, 0) => Outcome::Unknown(format!("{} has none", store.container())),
        (None, right) if right == all => Outcome::Right(format!("{kind} of {all} tensors")),
        (None, right) => Outcome::Right(format!("{kind} of {right} of {all} tensors")),
    };
    let values = match list(&infinite) {
        Some(names) => Outcome::Wrong(format!("NaN or infinite values in {names}")),
        None => Outcome::Right("finite".into()),
    };
    (checksums, values)
}

/// Whether bytes beside a weight, the scales of its groups, have a code that is no number.
fn has_no_number(store: &TensorStore, name: &str, entry: &Entry) -> bool {
    let ends = [".scales", ".weight_scale"];
    let Some(module) = ends.iter().find_map(|end| name.strip_suffix(end)) else {
        return false;
    };
    let weight = store.entries().get(&format!("{module}.weight"));
    // As MLX packs them: 16 values of 4 bits have a scale, and more in its other modes.
    let is_nvfp4 = weight.is_some_and(|weight| {
        weight.encoding == Encoding::U32 && weight.byte_len() == 8 * entry.byte_len()
    });
    let mode = match is_nvfp4 {
        true => Mode::Nvfp4,
        false => Mode::Mxfp8,
    };
    entry.encoding == Encoding::U8 && !store.bytes(entry).iter().all(|&code| mode.is_scale(code))
}

/// The first name, and how many more there are.
fn list(names: &[&str]) -> Option<String> {
    let (first, rest) = names.split_first()?;
    Some(match rest.len() {
        0 => format!("the tensor {first}"),
        more => format!("the tensor {first} and {more} more"),
    })
}
