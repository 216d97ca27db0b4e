//! The networks' dimensions from their tensors' shapes, for checkpoints without a configuration.
//!
//! Shapes are asked for by canonical name, so the inference is the same for every layout. Only
//! what shapes cannot say is taken as published. Of quantized weights just the number of rows is
//! looked at, which packing does not change.

use anyhow::{Context, Result, bail, ensure};

use super::original_config::OriginalConfig;
use crate::model::clip_vision::ClipVisionConfig;
use crate::model::dit::DitConfig;
use crate::model::umt5::Umt5Config;
use crate::model::vae::VaeConfig;

/// See [`Look`](super::config::Look).
type Lookup<'a> = dyn Fn(&str) -> Option<Vec<usize>> + 'a;

/// Channels per head of every published Wan: 5120 / 40, 3072 / 24 and 1536 / 12
/// (Wan-Video/Wan2.2, `wan/configs`). ComfyUI's `comfy/model_detection.py` assumes the same.
const HEAD_DIM: i32 = 128;
/// Pixel steps of a token in every published Wan; layouts that flatten the patch embedding do
/// not say.
pub(in crate::weights) const PATCH_SIZE: [i32; 3] = [1, 2, 2];
/// Positions in the reference's rotary tables (Wan-Video/Wan2.2, `wan/modules/model.py`).
pub(in crate::weights) const ROPE_LENGTH: i32 = 1024;
/// The query and key norm of every Wan, as diffusers calls it.
pub(in crate::weights) const QK_NORM: &str = "rms_norm_across_heads";
/// Epsilon of all norms of experts and text encoder (`model.py` and `t5.py` there).
pub(in crate::weights) const EPS: f32 = 1e-6;
/// Distance from which positions share a bucket (`wan/modules/t5.py` there).
const MAX_DISTANCE: i32 = 128;
/// Channels per head of CLIP ViT-H/14, and the epsilon of its norms (Wan-Video/Wan2.1,
/// `wan/modules/clip.py`).
const IMAGE_HEAD_DIM: i32 = 80;
const IMAGE_EPS: f32 = 1e-5;
/// As many blocks as are looked for; more than any network may have.
const MOST_BLOCKS: usize = 257;

/// Mean of each latent channel of the Wan2.1 VAE (Wan-Video/Wan2.2, `wan/modules/vae2_1.py`).
#[rustfmt::skip]
pub const LATENTS_MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
];
/// Standard deviation of each latent channel of the Wan2.1 VAE (as [`LATENTS_MEAN`]).
#[rustfmt::skip]
pub const LATENTS_STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
];

/// As [`LATENTS_MEAN`], of the VAE of Wan2.2 TI2V-5B (`wan/modules/vae2_2.py` there).
#[rustfmt::skip]
pub const WAN22_MEAN: [f32; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];
/// As [`LATENTS_STD`], of that VAE.
#[rustfmt::skip]
pub const WAN22_STD: [f32; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];

