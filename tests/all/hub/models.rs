//! The miniature in the forms in which models are published, and what a conversion made of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use wan_i2v::model::dit::DitConfig;
use wan_i2v::model::vae::VaeConfig;
use wan_i2v::tiny;
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::layout::Layout;
use wan_i2v::weights::naming::{Detected, Kind, Naming};
use wan_i2v::weights::{PartName, published};

use crate::hub::pth;
use crate::hub::server::Server;
use crate::reference::clip::original_content;
use crate::support::layouts::{self, Stored};
use crate::support::scratch::{Tensor, Tensors, file_of, tensors_of};

/// Where the parts of a file lie in the diffusers layout.
pub const HIGH: &str = "transformer/diffusion_pytorch_model.safetensors";
pub const LOW: &str = "transformer_2/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

/// Shards that an expert is cut into.
pub const SHARDS: usize = 3;

/// A repository's files by path.
#[derive(Clone)]
pub struct Model(pub BTreeMap<String, Vec<u8>>);

/// The name of a shard of an expert, in its folder.
pub fn shard(number: usize) -> String {
    format!("diffusion_pytorch_model-{number:05}-of-{SHARDS:05}.safetensors")
}

pub fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".pth")
}

impl Model {
    /// In the diffusers layout, a file for each part.
    pub fn miniature() -> Self {
        let own = |file: &wan_i2v::weights::EmbeddedFile| (file.path.into(), file.bytes.into());
        Self(tiny::FILES.iter().map(own).collect())
    }

    /// In the diffusers layout, the experts in shards with an index.
    pub fn sharded() -> Self {
        let mut model = Self::miniature();
        for (folder, file) in [("transformer", HIGH), ("transformer_2", LOW)] {
            let tensors = tensors_of(&model.0.remove(file).unwrap());
            model.cut(folder, &tensors);
        }
        model
    }

    /// In the layout and with the names of the original: the experts in shards, the VAE and the
    /// text encoder in one file each, which ends in `end` (`.pth` or `.safetensors`).
    pub fn original(end: &str) -> Self {
        let source = Self::miniature();
        let mut model = Self(BTreeMap::new());
        let config = json!({
            "_class_name": "WanModel", "model_type": "i2v", "dim": 128, "ffn_dim": 256,
            "freq_dim": 256, "in_dim": 36, "out_dim": 16, "num_heads": 4, "num_layers": 6,
            "text_len": 512, "text_dim": 96, "eps": 1e-6,
        });
        for (folder, file) in [("high_noise_model", HIGH), ("low_noise_model", LOW)] {
            let config = config.to_string().into_bytes();
            model.0.insert(format!("{folder}/config.json"), config);
            model.cut(folder, &renamed(Kind::Expert, &source.0[file]));
        }
        for (name, kind, file) in [
            ("Wan2.1_VAE", Kind::Vae, VAE),
            ("models_t5_umt5-xxl-enc-bf16", Kind::TextEncoder, TEXT),
        ] {
            let tensors = renamed(kind, &source.0[file]);
            let content = match end {
                ".pth" => pth::write(&tensors),
                _ => file_of(&tensors),
            };
            model.0.insert(format!("{name}{end}"), content);
        }
        let tokenizer = source.0["tokenizer/tokenizer.json"].clone();
        model
            .0
            .insert("google/umt5-xxl/tokenizer.json".into(), tokenizer);
        model
    }

    /// In the original's layout with one transformer, in shards in the root: of Wan2.1 I2V-14B's kind,
    /// or of TI2V-5B's. Random weights.
    pub fn single(five: bool) -> Self {
        let [expert, _, vae, text] = layouts::Model::random().configs;
        let (PartConfig::Expert(expert), PartConfig::Vae(vae)) = (expert, vae) else {
            unreachable!();
        };
        let (expert, vae) = match five {
            true => (
                DitConfig {
                    in_channels: 48,
                    out_channels: 48,
                    ..expert
                },
                VaeConfig {
                    base_dim: 8,
                    decoder_base_dim: Some(12),
                    ..published::wan22_vae()
                },
            ),
            // Before the files have come features are taken to be as wide as the published encoder's.
            false => (
                DitConfig {
                    image_dim: Some(1280),
                    added_kv_proj_dim: Some(expert.dim()),
                    ..expert
                },
                vae,
            ),
        };
        let config = json!({
            "_class_name": "WanModel", "model_type": if five { "ti2v" } else { "i2v" }, "dim": expert.dim(),
            "ffn_dim": expert.ffn_dim, "freq_dim": expert.freq_dim, "in_dim": expert.in_channels,
            "out_dim": expert.out_channels, "num_heads": expert.num_attention_heads,
            "num_layers": expert.num_layers, "text_len": 512, "text_dim": expert.text_dim, "eps": 1e-6,
        });
        let part = |config: PartConfig, kind| {
            let names = Detected {
                residual: five && kind == Kind::Vae,
                ..Detected::plain(kind, Naming::Original)
            };
            let named = |tensor: layouts::Tensor| {
                let name = names.name(&tensor.name).unwrap();
                (name, Tensor::f32(&tensor.shape, &tensor.values))
            };
            let tensors = layouts::random_part("single", &config);
            tensors.into_iter().map(named).collect::<Tensors>()
        };
        let mut model = Self(BTreeMap::new());
        model
            .0
            .insert("config.json".into(), config.to_string().into_bytes());
        model.cut("", &part(PartConfig::Expert(expert), Kind::Expert));
        let name = if five {
            "Wan2.2_VAE.pth"
        } else {
            "Wan2.1_VAE.pth"
        };
        let mut put =
            |name: &str, tensors: &Tensors| model.0.insert(name.into(), pth::write(tensors));
        put(name, &part(PartConfig::Vae(vae), Kind::Vae));
        put(
            "models_t5_umt5-xxl-enc-bf16.pth",
            &part(text, Kind::TextEncoder),
        );
        if !five {
            let clip = original_content().into_iter().map(|(name, stored)| {
                assert_eq!(stored.encoding, Encoding::F32);
                let Stored { shape, bytes, .. } = stored;
                (
                    name,
                    Tensor {
                        dtype: Dtype::F32,
                        shape,
                        bytes,
                    },
                )
            });
            put(
                "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
                &clip.collect(),
            );
        }
        let tokenizer = Self::miniature().0["tokenizer/tokenizer.json"].clone();
        model
            .0
            .insert("google/umt5-xxl/tokenizer.json".into(), tokenizer);
        model
    }

