//! The checkpoint reader against damaged, mismatched and unusual checkpoints: what is refused,
//! and how.

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

use wan_i2v::weights::{Checkpoint, Loading, Sources};

use crate::support::mlx;

const HIGH: &str = "transformer/diffusion_pytorch_model.safetensors";
const LOW: &str = "transformer_2/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

fn open(root: &Path) -> anyhow::Result<Checkpoint> {
    let _mlx = mlx();
    Checkpoint::open(&Sources::folder(root), Loading::default())
}

/// The message of opening the checkpoint at `root`.
fn error(root: &Path) -> String {
    format!("{:#}", open(root).unwrap_err())
}