/// The dimensions of an expert. `given` is what a configuration says, if there is one: it
/// supplies what shapes cannot say and is checked against the rest.
///
/// Heads are taken to have 128 channels and norms an epsilon of 1e-6 unless it says otherwise,
/// and where the patch embedding is flattened (mlx-video), patches are taken to be 1x2x2.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape, or the field that contradicts
/// the shapes.
pub(super) fn infer_expert(lookup: &Lookup, given: &OriginalConfig) -> Result<DitConfig> {
    let dim = axis(lookup, "patch_embedding.bias", 0)?;
    let ffn_dim = axis(lookup, "blocks.0.ffn.net.0.proj.bias", 0)?;
    let (in_channels, patch_size) = patches(lookup, dim, given.patch_size)?;
    let volume = patch_size.iter().fold(1i32, |v, &d| v.saturating_mul(d));
    let head = axis(lookup, "proj_out.bias", 0)?;
    ensure!(
        volume > 0 && head % volume == 0,
        "proj_out.bias has {head} values, which is no multiple of a patch's {volume} values"
    );
    let heads = match given.num_heads {
        Some(heads) => {
            ensure!(
                heads > 0 && dim % heads == 0,
                "num_heads is {heads}, which does not divide the width {dim}"
            );
            heads
        }
        None => {
            ensure!(
                dim % HEAD_DIM == 0,
                "the width {dim} (patch_embedding.bias) is no multiple of {HEAD_DIM}, the channels \
                 per head of every published Wan: the number of heads cannot be inferred\nhint: put a \
                 config.json beside the file"
            );
            dim / HEAD_DIM
        }
    };
    let image = lookup("condition_embedder.image_embedder.norm1.weight");
    let config = DitConfig {
        patch_size,
        num_attention_heads: heads,
        attention_head_dim: dim / heads,
        in_channels,
        out_channels: head / volume,
        text_dim: axis(
            lookup,
            "condition_embedder.text_embedder.linear_1.weight",
            1,
        )?,
        freq_dim: axis(
            lookup,
            "condition_embedder.time_embedder.linear_1.weight",
            1,
        )?,
        ffn_dim,
        num_layers: blocks(lookup, |i| format!("blocks.{i}.scale_shift_table"))?,
        cross_attn_norm: lookup("blocks.0.norm2.weight").is_some(),
        eps: given.eps.unwrap_or(EPS),
        rope_max_seq_len: ROPE_LENGTH,
        qk_norm: Some(QK_NORM.into()),
        image_dim: image.as_ref().and_then(|s| as_i32(*s.first()?)),
        added_kv_proj_dim: lookup("blocks.0.attn2.add_k_proj.weight").map(|_| dim),
        pos_embed_seq_len: lookup("condition_embedder.image_embedder.pos_embed")
            .and_then(|shape| as_i32(*shape.get(1)?)),
    };
    given.check(&config)?;
    Ok(config)
}

/// Input channels and patch size from the patch embedding's weight, folded or not.
fn patches(lookup: &Lookup, dim: i32, given: Option<[i32; 3]>) -> Result<(i32, [i32; 3])> {
    const NAME: &str = "patch_embedding.weight";
    let shape = lookup(NAME).with_context(|| missing(NAME))?;
    let sizes: Vec<i32> = shape.iter().filter_map(|&d| as_i32(d)).collect();
    let strange =
        || format!("{NAME} has shape {shape:?}; expected [{dim}, channels, frames, rows, columns]");
    ensure!(sizes.len() == shape.len(), strange());
    let found = match *sizes {
        [first, channels, t, h, w] if first == dim => (channels, [t, h, w]),
        [first, channels, h, w] if first == dim => (channels, [1, h, w]),
        // Output and input channels merged, as stable-diffusion.cpp writes it.
        [first, t, h, w] if first % dim == 0 => (first / dim, [t, h, w]),
        [first, values] if first == dim => {
            let patch = given.unwrap_or(PATCH_SIZE);
            let volume = patch.iter().fold(1i32, |v, &d| v.saturating_mul(d));
            ensure!(
                volume > 0 && values % volume == 0,
                "{NAME} has {values} values per output, which is no multiple of a patch's {volume}"
            );
            (values / volume, patch)
        }
        _ => bail!(strange()),
    };
    Ok(found)
}

