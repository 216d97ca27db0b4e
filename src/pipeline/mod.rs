//! From requests to media files.
//!
//! `prepare` resolves a request and reads its inputs, and [`plan`] forecasts its cost. Then the
//! stages follow one another: `text`, `image`, `denoise`, `decode`, `file`. Each takes what it needs,
//! owns its weights, and drops them when its results exist. `generate` runs them for one clip,
//! `schedule` for many clips that share networks.

mod decode;
mod denoise;
mod eta;
mod existing;
mod experts;
mod file;
mod generate;
mod identity;
mod image;
mod input_cache;
pub mod plan;
mod prepare;
mod preview;
mod schedule;
mod source_image;
mod text;

pub use crate::progress::{
    Event, EventKind, Interrupted, Memory, Network, Passes, Phase, PhaseReport, Progress, Silent,
    StepReport, Summary,
};
pub use decode::decode_clip;
pub use denoise::{Denoiser, Observer, guide};
pub use generate::initial_noise;
pub use image::{Condition, Ends, encode_condition, encode_video, frame_mask};
pub use input_cache::InputCache;
pub use prepare::{Job, UsedPicture};
pub use preview::PreviewDecoder;
pub use text::{EncodedPrompts, PromptIds, TEXT_LEN, encode_prompts, tokenize};

pub(crate) use crate::persist::EmbeddingStore;
pub(crate) use denoise::Partner;
pub(crate) use schedule::{Clip, ClipObserver, Keys, Scheduler};
