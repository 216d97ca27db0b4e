//! Token ids for the text encoder.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};

use super::outline;
use super::sentencepiece::{self, Arrays};
use crate::util::files::read_small;
use crate::util::show::Show;

/// The token that closes every sequence (T5's end of sentence).
const END: &str = "</s>";
/// How much of the prompt is quoted on each side of a cut, in characters.
const QUOTE: usize = 40;

/// The UMT5 tokenizer, read from a `tokenizer.json` of Hugging Face's `tokenizers` library, as in
/// the folder `google/umt5-xxl` of the original checkpoint and `tokenizer` of the diffusers one, or
/// from the SentencePiece model that it was made from.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_id: u32,
}

/// A tokenized prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// At least one id, the last of them `</s>`; no padding.
    pub ids: Vec<u32>,
    /// Where the prompt was cut, if it was longer than allowed.
    pub cut: Option<Cut>,
}

/// Where a prompt with too many tokens was cut. Displays as a phrase for a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Tokens in the whole prompt, counting `</s>`.
    pub total: usize,
    /// Tokens that were kept, counting `</s>`.
    pub kept: usize,
    /// The end of the text that was kept, at most 40 characters.
    pub before: String,
    /// The start of the text that was dropped, at most 40 characters.
    pub after: String,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            total,
            kept,
            before,
            after,
        } = self;
        write!(
            f,
            "{total} tokens, cut to {kept}: kept up to '…{before}', dropped from '{after}…' on"
        )
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, or if it does not describe a tokenizer that closes
    /// every text with one `</s>`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json = read_small(path, outline::MAX_FILE as u64)
            .with_context(|| format!("cannot read the tokenizer {}", path.shown()))?;
        Self::from_json(&json, &path.shown().to_string())
    }

    /// Reads the content of a `tokenizer.json` that is called `name` in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_json(json: &[u8], name: &str) -> Result<Self> {
        Self::parse(json).with_context(|| {
            format!(
                "{name} is not a usable tokenizer; expected the tokenizer.json of google/umt5-xxl"
            )
        })
    }

    /// Reads a SentencePiece model (`spiece.model`) that is called `name` in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_sentencepiece(model: &[u8], name: &str) -> Result<Self> {
        let inner = sentencepiece::from_sentencepiece(model, name)?;
        Self::checked(inner).with_context(|| format!("{name} is not a usable tokenizer"))
    }

    /// Takes the vocabulary of a GGUF file that is called `name` in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_arrays(arrays: Arrays, name: &str) -> Result<Self> {
        let inner = sentencepiece::from_arrays(arrays, name)?;
        Self::checked(inner).with_context(|| format!("{name} has no usable tokenizer"))
    }

    /// The content of a `tokenizer.json` that describes it.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn to_json(&self) -> Result<String> {
        guarded(|| self.inner.to_string(true)).context("cannot write the tokenizer")
    }

    fn parse(json: &[u8]) -> Result<Self> {
        outline::check(json)?;
        Self::checked(guarded(|| tokenizers::Tokenizer::from_bytes(json))?)
    }

    /// A tokenizer that does what the text encoder needs.
    fn checked(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        // A tokenizer.json can carry the settings of whoever saved it; `encode` does its own.
        guarded(|| inner.with_truncation(None).map(drop))?;
        inner.with_padding(None);

        let end_id = inner
            .token_to_id(END)
            .with_context(|| format!("its vocabulary has no {END}"))?;
        let closed = guarded(|| inner.encode("a", true))?;
        let mut expected = guarded(|| inner.encode("a", false))?.get_ids().to_vec();
        expected.push(end_id);
        ensure!(
            closed.get_ids() == expected,
            "it does not close a text with one {END}: it makes {:?} of \"a\", expected {expected:?}",
            closed.get_ids()
        );
        Ok(Self { inner, end_id })
    }

    /// The number of ids, added tokens included. The text encoder's embedding table must have at
    /// least as many rows; UMT5-XXL's has some to spare.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Tokenizes `text`, which should be [`clean`](super::clean), to at most `limit` ids (Wan: 512),
    /// `</s>` included. An empty text gives `</s>` alone.
    ///
    /// The ids are those of `AutoTokenizer(...)(text, max_length=limit, truncation=True)`.
    ///
    /// # Errors
    /// If `limit` is 0 or the tokenizer fails.
    pub fn encode(&self, text: &str, limit: usize) -> Result<TokenIds> {
        if limit == 0 {
            bail!("the limit on tokens is 0; it must leave room for {END}");
        }
        let encoding =
            guarded(|| self.inner.encode(text, true)).context("cannot tokenize the prompt")?;
        let mut ids = encoding.get_ids().to_vec();
        let total = ids.len();
        if total <= limit {
            return Ok(TokenIds { ids, cut: None });
        }
        ids.truncate(limit - 1);
        ids.push(self.end_id);
        // Offsets are bytes of `text`. A character can be spread over several tokens, so the first
        // dropped one may start inside it.
        let at = encoding
            .get_offsets()
            .get(limit - 1)
            .map_or(text.len(), |&(start, _)| start);
        let (before, after) = quote_around(text, at);
        Ok(TokenIds {
            ids,
            cut: Some(Cut {
                total,
                kept: limit,
                before,
                after,
            }),
        })
    }
}

/// The text on both sides of byte `at`, [`QUOTE`] characters each.
fn quote_around(text: &str, at: usize) -> (String, String) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let (head, tail) = text.split_at(at);
    let start = head
        .char_indices()
        .rev()
        .nth(QUOTE - 1)
        .map_or(0, |(i, _)| i);
    (
        head[start..].trim().to_owned(),
        tail.trim_start()
            .chars()
            .take(QUOTE)
            .collect::<String>()
            .trim_end()
            .to_owned(),
    )
}

/// Calls into `tokenizers`, which panics on some malformed files, such as one with a damaged
/// character map, and otherwise reports boxed errors.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| anyhow!("the file is damaged"))?
        .map_err(Error::from_boxed)
}
