//! Tokenizers from SentencePiece models; `scripts/golden_spiece.py` wrote the data.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use wan_i2v::text::{Arrays, from_arrays, from_sentencepiece};

use crate::support::check;

const UMT5: &[u8] = include_bytes!("../data/spiece/umt5.model");
const CHARSMAP: &[u8] = include_bytes!("../data/spiece/charsmap.model");
/// How much of `charsmap.model` is its character map, at its end.
const MAP_BYTES: usize = 2542;

/// A text, its ids, and whether the SentencePiece library gives the same.
type Case = (String, Vec<u32>, bool);

#[derive(Deserialize)]
struct GgufArrays {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
}

fn golden() -> BTreeMap<String, Vec<Case>> {
    serde_json::from_str(include_str!("../data/spiece/golden.json")).unwrap()
}

fn arrays() -> Arrays {
    let GgufArrays {
        tokens,
        scores,
        kinds,
    } = serde_json::from_str(include_str!("../data/spiece/arrays.json")).unwrap();
    Arrays {
        tokens,
        scores,
        kinds,
        charsmap: Vec::new(),
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

fn refused(model: &[u8]) -> String {
    let error = from_sentencepiece(model, "the.model").expect_err("was accepted");
    let message = format!("{error:#}");
    assert!(message.starts_with("the.model is not"), "{message}");
    assert!(message.len() < 400, "{message}");
    message
}

#[test]
fn ids_are_those_of_transformers() {
    for (name, cases) in golden() {
        let model = if name == "umt5" { UMT5 } else { CHARSMAP };
        let tokenizer = from_sentencepiece(model, &name).unwrap();
        assert!(cases.len() > 75);
        for (text, expected, _) in cases {
            assert_eq!(ids(&tokenizer, &text), expected, "{name}: {text:?}");
        }
    }
}

/// Where a prompt has no special text in it, no unknown character and no odd space, the model's
/// own library gives these ids too.
#[test]
fn plain_texts_have_the_library_s_ids() {
    let mut plain = 0;
    for (text, ids, same) in &golden()["umt5"] {
        let words = text.split(' ').all(|word| !word.is_empty()) || text.is_empty();
        let special = ["▁", "<", "["].iter().any(|mark| text.contains(mark));
        if words && !special && !ids.contains(&3) {
            assert!(same, "{text:?}");
            plain += 1;
        }
    }
    assert!(plain > 20, "{plain}");
}

/// All but the vocabulary, as in the tokenizer.json of google/umt5-xxl (which writes `Metaspace`
/// as the tokenizers library did in 2023, and is read to the same).
#[test]
fn the_parts_are_those_of_the_published_file() {
    let tokenizer = from_sentencepiece(UMT5, "umt5").unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    let metaspace = serde_json::json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true
    });
    let spaces = serde_json::json!({
        "type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "
    });
    assert_eq!(json["pre_tokenizer"], metaspace);
    assert_eq!(json["decoder"], metaspace);
    assert_eq!(
        json["normalizer"],
        serde_json::json!({"type": "Sequence", "normalizers": [spaces]})
    );
    assert_eq!(json["model"]["unk_id"], 3);
    assert_eq!(json["model"]["byte_fallback"], false);
    assert_eq!(json["truncation"], serde_json::Value::Null);
    assert_eq!(json["padding"], serde_json::Value::Null);
    let added = json["added_tokens"].as_array().unwrap();
    let content: Vec<&str> = added
        .iter()
        .map(|token| token["content"].as_str().unwrap())
        .collect();
    assert_eq!(content.len(), 304);
    assert_eq!(
        content[..5],
        ["<pad>", "</s>", "<s>", "<unk>", "<extra_id_299>"]
    );
    assert_eq!(content[303], "<extra_id_0>");
    assert_eq!(added[303]["id"], 640 + 299);
    for token in added {
        assert_eq!(token["special"], true);
        for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
            assert_eq!(token[flag], false);
        }
    }
    let end = |kind: &str| serde_json::json!({kind: {"id": "</s>", "type_id": 0}});
    let text = |id: &str| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
    let (a, b, end) = (text("A"), text("B"), end("SpecialToken"));
    assert_eq!(
        json["post_processor"]["single"],
        serde_json::json!([a, end])
    );
    assert_eq!(
        json["post_processor"]["pair"],
        serde_json::json!([a, end, b, end])
    );
    let text = tokenizer.decode(&ids(&tokenizer, "a red ball"), true);
    assert_eq!(text.unwrap(), "a red ball");
}

