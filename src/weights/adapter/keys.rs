//! What adapters call their tensors. Pure functions of names.
//!
//! A key is `PREFIX MODULE SUFFIX`. Modules have their original, diffusers' or mlx-video's names, with
//! dots or, in part or in whole, underscores between their words; prefixes and suffixes differ by the
//! program that trained the adapter (huggingface/diffusers, `loaders/lora_conversion_utils.py`;
//! huggingface/peft, `utils/save_and_load.py`; kohya-ss/musubi-tuner, `networks/lora.py`;
//! KohakuBlueleaf/LyCORIS, `modules/*.py`).

use std::collections::{BTreeMap, BTreeSet};

use crate::model::TensorSpec;
use crate::sampling::Expert;
use crate::weights::naming::{Detected, Kind, Naming};

/// A tensor's place in a change of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// `[rank, inputs]` of a low-rank product, applied first.
    Down,
    /// `[outputs, rank]`.
    Up,
    /// The bias of the same: PEFT's `lora_bias`, as diffusers has it.
    UpBias,
    /// The number that the product is scaled by, over the rank.
    Alpha,
    /// DoRA's norm of each row or column.
    Magnitude,
    /// The whole change of the weight.
    Weight,
    /// The whole change of the bias.
    Bias,
    /// The whole change of a block's modulation.
    Modulation,
    /// LoHa: the elementwise product of two low-rank ones.
    Hada([usize; 2]),
    /// LoKr: a factor of the Kronecker product, whole.
    Kron(usize),
    /// LoKr: the same as a low-rank product, of which this is the left or right side.
    KronSide([usize; 2]),
    /// Of a decomposition of convolutions that no layer here has.
    Unsupported,
}

/// Suffixes, the longer of two that fit first, without PEFT's names of adapters.
#[rustfmt::skip]
const SUFFIXES: &[(&str, Slot)] = &[
    (".lora_linear_layer.down.weight", Slot::Down),
    (".lora_linear_layer.up.weight", Slot::Up),
    ("_lora.down.weight", Slot::Down),
    ("_lora.up.weight", Slot::Up),
    (".lora.down.weight", Slot::Down),
    (".lora.up.weight", Slot::Up),
    (".lora_down.weight", Slot::Down),
    (".lora_up.weight", Slot::Up),
    (".lora_mid.weight", Slot::Unsupported),
    (".lora_A.weight", Slot::Down),
    (".lora_B.weight", Slot::Up),
    (".lora_B.bias", Slot::UpBias),
    (".lora_A", Slot::Down),
    (".lora_B", Slot::Up),
    (".lora_magnitude_vector.weight", Slot::Magnitude),
    (".lora_magnitude_vector", Slot::Magnitude),
    (".dora_scale", Slot::Magnitude),
    (".lora_alpha", Slot::Alpha),
    (".alpha", Slot::Alpha),
    (".diff_b", Slot::Bias),
    (".diff_m", Slot::Modulation),
    (".diff", Slot::Weight),
    (".hada_w1_a", Slot::Hada([0, 0])),
    (".hada_w1_b", Slot::Hada([0, 1])),
    (".hada_w2_a", Slot::Hada([1, 0])),
    (".hada_w2_b", Slot::Hada([1, 1])),
    (".hada_t1", Slot::Unsupported),
    (".hada_t2", Slot::Unsupported),
    (".lokr_w1_a", Slot::KronSide([0, 0])),
    (".lokr_w1_b", Slot::KronSide([0, 1])),
    (".lokr_w2_a", Slot::KronSide([1, 0])),
    (".lokr_w2_b", Slot::KronSide([1, 1])),
    (".lokr_w1", Slot::Kron(0)),
    (".lokr_w2", Slot::Kron(1)),
    (".lokr_t2", Slot::Unsupported),
];

/// PEFT puts an adapter's name (`default`) behind these.
const NAMED: [&str; 3] = [".lora_A.", ".lora_B.", ".lora_magnitude_vector."];

/// What may stand before a module's name, and the expert that it says.
#[rustfmt::skip]
const PREFIXES: &[(&str, Option<Expert>)] = &[
    ("base_model.model.", None),
    ("model.diffusion_model.", None),
    ("diffusion_model.", None),
    ("transformer_2.", Some(Expert::LowNoise)),
    ("transformer.", Some(Expert::HighNoise)),
    ("lora_unet__", None),
    ("lora_unet_", None),
    ("lycoris_", None),
    ("model.", None),
    ("unet.", None),
];

