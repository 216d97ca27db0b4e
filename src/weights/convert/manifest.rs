//! What surrounds the weights of a converted model: final names, indexes, configuration, report.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::source::ConvertSource;
use super::state::{FileState, Unfinished, write_whole};
use super::{Bits, Converted, LayerKind, Options, PROGRAM};
use crate::weights::config::{CONFIG, OWN_KEY, PartConfig};
use crate::weights::files::Files;
use crate::weights::store::{Location, TensorStore};
use crate::weights::{Conditioning, Family, PartName, settings};

/// The report's file.
pub const REPORT: &str = "conversion.json";

/// Gives the files their names and writes what belongs beside them.
pub fn write(feed: &dyn ConvertSource, options: &Options, work: &Unfinished) -> Result<Converted> {
    let mut bytes = 0;
    let mut parts = Vec::new();
    let mut report = Map::new();
    let mut layers = Vec::new();
    for name in feed.parts() {
        let files: Vec<&FileState> = work.state.files.iter().filter(|f| f.part == name).collect();
        let mut weight_map = BTreeMap::new();
        let mut part_bytes = 0;
        for file in &files {
            let (from, to) = (current_name(work, file), final_name(work, file));
            fs::rename(work.folder.join(&from), work.folder.join(&to))
                .with_context(|| format!("cannot rename {from} to {to}"))?;
            let store = TensorStore::open(&Location {
                files: Files::from(work.folder.as_path()),
                names: vec![to.clone()],
                index: None,
            })?;
            for (tensor, entry) in store.entries() {
                weight_map.insert(tensor.clone(), to.clone());
                part_bytes += entry.byte_len() as u64;
            }
        }
        if files.len() > 1 {
            let index = json!({
                "metadata": { "total_size": part_bytes },
                "weight_map": weight_map,
            });
            put(
                work,
                &format!("{}.safetensors.index.json", stem(name)),
                &index,
            )?;
        }
        let tensors: Vec<_> = files.iter().flat_map(|file| &file.tensors).collect();
        let worst = tensors.iter().map(|t| t.relative_error).fold(0.0, f64::max);
        let mut of_part = json!({
            "bytes": part_bytes,
            "worst_relative_error": worst,
            "tensors": tensors,
        });
        if let Some(assigned) = work.state.assignment.get(&name) {
            let own = LayerKind::all(name, assigned, &tensors);
            of_part["layers"] = serde_json::to_value(&own)?;
            layers.extend(own);
        }
        report.insert(name.key().into(), of_part);
        bytes += part_bytes;
        parts.push((name, worst));
    }
    put(work, CONFIG, &config(feed, options, work)?)?;
    let report = json!({
        "program": PROGRAM,
        "source": feed.identity(),
        "options": options,
        "parts": report,
    });
    put(work, REPORT, &report)?;
    let rest = feed.rest();
    if let Some((name, content)) = &rest.tokenizer {
        write_whole(&work.folder.join(name), content)?;
    }
    if let Some(content) = &rest.settings {
        write_whole(&work.folder.join(settings::FILE), content)?;
    }
    Ok(Converted {
        bytes,
        parts,
        layers,
    })
}

fn put(work: &Unfinished, name: &str, json: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(json)?;
    text.push(b'\n');
    write_whole(&work.folder.join(name), &text)
}

/// The start of a part's file names, as mlx-video has them.
pub fn stem(name: PartName) -> &'static str {
    match name {
        PartName::HighNoise => "high_noise_model",
        PartName::LowNoise => "low_noise_model",
        PartName::Vae => "vae",
        PartName::TextEncoder => "t5_encoder",
        PartName::Transformer => "model",
        PartName::ImageEncoder => "image_encoder",
    }
}

/// The name that a file gets at the end.
fn final_name(work: &Unfinished, file: &FileState) -> String {
    let mut siblings = work.state.files.iter().filter(|f| f.part == file.part);
    let count = siblings.clone().count();
    if count == 1 {
        return format!("{}.safetensors", stem(file.part));
    }
    let number = siblings.position(|f| f.name == file.name).unwrap_or(0) + 1;
    format!("{}-{number:05}-of-{count:05}.safetensors", stem(file.part))
}

