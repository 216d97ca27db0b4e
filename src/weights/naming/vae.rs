//! The VAE's names.
//!
//! The original's: Wan-Video/Wan2.2, `wan/modules/vae2_1.py` and `vae2_2.py`; the pairs:
//! huggingface/diffusers, `scripts/convert_wan_to_diffusers.py`. mlx-video keeps the former's, and writes
//! the latter's anew (`sanitize_wan22_vae_weights` of Blaizzy/mlx-video).

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

/// How many residual blocks a level of the decoder has, and whether shortcuts lead around levels: the
/// encoder's have one block less then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels {
    pub(super) decoder_blocks: usize,
    pub(super) residual: bool,
}

/// What `naming` calls the canonical tensor `name`.
pub(super) fn name(naming: Naming, name: &str, levels: Levels) -> Option<String> {
    if naming == Naming::Taehv {
        return is_tiny(name).then(|| name.to_owned());
    }
    let original = original(name, levels)?;
    match naming {
        Naming::Diffusers => Some(name.to_owned()),
        Naming::MlxVideo if levels.residual => Some(of_mlx_video(original)),
        Naming::Original | Naming::MlxVideo => Some(original),
        Naming::LlamaCpp | Naming::MlxGen | Naming::Taehv => None,
    }
}

/// Whether a small autoencoder may have such a tensor: `decoder.1.bias`, `decoder.7.conv.weight`,
/// `decoder.3.conv.0.weight`.
fn is_tiny(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let (["encoder" | "decoder", index, inner @ ..], true) = (
        parts.as_slice(),
        name.ends_with(".weight") || name.ends_with(".bias"),
    ) else {
        return false;
    };
    is_index(index)
        && match inner {
            [_] | ["conv", "weight"] => true,
            ["conv", index, _] => is_index(index),
            _ => false,
        }
}

/// An original name of the VAE with shortcuts as mlx-video has it: layers in a list have names there.
fn of_mlx_video(mut name: String) -> String {
    for list in [".residual.", ".head."] {
        name = name.replace(list, &format!("{list}layer_"));
    }
    for module in [".resample.1", ".to_qkv", ".proj"] {
        let plain = module.trim_end_matches(".1");
        name = name.replace(&format!("{module}."), &format!("{plain}_"));
    }
    name
}

fn original(name: &str, levels: Levels) -> Option<String> {
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
    let module = original_module(module, levels)?;
    Some(format!("{module}.{leaf}"))
}

fn original_module(module: &str, levels: Levels) -> Option<String> {
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
        let (index, rest) = indexed(rest, "down_blocks.")?;
        if levels.residual {
            let blocks = levels.decoder_blocks.checked_sub(1)?;
            let (block, rest) = in_level(rest, "downsampler.", blocks)?;
            return Some(format!(
                "encoder.downsamples.{index}.downsamples.{block}.{rest}"
            ));
        }
        // diffusers keeps the original's one list of blocks and downsamplers.
        let rest = match RESAMPLE.iter().find(|known| **known == rest) {
            Some(rest) => rest,
            None => residual(rest)?,
        };
        return Some(format!("encoder.downsamples.{index}.{rest}"));
    }
    let (level, rest) = indexed(rest, "up_blocks.")?;
    if levels.residual {
        let (block, rest) = in_level(rest, "upsampler.", levels.decoder_blocks)?;
        return Some(format!(
            "decoder.upsamples.{level}.upsamples.{block}.{rest}"
        ));
    }
    // It does not in the decoder, where a level is its residual blocks and an upsampler.
    let (block, rest) = in_level(rest, "upsamplers.0.", levels.decoder_blocks)?;
    let first = level.checked_mul(levels.decoder_blocks.checked_add(1)?)?;
    let index = first.checked_add(block)?;
    Some(format!("decoder.upsamples.{index}.{rest}"))
}

/// Where a level of so many residual blocks has a module, its resampler behind the blocks, and the
/// module's name there.
fn in_level(rest: &str, resampler: &str, blocks: usize) -> Option<(usize, &'static str)> {
    if let Some(rest) = rest.strip_prefix(resampler) {
        return Some((blocks, RESAMPLE.iter().find(|known| **known == rest)?));
    }
    let (block, rest) = indexed(rest, "resnets.")?;
    (block < blocks).then_some((block, residual(rest)?))
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