/// Words of modules that only Wan2.1's image branch has.
#[rustfmt::skip]
const IMAGE_BRANCH: [&str; 7] = [
    "k_img", "v_img", "img_emb", "add_k_proj", "add_v_proj", "norm_added_k", "image_embedder",
];

/// Whether a name is one of an adapter's tensors.
pub(super) fn is_key(name: &str) -> bool {
    split(name).is_some()
}

/// A key without its suffix, and the suffix's meaning.
pub(super) fn split(key: &str) -> Option<(&str, Slot)> {
    let plain = SUFFIXES
        .iter()
        .find_map(|(suffix, slot)| Some((key.strip_suffix(suffix)?, *slot)));
    plain.or_else(|| {
        let (at, mark) = NAMED
            .iter()
            .find_map(|mark| Some((key.find(mark)?, *mark)))?;
        let name = &key[at + mark.len()..];
        let bias = name.strip_suffix(".bias");
        let name = bias.or(name.strip_suffix(".weight")).unwrap_or(name);
        let slot = match (mark, bias) {
            (".lora_B.", Some(_)) => Slot::UpBias,
            (_, Some(_)) => return None,
            (".lora_A.", _) => Slot::Down,
            (".lora_B.", _) => Slot::Up,
            _ => Slot::Magnitude,
        };
        (!name.contains('.')).then_some((&key[..at], slot))
    })
}

/// A module's path without prefixes, and the expert that one of them said.
pub(super) fn bare(mut path: &str) -> (&str, Option<Expert>) {
    let mut said = None;
    while let Some((rest, expert)) = PREFIXES
        .iter()
        .find_map(|(prefix, expert)| Some((path.strip_prefix(prefix)?, *expert)))
    {
        path = rest;
        said = said.or(expert);
    }
    (path, said)
}

pub(super) fn flat(name: &str) -> String {
    name.replace('.', "_")
}

/// What a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A tensor of a module of the network, by its canonical name.
    Of {
        module: String,
        slot: Slot,
        expert: Option<Expert>,
    },
    /// Of the image branch that Wan2.1 has and this network has not.
    ImageBranch,
    /// Of a block beyond the network's last.
    Beyond { block: usize },
    /// Of nothing that is known; the module as the key has it.
    Unknown { module: String },
    /// No key of an adapter.
    Foreign,
}

/// The modules of a network by every name that adapters have for them.
#[derive(Debug)]
pub(super) struct Modules {
    names: BTreeMap<String, String>,
    /// As users read them.
    original: BTreeSet<String>,
    blocks: usize,
}

impl Modules {
    /// Of a network with these tensors.
    pub(super) fn of(specs: &[TensorSpec]) -> Self {
        let (mut names, mut original) = (BTreeMap::new(), BTreeSet::new());
        let mut blocks = 0;
        for naming in [Naming::Original, Naming::Diffusers, Naming::MlxVideo] {
            let detected = Detected::plain(Kind::Expert, naming);
            for spec in specs {
                let (module, leaf) = module_of(&spec.name);
                let Ok(stored) = detected.name(&spec.name) else {
                    continue;
                };
                let stored = match leaf {
                    Some(leaf) => stored.trim_end_matches(leaf).trim_end_matches('.'),
                    None => stored.as_str(),
                };
                if naming == Naming::Original {
                    original.insert(stored.to_owned());
                }
                blocks = blocks.max(block_of(&flat(stored)).map_or(0, |block| block + 1));
                names
                    .entry(flat(stored))
                    .or_insert_with(|| module.to_owned());
            }
        }
        Self {
            names,
            original,
            blocks,
        }
    }

    /// Blocks of the network.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// The module's name that is most like `module`, as the original has it.
    pub(super) fn nearest(&self, module: &str) -> Option<&str> {
        let likeness = |name: &&String| strsim::jaro_winkler(&flat(module), &flat(name));
        let all = self.original.iter().map(|name| (likeness(&name), name));
        let best = all.max_by(|a, b| a.0.total_cmp(&b.0))?;
        (best.0 > 0.8).then_some(best.1.as_str())
    }