#[test]
fn arrays_of_a_gguf_file_give_the_same_tokenizer() {
    let expected = from_sentencepiece(UMT5, "umt5").unwrap();
    let expected = expected.to_string(false).unwrap();
    let same = |arrays: Arrays| {
        let tokenizer = from_arrays(arrays, "a.gguf").unwrap();
        assert_eq!(tokenizer.to_string(false).unwrap(), expected);
    };
    let padded = arrays();
    assert_eq!(padded.tokens.len(), 1024);
    same(padded);
    // With the extra tokens, as a converter that found added_tokens.json has them.
    let mut extended = arrays();
    for (number, id) in (640..940).rev().enumerate() {
        extended.tokens[id] = format!("<extra_id_{number}>");
        extended.scores[id] = -1000.0;
        extended.kinds[id] = 4;
    }
    same(extended);

    let mut uneven = arrays();
    uneven.scores.pop();
    let error = format!("{:#}", from_arrays(uneven, "a.gguf").unwrap_err());
    assert!(
        error.contains("a.gguf") && error.contains("1023 scores"),
        "{error}"
    );
    let error = format!(
        "{:#}",
        from_arrays(Arrays::default(), "a.gguf").unwrap_err()
    );
    assert!(error.contains("no pieces"), "{error}");
}

