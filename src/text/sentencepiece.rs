//! A tokenizer from a SentencePiece model, for checkpoints that carry no `tokenizer.json`.
//!
//! The ids to match are those of the published `tokenizer.json` of google/umt5-xxl, which the
//! reference reads. It is what transformers 4.31 made of the `spiece.model` beside it, and departs
//! from the SentencePiece library in three ways that are kept here:
//! - characters without a piece become `<unk>`, a run of them one `<unk>`, though the model has
//!   byte pieces and asks for them (`byte_fallback`);
//! - runs of spaces become one space, though the model keeps them (`remove_extra_whitespaces` is
//!   false);
//! - the user-defined pieces (`[web]`, `[code]`, ...) are plain pieces.
//!
//! Later releases convert the same file differently: transformers 4.51 splits texts at the
//! user-defined pieces and drops spaces at the end, transformers 5 takes piece 2 (`<s>`) for the
//! unknown one, even where the published file is at hand.

use std::collections::HashSet;

use anyhow::{Context, Error, Result, bail, ensure};
use prost::Message;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace, Sequence};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper};

use super::charsmap;

/// The token that closes every sequence, and its id in every T5 vocabulary.
const END: (&str, usize) = ("</s>", 1);
/// How many `<extra_id_*>` follow the pieces, the last number first: `extra_ids` in the
/// `tokenizer_config.json` of google/umt5-xxl.
const EXTRA_IDS: usize = 300;
/// The longest piece that is read, in bytes. The longest of UMT5's 256,000 has 48. `tokenizers`
/// frees its trie by recursion, one call per byte of a piece.
const MAX_PIECE: usize = 256;
/// All pieces together, in bytes; UMT5's have 2.2 million. `tokenizers` takes some 400 bytes of
/// memory for each byte that starts no other piece.
const MAX_TEXT: usize = 4 << 20;
/// The largest model that is read, in bytes; UMT5's has 4.5 million.
const MAX_MODEL: usize = 16 << 20;
/// The most control tokens; UMT5 has three.
const MAX_CONTROL: usize = 1000;

/// The kinds of pieces, numbered as in google/sentencepiece `src/sentencepiece_model.proto` and
/// in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// The number of the Unigram model in the same file.
const UNIGRAM: i32 = 1;