    /// What a key is.
    pub(super) fn read(&self, key: &str) -> Key {
        let Some((path, slot)) = split(key) else {
            return Key::Foreign;
        };
        let (path, expert) = bare(path);
        let name = flat(path);
        // A modulation is no module: `blocks.0.diff_m`, `head.diff_m`.
        let wanted = match slot {
            Slot::Modulation => format!("{name}_modulation"),
            _ => name.clone(),
        };
        if let Some(module) = self.names.get(&wanted) {
            return Key::Of {
                module: module.clone(),
                slot,
                expert,
            };
        }
        if let Some(block) = block_of(&name).filter(|&block| block >= self.blocks) {
            return Key::Beyond { block };
        }
        if of_image_branch(&name) {
            return Key::ImageBranch;
        }
        Key::Unknown {
            module: path.to_owned(),
        }
    }
}

/// A tensor's module and leaf; modulations are modules themselves.
pub(super) fn module_of(tensor: &str) -> (&str, Option<&str>) {
    match tensor.rsplit_once('.') {
        Some((module, leaf)) if leaf == "weight" || leaf == "bias" => (module, Some(leaf)),
        _ => (tensor, None),
    }
}

/// Whether a flat name is that of a layer that only Wan2.1's image branch has.
pub(super) fn of_image_branch(name: &str) -> bool {
    IMAGE_BRANCH.iter().any(|word| name.contains(word))
}

