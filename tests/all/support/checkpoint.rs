//! Writes a random checkpoint in the diffusers layout from a folder of configurations.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use wan_i2v::model::clip_vision::{ClipVision, ClipVisionConfig};
use wan_i2v::model::dit::Dit;
use wan_i2v::model::umt5::Umt5;
use wan_i2v::model::vae::{VaeDecoder, VaeEncoder};
use wan_i2v::model::{Recorder, TensorSpec};
use wan_i2v::runtime::{Device, DeviceKind};
use wan_i2v::weights::naming::Kind;

use super::golden::{golden_dir, tests_dir};
use super::portable;

/// The parts of a case that have weights, by their folder's name.
pub fn parts(configs: &Path) -> Vec<&'static str> {
    let all = [
        "transformer",
        "transformer_2",
        "vae",
        "text_encoder",
        "image_encoder",
    ];
    let is_there = |part: &&str| configs.join(part).is_dir();
    all.into_iter().filter(is_there).collect()
}

/// What the names of a published image encoder begin with.
pub const PUBLISHED: &str = "vision_model.";

/// What kind of network a part is.
pub fn kind(part: &str) -> Kind {
    match part {
        "vae" => Kind::Vae,
        "text_encoder" => Kind::TextEncoder,
        "image_encoder" => Kind::ImageEncoder,
        _ => Kind::Expert,
    }
}

/// A part's file, as diffusers and transformers name it.
pub fn file_name(part: &str) -> &'static str {
    if part == "text_encoder" || part == "image_encoder" {
        "model"
    } else {
        "diffusion_pytorch_model"
    }
}

/// The checkpoint of a case of `tests/golden`, in a folder of its own.
pub fn of_case(case: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tests_dir().join("data/tokenizer");
    write(&golden_dir(case), &tokenizer, folder.path(), case).unwrap();
    folder
}

/// As [`of_case`], with another feed-forward width in the only transformer.
pub fn of_case_with_ffn(case: &str, ffn_dim: i32) -> TempDir {
    let [configs, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (golden, configs) = (golden_dir(case), configs.path());
    let small = ["model_index.json", "scheduler/scheduler_config.json"].map(str::to_owned);
    let parts = parts(&golden).into_iter();
    let files = small
        .into_iter()
        .chain(parts.map(|part| format!("{part}/config.json")));
    files.for_each(|file| copy(&golden, configs, &file).unwrap());
    let path = configs.join("transformer/config.json");
    let mut config: serde_json::Value = read(&path).unwrap();
    config["ffn_dim"] = ffn_dim.into();
    fs::write(path, config.to_string()).unwrap();
    let tokenizer = tests_dir().join("data/tokenizer");
    write(configs, &tokenizer, folder.path(), case).unwrap();
    folder
}

/// Copies the configurations of `configs` and the tokenizer to `target` and adds random weights
/// for the generator's `case`; sharded where `configs` has a `shards.json`.
fn write(configs: &Path, tokenizer: &Path, target: &Path, case: &str) -> Result<()> {
    copy(configs, target, "model_index.json")?;
    let scheduler = "scheduler/scheduler_config.json";
    copy(configs, target, scheduler)?;
    copy_all(tokenizer, &target.join("tokenizer"))?;
    let shards: BTreeMap<String, BTreeMap<String, String>> =
        match fs::read(configs.join("shards.json")) {
            Ok(json) => serde_json::from_slice(&json)?,
            Err(_) => BTreeMap::new(),
        };
    for part in parts(configs) {
        copy(configs, target, &format!("{part}/config.json"))?;
        let folder = target.join(part);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = specs(configs, part)?
            .into_iter()
            .map(|spec| {
                let shape: Vec<usize> = spec.shape.iter().map(|&d| d as usize).collect();
                let values = portable::weights(case, part, &spec.name, &shape);
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (spec.name, shape, bytes)
            })
            .collect();
        let file = file_name(part);
        match shards.get(part) {
            None => save(
                &folder.join(format!("{file}.safetensors")),
                &tensors,
                |_| true,
            )?,
            Some(weight_map) => {
                for shard in weight_map.values().collect::<BTreeSet<_>>() {
                    let belongs = |name: &str| weight_map.get(name) == Some(shard);
                    save(&folder.join(shard), &tensors, belongs)?;
                }
                let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
                fs::write(
                    folder.join(format!("{file}.safetensors.index.json")),
                    index.to_string(),
                )?;
            }
        }
    }
    Ok(())
}

/// Writes the small autoencoder of a case, `taew` or `taew22`, as it is published.
pub fn write_small_vae(case: &str, path: &Path) {
    let tensors: Vec<_> = specs(&golden_dir(case), "vae")
        .unwrap()
        .into_iter()
        .map(|spec| {
            let shape: Vec<usize> = spec.shape.iter().map(|&side| side as usize).collect();
            let values = portable::weights(case, "vae", &spec.name, &shape);
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (spec.name, shape, bytes)
        })
        .collect();
    save(path, &tensors, |_| true).unwrap();
}

/// Names and shapes of a part's tensors, by the configuration in `configs`.
pub fn specs(configs: &Path, part: &str) -> Result<Vec<TensorSpec>> {
    let path = configs.join(part).join("config.json");
    let device = Device::new(DeviceKind::Cpu, None);
    let mut recorder = Recorder::default();
    match part {
        "vae" => {
            let config = read(&path)?;
            VaeEncoder::load(&config, &mut recorder, device)?;
            VaeDecoder::load(&config, &mut recorder, device)?;
        }
        "text_encoder" => drop(Umt5::load(&read(&path)?, &mut recorder, device)?),
        "image_encoder" => {
            let config: ClipVisionConfig = read(&path)?;
            ClipVision::load(&config.with_last_layer(), &mut recorder, device)?;
            for spec in &mut recorder.specs {
                spec.name.insert_str(0, PUBLISHED);
            }
        }
        _ => drop(Dit::load(&read(&path)?, &mut recorder, device)?),
    }
    Ok(recorder.specs)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&json)?)
}

fn save(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<u8>)],
    belongs: impl Fn(&str) -> bool,
) -> Result<()> {
    let views = tensors
        .iter()
        .filter(|(name, ..)| belongs(name))
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, path)?;
    Ok(())
}

fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    let target = to.join(name);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let source = from.join(name);
    fs::copy(&source, target).with_context(|| format!("cannot copy {}", source.display()))?;
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        copy(from, to, &entry?.file_name().to_string_lossy())?;
    }
    Ok(())
}
