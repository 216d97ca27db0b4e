//! Safetensors files, whole or in shards, mapped and read by header.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ::safetensors::SafeTensors;
pub use ::safetensors::tensor::Dtype;
use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use serde::Deserialize;

use super::read_json;

/// The tensors of one part of a model, mapped from one or several files.
#[derive(Debug)]
pub struct TensorStore {
    folder: PathBuf,
    maps: Vec<Mmap>,
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
        let mut store = Self {
            folder: folder.to_owned(),
            maps: Vec::new(),
            entries: BTreeMap::new(),
        };
        let names = file_names(folder)?;
        let indexes: Vec<&String> = names
            .iter()
            .filter(|n| n.ends_with(".safetensors.index.json"))
            .collect();
        match indexes.as_slice() {
            [index] => {
                let path = folder.join(index);
                let weight_map = read_json::<ShardIndex>(&path)?.weight_map;
                let mut shards: Vec<&String> = weight_map.values().collect();
                shards.sort();
                shards.dedup();
                for shard in &shards {
                    ensure!(
                        names.contains(*shard),
                        "{}: lists the shard {shard:?}, which is not in the folder",
                        path.display()
                    );
                    store.map(shard)?;
                }
                for (tensor, shard) in &weight_map {
                    let entry = store.entries.get(tensor);
                    ensure!(
                        entry.is_some_and(|entry| shards.get(entry.map) == Some(&shard)),
                        "{}: lists the tensor {tensor} in {shard}, which does not hold it",
                        path.display()
                    );
                }
            }
            [] => store.map(&single_file(folder, &names)?)?,
            several => bail!(
                "{}: found {} index files ({several:?}); expected one",
                folder.display(),
                several.len()
            ),
        }
        Ok(store)
    }

    fn map(&mut self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        ensure!(
            file.metadata()?.len() > 8,
            "{}: the file is empty or cut off; download it again",
            path.display()
        );
        // SAFETY: the map is only read. A file that another program truncates meanwhile would
        // raise SIGBUS; checkpoints are not written while they are in use.
        let map = unsafe { Mmap::map(&file) }
            .with_context(|| format!("cannot map {}", path.display()))?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map).with_context(|| {
            format!(
                "{}: not a whole safetensors file; download it again",
                path.display()
            )
        })?;
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
                "{}: the tensor {name} is cut off; download the file again",
                path.display()
            );
            ensure!(
                self.entries.insert(name.clone(), entry).is_none(),
                "{}: the tensor {name} stands in another shard too; expected it once",
                path.display()
            );
        }
        self.maps.push(map);
        Ok(())
    }

    /// The folder that the tensors are in.
    pub fn folder(&self) -> &Path {
        &self.folder
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

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn single_file(folder: &Path, names: &[String]) -> Result<String> {
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
            "{}: no .safetensors file; expected diffusion_pytorch_model.safetensors, \
             model.safetensors, or shards with an index",
            folder.display()
        ),
        several => bail!(
            "{}: found {several:?} and no index; expected one file, or shards with \
             a .safetensors.index.json",
            folder.display()
        ),
    }
}