/// The name that a file has now: a run that stopped while renaming has given some their last.
pub fn current_name(work: &Unfinished, file: &FileState) -> String {
    let last = final_name(work, file);
    if work.folder.join(&file.name).exists() {
        file.name.clone()
    } else {
        last
    }
}

fn boundary_of(model: &str) -> Option<f64> {
    Family::named(model)?.boundary
}

/// mlx-video's configuration (Blaizzy/mlx-video, `mlx_video/models/wan_2/config.py`), with the
/// parts' dimensions in our own terms under a key that it does not read.
fn config(feed: &dyn ConvertSource, options: &Options, work: &Unfinished) -> Result<Value> {
    let mut config = Map::new();
    let mut own = Map::new();
    let mut put = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    let rest = feed.rest();
    let transformers = feed
        .parts()
        .into_iter()
        .filter(|name| name.expert().is_some());
    let transformer = transformers.clone().next();
    let has_one = transformer == Some(PartName::Transformer);
    let conditioning = match transformer.map(|name| work.config(name)).transpose()? {
        Some(PartConfig::Expert(config)) => Some((Conditioning::of(config)?, config.out_channels)),
        _ => None,
    };
    // mlx-video's words.
    let (kind, boundary) = match conditioning {
        Some((Conditioning::Text, 48)) => ("ti2v", None),
        Some((Conditioning::Text, _)) => ("t2v", boundary_of("Wan2.2 T2V-A14B")),
        _ => ("i2v", boundary_of("Wan2.2 I2V-A14B")),
    };
    let features = matches!(conditioning, Some((Conditioning::Features { .. }, _)));
    put("model_type", json!(kind));
    let is_older = has_one && (features || kind == "t2v");
    put("model_version", json!(if is_older { "2.1" } else { "2.2" }));
    put("dual_model", json!(!has_one));
    if let Some(boundary) = rest.boundary.or(boundary).filter(|_| !has_one) {
        put("boundary", json!(boundary));
    }
    for name in feed.parts() {
        let part = work.config(name)?;
        own.insert(name.key().to_owned(), serde_json::to_value(part)?);
        match part {
            PartConfig::Expert(expert) => {
                put("patch_size", json!(expert.patch_size));
                put("dim", json!(expert.dim()));
                put("ffn_dim", json!(expert.ffn_dim));
                put("freq_dim", json!(expert.freq_dim));
                put("text_dim", json!(expert.text_dim));
                put("in_dim", json!(expert.in_channels));
                put("out_dim", json!(expert.out_channels));
                put("num_heads", json!(expert.num_attention_heads));
                put("num_layers", json!(expert.num_layers));
                put("cross_attn_norm", json!(expert.cross_attn_norm));
                put("qk_norm", json!(true));
                put("eps", json!(expert.eps));
                put("text_len", json!(512));
                put("num_train_timesteps", json!(1000));
            }
            PartConfig::Vae(vae) => {
                let side = vae.spatial_stride();
                put("vae_stride", json!([vae.temporal_stride(), side, side]));
                put("vae_z_dim", json!(vae.z_dim));
            }
            PartConfig::TextEncoder(text) => {
                put("t5_vocab_size", json!(text.vocab_size));
                put("t5_dim", json!(text.d_model));
                put("t5_dim_attn", json!(text.num_heads * text.d_kv));
                put("t5_dim_ffn", json!(text.d_ff));
                put("t5_num_heads", json!(text.num_heads));
                put("t5_num_layers", json!(text.num_layers));
                put("t5_num_buckets", json!(text.relative_attention_num_buckets));
            }
            // mlx-video has none.
            PartConfig::ImageEncoder(_) => {}
        }
    }
    // mlx-video knows one quantization for both experts; with two it has to refuse.
    let experts = [
        (PartName::HighNoise, options.high),
        (PartName::LowNoise, options.low),
        (PartName::Transformer, options.high),
    ];
    let present = feed.parts();
    let mut bits: Vec<Option<Bits>> = experts
        .into_iter()
        .filter(|(name, _)| present.contains(name))
        .map(|(_, bits)| bits)
        .collect();
    bits.dedup();
    if let [Some(bits)] = bits.as_slice()
        && let Some(bits) = bits.quantized()
    {
        put(
            "quantization",
            json!({ "group_size": options.group_size, "bits": bits.number() }),
        );
    }
    put(OWN_KEY, Value::Object(own));
    Ok(Value::Object(config))
}
