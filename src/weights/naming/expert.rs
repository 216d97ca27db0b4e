//! The experts' names.
//!
//! The original's: Wan-Video/Wan2.2, `wan/modules/model.py`; the pairs: huggingface/diffusers,
//! `scripts/convert_wan_to_diffusers.py`; mlx-video's: Blaizzy/mlx-video,
//! `mlx_video/models/wan_2/convert.py`.

use super::{BOTH, ITSELF, Naming, Row, WEIGHT, look_up};

/// The tensor that mlx-video flattens.
pub(super) const PATCH_EMBEDDING: &str = "patch_embedding.weight";

const fn row(
    canonical: &'static str,
    original: &'static str,
    mlx_video: &'static str,
    leaves: &'static [&'static str],
) -> Row<2> {
    Row {
        canonical,
        others: [original, mlx_video],
        leaves,
    }
}

/// A module that the original and mlx-video call the same.
const fn same(
    canonical: &'static str,
    original: &'static str,
    leaves: &'static [&'static str],
) -> Row<2> {
    row(canonical, original, original, leaves)
}

#[rustfmt::skip]
const ROWS: &[Row<2>] = &[
    row("patch_embedding", "patch_embedding", "patch_embedding_proj", BOTH),
    row("condition_embedder.time_embedder.linear_1", "time_embedding.0", "time_embedding_0", BOTH),
    row("condition_embedder.time_embedder.linear_2", "time_embedding.2", "time_embedding_1", BOTH),
    row("condition_embedder.time_proj", "time_projection.1", "time_projection", BOTH),
    row("condition_embedder.text_embedder.linear_1", "text_embedding.0", "text_embedding_0", BOTH),
    row("condition_embedder.text_embedder.linear_2", "text_embedding.2", "text_embedding_1", BOTH),
    same("blocks.{}.attn1.to_q", "blocks.{}.self_attn.q", BOTH),
    same("blocks.{}.attn1.to_k", "blocks.{}.self_attn.k", BOTH),
    same("blocks.{}.attn1.to_v", "blocks.{}.self_attn.v", BOTH),
    same("blocks.{}.attn1.to_out.0", "blocks.{}.self_attn.o", BOTH),
    same("blocks.{}.attn1.norm_q", "blocks.{}.self_attn.norm_q", WEIGHT),
    same("blocks.{}.attn1.norm_k", "blocks.{}.self_attn.norm_k", WEIGHT),
    same("blocks.{}.attn2.to_q", "blocks.{}.cross_attn.q", BOTH),
    same("blocks.{}.attn2.to_k", "blocks.{}.cross_attn.k", BOTH),
    same("blocks.{}.attn2.to_v", "blocks.{}.cross_attn.v", BOTH),
    same("blocks.{}.attn2.to_out.0", "blocks.{}.cross_attn.o", BOTH),
    same("blocks.{}.attn2.norm_q", "blocks.{}.cross_attn.norm_q", WEIGHT),
    same("blocks.{}.attn2.norm_k", "blocks.{}.cross_attn.norm_k", WEIGHT),
    // diffusers numbers the norms in the order of their use; 1 and 3 there have no weights.
    same("blocks.{}.norm2", "blocks.{}.norm3", BOTH),
    row("blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.0", "blocks.{}.ffn.fc1", BOTH),
    row("blocks.{}.ffn.net.2", "blocks.{}.ffn.2", "blocks.{}.ffn.fc2", BOTH),
    same("blocks.{}.scale_shift_table", "blocks.{}.modulation", ITSELF),
    same("scale_shift_table", "head.modulation", ITSELF),
    same("proj_out", "head.head", BOTH),
    // Wan2.1's image attention.
    same("condition_embedder.image_embedder.norm1", "img_emb.proj.0", BOTH),
    same("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1", BOTH),
    same("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3", BOTH),
    same("condition_embedder.image_embedder.norm2", "img_emb.proj.4", BOTH),
    same("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos", ITSELF),
    same("blocks.{}.attn2.add_k_proj", "blocks.{}.cross_attn.k_img", BOTH),
    same("blocks.{}.attn2.add_v_proj", "blocks.{}.cross_attn.v_img", BOTH),
    same("blocks.{}.attn2.norm_added_k", "blocks.{}.cross_attn.norm_k_img", WEIGHT),
];

/// What `naming` calls the canonical tensor `name`.
pub(super) fn name(naming: Naming, name: &str) -> Option<String> {
    // Looked up in any case: an unknown name is unknown in every naming.
    look_up(ROWS, 0, name)?;
    match naming {
        Naming::Diffusers => Some(name.to_owned()),
        Naming::Original => look_up(ROWS, 0, name),
        Naming::MlxVideo => look_up(ROWS, 1, name),
        Naming::MlxGen => {
            let name = name.replace(".ffn.net.0.proj.", ".ffn.net.0.");
            Some(name.replace(".ffn.net.2.", ".ffn.net.1."))
        }
        Naming::LlamaCpp | Naming::Taehv => None,
    }
}
