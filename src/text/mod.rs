//! The prompt on its way to the text encoder: cleaned, then turned into token ids.

mod charsmap;
mod clean;
mod outline;
mod sentencepiece;
mod tokenizer;

pub use clean::clean;
pub use sentencepiece::{Arrays, from_arrays, from_sentencepiece};
pub use tokenizer::{Cut, TokenIds, Tokenizer};

/// The negative prompt that stands in for an empty one.
///
/// Wan-Video/Wan2.2 `wan/configs/shared_config.py`, `sample_neg_prompt`. The model was tuned with
/// it, so an empty negative prompt means this text and not the empty string.
pub const DEFAULT_NEGATIVE_PROMPT: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";