/// A vocabulary as arrays, one element per id, as llama.cpp's files have it
/// (`tokenizer.ggml.model` must be `t5`).
#[derive(Debug, Clone, Default)]
pub struct Arrays {
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`.
    pub kinds: Vec<i32>,
    /// `tokenizer.ggml.precompiled_charsmap`, empty if there is none.
    pub charsmap: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    whitespace_as_suffix: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

/// Reads `model`, the content of a `spiece.model` or of ComfyUI's tensor `spiece_model`, which is
/// called `source` in messages.
///
/// # Errors
/// If it is no SentencePiece model, or not one like UMT5's: a Unigram model with a space before
/// the first word, one unknown piece and `</s>` with id 1.
pub fn from_sentencepiece(model: &[u8], source: &str) -> Result<tokenizers::Tokenizer> {
    read(model).and_then(build).with_context(|| {
        format!(
            "{source} is not a usable SentencePiece model; \
             expected the spiece.model of google/umt5-xxl"
        )
    })
}

/// Takes the vocabulary of a GGUF file that is called `source` in messages.
///
/// The tokens after the model's own, which fill the vocabulary up to the rows of the embedding
/// table (`[PAD...]`, and `<extra_id_*>` if the converter had them), are left out: their scores
/// are the converter's, and would change the segmentation.
///
/// # Errors
/// As [`from_sentencepiece`], or if the arrays differ in length.
pub fn from_arrays(arrays: Arrays, source: &str) -> Result<tokenizers::Tokenizer> {
    trim(arrays).and_then(build).with_context(|| {
        format!("{source} has no usable tokenizer; expected the vocabulary of google/umt5-xxl")
    })
}

fn read(model: &[u8]) -> Result<Arrays> {
    ensure!(
        model.len() <= MAX_MODEL,
        "it has {} bytes; expected at most {MAX_MODEL}",
        model.len()
    );
    let model = Model::decode(model)?;
    let trainer = model.trainer.unwrap_or_default();
    let model_type = trainer.model_type.unwrap_or(UNIGRAM);
    ensure!(
        model_type == UNIGRAM,
        "it is of type {model_type}; expected {UNIGRAM} (Unigram)"
    );
    let normalizer = model.normalizer.unwrap_or_default();
    ensure!(
        normalizer.add_dummy_prefix.unwrap_or(true)
            && !trainer.whitespace_as_suffix.unwrap_or(false),
        "it puts no space before the first word"
    );
    let mut arrays = Arrays {
        charsmap: normalizer.charsmap.unwrap_or_default(),
        ..Arrays::default()
    };
    for piece in model.pieces {
        arrays.tokens.push(piece.text.unwrap_or_default());
        arrays.scores.push(piece.score.unwrap_or_default());
        arrays.kinds.push(piece.kind.unwrap_or(NORMAL));
    }
    Ok(arrays)
}

fn trim(mut arrays: Arrays) -> Result<Arrays> {
    let count = arrays.tokens.len();
    ensure!(
        arrays.scores.len() == count && arrays.kinds.len() == count,
        "it has {count} tokens, {} scores and {} token types; expected one of each per id",
        arrays.scores.len(),
        arrays.kinds.len()
    );
    let own = std::iter::zip(&arrays.tokens, &arrays.kinds)
        .rposition(|(token, &kind)| kind != UNUSED && !token.starts_with("<extra_id_"))
        .map_or(0, |last| last + 1);
    arrays.tokens.truncate(own);
    arrays.scores.truncate(own);
    arrays.kinds.truncate(own);
    Ok(arrays)
}

/// The tokenizer of a vocabulary whose three arrays are equally long.
fn build(arrays: Arrays) -> Result<tokenizers::Tokenizer> {
    let Arrays {
        mut tokens,
        scores,
        kinds,
        charsmap,
    } = arrays;
    ensure!(!tokens.is_empty(), "it has no pieces");
    let unknown = only_unknown(&kinds)?;
    ensure!(
        tokens.get(END.1).is_some_and(|token| token == END.0),
        "its piece {} is {:?}; expected {:?}",
        END.1,
        tokens.get(END.1).map_or("", |token| shorten(token)),
        END.0
    );
    let mut special: Vec<String> = std::iter::zip(&tokens, &kinds)
        .filter(|&(_, &kind)| kind == CONTROL || kind == UNKNOWN)
        .map(|(token, _)| token.clone())
        .collect();
    ensure!(
        special.len() <= MAX_CONTROL,
        "it has {} control tokens; expected at most {MAX_CONTROL}",
        special.len()
    );
    let extra: Vec<String> = (0..EXTRA_IDS)
        .rev()
        .map(|number| format!("<extra_id_{number}>"))
        .collect();
    special.extend_from_slice(&extra);
    tokens.extend(extra);
    check_texts(&tokens)?;
    check_scores(&scores)?;
    let scores = scores.into_iter().map(f64::from);
    let vocabulary = std::iter::zip(tokens, scores.chain(std::iter::repeat(0.0))).collect();

    let model = Unigram::from(vocabulary, Some(unknown), false).map_err(Error::from_boxed)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    assemble(&mut tokenizer, &charsmap)?;
    tokenizer
        .add_special_tokens(
            special
                .into_iter()
                .map(|token| AddedToken::from(token, true)),
        )
        .map_err(Error::from_boxed)?;
    Ok(tokenizer)
}

/// Everything around the model, as in the published `tokenizer.json`.
fn assemble(tokenizer: &mut tokenizers::Tokenizer, charsmap: &[u8]) -> Result<()> {
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if !charsmap.is_empty() {
        charsmap::check(charsmap)?;
        normalizers.push(Precompiled::from(charsmap)?.into());
    }
    let spaces = ReplacePattern::Regex(" {2,}".into());
    let spaces = Replace::new(spaces, " ").map_err(Error::from_boxed)?;
    normalizers.push(spaces.into());
    let words = Metaspace::new('▁', PrependScheme::Always, true);
    let (end, id) = END;
    let template = TemplateProcessing::builder()
        .try_single(format!("$A {end}"))
        .map_err(Error::msg)?
        .try_pair(format!("$A {end} $B {end}"))
        .map_err(Error::msg)?
        .special_tokens(vec![(end, u32::try_from(id)?)])
        .build()?;
    tokenizer
        .with_normalizer(Some(Sequence::new(normalizers)))
        .map_err(Error::from_boxed)?
        .with_pre_tokenizer(Some(words.clone()))
        .with_decoder(Some(words))
        .with_post_processor(Some(template));
    Ok(())
}

/// The id of the unknown piece. The model's `unk_id` says the same, but SentencePiece itself goes
/// by the kind, and GGUF files have nothing else.
fn only_unknown(kinds: &[i32]) -> Result<usize> {
    if let Some(id) = kinds
        .iter()
        .position(|kind| !(NORMAL..=BYTE).contains(kind))
    {
        bail!(
            "its piece {id} is of kind {}; expected {NORMAL} to {BYTE}",
            kinds[id]
        );
    }
    let mut all = kinds.iter().enumerate().filter(|&(_, &k)| k == UNKNOWN);
    match (all.next(), all.next()) {
        (Some((id, _)), None) => Ok(id),
        (None, _) => bail!("it has no piece for the unknown (<unk>)"),
        (Some((first, _)), Some((second, _))) => {
            bail!("both piece {first} and piece {second} stand for the unknown")
        }
    }
}

fn check_texts(tokens: &[String]) -> Result<()> {
    let total: usize = tokens.iter().map(String::len).sum();
    ensure!(
        total <= MAX_TEXT,
        "its pieces have {total} bytes; expected at most {MAX_TEXT}"
    );
    let mut seen = HashSet::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        ensure!(!token.is_empty(), "its piece {id} is empty");
        ensure!(
            token.len() <= MAX_PIECE,
            "its piece {id} has {} bytes; expected at most {MAX_PIECE}",
            token.len()
        );
        // The library would give both the later id.
        ensure!(
            seen.insert(token.as_str()),
            "its piece {id}, {token:?}, is there twice"
        );
    }
    Ok(())
}

/// A score that is no number would leave texts without a segmentation.
fn check_scores(scores: &[f32]) -> Result<()> {
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => bail!("the score of its piece {id} is {}", scores[id]),
        None => Ok(()),
    }
}

/// The start of a text of any length, for messages.
fn shorten(text: &str) -> &str {
    match text.char_indices().nth(20) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}
