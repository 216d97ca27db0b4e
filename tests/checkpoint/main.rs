//! The checkpoint reader against damaged, mismatched and unusual checkpoints: what is refused,
//! and how.

#[path = "../support/checkpoint.rs"]
mod checkpoint;
#[path = "../support/gguf.rs"]
mod gguf_file;
#[path = "../support/portable.rs"]
mod portable;
#[path = "../support/scratch.rs"]
mod scratch;

mod configs;
mod encoding;
mod files;
mod gguf;
mod mutations;
mod pth;
mod surroundings;
mod tensors;
mod values;

use std::path::Path;
use std::sync::PoisonError;

use wan_i2v::weights::{Checkpoint, LoadBits, Sources};

use scratch::MLX;

const HIGH: &str = "transformer/diffusion_pytorch_model.safetensors";
const LOW: &str = "transformer_2/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

fn open(root: &Path) -> anyhow::Result<Checkpoint> {
    let _mlx = MLX.lock().unwrap_or_else(PoisonError::into_inner);
    Checkpoint::open(&Sources::folder(root), LoadBits::default())
}

/// The message of opening the checkpoint at `root`.
fn error(root: &Path) -> String {
    format!("{:#}", open(root).unwrap_err())
}

/// Fails unless `message` holds every part.
fn assert_holds(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}
