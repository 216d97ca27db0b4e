//! The published model without its files, for forecasts: Wan2.2 I2V-A14B.

use std::sync::OnceLock;

use super::adapter::Adapters;
use super::config::PartConfig;
use super::layout::Layout;
use super::naming::{
    EPS, LATENTS_MEAN, LATENTS_STD, PATCH_SIZE, QK_NORM, ROPE_LENGTH, WAN22_MEAN, WAN22_STD,
};
use super::{BOUNDARY, Checkpoint, Loading, Recommended, Remembered};
use crate::model::dit::DitConfig;
use crate::model::umt5::Umt5Config;
use crate::model::vae::VaeConfig;
use crate::weights::PartName;

/// Dimensions of both experts (Wan-Video/Wan2.2, `wan/configs/wan_i2v_A14B.py`).
pub fn expert() -> DitConfig {
    DitConfig {
        patch_size: PATCH_SIZE,
        num_attention_heads: 40,
        attention_head_dim: 128,
        in_channels: 36,
        out_channels: 16,
        text_dim: 4096,
        freq_dim: 256,
        ffn_dim: 13_824,
        num_layers: 40,
        cross_attn_norm: true,
        eps: EPS,
        rope_max_seq_len: ROPE_LENGTH,
        qk_norm: Some(QK_NORM.into()),
        image_dim: None,
        added_kv_proj_dim: None,
    }
}

/// Dimensions of the VAE (`wan/modules/vae2_1.py` there).
pub fn vae() -> VaeConfig {
    VaeConfig {
        base_dim: 96,
        decoder_base_dim: None,
        z_dim: 16,
        dim_mult: vec![1, 2, 4, 4],
        num_res_blocks: 2,
        attn_scales: Vec::new(),
        temperal_downsample: vec![false, true, true],
        latents_mean: LATENTS_MEAN.to_vec(),
        latents_std: LATENTS_STD.to_vec(),
        is_residual: false,
        patch_size: None,
        in_channels: 3,
        out_channels: 3,
    }
}

/// Dimensions of the VAE of Wan2.2 TI2V-5B (`wan/modules/vae2_2.py` there).
pub fn wan22_vae() -> VaeConfig {
    VaeConfig {
        base_dim: 160,
        decoder_base_dim: Some(256),
        z_dim: 48,
        latents_mean: WAN22_MEAN.to_vec(),
        latents_std: WAN22_STD.to_vec(),
        is_residual: true,
        patch_size: Some(2),
        in_channels: 12,
        out_channels: 12,
        ..vae()
    }
}

/// Dimensions of the text encoder (google/umt5-xxl, `config.json`).
pub fn text_encoder() -> Umt5Config {
    Umt5Config {
        d_model: 4096,
        d_kv: 64,
        d_ff: 10_240,
        num_layers: 24,
        num_heads: 64,
        vocab_size: 256_384,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: EPS,
        feed_forward_proj: "gated-gelu".into(),
    }
}

/// Dimensions of a part.
pub fn part(name: PartName) -> PartConfig {
    match name {
        PartName::HighNoise | PartName::LowNoise => PartConfig::Expert(expert()),
        PartName::Vae => PartConfig::Vae(vae()),
        PartName::TextEncoder => PartConfig::TextEncoder(text_encoder()),
    }
}

impl Checkpoint {
    /// The published model, with linear layers quantized as `loading` says. Its parts have no files: what it
    /// costs can be told, and nothing be loaded.
    pub fn published(loading: Loading) -> Self {
        Self {
            layout: Layout::default(),
            loading,
            adapters: Adapters::default(),
            high: expert(),
            low: expert(),
            vae: vae(),
            text_encoder: text_encoder(),
            boundary_timestep: BOUNDARY * 1000.0,
            settings: Recommended::default(),
            fingerprints: OnceLock::new(),
            tokenizer_ids: OnceLock::new(),
            held: Remembered::default(),
            vae_held: Remembered::default(),
            formats: Remembered::default(),
            absent: Remembered::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Device, DeviceKind};
    use crate::weights::Bits;

    #[test]
    fn the_published_weights_have_their_size() {
        let gpu = Device::new(DeviceKind::Gpu, None);
        let gigabytes = |bits: &Loading, name| {
            let model = Checkpoint::published(bits.clone());
            (model.weight_bytes(name, gpu).unwrap() as f64 / 1e8).round() / 10.0
        };
        let [four, eight] = [Bits::Four, Bits::Eight].map(Loading::all);
        for (bits, expert, text) in [
            (four, 8.8, 4.7),
            (eight, 15.8, 7.0),
            (Loading::default(), 29.0, 11.4),
        ] {
            let found = gigabytes(&bits, PartName::HighNoise);
            assert!((found - expert).abs() < 0.2, "{bits:?}: {found}");
            let found = gigabytes(&bits, PartName::TextEncoder);
            assert!((found - text).abs() < 0.15, "{bits:?}: {found}");
        }
    }
}
