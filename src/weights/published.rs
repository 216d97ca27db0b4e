//! The published model without its files, for forecasts: Wan2.2 I2V-A14B.

use std::sync::OnceLock;

use super::adapter::Adapters;
use super::config::PartConfig;
use super::layout::Layout;
use super::naming::{
    EPS, LATENTS_MEAN, LATENTS_STD, PATCH_SIZE, QK_NORM, ROPE_LENGTH, WAN22_MEAN, WAN22_STD,
};
use super::{Checkpoint, Conditioning, Expert, Family, Loading, Remembered};
use crate::model::clip_vision::ClipVisionConfig;
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
        pos_embed_seq_len: None,
    }
}

/// Dimensions of a model's transformers: `wan/configs` of Wan-Video/Wan2.2 and Wan2.1.
pub fn expert_of(family: &Family) -> DitConfig {
    let a14b = match family.name.ends_with("1.3B") {
        true => DitConfig {
            num_attention_heads: 12,
            ffn_dim: 8960,
            num_layers: 30,
            ..expert()
        },
        false => expert(),
    };
    match family.conditioning {
        Conditioning::Channels => a14b,
        Conditioning::Features { pictures } => DitConfig {
            image_dim: Some(1280),
            added_kv_proj_dim: Some(a14b.dim()),
            pos_embed_seq_len: (pictures > 1).then_some(514),
            ..a14b
        },
        Conditioning::FirstFrame => DitConfig {
            num_attention_heads: 24,
            in_channels: 48,
            out_channels: 48,
            ffn_dim: 14_336,
            num_layers: 30,
            ..a14b
        },
        Conditioning::Text => DitConfig {
            in_channels: 16,
            ..a14b
        },
    }
}

/// Dimensions of a model's VAE.
pub fn vae_of(family: &Family) -> VaeConfig {
    match family.conditioning {
        Conditioning::FirstFrame => wan22_vae(),
        _ => vae(),
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
        tiny: false,
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

/// Dimensions of taew2_1, or of taew2_2 where there are 48 latent channels (madebyollin/taehv, `taehv.py`).
pub fn small_vae(z_dim: i32) -> VaeConfig {
    let patch_size = (z_dim == 48).then_some(2);
    let channels = 3 * patch_size.map_or(1, |side| side * side);
    VaeConfig {
        base_dim: 64,
        z_dim,
        dim_mult: vec![1, 1, 2, 4],
        num_res_blocks: 3,
        temperal_downsample: vec![true, true, false],
        latents_mean: vec![0.0; z_dim as usize],
        latents_std: vec![1.0; z_dim as usize],
        patch_size,
        in_channels: channels,
        out_channels: channels,
        tiny: true,
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

/// Dimensions of Wan2.1's image encoder (Wan-Video/Wan2.1, `wan/modules/clip.py`).
pub fn image_encoder() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 1280,
        num_attention_heads: 16,
        num_hidden_layers: 32,
        intermediate_size: 5120,
        image_size: 224,
        patch_size: 14,
        hidden_act: "gelu".into(),
        layer_norm_eps: 1e-5,
    }
}

/// Dimensions of a part.
pub fn part(name: PartName) -> PartConfig {
    match name {
        PartName::HighNoise | PartName::LowNoise | PartName::Transformer => {
            PartConfig::Expert(expert())
        }
        PartName::Vae => PartConfig::Vae(vae()),
        PartName::TextEncoder => PartConfig::TextEncoder(text_encoder()),
        PartName::ImageEncoder => PartConfig::ImageEncoder(image_encoder()),
    }
}

impl Checkpoint {
    /// The published I2V-A14B; see [`Self::published_as`].
    pub fn published(loading: Loading) -> Self {
        Self::published_as(Family::i2v_a14b(), loading)
    }

    /// A model as it is published, with linear layers quantized as `loading` says. Its parts have no files:
    /// what it costs can be told, and nothing be loaded.
    pub fn published_as(family: &'static Family, loading: Loading) -> Self {
        let experts: &[Expert] = match family.boundary {
            Some(_) => &[Expert::HighNoise, Expert::LowNoise],
            None => &[Expert::Single],
        };
        Self {
            layout: Layout::default(),
            loading,
            adapters: Adapters::default(),
            family,
            experts: (experts.iter())
                .map(|&expert| (expert, expert_of(family)))
                .collect(),
            vae: vae_of(family),
            text_encoder: text_encoder(),
            image_encoder: (family.conditioning.features() > 0).then(image_encoder),
            boundary_timestep: family.boundary.unwrap_or(0.0) * 1000.0,
            settings: family.recommended(),
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

    /// As the class of `taehv.py` counts them.
    #[test]
    fn the_small_autoencoders_have_their_size() {
        for (z_dim, parameters) in [(16, 11_315_539), (48, 11_418_108)] {
            let specs = PartConfig::Vae(small_vae(z_dim)).specs().unwrap();
            assert_eq!(specs.len(), 128);
            let of = |shape: &[i32]| shape.iter().map(|&side| i64::from(side)).product::<i64>();
            let all: i64 = specs.iter().map(|spec| of(&spec.shape)).sum();
            assert_eq!(all, parameters);
        }
    }

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
