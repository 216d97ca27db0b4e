//! One random model as every layout keeps it: names, encodings, arrangements.
//!
//! The names come from `tests/data/names.json`, which the projects themselves wrote
//! (`scripts/golden_names.py`), not from the reader's own tables.

use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use wan_i2v::model::dit::DitConfig;
use wan_i2v::model::umt5::Umt5Config;
use wan_i2v::model::vae::VaeConfig;
use wan_i2v::weights::PartName;
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::naming::{Kind, LATENTS_MEAN, LATENTS_STD};

use super::{gguf, portable};

/// A canonical tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A whole model, its parts in the order of [`PartName::WITH_EXPERTS`].
#[derive(Clone, Debug)]
pub struct Model {
    pub configs: [PartConfig; 4],
    pub parts: [Vec<Tensor>; 4],
}

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub encoding: Encoding,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A part's stored tensors by name.
pub type Content = BTreeMap<String, Stored>;

/// How a GGUF file keeps the five axes of the patch embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Patch {
    Whole,
    /// Output and input channels merged.
    Folded,
    /// Without the axis of length 1.
    Dropped,
}

/// A layout with the types of its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Diffusers(Encoding),
    /// With two shards and an index for each part.
    Sharded(Encoding),
    Original(Encoding),
    /// ComfyUI's single files; the experts' names with a prefix.
    Comfy(Encoding, &'static str),
    /// `fp8_scaled`: the older names of scales, or the newer ones.
    Scaled {
        newer: bool,
    },
    MlxVideo(Encoding),
    MlxQuantized {
        bits: i32,
        group: i32,
    },
    Gguf(Encoding, Patch),
}

/// An expert with 128 channels per head, as layouts without a configuration need it.
pub fn expert_config(heads: i32, ffn_dim: i32, text_dim: i32) -> DitConfig {
    DitConfig {
        patch_size: [1, 2, 2],
        num_attention_heads: heads,
        attention_head_dim: 128,
        in_channels: 36,
        out_channels: 16,
        text_dim,
        freq_dim: 256,
        ffn_dim,
        num_layers: 2,
        cross_attn_norm: true,
        eps: 1e-6,
        rope_max_seq_len: 1024,
        qk_norm: Some("rms_norm_across_heads".into()),
        image_dim: None,
        added_kv_proj_dim: None,
        pos_embed_seq_len: None,
    }
}

fn configs() -> [PartConfig; 4] {
    let expert = PartConfig::Expert(expert_config(2, 256, 256));
    let vae = VaeConfig {
        base_dim: 8,
        decoder_base_dim: None,
        z_dim: 16,
        dim_mult: vec![1, 2, 4, 4],
        num_res_blocks: 2,
        attn_scales: Vec::new(),
        temperal_downsample: vec![false, true, true],
        latents_mean: LATENTS_MEAN.to_vec(),
        latents_std: LATENTS_STD.to_vec(),
        is_residual: false,
        patch_size: None,
        in_channels: 3,
        out_channels: 3,
        tiny: false,
    };
    let text = Umt5Config {
        d_model: 256,
        d_kv: 64,
        d_ff: 256,
        num_layers: 2,
        num_heads: 4,
        vocab_size: 1024,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: 1e-6,
        feed_forward_proj: "gated-gelu".into(),
    };
    [
        expert.clone(),
        expert,
        PartConfig::Vae(vae),
        PartConfig::TextEncoder(text),
    ]
}

/// A part's tensors, from the generator that the golden data was made with.
pub fn random_part(key: &str, config: &PartConfig) -> Vec<Tensor> {
    let specs = config.specs().unwrap();
    let tensor = |spec: wan_i2v::model::TensorSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|&d| d as usize).collect();
        Tensor {
            values: portable::weights("layouts", key, &spec.name, &shape),
            name: spec.name,
            shape,
        }
    };
    specs.into_iter().map(tensor).collect()
}

/// The nearest value that float32, bfloat16 and float16 all hold; those below float16's normal
/// range become zero.
fn in_16_bits(value: f32) -> f32 {
    const SMALLEST: f32 = 1.0 / 16384.0;
    if value.abs() < SMALLEST {
        return 0.0;
    }
    bf16::from_f32(value).to_f32()
}

