//! The built-in miniature: a trained Wan image-to-video model of the real architecture, small
//! enough to be part of the program. What it knows and how it was made: `docs/tiny.md`.

use crate::weights::EmbeddedFile;

/// What the miniature is, for its users.
pub const NOTICE: &str = "the miniature knows coloured circles, squares, triangles and diamonds that \
     move, grow, shrink or change colour in 64 x 64 pixels; for real clips fetch a model, once, and \
     name it with -m wan2.2:\n  wan-i2v pull Wan-AI/Wan2.2-I2V-A14B --bits 4 --output wan2.2";

/// The same, in a few words.
pub const NAME: &str = "the built-in miniature (moving coloured shapes alone)";

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        &[$(EmbeddedFile {
            path: $path,
            bytes: include_bytes!(concat!("model/", $path)),
        }),+]
    };
}

/// Its files, in the diffusers layout.
pub static FILES: &[EmbeddedFile] = files![
    "model_index.json",
    "wan_i2v.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer_2/config.json",
    "transformer_2/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
];

/// Adapters of its experts for four steps without guidance, by the preset `lightning`.
pub static LIGHTNING: &[EmbeddedFile] = &[
    EmbeddedFile {
        path: "high_noise_model.safetensors",
        bytes: include_bytes!("model/lightning/high_noise_model.safetensors"),
    },
    EmbeddedFile {
        path: "low_noise_model.safetensors",
        bytes: include_bytes!("model/lightning/low_noise_model.safetensors"),
    },
];