/// One field of a protobuf message that holds bytes.
fn bytes(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    let mut length = content.len();
    while length > 127 {
        field.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(content);
    field
}

fn piece(text: &[u8], score: f32, kind: u8) -> Vec<u8> {
    let mut piece = bytes(1, text);
    piece.push(2 << 3 | 5);
    piece.extend(score.to_le_bytes());
    piece.extend([3 << 3, kind]);
    bytes(1, &piece)
}

/// `<pad>`, `</s>`, `<unk>`, and `a`.
fn smallest() -> Vec<Vec<u8>> {
    vec![
        piece(b"<pad>", 0.0, 3),
        piece(b"</s>", 0.0, 3),
        piece(b"<unk>", 0.0, 2),
        piece(b"a", -1.0, 1),
    ]
}

/// The smallest model with `more` after it.
fn with(more: &[u8]) -> Vec<u8> {
    [smallest().concat().as_slice(), more].concat()
}

/// The smallest model with a character map.
fn with_map(map: &[u8]) -> Vec<u8> {
    with(&bytes(3, &bytes(2, map)))
}

#[test]
fn the_smallest_model_is_read() {
    let tokenizer = from_sentencepiece(&smallest().concat(), "x").unwrap();
    assert_eq!(ids(&tokenizer, "ab<pad>"), [2, 3, 2, 0, 1]);
    // Fields that are of no use here are passed over.
    from_sentencepiece(&with(&bytes(4, b"\x0a\x00")), "x").unwrap();
    // Messages that are there twice are merged.
    from_sentencepiece(&with(&[bytes(2, b""), bytes(2, b"\x18\x01")].concat()), "x").unwrap();
}

#[test]
fn damaged_models_are_refused() {
    refused(b"{\"version\": \"1.0\"}");
    refused(&[0xFF; 64]);
    refused(&[0x0A; 4096]);
    // A piece of 2^63 bytes, of 2^31 - 1, and one that ends after the file.
    refused(&with(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"));
    refused(&with(b"\x0a\xff\xff\xff\xff\x07abc"));
    refused(&with(b"\x0a\x7f"));
    // Groups within groups without end, of a field that is not known.
    refused(&with(&[0x33; 100_000]));
    for cut in [1, 100, UMT5.len() - 1] {
        refused(&UMT5[..cut]);
    }
    assert!(refused(&with(&piece(b"\xff\xfe", 0.0, 1))).contains("UTF-8"));
    assert!(refused(&vec![0; 17 << 20]).contains("at most"));
}

#[test]
fn unusable_vocabularies_are_refused() {
    assert!(refused(b"").contains("no pieces"));
    let mut pieces = smallest();
    pieces.remove(2);
    assert!(refused(&pieces.concat()).contains("no piece for the unknown"));
    let mut pieces = smallest();
    pieces.swap(1, 3);
    assert!(refused(&pieces.concat()).contains(r#"piece 1 is "a""#));
    assert!(refused(&smallest()[2]).contains(r#"piece 1 is """#));
    for (text, score, kind, expected) in [
        (b"<u>".as_slice(), 0.0, 2, "both piece 2 and piece 4"),
        (b"a", -2.0, 1, "\"a\", is there twice"),
        (b"<extra_id_7>", -2.0, 1, "there twice"),
        (b"", -2.0, 1, "piece 4 is empty"),
        (b"b", f32::NAN, 1, "score of its piece 4 is NaN"),
        (b"b", f32::NEG_INFINITY, 1, "is -inf"),
        (b"b", 0.0, 0, "kind 0"),
        (b"b", 0.0, 7, "kind 7"),
        (&[b'b'; 257], 0.0, 1, "257 bytes"),
    ] {
        let message = refused(&with(&piece(text, score, kind)));
        assert!(message.contains(expected), "{message}");
    }
    // A piece with nothing in it: empty, and of score 0 and kind 1 by default.
    assert!(refused(&with(&[0x0A, 0].repeat(1 << 20))).contains("piece 4 is empty"));
    let control: Vec<u8> = (0..1000)
        .flat_map(|i| piece(format!("<{i}>").as_bytes(), 0.0, 3))
        .collect();
    assert!(refused(&with(&control)).contains("1003 control tokens"));
    let long: Vec<u8> = (0..20_000)
        .flat_map(|i| piece(format!("{i:0250}").as_bytes(), 0.0, 1))
        .collect();
    assert!(refused(&with(&long)).contains("at most 4194304"));
}

#[test]
fn other_kinds_of_models_are_refused() {
    assert!(refused(&with(&bytes(2, b"\x18\x02"))).contains("of type 2; expected 1"));
    let suffix = bytes(2, &[0xC0, 0x01, 1]);
    assert!(refused(&with(&suffix)).contains("no space before"));
    assert!(refused(&with(&bytes(3, &[0x18, 0]))).contains("no space before"));
}

#[test]
fn damaged_character_maps_are_refused() {
    for (map, expected) in [
        (b"abc".as_slice(), "cut short"),
        (b"\0\0\0\0", "is empty"),
        (b"\0\0\0\xf0", "4026531840 bytes"),
        (b"\x03\0\0\0abc", "in units of 4"),
        (b"\0\0\0\0\xff", "replacements"),
        (b"\x04\0\0\0\0\0\0\0", "damaged"),
    ] {
        let message = refused(&with_map(map));
        assert!(message.contains(expected), "{message}");
    }
    assert!(refused(&with_map(&vec![0; (2 << 20) + 1])).contains("at most"));
}

/// Runs `test` on the same damaged copies of `model` every time.
fn damage(model: &'static [u8], places: std::ops::Range<usize>, cases: u32, test: impl Fn(&[u8])) {
    let kinds = prop_oneof![
        6 => any::<u8>().prop_map(Some),
        1 => Just(None),
    ];
    let strategy = prop::collection::vec((places, kinds, 0..4_usize), 1..5);
    check(cases, &strategy, |changes| {
        let mut copy = model.to_vec();
        for (place, byte, length) in changes {
            let place = place.min(copy.len().saturating_sub(1));
            match (byte, length) {
                (None, 0) => copy.truncate(place),
                (None, _) => drop(copy.splice(place..place, copy[..place].to_vec())),
                (Some(byte), 0) => copy.insert(place, byte),
                (Some(_), 1) => drop(copy.drain(place..=place.min(copy.len() - 1))),
                (Some(byte), _) => copy[place] = byte,
            }
            if copy.is_empty() {
                break;
            }
        }
        test(&copy);
    });
}

/// Reads a damaged model and, if that worked, tokenizes with it. Returns whether it did.
fn survives(model: &[u8]) -> bool {
    let Ok(tokenizer) = from_sentencepiece(model, "damaged") else {
        return false;
    };
    for text in [
        "A red  ball, 红色的球 🎬 </s> ﬁlm Ｆｕｌｌ… e\u{301} a\u{30a}\u{200b}\t\u{0}",
        "الكرة ลูกบอล ｶﾞﾗｽ ½ \u{2003}\u{feff} [web]<0x41>▁▁",
    ] {
        let encoding = tokenizer.encode(text, true).unwrap();
        tokenizer.decode(encoding.get_ids(), true).unwrap();
    }
    true
}

#[test]
fn no_damage_leads_to_a_panic() {
    for model in [UMT5, CHARSMAP] {
        let usable = std::cell::Cell::new(0);
        damage(model, 0..model.len(), 300, |copy| {
            usable.set(usable.get() + u32::from(survives(copy)));
        });
        assert!((10..290).contains(&usable.get()), "{usable:?}");
    }
}

#[test]
fn no_damage_to_a_character_map_leads_to_a_panic() {
    let usable = std::cell::Cell::new(0);
    let end = CHARSMAP.len();
    damage(CHARSMAP, end - MAP_BYTES..end, 600, |copy| {
        usable.set(usable.get() + u32::from(survives(copy)));
    });
    assert!((10..590).contains(&usable.get()), "{usable:?}");
}
