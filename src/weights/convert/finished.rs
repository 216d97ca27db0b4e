//! A conversion that is there already.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::state::{TensorReport, of_commit, tidy_left};
use super::{Options, PROGRAM, manifest};
use crate::util::files::{MAX_JSON, read_small};
use crate::util::show::Show;
use crate::weights::PartName;
use crate::weights::config::CONFIG;
use crate::weights::files::Files;
use crate::weights::store::{Location, TensorStore};

/// A finished conversion with the options that are asked for.
#[derive(Debug)]
pub struct Finished {
    folder: PathBuf,
    report: Report,
}

/// What is read of its report.
#[derive(Debug, Deserialize)]
struct Report {
    program: String,
    source: Value,
    options: Value,
    parts: BTreeMap<String, PartReport>,
}

#[derive(Debug, Deserialize)]
struct PartReport {
    tensors: Vec<TensorReport>,
}

/// The BLAKE3 hashes of each part's tensors, by name, that the report of the conversion in `folder`
/// names; empty where none is.
pub fn written_hashes(folder: &Files) -> BTreeMap<PartName, BTreeMap<String, String>> {
    let report = folder.read(manifest::REPORT).ok();
    let report = report.and_then(|json| serde_json::from_slice::<Report>(&json).ok());
    let Some(report) = report else {
        return BTreeMap::new();
    };
    let of_part = |name: PartName| {
        let tensors = &report.parts.get(name.key())?.tensors;
        let hashes = tensors.iter().flat_map(|tensor| tensor.blake3.clone());
        Some((name, hashes.collect()))
    };
    PartName::ALL.into_iter().filter_map(of_part).collect()
}

impl Finished {
    /// The one that `target` is; `None` where nothing is there.
    ///
    /// # Errors
    /// When something else is there: another version's, with other options, or no conversion.
    pub fn at(target: &Path, options: &Options) -> Result<Option<Self>> {
        let report = read_small(&target.join(manifest::REPORT), MAX_JSON).ok();
        let report = report.and_then(|json| serde_json::from_slice::<Report>(&json).ok());
        let Some(report) = report else {
            check_target(target)?;
            return Ok(None);
        };
        tidy_left(target);
        if report.program != PROGRAM {
            bail!(in_the_way(
                target,
                &format!(", converted by {}", report.program)
            ));
        }
        if report.options != json!(options) {
            bail!(in_the_way(target, ", converted with other options"));
        }
        Ok(Some(Self {
            folder: target.to_owned(),
            report,
        }))
    }

    /// Sees to it that it is of `source`, and that every tensor is there.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, source: &Value) -> Result<()> {
        if self.report.source != *source {
            let of = of_commit(&self.report.source);
            bail!(in_the_way(
                &self.folder,
                &format!(", converted from another source{of}")
            ));
        }
        let missing = self
            .missing()
            .with_context(|| in_the_way(&self.folder, ", but damaged"))?;
        if let Some(missing) = missing {
            bail!(in_the_way(
                &self.folder,
                &format!(", but without {missing}")
            ));
        }
        Ok(())
    }

    /// The first thing that is not there any more.
    fn missing(&self) -> Result<Option<String>> {
        let files = Files::from(self.folder.as_path());
        if !files.has(CONFIG) {
            return Ok(Some(CONFIG.to_owned()));
        }
        let locations = Location::all_in(&files)?;
        for name in PartName::ALL {
            let Some(part) = self.report.parts.get(name.key()) else {
                continue;
            };
            let mut there = BTreeSet::new();
            let is_its = |file: &String| file.starts_with(manifest::stem(name));
            for location in locations.iter().filter(|l| l.names.iter().all(is_its)) {
                // A file that is cut off does not open.
                there.extend(TensorStore::open(location)?.entries().keys().cloned());
            }
            let mut tensors = part.tensors.iter().flat_map(|tensor| &tensor.blake3);
            if let Some((tensor, _)) = tensors.find(|(tensor, _)| !there.contains(tensor)) {
                return Ok(Some(format!("the tensor {tensor} of the {name}")));
            }
        }
        Ok(None)
    }
}

/// Refuses a target that is there already.
///
/// # Errors
/// When it is.
pub fn check_target(target: &Path) -> Result<()> {
    // A finished one keeps nothing of a run that did not come to tidy up.
    if target.join(manifest::REPORT).is_file() {
        tidy_left(target);
    }
    ensure!(!target.exists(), in_the_way(target, ""));
    Ok(())
}

fn in_the_way(target: &Path, what: &str) -> String {
    format!(
        "{} already exists{what}\nhint: remove it or choose another name",
        target.shown()
    )
}
