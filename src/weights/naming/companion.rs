//! Tensors that a part's file may hold besides the architecture's.

use super::{Detected, Kind, image};

/// What a companion is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// ComfyUI's empty `scaled_fp8`; its dtype names that of the scaled weights.
    Fp8Marker,
    /// `value = stored * scale`: `scale_weight`, or `weight_scale` in newer files.
    WeightScale,
    /// A second scale, which only nvfp4 weights have.
    SecondScale,
    /// For float8 products on hardware that has them; the values do not depend on it.
    InputScale,
    /// JSON that names a weight's format: ComfyUI's `comfy_quant`.
    QuantFormat,
    /// MLX's affine quantization: a scale per group.
    AffineScales,
    /// MLX's affine quantization: an offset per group.
    AffineBiases,
    /// The tokenizer's SentencePiece model as bytes: ComfyUI's `spiece_model`.
    Tokenizer,
    /// transformers' second name for `shared.weight`.
    TiedEmbedding,
    /// A table that is computed: mlx-video saves `freqs` in quantized experts.
    RotaryTable,
    /// A note in a tensor's name.
    Note,
    /// What a whole CLIP has besides the layers that are computed.
    Unused,
}

impl Role {
    /// Why a file may hold such a tensor, for people.
    pub fn reason(self) -> &'static str {
        match self {
            Role::Fp8Marker => "marks scaled float8 weights",
            Role::WeightScale | Role::SecondScale => "scale of a weight",
            Role::InputScale => "scale of a layer's input for float8 products; not needed",
            Role::QuantFormat => "format of a weight",
            Role::AffineScales => "scales of a quantized weight",
            Role::AffineBiases => "offsets of a quantized weight",
            Role::Tokenizer => "the tokenizer",
            Role::TiedEmbedding => "the token embedding under a second name",
            Role::RotaryTable => "table of rotary frequencies; computed here",
            Role::Note => "a note of the tool that wrote the file",
            Role::Unused => "of a whole CLIP; not needed",
        }
    }
}

/// A tensor that belongs to a part without being one of the architecture's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// What it is there for.
    pub role: Role,
    /// The full name of the weight that it belongs to. When that is none of the part's, the
    /// companion is as unexpected as its owner.
    pub owner: Option<String>,
}

/// Endings of companions that belong to a weight: they replace its `.weight`.
///
/// ComfyUI's: Comfy-Org/ComfyUI, `comfy/ops.py` and `convert_old_quants` of `comfy/utils.py`;
/// MLX's: ml-explore/mlx, `python/mlx/nn/layers/quantized.py`.
const OWNED: &[(&str, Role)] = &[
    (".scale_weight", Role::WeightScale),
    (".weight_scale", Role::WeightScale),
    (".weight_scale_2", Role::SecondScale),
    (".scale_input", Role::InputScale),
    (".input_scale", Role::InputScale),
    (".output_scale", Role::InputScale),
    (".weight_global_scale", Role::SecondScale),
    (".input_global_scale", Role::SecondScale),
    (".alpha", Role::SecondScale),
    (".comfy_quant", Role::QuantFormat),
    (".scales", Role::AffineScales),
    (".biases", Role::AffineBiases),
];

/// Whether `name` is a companion in a part that names its tensors as `detected` says, and which.
pub fn companion(detected: &Detected, name: &str) -> Option<Companion> {
    if detected.kind == Kind::TextEncoder && is_tokenizer(detected, name) {
        return Some(alone(Role::Tokenizer));
    }
    if detected.kind == Kind::ImageEncoder && image::is_beside(name) {
        return Some(alone(Role::Unused));
    }
    let bare = name.strip_prefix(detected.prefix.as_str())?;
    if bare == "scaled_fp8" {
        return Some(alone(Role::Fp8Marker));
    }
    let role = match detected.kind {
        Kind::TextEncoder if bare == "encoder.embed_tokens.weight" => Some(Role::TiedEmbedding),
        Kind::Expert if bare == "freqs" => Some(Role::RotaryTable),
        // Kijai's loader (ComfyUI-WanVideoWrapper) tells models apart by such names.
        Kind::Expert if bare.starts_with("model_type.") => Some(Role::Note),
        Kind::ImageEncoder if image::is_unused(bare) => Some(Role::Unused),
        _ => None,
    };
    if let Some(role) = role {
        return Some(alone(role));
    }
    OWNED.iter().find_map(|&(ending, role)| {
        let module = name.strip_suffix(ending)?;
        Some(Companion {
            role,
            owner: Some(format!("{module}.weight")),
        })
    })
}

fn alone(role: Role) -> Companion {
    Companion { role, owner: None }
}

/// In a file of its own the tokenizer is beside the encoder's tensors; in a whole checkpoint it
/// is one level up, beside `transformer.`.
fn is_tokenizer(detected: &Detected, name: &str) -> bool {
    let prefix = detected.prefix.as_str();
    let above = prefix.strip_suffix("transformer.").unwrap_or(prefix);
    [prefix, above]
        .iter()
        .any(|p| name.strip_prefix(p) == Some("spiece_model"))
}

/// The names that the scale of `weight` (a full name, ending in `.weight`) can have, oldest
/// first.
pub fn scale_names(weight: &str) -> Option<[String; 2]> {
    let module = weight.strip_suffix(".weight")?;
    Some([
        format!("{module}.scale_weight"),
        format!("{module}.weight_scale"),
    ])
}

/// The names of the scales and of the offsets of `weight` (a full name, ending in `.weight`) in
/// MLX's affine quantization.
pub fn affine_names(weight: &str) -> Option<(String, String)> {
    let module = weight.strip_suffix(".weight")?;
    Some((format!("{module}.scales"), format!("{module}.biases")))
}
