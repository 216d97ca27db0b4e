//! The VAE's names.
//!
//! The original's, which mlx-video keeps: Wan-Video/Wan2.2, `wan/modules/vae2_1.py`; the pairs:
//! huggingface/diffusers, `scripts/convert_wan_to_diffusers.py`.

use super::{Naming, is_index};

/// Modules outside of the levels; each has the leaves of [`is_leaf`].
const OUTSIDE: &[(&str, &str)] = &[
    ("quant_conv", "conv1"),
    ("post_quant_conv", "conv2"),
    ("encoder.conv_in", "encoder.conv1"),
    ("encoder.conv_out", "encoder.head.2"),
    ("encoder.norm_out", "encoder.head.0"),
    ("decoder.conv_in", "decoder.conv1"),
    ("decoder.conv_out", "decoder.head.2"),
    ("decoder.norm_out", "decoder.head.0"),
];

/// Modules of a residual block.
const RESIDUAL: &[(&str, &str)] = &[
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
];

/// Modules of a down- or upsampler; the names are the same.
const RESAMPLE: &[&str] = &["resample.1", "time_conv"];

/// Modules of the attention block; the names are the same.
const ATTENTION: &[&str] = &["norm", "to_qkv", "proj"];

/// What `naming` calls the canonical tensor `name`, in a VAE with `decoder_blocks` residual
/// blocks per level of the decoder.
pub(super) fn name(naming: Naming, name: &str, decoder_blocks: usize) -> Option<String> {
    let original = original(name, decoder_blocks)?;
    match naming {
        Naming::Diffusers => Some(name.to_owned()),
        Naming::Original | Naming::MlxVideo => Some(original),
        Naming::LlamaCpp | Naming::MlxGen => None,
    }
}

fn original(name: &str, decoder_blocks: usize) -> Option<String> {
    let (module, leaf) = name.rsplit_once('.')?;
    // The part in front of the last name decides what the leaf can be.
    let is_norm = module.rsplit('.').next()?.starts_with("norm");
    let leaf_exists = if is_norm {
        leaf == "gamma"
    } else {
        leaf == "weight" || leaf == "bias"
    };
    if !leaf_exists {
        return None;
    }
    let module = original_module(module, decoder_blocks)?;
    Some(format!("{module}.{leaf}"))
}

fn original_module(module: &str, decoder_blocks: usize) -> Option<String> {
    if let Some((_, original)) = OUTSIDE.iter().find(|(canonical, _)| *canonical == module) {
        return Some((*original).to_owned());
    }
    let (half, rest) = module.split_once('.')?;
    if half != "encoder" && half != "decoder" {
        return None;
    }
    if let Some(rest) = rest.strip_prefix("mid_block.") {
        return middle(rest).map(|found| format!("{half}.middle.{found}"));
    }
    if half == "encoder" {
        // diffusers keeps the original's one list of blocks and downsamplers.
        let (index, rest) = indexed(rest, "down_blocks.")?;
        let rest = if RESAMPLE.contains(&rest) {
            rest
        } else {
            residual(rest)?
        };
        return Some(format!("encoder.downsamples.{index}.{rest}"));
    }
    // It does not in the decoder, where a level is its residual blocks and an upsampler.
    let (level, rest) = indexed(rest, "up_blocks.")?;
    let first = level.checked_mul(decoder_blocks.checked_add(1)?)?;
    let (index, rest) = if let Some(rest) = rest.strip_prefix("upsamplers.0.") {
        (
            decoder_blocks,
            *RESAMPLE.iter().find(|known| **known == rest)?,
        )
    } else {
        let (block, rest) = indexed(rest, "resnets.")?;
        if block >= decoder_blocks {
            return None;
        }
        (block, residual(rest)?)
    };
    Some(format!(
        "decoder.upsamples.{}.{rest}",
        first.checked_add(index)?
    ))
}

/// Residual block, attention, residual block.
fn middle(rest: &str) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("attentions.0.") {
        return ATTENTION.contains(&rest).then(|| format!("1.{rest}"));
    }
    let (block, rest) = indexed(rest, "resnets.")?;
    let index = match block {
        0 => 0,
        1 => 2,
        _ => return None,
    };
    Some(format!("{index}.{}", residual(rest)?))
}

fn residual(module: &str) -> Option<&'static str> {
    RESIDUAL
        .iter()
        .find(|(canonical, _)| *canonical == module)
        .map(|(_, original)| *original)
}

/// The index behind `list` in front of `text`, and what follows it.
fn indexed<'a>(text: &'a str, list: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = text.strip_prefix(list)?.split_once('.')?;
    if !is_index(index) {
        return None;
    }
    Some((index.parse().ok()?, rest))
}