/// The dimensions of the VAE. Latent statistics are those published for 16 and 48 channels.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape; refuses a VAE with other latent
/// channels, whose statistics no tensor holds.
pub(super) fn infer_vae(lookup: &Lookup) -> Result<VaeConfig> {
    if lookup("decoder.13.conv.weight").is_some() {
        return infer_tiny(lookup);
    }
    let z_dim = axis(lookup, "post_quant_conv.bias", 0)?;
    let (latents_mean, latents_std) = match z_dim {
        16 => (LATENTS_MEAN.to_vec(), LATENTS_STD.to_vec()),
        48 => (WAN22_MEAN.to_vec(), WAN22_STD.to_vec()),
        _ => bail!(
            "the VAE has {z_dim} latent channels; statistics are known for 16 and 48, so put a \
             config.json with latents_mean and latents_std beside the file"
        ),
    };
    let base_dim = axis(lookup, "encoder.conv_in.bias", 0)?;
    let in_channels = axis(lookup, "encoder.conv_in.weight", 1)?;
    let out_channels = axis(lookup, "decoder.conv_out.bias", 0)?;
    let has = |name: String| lookup(&name).is_some();
    let is_residual = has("encoder.down_blocks.0.resnets.0.conv2.bias".into());
    let (mut widths, mut temporal) = (Vec::new(), Vec::new());
    let (mut in_level, mut per_level) = (0, None);
    let mut index = 0;
    // A level's residual blocks and its downsampler, all levels in a row or each by itself.
    while index < MOST_BLOCKS {
        let at = match is_residual {
            true => widths.len().saturating_sub(usize::from(in_level > 0)),
            false => index,
        };
        let name = |part: &str| format!("encoder.down_blocks.{at}.{part}");
        let (block, down) = match is_residual {
            true => (format!("resnets.{in_level}."), "downsampler."),
            false => (String::new(), ""),
        };
        index += 1;
        if has(name(&format!("{block}conv2.bias"))) {
            if in_level == 0 {
                widths.push(axis(lookup, &name(&format!("{block}conv2.bias")), 0)?);
            }
            in_level += 1;
        } else if has(name(&format!("{down}resample.1.bias"))) {
            per_level.get_or_insert(in_level);
            temporal.push(has(name(&format!("{down}time_conv.bias"))));
            in_level = 0;
        } else {
            break;
        }
    }
    ensure!(
        !widths.is_empty() && in_level > 0,
        "there is no encoder.down_blocks.0.conv2.bias or the list of encoder.down_blocks ends \
         early: the file is incomplete or not a VAE of Wan"
    );
    let dim_mult = widths
        .iter()
        .map(|&width| {
            ensure!(
                width % base_dim == 0,
                "an encoder level has {width} channels, which is no multiple of the first \
                 convolution's {base_dim}"
            );
            Ok(width / base_dim)
        })
        .collect::<Result<Vec<_>>>()?;
    let last = axis(lookup, "decoder.norm_out.gamma", 0)?;
    let first_mult = dim_mult.first().copied().unwrap_or(1).max(1);
    ensure!(
        last % first_mult == 0,
        "the decoder's last level has {last} channels, which is no multiple of {first_mult}"
    );
    let decoder_dim = last / first_mult;
    Ok(VaeConfig {
        base_dim,
        decoder_base_dim: (decoder_dim != base_dim).then_some(decoder_dim),
        z_dim,
        dim_mult,
        num_res_blocks: per_level.unwrap_or(in_level),
        attn_scales: Vec::new(),
        temperal_downsample: temporal,
        latents_mean,
        latents_std,
        is_residual,
        // RGB of two pixels each way.
        patch_size: (in_channels == 12).then_some(2),
        in_channels,
        out_channels,
        tiny: false,
    })
}

/// The dimensions of a small autoencoder, whose latents need no statistics.
fn infer_tiny(lookup: &Lookup) -> Result<VaeConfig> {
    let z_dim = axis(lookup, "encoder.17.bias", 0)?;
    ensure!(
        [16, 48].contains(&z_dim),
        "a small autoencoder of {z_dim} latent channels, for another family; expected taew2_1 (16) or \
         taew2_2 (48)"
    );
    let base_dim = axis(lookup, "encoder.0.bias", 0)?;
    let in_channels = axis(lookup, "encoder.0.weight", 1)?;
    let last = axis(lookup, "decoder.20.weight", 0)?;
    let multiple = |name: &str| {
        let width = axis(lookup, name, 0)?;
        ensure!(
            width % last == 0,
            "{name} has {width} outputs, which are no multiple of the last level's {last} channels"
        );
        Ok(width / last)
    };
    Ok(VaeConfig {
        base_dim,
        decoder_base_dim: (last != base_dim).then_some(last),
        z_dim,
        dim_mult: vec![
            1,
            multiple("decoder.14.weight")?,
            multiple("decoder.8.weight")?,
            multiple("decoder.1.weight")?,
        ],
        num_res_blocks: 3,
        attn_scales: Vec::new(),
        temperal_downsample: vec![true, true, false],
        latents_mean: vec![0.0; z_dim as usize],
        latents_std: vec![1.0; z_dim as usize],
        is_residual: false,
        patch_size: (in_channels == 12).then_some(2),
        in_channels,
        out_channels: axis(lookup, "decoder.22.bias", 0)?,
        tiny: true,
    })
}