impl Model {
    /// Of values that fill float32.
    pub fn precise() -> Self {
        let configs = configs();
        let parts =
            PartName::WITH_EXPERTS.map(|name| random_part(name.key(), &configs[name as usize]));
        Self { configs, parts }
    }

    /// Of values that every 16-bit type holds exactly.
    pub fn random() -> Self {
        let mut model = Self::precise();
        let values = model.parts.iter_mut().flatten().flat_map(|t| &mut t.values);
        values.for_each(|value| *value = in_16_bits(*value));
        model
    }

    /// What `form` keeps of it, as files have it and as the values that this stands for.
    pub fn in_form(&self, form: Form) -> ([Content; 4], Self) {
        let mut meant = self.clone();
        let contents = PartName::WITH_EXPERTS.map(|name| {
            let part = &mut meant.parts[name as usize];
            content(form, name, part)
        });
        (contents, meant)
    }
}

/// A part's tensors in `form`, and `part` changed to the values that they stand for.
pub fn content(form: Form, name: PartName, part: &mut [Tensor]) -> Content {
    let mut content = Content::new();
    for tensor in part {
        for (stored, kept) in form.store(name, tensor) {
            content.insert(stored, kept);
        }
    }
    content.extend(form.companions(name));
    content
}

/// Every naming of a network's tensors by the canonical one: diffusers', the original's,
/// mlx-video's, llama.cpp's.
pub fn names(kind: Kind) -> HashMap<String, Vec<String>> {
    let part = match kind {
        Kind::Expert => "expert",
        Kind::Vae => "vae",
        Kind::TextEncoder => "text",
        Kind::ImageEncoder => panic!("it is in no layout of these"),
    };
    let text = include_str!("../../data/names.json");
    let parts: HashMap<String, Vec<String>> = serde_json::from_str(text).unwrap();
    let mut names = HashMap::new();
    for line in &parts[part] {
        let (leaves, modules): (Vec<&str>, Vec<&str>) =
            line.split(' ').partition(|word| word.contains(':'));
        for leaf in leaves.iter().map(|leaf| leaf.split(':').next().unwrap()) {
            let mut all: Vec<String> = Vec::new();
            for module in &modules {
                all.push(match (*module, leaf) {
                    ("=", _) => all[all.len() - 1].clone(),
                    (module, "") => module.to_owned(),
                    (module, leaf) => format!("{module}.{leaf}"),
                });
            }
            names.insert(all[0].clone(), all);
        }
    }
    names
}

/// Values as bytes of an encoding.
pub fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    match encoding {
        Encoding::F32 => return values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Encoding::F16 => return halves(values, |v| f16::from_f32(v).to_bits()),
        Encoding::Bf16 => return halves(values, |v| bf16::from_f32(v).to_bits()),
        Encoding::F8E4M3 => {}
        _ => return gguf::quantize(encoding, values),
    }
    let codes: Vec<u8> = (0..0x7f).collect();
    let mut levels = vec![0.0; codes.len()];
    encoding.decode(&codes, &mut levels).unwrap();
    let nearest = |value: f32| {
        let above = levels.partition_point(|level| *level < value.abs());
        let below = above.saturating_sub(1);
        let above = above.min(levels.len() - 1);
        let lower = value.abs() - levels[below] < levels[above] - value.abs();
        let code = if lower { below } else { above } as u8;
        code | u8::from(value < 0.0) << 7
    };
    values.iter().map(|value| nearest(*value)).collect()
}

fn halves(values: &[f32], bits: fn(f32) -> u16) -> Vec<u8> {
    values.iter().flat_map(|v| bits(*v).to_le_bytes()).collect()
}

pub fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let elements = bytes.len() / encoding.block_bytes() * encoding.block_elements();
    let mut values = vec![0.0; elements];
    encoding.decode(bytes, &mut values).unwrap();
    values
}

pub fn stored(encoding: Encoding, shape: &[usize], values: &[f32]) -> Stored {
    Stored {
        encoding,
        shape: shape.to_vec(),
        bytes: encode(encoding, values),
    }
}
