//! The image encoder's names.
//!
//! The original's: Wan-Video/Wan2.1, `wan/modules/clip.py`. Canonical are those of transformers 5;
//! before it, and in ComfyUI's file, they begin with `vision_model.`.

use super::{BOTH, ITSELF, Naming, Row, WEIGHT, look_up};

/// What holds the projections of queries, keys and values, one below the other, in the original.
pub(crate) const FUSED: &str = ".attn.to_qkv.";
/// What they are called once they have been taken apart.
pub(crate) const APART: [&str; 3] = [".attn.to_q.", ".attn.to_k.", ".attn.to_v."];

const fn row(
    canonical: &'static str,
    original: &'static str,
    leaves: &'static [&'static str],
) -> Row<1> {
    Row {
        canonical,
        others: [original],
        leaves,
    }
}

#[rustfmt::skip]
const ROWS: &[Row<1>] = &[
    row("embeddings.class_embedding", "cls_embedding", ITSELF),
    row("embeddings.patch_embedding", "patch_embedding", WEIGHT),
    row("embeddings.position_embedding.weight", "pos_embedding", ITSELF),
    row("pre_layrnorm", "pre_norm", BOTH),
    row("encoder.layers.{}.layer_norm1", "transformer.{}.norm1", BOTH),
    row("encoder.layers.{}.self_attn.q_proj", "transformer.{}.attn.to_q", BOTH),
    row("encoder.layers.{}.self_attn.k_proj", "transformer.{}.attn.to_k", BOTH),
    row("encoder.layers.{}.self_attn.v_proj", "transformer.{}.attn.to_v", BOTH),
    row("encoder.layers.{}.self_attn.out_proj", "transformer.{}.attn.proj", BOTH),
    row("encoder.layers.{}.layer_norm2", "transformer.{}.norm2", BOTH),
    row("encoder.layers.{}.mlp.fc1", "transformer.{}.mlp.0", BOTH),
    row("encoder.layers.{}.mlp.fc2", "transformer.{}.mlp.2", BOTH),
];

/// What `naming` calls the canonical tensor `name`.
pub(super) fn name(naming: Naming, name: &str) -> Option<String> {
    let original = look_up(ROWS, 0, name)?;
    match naming {
        Naming::Original => Some(original),
        // This program's own folders keep the canonical ones.
        Naming::Diffusers | Naming::MlxVideo => Some(name.to_owned()),
        Naming::LlamaCpp | Naming::MlxGen | Naming::Taehv => None,
    }
}

/// Whether the original has axes of length 1 in front of the canonical tensor `name`'s, three in all.
pub(super) fn is_padded(name: &str) -> bool {
    name.ends_with("class_embedding") || name.ends_with("position_embedding.weight")
}

/// Whether `name`, without what is in front of the encoder's names, is of what a whole CLIP has besides: the
/// projections, the norm after the last layer, which Wan leaves out, and a table of positions'
/// numbers.
pub(super) fn is_unused(name: &str) -> bool {
    const UNUSED: [&str; 6] = [
        "post_layernorm.weight",
        "post_layernorm.bias",
        "post_norm.weight",
        "post_norm.bias",
        "embeddings.position_ids",
        "head",
    ];
    UNUSED.contains(&name)
}

/// Whether the full `name` is of a whole CLIP's other half, or joins the two.
pub(super) fn is_beside(name: &str) -> bool {
    const BESIDE: [&str; 4] = [
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale",
        "log_scale",
    ];
    name.starts_with("textual.") || name.starts_with("text_model.") || BESIDE.contains(&name)
}