/// The block that a flat name begins with.
pub(super) fn block_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("blocks_")?;
    rest.split('_').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Role;

    fn modules() -> Modules {
        let linear = |module: String| [format!("{module}.weight"), format!("{module}.bias")];
        let mut names: Vec<String> = Vec::new();
        for block in 0..3 {
            for layer in [
                "attn1.to_q",
                "attn1.to_out.0",
                "attn2.to_k",
                "ffn.net.0.proj",
                "ffn.net.2",
                "norm2",
            ] {
                names.extend(linear(format!("blocks.{block}.{layer}")));
            }
            names.push(format!("blocks.{block}.attn1.norm_q.weight"));
            names.push(format!("blocks.{block}.scale_shift_table"));
        }
        for module in [
            "patch_embedding",
            "proj_out",
            "condition_embedder.time_proj",
            "condition_embedder.text_embedder.linear_2",
        ] {
            names.extend(linear(module.into()));
        }
        names.push("scale_shift_table".into());
        let spec = |name| TensorSpec {
            name,
            shape: Vec::new(),
            role: Role::Matmul,
        };
        Modules::of(&names.into_iter().map(spec).collect::<Vec<_>>())
    }

    #[test]
    fn every_form_of_key_is_read() {
        use Slot::*;
        let modules = modules();
        assert_eq!(modules.blocks(), 3);
        let (q, k, up) = (
            "blocks.2.attn1.to_q",
            "blocks.1.attn2.to_k",
            "blocks.0.ffn.net.0.proj",
        );
        let high = Some(Expert::HighNoise);
        #[rustfmt::skip]
        let cases = [
            ("diffusion_model.blocks.2.self_attn.q.lora_A.weight", q, Down, None),
            ("diffusion_model.blocks.2.self_attn.q.lora_B.weight", q, Up, None),
            ("diffusion_model.blocks.1.cross_attn.k.lora_down.weight", k, Down, None),
            ("diffusion_model.blocks.1.cross_attn.k.alpha", k, Alpha, None),
            ("model.diffusion_model.blocks.1.cross_attn.k.lora_up.weight", k, Up, None),
            ("lora_unet_blocks_2_self_attn_q.lora_down.weight", q, Down, None),
            ("lora_unet_blocks_0_ffn_0.lora_up.weight", up, Up, None),
            ("lora_unet__blocks_0_ffn_0.alpha", up, Alpha, None),
            ("transformer.blocks.0.ffn.net.0.proj.lora_A.weight", up, Down, high),
            ("transformer_2.blocks.2.attn1.to_q.lora_B.weight", q, Up, Some(Expert::LowNoise)),
            ("transformer.blocks.0.attn1.to_out.0.lora_A.weight", "blocks.0.attn1.to_out.0", Down, high),
            ("blocks.0.ffn.2.lora_A", "blocks.0.ffn.net.2", Down, None),
            ("base_model.model.blocks.2.self_attn.q.lora_A.default.weight", q, Down, None),
            ("base_model.model.blocks.2.self_attn.q.lora_B.my-adapter", q, Up, None),
            ("base_model.model.blocks.2.self_attn.q.lora_B.default.bias", q, UpBias, None),
            ("transformer_2.blocks.2.attn1.to_q.lora_B.bias", q, UpBias, Some(Expert::LowNoise)),
            ("base_model.model.blocks.2.self_attn.q.lora_magnitude_vector.default", q, Magnitude, None),
            ("transformer.blocks.2.attn1.to_q_lora.up.weight", q, Up, high),
            ("transformer.blocks.2.attn1.to_q.lora.down.weight", q, Down, high),
            ("transformer.blocks.2.attn1.to_q.lora_linear_layer.up.weight", q, Up, high),
            ("lora_unet_blocks_2.self_attn.q.lora_down.weight", q, Down, None),
            ("lora_unet_blocks_2_self_attn_q.dora_scale", q, Magnitude, None),
            ("lycoris_blocks_2_self_attn_q.hada_w1_a", q, Hada([0, 0]), None),
            ("lycoris_blocks_2_self_attn_q.hada_w2_b", q, Hada([1, 1]), None),
            ("lycoris_blocks_2_self_attn_q.lokr_w1", q, Kron(0), None),
            ("lycoris_blocks_2_self_attn_q.lokr_w2_b", q, KronSide([1, 1]), None),
            ("diffusion_model.blocks.0.norm3.diff", "blocks.0.norm2", Weight, None),
            ("diffusion_model.blocks.0.self_attn.norm_q.diff", "blocks.0.attn1.norm_q", Weight, None),
            ("diffusion_model.blocks.0.self_attn.o.diff_b", "blocks.0.attn1.to_out.0", Bias, None),
            ("diffusion_model.blocks.1.diff_m", "blocks.1.scale_shift_table", Modulation, None),
            ("diffusion_model.blocks.1.modulation.diff", "blocks.1.scale_shift_table", Weight, None),
            ("diffusion_model.head.diff_m", "scale_shift_table", Modulation, None),
            ("diffusion_model.head.head.diff", "proj_out", Weight, None),
            ("diffusion_model.patch_embedding.diff", "patch_embedding", Weight, None),
            ("diffusion_model.time_projection.1.diff_b", "condition_embedder.time_proj", Bias, None),
            ("transformer.condition_embedder.time_proj.lora_A.weight", "condition_embedder.time_proj", Down, high),
            ("diffusion_model.text_embedding.2.lora_down.weight", "condition_embedder.text_embedder.linear_2", Down, None),
        ];
        for (key, module, slot, expert) in cases {
            let module = module.to_owned();
            assert!(is_key(key), "{key}");
            assert_eq!(
                modules.read(key),
                Key::Of {
                    module,
                    slot,
                    expert
                },
                "{key}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_told_apart() {
        let modules = modules();
        for key in [
            "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight",
            "lora_unet_blocks_1_cross_attn_v_img.alpha",
            "transformer.blocks.0.attn2.add_k_proj.lora_A.weight",
            "diffusion_model.img_emb.proj.1.diff",
            "diffusion_model.blocks.0.cross_attn.norm_k_img.diff",
        ] {
            assert_eq!(modules.read(key), Key::ImageBranch, "{key}");
        }
        let key = modules.read("diffusion_model.blocks.39.self_attn.q.lora_A.weight");
        assert_eq!(key, Key::Beyond { block: 39 });
        let Key::Unknown { module } =
            modules.read("transformer.blocks.0.attn1.to_qq.lora_A.weight")
        else {
            panic!("unknown");
        };
        assert_eq!(module, "blocks.0.attn1.to_qq");
        assert_eq!(
            modules.nearest("blocks.1.self_attn.qq"),
            Some("blocks.1.self_attn.q")
        );
        assert_eq!(modules.nearest("double_stream.txt"), None);
        assert_eq!(modules.read("blocks.0.attn1.to_q.weight"), Key::Foreign);
        assert_eq!(modules.read("blocks.0.lora_A.a.b.weight"), Key::Foreign);
    }
}
