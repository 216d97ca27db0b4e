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
pub(super) const MAX_FILE: usize = 64 << 20;

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
    check_normalizer(&outline.normalizer, &mut 1, &mut 0)
}

/// How many times as long normalizers may make a text, all of them together.
const MAX_GROWTH: usize = 64;
/// The longest text that one may put in, or pattern that it may look for, in bytes.
const MAX_TEXT: usize = 64;

/// UMT5 has three normalizers; each goes over the whole text.
const MAX_NORMALIZERS: usize = 64;

/// Normalizers of the library that make a text longer by a small factor at most.
const HARMLESS: [&str; 11] = [
    "BertNormalizer",
    "Strip",
    "StripAccents",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Sequence",
    "Lowercase",
    "Nmt",
    "Precompiled",
];

/// Follows the normalizers within each other, which the JSON reader has bounded, and refuses those
/// that make a text grow without bound: a dozen that each write ten letters for one take all memory.
/// `growth` is what they multiply a text's length by so far, `count` how many there were.
fn check_normalizer(normalizer: &Value, growth: &mut usize, count: &mut usize) -> Result<()> {
    *count += 1;
    ensure!(
        *count <= MAX_NORMALIZERS,
        "it has more than {MAX_NORMALIZERS} normalizers"
    );
    let Some(kind) = normalizer.get("type").and_then(Value::as_str) else {
        ensure!(normalizer.is_null(), "its normalizer has no type");
        return Ok(());
    };
    let text = |value: &Value| -> Result<usize> {
        let text = value.as_str().unwrap_or_default();
        ensure!(
            text.len() <= MAX_TEXT,
            "its normalizer {kind} has a text of {} bytes; expected at most {MAX_TEXT}",
            text.len()
        );
        Ok(text.len())
    };
    match kind {
        "Replace" => {
            let pattern = &normalizer["pattern"];
            let literal = text(&pattern["String"])?;
            text(&pattern["Regex"])?;
            // A pattern may match a byte, or nothing between any two.
            let content = text(&normalizer["content"])?;
            *growth = growth.saturating_mul(content.div_ceil(literal.max(1)).max(1));
        }
        "Prepend" => *growth = growth.saturating_add(text(&normalizer["prepend"])?),
        kind => ensure!(
            HARMLESS.contains(&kind),
            "its normalizer {kind} is not known"
        ),
    }
    ensure!(
        *growth <= MAX_GROWTH,
        "its normalizers can make a text more than {MAX_GROWTH} times as long"
    );
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
    let mut inner = inner.into_iter().flatten();
    inner.try_for_each(|normalizer| check_normalizer(normalizer, growth, count))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(normalizer: Value) -> Result<()> {
        let file = json!({ "model": { "vocab": [["a", 0.0]] }, "normalizer": normalizer });
        check(&serde_json::to_vec(&file).unwrap())
    }

    #[test]
    fn normalizers_that_make_a_text_explode_are_refused() {
        let replace = |content: &str| json!({ "type": "Replace", "pattern": { "String": "a" }, "content": content });
        let several = |each: Value, count: usize| json!({ "type": "Sequence", "normalizers": vec![each; count] });
        checked(Value::Null).unwrap();
        checked(several(json!({ "type": "NFKC" }), 3)).unwrap();
        // UMT5's own.
        let spaces = json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "▁" });
        checked(several(spaces, 3)).unwrap();
        checked(several(replace("aa"), 6)).unwrap();
        let refused = [
            (several(replace("aaaaaaaaaa"), 12), "times as long"),
            (several(several(replace("aa"), 4), 2), "times as long"),
            (
                several(json!({ "type": "Prepend", "prepend": "a".repeat(60) }), 2),
                "times as long",
            ),
            (replace(&"a".repeat(65)), "at most 64"),
            (json!({ "type": "Other" }), "Other is not known"),
            (json!({ "pattern": "a" }), "no type"),
        ];
        for (normalizer, said) in refused {
            let error = checked(normalizer).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
