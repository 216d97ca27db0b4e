//! Safetensors files, whole or in shards, mapped and read by header.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::SafeTensors;
pub use ::safetensors::tensor::Dtype;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::files::{Bytes, Files};

/// The tensors of one part of a model, mapped from one or several files.
#[derive(Debug)]
pub struct TensorStore {
    files: Files,
    maps: Vec<Bytes>,
    entries: BTreeMap<String, Entry>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Dtype in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    map: usize,
    start: usize,
    end: usize,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl TensorStore {
    /// Maps the safetensors files of `folder` and reads their headers: the shards that an index
    /// lists, or the one file there is.
    ///
    /// # Errors
    /// Names the file that is missing, malformed or at odds with the index.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::new(folder.into())
    }

    /// As [`Self::open`], from wherever the files are.
    pub(super) fn new(files: Files) -> Result<Self> {
        let mut store = Self {
            files: files.clone(),
            maps: Vec::new(),
            entries: BTreeMap::new(),
        };
        let names = files.names()?;
        let indexes: Vec<&String> = names
            .iter()
            .filter(|n| n.ends_with(".safetensors.index.json"))
            .collect();
        match indexes.as_slice() {
            [index] => {
                let path = files.name(index);
                let weight_map = files.json::<ShardIndex>(index)?.weight_map;
                let mut shards: Vec<&String> = weight_map.values().collect();
                shards.sort();
                shards.dedup();
                for shard in &shards {
                    ensure!(
                        names.contains(*shard),
                        "{path}: lists the shard {shard:?}, which is not in the folder"
                    );
                    store.map(shard)?;
                }
                for (tensor, shard) in &weight_map {
                    let entry = store.entries.get(tensor);
                    ensure!(
                        entry.is_some_and(|entry| shards.get(entry.map) == Some(&shard)),
                        "{path}: lists the tensor {tensor} in {shard}, which does not hold it"
                    );
                }
            }
            [] => store.map(&single_file(&files, &names)?)?,
            several => bail!(
                "{files}: found {} index files ({several:?}); expected one",
                several.len()
            ),
        }
        Ok(store)
    }

    fn map(&mut self, name: &str) -> Result<()> {
        let path = self.files.name(name);
        let map = self.files.map(name)?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map)
            .with_context(|| format!("{path}: not a whole safetensors file; download it again"))?;
        let data = header_len + 8;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                dtype: info.dtype,
                shape: info.shape.clone(),
                map: self.maps.len(),
                start: data + start,
                end: data + end,
            };
            ensure!(
                entry.end <= map.len(),
                "{path}: the tensor {name} is cut off; download the file again"
            );
            ensure!(
                self.entries.insert(name.clone(), entry).is_none(),
                "{path}: the tensor {name} stands in another shard too; expected it once"
            );
        }
        self.maps.push(map);
        Ok(())
    }

    /// Where the tensors are.
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Every tensor by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The bytes of a tensor, little-endian, row-major.
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.maps[entry.map][entry.start..entry.end]
    }
}

fn single_file(folder: &Files, names: &[String]) -> Result<String> {
    // diffusers' and transformers' names come first: variants such as fp16 may lie beside them.
    for usual in ["diffusion_pytorch_model.safetensors", "model.safetensors"] {
        if names.iter().any(|n| n == usual) {
            return Ok(usual.into());
        }
    }
    let files: Vec<&String> = names
        .iter()
        .filter(|n| n.ends_with(".safetensors"))
        .collect();
    match files.as_slice() {
        [file] => Ok((*file).clone()),
        [] => bail!(
            "{folder}: no .safetensors file; expected diffusion_pytorch_model.safetensors, \
             model.safetensors, or shards with an index"
        ),
        several => bail!(
            "{folder}: found {several:?} and no index; expected one file, or shards with \
             a .safetensors.index.json"
        ),
    }
}