/// The dimensions of the text encoder; the position buckets reach as far as in every UMT5.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape.
pub(super) fn infer_text(lookup: &Lookup) -> Result<Umt5Config> {
    let attention =
        |i: usize, part: &str| format!("encoder.block.{i}.layer.0.SelfAttention.{part}.weight");
    let table = attention(0, "relative_attention_bias");
    let num_heads = axis(lookup, &table, 1)?;
    let inner = axis(lookup, &attention(0, "q"), 0)?;
    ensure!(
        inner % num_heads == 0,
        "{} has {inner} rows, which is no multiple of the {num_heads} heads of {table}",
        attention(0, "q")
    );
    let num_layers = blocks(lookup, |i| attention(i, "q"))?;
    ensure!(
        num_layers == 1 || lookup(&attention(1, "relative_attention_bias")).is_some(),
        "only the first layer has a table of relative positions: this is a T5, as other models \
         use; Wan needs UMT5-XXL"
    );
    Ok(Umt5Config {
        d_model: axis(lookup, "shared.weight", 1)?,
        d_kv: inner / num_heads,
        d_ff: axis(
            lookup,
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            0,
        )?,
        num_layers,
        num_heads,
        vocab_size: axis(lookup, "shared.weight", 0)?,
        relative_attention_num_buckets: axis(lookup, &table, 0)?,
        relative_attention_max_distance: MAX_DISTANCE,
        layer_norm_epsilon: EPS,
        feed_forward_proj: "gated-gelu".into(),
    })
}

/// The dimensions of the image encoder; its activation is that of ViT-H.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape.
pub(super) fn infer_image(lookup: &Lookup) -> Result<ClipVisionConfig> {
    const PATCHES: &str = "embeddings.patch_embedding.weight";
    let hidden_size = axis(lookup, PATCHES, 0)?;
    let patch_size = axis(lookup, PATCHES, 2)?;
    let tokens = axis(lookup, "embeddings.position_embedding.weight", 0)?;
    ensure!(
        hidden_size % IMAGE_HEAD_DIM == 0,
        "the width {hidden_size} ({PATCHES}) is no multiple of {IMAGE_HEAD_DIM}, the channels per head \
         of CLIP ViT-H, which Wan2.1 needs"
    );
    let side = (tokens - 1).max(0).isqrt();
    ensure!(
        side > 0 && side * side == tokens - 1,
        "embeddings.position_embedding.weight has {tokens} rows, which are not one and those of a \
         square of patches"
    );
    Ok(ClipVisionConfig {
        hidden_size,
        num_attention_heads: hidden_size / IMAGE_HEAD_DIM,
        num_hidden_layers: blocks(lookup, |i| format!("encoder.layers.{i}.mlp.fc1.bias"))?,
        intermediate_size: axis(lookup, "encoder.layers.0.mlp.fc1.bias", 0)?,
        image_size: side.saturating_mul(patch_size),
        patch_size,
        hidden_act: "gelu".into(),
        layer_norm_eps: IMAGE_EPS,
    })
}

/// One more than the highest block that there is, so that a missing one in between is missed.
fn blocks(lookup: &Lookup, name: impl Fn(usize) -> String) -> Result<i32> {
    (0..MOST_BLOCKS)
        .rev()
        .find(|&i| lookup(&name(i)).is_some())
        .and_then(|i| as_i32(i + 1))
        .with_context(|| missing(&name(0)))
}

/// The length of an axis of a tensor that there must be; at least 1.
fn axis(lookup: &Lookup, name: &str, axis: usize) -> Result<i32> {
    let shape = lookup(name).with_context(|| missing(name))?;
    shape
        .get(axis)
        .and_then(|&d| as_i32(d))
        .filter(|&d| d > 0)
        .with_context(|| format!("{name} has shape {shape:?}, which it cannot have"))
}

fn missing(name: &str) -> String {
    format!("the tensor {name} is missing, so the dimensions cannot be inferred")
}

fn as_i32(value: usize) -> Option<i32> {
    i32::try_from(value).ok()
}

#[cfg(test)]
mod tests;
