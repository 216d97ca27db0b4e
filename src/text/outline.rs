//! A look at a `tokenizer.json` before the library that it is for sees it.
//!
//! `tokenizers` trusts its files: a very long piece overflows the stack when its trie is dropped,
//! and a character map can ask for gigabytes; neither can be caught afterwards.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::charsmap;

/// UMT5's longest piece has 48 bytes.
const MAX_PIECE: usize = 256;
/// UMT5-XXL's file has 17 MB.
const MAX_FILE: usize = 64 << 20;

#[derive(Deserialize)]
struct Outline {
    model: Model,
    #[serde(default)]
    normalizer: Value,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Vec<(String, f64)>,
}

/// Refuses what would crash the library.
///
/// # Errors
/// When the file is no Unigram tokenizer, a piece is too long, or the character map leads
/// nowhere.
pub(super) fn check(json: &[u8]) -> Result<()> {
    ensure!(
        json.len() <= MAX_FILE,
        "it has {} bytes; expected at most {MAX_FILE}",
        json.len()
    );
    let outline: Outline = serde_json::from_slice(json)?;
    ensure!(
        outline
            .model
            .kind
            .as_deref()
            .is_none_or(|kind| kind == "Unigram"),
        "its model is {}; expected Unigram",
        outline.model.kind.unwrap_or_default()
    );
    for (index, (piece, score)) in outline.model.vocab.iter().enumerate() {
        ensure!(
            piece.len() <= MAX_PIECE && score.is_finite(),
            "its piece {index} has {} bytes and the score {score}; expected at most {MAX_PIECE} \
             and a finite number",
            piece.len()
        );
    }
    check_normalizer(&outline.normalizer)
}

/// Follows the normalizers within each other, which the JSON reader has bounded.
fn check_normalizer(normalizer: &Value) -> Result<()> {
    if let Some(map) = normalizer
        .get("precompiled_charsmap")
        .and_then(Value::as_str)
    {
        let bytes = STANDARD
            .decode(map)
            .context("its character map is no base64")?;
        // An empty one replaces nothing.
        if !bytes.is_empty() {
            charsmap::check(&bytes)?;
        }
    }
    let inner = normalizer.get("normalizers").and_then(Value::as_array);
    inner.into_iter().flatten().try_for_each(check_normalizer)
}