    /// Adds an expert as shards with an index; neighbours by name lie in different ones.
    fn cut(&mut self, folder: &str, tensors: &Tensors) {
        let mut shards = vec![Tensors::new(); SHARDS];
        let mut weight_map = BTreeMap::new();
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            shards[i % SHARDS].insert(name.clone(), tensor.clone());
            weight_map.insert(name.clone(), shard(i % SHARDS + 1));
        }
        let mut put = |name: String, content| {
            let path = format!("{folder}/{name}")
                .trim_start_matches('/')
                .to_owned();
            self.0.insert(path, content);
        };
        for (i, tensors) in shards.iter().enumerate() {
            put(shard(i + 1), file_of(tensors));
        }
        let index = json!({ "metadata": {}, "weight_map": weight_map }).to_string();
        let name = "diffusion_pytorch_model.safetensors.index.json";
        put(name.into(), index.into_bytes());
    }

    /// What is in these folders alone.
    pub fn only(mut self, folders: &[&str]) -> Self {
        self.0.retain(|path, _| {
            !path.contains('/') || folders.iter().any(|f| path.starts_with(&format!("{f}/")))
        });
        self
    }

    /// Changes a file's tensors.
    pub fn edit(&mut self, path: &str, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = tensors_of(&self.0[path]);
        change(&mut tensors);
        self.0.insert(path.to_owned(), file_of(&tensors));
    }

    /// Changes a JSON file.
    pub fn edit_json(&mut self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.0[path]).unwrap();
        change(&mut value);
        self.0
            .insert(path.to_owned(), value.to_string().into_bytes());
    }

    /// Makes it the repository of the server.
    pub fn serve(&self, server: &Server) {
        for (path, content) in &self.0 {
            match is_weights(path) {
                true => server.large(path, content),
                false => server.small(path, content),
            }
        }
    }

    /// Writes it to a folder.
    pub fn write(&self, folder: &Path) {
        for (path, content) in &self.0 {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// The files with weights, in the order in which they are converted.
    pub fn weights(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.0.keys().filter(|p| is_weights(p)).cloned().collect();
        let part = |path: &String| Layout::part_of(path).unwrap_or(PartName::Transformer);
        paths.sort_by_key(part);
        paths
    }

    /// Bytes of the largest file.
    pub fn largest(&self) -> u64 {
        self.0.values().map(|file| file.len() as u64).max().unwrap()
    }
}

/// The tensors of a file of the diffusers layout with the original's names.
pub fn renamed(kind: Kind, file: &[u8]) -> Tensors {
    let names = Detected::plain(kind, Naming::Original);
    tensors_of(file)
        .into_iter()
        .map(|(name, tensor)| (names.name(&name).unwrap(), tensor))
        .collect()
}

/// A converted folder: the tensors of each part, and the other files.
fn converted(folder: &Path) -> (BTreeMap<String, Tensors>, BTreeMap<String, Vec<u8>>) {
    let (mut parts, mut others) = (BTreeMap::<String, Tensors>::new(), BTreeMap::new());
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let content = fs::read(folder.join(&name)).unwrap();
        match name.strip_suffix(".safetensors") {
            Some(stem) => {
                let part = stem.split('-').next().unwrap().to_owned();
                let tensors = parts.entry(part).or_default();
                for (name, tensor) in tensors_of(&content) {
                    assert!(tensors.insert(name, tensor).is_none(), "twice in {stem}");
                }
            }
            // What it lists is checked where the folder is opened.
            None if name.ends_with(".index.json") => {}
            None => drop(others.insert(name, content)),
        }
    }
    (parts, others)
}

/// The report without what depends on where the model came from and on the order of its files.
fn report(json: &[u8]) -> Value {
    let mut report: Value = serde_json::from_slice(json).unwrap();
    report.as_object_mut().unwrap().remove("source").unwrap();
    for part in report["parts"].as_object_mut().unwrap().values_mut() {
        let tensors = part["tensors"].as_array_mut().unwrap();
        tensors.sort_by_key(|tensor| tensor["name"].as_str().unwrap().to_owned());
    }
    report
}

/// That two conversions made the same of a model, whatever its files were.
pub fn assert_same(ours: &Path, theirs: &Path) {
    let ((our_parts, mut ours), (their_parts, mut theirs)) = (converted(ours), converted(theirs));
    assert!(our_parts.keys().eq(their_parts.keys()));
    for (part, tensors) in &our_parts {
        assert!(tensors.keys().eq(their_parts[part].keys()), "{part}");
        for (name, tensor) in tensors {
            assert!(*tensor == their_parts[part][name], "{part}: {name} differs");
        }
    }
    let [our_report, their_report] =
        [&mut ours, &mut theirs].map(|files| report(&files.remove("conversion.json").unwrap()));
    assert_eq!(our_report, their_report);
    assert!(ours.keys().eq(theirs.keys()), "{:?}", ours.keys());
    for (name, content) in &ours {
        assert!(*content == theirs[name], "{name} differs");
    }
}
