//! The text encoder's names.
//!
//! The original's: Wan-Video/Wan2.2, `wan/modules/t5.py`; mlx-video's: Blaizzy/mlx-video,
//! `mlx_video/models/wan_2/convert.py`; llama.cpp's: ggml-org/llama.cpp, `gguf-py/gguf/constants.py`
//! (T5ENCODER).

use super::{Naming, Row, WEIGHT, look_up};

const fn row(
    canonical: &'static str,
    original: &'static str,
    mlx_video: &'static str,
    llama_cpp: &'static str,
) -> Row<3> {
    Row {
        canonical,
        others: [original, mlx_video, llama_cpp],
        leaves: WEIGHT,
    }
}

/// A module that the original and mlx-video call the same.
const fn same(canonical: &'static str, original: &'static str, llama_cpp: &'static str) -> Row<3> {
    row(canonical, original, original, llama_cpp)
}

#[rustfmt::skip]
const ROWS: &[Row<3>] = &[
    same("shared", "token_embedding", "token_embd"),
    same("encoder.final_layer_norm", "norm", "enc.output_norm"),
    same("encoder.block.{}.layer.0.layer_norm", "blocks.{}.norm1", "enc.blk.{}.attn_norm"),
    same("encoder.block.{}.layer.0.SelfAttention.q", "blocks.{}.attn.q", "enc.blk.{}.attn_q"),
    same("encoder.block.{}.layer.0.SelfAttention.k", "blocks.{}.attn.k", "enc.blk.{}.attn_k"),
    same("encoder.block.{}.layer.0.SelfAttention.v", "blocks.{}.attn.v", "enc.blk.{}.attn_v"),
    same("encoder.block.{}.layer.0.SelfAttention.o", "blocks.{}.attn.o", "enc.blk.{}.attn_o"),
    same("encoder.block.{}.layer.0.SelfAttention.relative_attention_bias", "blocks.{}.pos_embedding.embedding", "enc.blk.{}.attn_rel_b"),
    same("encoder.block.{}.layer.1.layer_norm", "blocks.{}.norm2", "enc.blk.{}.ffn_norm"),
    row("encoder.block.{}.layer.1.DenseReluDense.wi_0", "blocks.{}.ffn.gate.0", "blocks.{}.ffn.gate_proj", "enc.blk.{}.ffn_gate"),
    same("encoder.block.{}.layer.1.DenseReluDense.wi_1", "blocks.{}.ffn.fc1", "enc.blk.{}.ffn_up"),
    same("encoder.block.{}.layer.1.DenseReluDense.wo", "blocks.{}.ffn.fc2", "enc.blk.{}.ffn_down"),
];

/// What `naming` calls the canonical tensor `name`.
pub(super) fn name(naming: Naming, name: &str) -> Option<String> {
    match naming {
        Naming::Diffusers => look_up(ROWS, 0, name).map(|_| name.to_owned()),
        Naming::Original => look_up(ROWS, 0, name),
        Naming::MlxVideo => look_up(ROWS, 1, name),
        Naming::LlamaCpp => look_up(ROWS, 2, name),
        Naming::MlxGen | Naming::Taehv => None,
    }
}
