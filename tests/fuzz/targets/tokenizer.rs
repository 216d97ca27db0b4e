//! `tokenizer.json` and SentencePiece models, and a text through those that are accepted.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/text"]
mod text {
    mod charsmap;
    mod outline;
    mod sentencepiece;
    pub mod tokenizer;
}
#[allow(dead_code)]
#[path = "../../../src/util/mod.rs"]
mod util;

use text::tokenizer::Tokenizer;

// The library's panics are caught by the reader under test; libFuzzer's hook would end at the first.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |file: &[u8]| {
    let tokenizer = match file.first() {
        Some(b'{') => Tokenizer::from_json(file, "fuzzed"),
        _ => Tokenizer::from_sentencepiece(file, "fuzzed"),
    };
    if let Ok(tokenizer) = tokenizer {
        let _ = tokenizer.encode("A red circle moves up \u{fb01}\u{1f600}.", 64);
    }
});
