//! From prompts to the text encoder's output.

use anyhow::{Context, Result, ensure};
use mlx_rs::{Array, memory};

use crate::clip::Settings;
use crate::model::umt5::{Umt5, pad_rows};
use crate::persist::dump::Dump;
use crate::progress::{Network, Phase, Progress, RunningPhase, load};
use crate::runtime::State;
use crate::runtime::{Device, all_finite};
use crate::text::{TokenIds, Tokenizer, clean};
use crate::weights::Checkpoint;

/// Tokens that the transformer attends to, padding included (`text_len` of the reference).
pub const TEXT_LEN: usize = 512;

/// Tokenized prompts.
#[derive(Clone, Debug)]
pub struct PromptIds {
    /// The prompt.
    pub prompt: TokenIds,
    /// The negative prompt, unless guidance is off for both experts.
    pub negative: Option<TokenIds>,
}

impl PromptIds {
    /// A line for every prompt that was cut.
    pub(super) fn warnings(&self) -> Vec<String> {
        [
            ("--prompt", Some(&self.prompt)),
            ("--negative-prompt", self.negative.as_ref()),
        ]
        .into_iter()
        .filter_map(|(flag, ids)| Some(format!("{flag} has {}", ids?.cut.as_ref()?)))
        .collect()
    }
}

/// Cleans and tokenizes the prompts with the checkpoint's tokenizer.
///
/// # Errors
/// When the tokenizer is missing, broken or does not belong to the text encoder.
pub fn tokenize(checkpoint: &Checkpoint, prompt: &str, settings: &Settings) -> Result<PromptIds> {
    tokenize_with(&checkpoint.load_tokenizer()?, prompt, settings)
}

/// As [`tokenize`], with a tokenizer that is loaded already.
pub(super) fn tokenize_with(
    tokenizer: &Tokenizer,
    prompt: &str,
    settings: &Settings,
) -> Result<PromptIds> {
    let encode = |text: &str, flag: &str| {
        tokenizer
            .encode(&clean(text), TEXT_LEN)
            .with_context(|| flag.to_owned())
    };
    Ok(PromptIds {
        prompt: encode(prompt, "--prompt")?,
        negative: if settings.guide_scale.needs_negative() {
            Some(encode(&settings.negative_prompt, "--negative-prompt")?)
        } else {
            None
        },
    })
}

/// The text encoder's output, `[n, d_model]` each: one row per real token. What the reference pads
/// it with, the transformer adds.
#[derive(Clone, Debug)]
pub struct EncodedPrompts {
    /// The prompt.
    pub prompt: Array,
    /// The negative prompt, unless guidance is off.
    pub negative: Option<Array>,
}

impl EncodedPrompts {
    pub(super) fn save(&self, state: &mut State) {
        state.set("text.prompt", &self.prompt);
        state.set_optional("text.negative", self.negative.as_ref());
    }

    pub(super) fn restore(state: &State) -> Result<Self> {
        Ok(Self {
            prompt: state.array("text.prompt")?,
            negative: state.optional("text.negative"),
        })
    }
}

/// The text encoder, loaded.
#[derive(Debug)]
pub(super) struct TextEncoder(Umt5);

impl TextEncoder {
    /// Loads it.
    ///
    /// # Errors
    /// When a weight is damaged, or the run shall stop here.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let (encoder, _) = load(Network::TextEncoder, progress, || {
            checkpoint.load_text_encoder(device)
        })?;
        Ok(Self(encoder))
    }

    /// A prompt's rows, in row-major order, as a run that resumes reads them.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary, the output is not finite, or MLX fails.
    pub(super) fn encode(&self, ids: &TokenIds) -> Result<Array> {
        let encoded = self.0.encode(&ids.ids)?;
        ensure!(
            all_finite(&encoded)?,
            "the text encoder's output is not finite\nhint: try --dtype f32 or --device cpu and please \
             report it"
        );
        Ok(encoded.contiguous()?)
    }
}

/// Writes a prompt's tokens and their encoding; `name` is `cond` or `uncond`.
pub(super) fn dump_prompt(dump: &Dump, name: &str, ids: &TokenIds, encoded: &Array) -> Result<()> {
    let ids: Vec<i64> = ids.ids.iter().map(|&id| i64::from(id)).collect();
    dump.integers(&format!("token_ids_{name}"), &ids)?;
    let padded = pad_rows(encoded, TEXT_LEN as i32)?;
    dump.array(&format!("text_encoded_{name}"), &padded)
}

/// Loads the text encoder, encodes the prompts and drops the encoder.
///
/// # Errors
/// When a weight is damaged, an id lies outside the vocabulary or MLX fails.
pub fn encode_prompts(
    checkpoint: &Checkpoint,
    device: Device,
    ids: &PromptIds,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
) -> Result<EncodedPrompts> {
    let prompts = 1 + usize::from(ids.negative.is_some());
    let mut phase = RunningPhase::start(Phase::Text, prompts, 0, progress);
    let encoder = TextEncoder::load(checkpoint, device, progress)?;
    let mut encode = |ids: &TokenIds, name: &str| -> Result<Array> {
        let encoded = encoder.encode(ids)?;
        if let Some(dump) = dump {
            dump_prompt(dump, name, ids, &encoded)?;
        }
        phase.advance(progress)?;
        Ok(encoded)
    };
    let encoded = EncodedPrompts {
        prompt: encode(&ids.prompt, "cond")?,
        negative: match &ids.negative {
            Some(ids) => Some(encode(ids, "uncond")?),
            None => None,
        },
    };
    drop(encoder);
    memory::clear_cache()?;
    phase.finish(progress);
    Ok(encoded)
}
