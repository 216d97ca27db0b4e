//! Prompt cleaning and tokenizing against Python; `scripts/golden_text.py` wrote the data.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use wan_i2v::text::{DEFAULT_NEGATIVE_PROMPT, Tokenizer, clean};

#[derive(Deserialize)]
struct Cleaned {
    same: Vec<(String, String)>,
    departures: Vec<(String, String, String)>,
}

#[derive(Deserialize)]
struct Tokenized {
    text: String,
    limit: usize,
    total: usize,
    ids: Vec<u32>,
}

fn tokenizer_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer/tokenizer.json")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(tokenizer_file()).unwrap()
}

/// Writes `content` to a file and returns the error of opening it as a tokenizer.
fn error_of(content: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, content).unwrap();
    let message = format!("{:#}", Tokenizer::open(&path).unwrap_err());
    assert!(message.contains(path.to_str().unwrap()), "{message}");
    message
}

#[test]
fn cleans_as_the_reference_does() {
    let data: Cleaned = serde_json::from_str(include_str!("../data/text/clean.json")).unwrap();
    assert!(data.same.len() > 150);
    let mut wrong = Vec::new();
    for (prompt, expected) in &data.same {
        let cleaned = clean(prompt);
        if cleaned != *expected {
            wrong.push(format!("{prompt:?}: {cleaned:?}, reference {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (prompt, reference, ours) in &data.departures {
        assert_eq!(clean(prompt), *ours);
        assert_ne!(ours, reference);
    }
}

#[test]
fn cleaning_survives_long_lines_and_split_characters() {
    // More bytes than plsfix cuts lines at, with a character across that place.
    let line = format!("x{}", "é".repeat(600_000));
    assert_eq!(clean(&line), line);
    let mojibake = "cafÃ© Ð¼ я ".repeat(3_000);
    assert!(clean(&mojibake).starts_with("café м я café"));
}

#[test]
fn the_default_negative_prompt_is_the_reference_s() {
    let phrases: Vec<&str> = DEFAULT_NEGATIVE_PROMPT.split('，').collect();
    assert_eq!(DEFAULT_NEGATIVE_PROMPT.chars().count(), 137);
    assert_eq!(phrases.len(), 28);
    assert_eq!((phrases[0], phrases[27]), ("色调艳丽", "倒着走"));
    // ftfy takes full-width commas for look-alikes of plain ones, in the reference too.
    assert_eq!(clean(DEFAULT_NEGATIVE_PROMPT), phrases.join(","));
}

#[test]
fn tokenizes_as_transformers_does() {
    let tokenizer = tokenizer();
    let cases: Vec<Tokenized> =
        serde_json::from_str(include_str!("../data/text/tokens.json")).unwrap();
    assert!(cases.len() > 50);
    for case in &cases {
        let tokens = tokenizer.encode(&case.text, case.limit).unwrap();
        assert_eq!(
            tokens.ids, case.ids,
            "{:?}, limit {}",
            case.text, case.limit
        );
        match tokens.cut {
            None => assert_eq!(tokens.ids.len(), case.total),
            Some(cut) => {
                assert!(case.total > case.limit);
                assert_eq!((cut.total, cut.kept), (case.total, case.limit));
            }
        }
    }
}

#[test]
fn a_cut_is_quoted_where_it_is() {
    let tokenizer = tokenizer();
    let start = "a red ball rolls slowly to the left, ".repeat(20);
    let prompt = format!("{start}then it spins in place");
    let whole = tokenizer.encode(&prompt, 10_000).unwrap();
    assert_eq!(whole.cut, None);
    // As many ids as the start has, so the cut comes right after it.
    let kept = tokenizer.encode(start.trim(), 10_000).unwrap().ids.len();
    let cut = tokenizer.encode(&prompt, kept).unwrap().cut.unwrap();
    assert_eq!((cut.total, cut.kept), (whole.ids.len(), kept));
    assert_eq!(cut.before, "ft, a red ball rolls slowly to the left,");
    assert_eq!(cut.after, "then it spins in place");
    assert_eq!(
        cut.to_string(),
        format!(
            "{} tokens, cut to {kept}: kept up to '…ft, a red ball rolls slowly to the left,', \
             dropped from 'then it spins in place…' on",
            cut.total
        )
    );

    // Four tokens to a character: a cut inside one counts it as dropped.
    for limit in 1..16 {
        let cut = tokenizer.encode("🎬🎬🎬🎬", limit).unwrap().cut.unwrap();
        assert_eq!(format!("{}{}", cut.before, cut.after), "🎬🎬🎬🎬");
    }
}

#[test]
fn an_empty_text_is_only_closed() {
    let tokens = tokenizer().encode("", 512).unwrap();
    assert_eq!(tokens.ids, [1]);
    assert_eq!(tokens.cut, None);
    let error = tokenizer().encode("", 0).unwrap_err().to_string();
    assert!(error.contains("limit"), "{error}");
}

#[test]
fn the_vocabulary_counts_added_tokens() {
    assert_eq!(tokenizer().vocab_size(), 1008);
}

#[test]
fn unusable_tokenizers_are_refused() {
    let missing = Tokenizer::open("no/such/tokenizer.json").unwrap_err();
    assert!(format!("{missing:#}").contains("no/such/tokenizer.json"));
    error_of(b"");
    error_of(b"{}");
    // A SentencePiece model, as spiece.model is, is not JSON.
    error_of(b"\x0a\x0e\x0a\x05<pad>\x15\x00\x00\x00\x00\x18\x03");

    let good = std::fs::read_to_string(tokenizer_file()).unwrap();
    error_of(&good.as_bytes()[..good.len() / 2]);
    let mut json: serde_json::Value = serde_json::from_str(&good).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    let message = error_of(json.to_string().as_bytes());
    assert!(message.contains("does not close"), "{message}");
    let mut damaged: serde_json::Value = serde_json::from_str(&good).unwrap();
    damaged["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "AAAA".into();
    let message = error_of(damaged.to_string().as_bytes());
    assert!(message.contains("character map is cut short"), "{message}");
    let message = error_of(good.replace("</s>", "</t>").as_bytes());
    assert!(message.contains("has no </s>"), "{message}");
}

/// Both would abort the process inside the library, where nothing can catch it.
#[test]
fn pieces_and_character_maps_that_crash_the_library_are_refused() {
    let whole = std::fs::read(tokenizer_file()).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    json["model"]["vocab"][20][0] = "a".repeat(1_000_000).into();
    let error = Tokenizer::from_json(json.to_string().as_bytes(), "x.json").unwrap_err();
    assert!(format!("{error:#}").contains("piece 20"), "{error:#}");

    let mut json: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    json["normalizer"] = serde_json::json!({
        "type": "Sequence",
        "normalizers": [{ "type": "Precompiled", "precompiled_charsmap": "/////w==" }],
    });
    let error = Tokenizer::from_json(json.to_string().as_bytes(), "x.json").unwrap_err();
    assert!(format!("{error:#}").contains("character map"), "{error:#}");
}
