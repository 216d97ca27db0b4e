//! The index of a part that comes in several files, checked before any of them is fetched.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::hub::{RemoteFile, Selection};
use crate::weights::config::{CONFIG, OWN_KEY, PartConfig, look_for_images};
use crate::weights::naming::{self, Detected, Kind, Naming};
use crate::weights::{Files, PartName, published};

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Compares a part's index with its configuration; returns whose names the tensors have, and the
/// dimensions.
pub(super) fn check(
    root: &Files,
    name: PartName,
    files: &[RemoteFile],
    selection: &Selection,
) -> Result<(Detected, PartConfig)> {
    let folder = |path: &str| {
        path.rsplit_once('/')
            .map_or("", |(folder, _)| folder)
            .to_owned()
    };
    let place = folder(&files[0].path);
    let (shards, index) = index_of(root, &place, files, selection)?;
    if let Some(shard) = index
        .weight_map
        .values()
        .find(|s| !shards.contains(s.as_str()))
    {
        bail!("the index lists the shard {shard}, which is not among the files");
    }
    let tensors = index.weight_map.keys();
    let parts = naming::parts(tensors.map(|tensor| (tensor.as_str(), [].as_slice())));
    let mut parts = parts.into_iter().filter(|part| part.kind == name.kind());
    let (Some(mut names), None) = (parts.next(), parts.next()) else {
        bail!(
            "the index lists no tensors of {}",
            name.kind().with_article()
        );
    };
    // The original's VAE and ours have the same names; without shapes only the configuration
    // tells which it is.
    if names.kind == Kind::Vae && names.naming == Naming::Original && is_own(&root.sub(&place)) {
        names.naming = Naming::MlxVideo;
    }
    let mut config = PartConfig::given(&root.sub(&place), name)?.with_context(|| {
        format!(
            "no config.json in {place}/ tells the dimensions\nhint: pull without --bits, then convert"
        )
    })?;
    if let PartConfig::Expert(config) = &mut config {
        // Its shapes are in files that have not come: those that are published.
        look_for_images(config, &|canonical: &str| {
            let stored = names.name(canonical).ok()?;
            index.weight_map.get(&stored)?;
            let width = published::image_encoder().hidden_size as usize;
            let rows = 2 * published::image_encoder().tokens() as usize;
            Some(match canonical.ends_with("pos_embed") {
                true => vec![1, rows, width],
                false => vec![width],
            })
        });
    }
    for spec in config.specs()? {
        let stored = names.name(&spec.name)?;
        ensure!(
            index.weight_map.contains_key(&stored),
            "the index lacks the tensor {stored}"
        );
    }
    Ok((names, config))
}

/// The index that lists the files: a folder may hold several parts, each with an index.
fn index_of<'a>(
    root: &Files,
    place: &str,
    files: &'a [RemoteFile],
    selection: &Selection,
) -> Result<(BTreeSet<&'a str>, ShardIndex)> {
    let inside = |path: &'a str| path.rsplit('/').next().unwrap_or(path);
    let shards: BTreeSet<&str> = files.iter().map(|file| inside(&file.path)).collect();
    for file in &selection.files {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        if folder != place || !name.ends_with(".safetensors.index.json") {
            continue;
        }
        let index: ShardIndex = root.json(&file.path)?;
        if index
            .weight_map
            .values()
            .any(|s| shards.contains(s.as_str()))
        {
            return Ok((shards, index));
        }
    }
    bail!("several files in {place}/ and no index")
}

/// Whether this program wrote the configuration in a folder.
fn is_own(files: &Files) -> bool {
    let config = files.json::<Value>(CONFIG);
    config.is_ok_and(|config| config.get(OWN_KEY).is_some())
}
