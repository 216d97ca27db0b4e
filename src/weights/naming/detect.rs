//! What a file is, from the names and shapes of its tensors alone.

use std::collections::{BTreeMap, BTreeSet};

use super::{DECODER_BLOCKS, Detected, Kind, Naming, is_index};

/// Names by which a part is recognised, with `{}` for a block's index: by the first of a row,
/// which no other row has, and one more. So a LoRA that carries a few whole tensors is no expert.
#[rustfmt::skip]
const MARKS: &[(Kind, Naming, &[&str])] = &[
    (Kind::Expert, Naming::Diffusers, &[
        "blocks.{}.attn1.to_q.weight", "blocks.{}.attn2.to_k.weight", "blocks.{}.ffn.net.0.proj.weight",
        "condition_embedder.time_proj.weight", "condition_embedder.text_embedder.linear_1.weight",
    ]),
    // Beside diffusers' names, which it has too; it decides.
    (Kind::Expert, Naming::MlxGen, &["blocks.{}.ffn.net.1.weight", "blocks.{}.ffn.net.0.weight"]),
    (Kind::Expert, Naming::Original, &[
        "blocks.{}.ffn.0.weight", "blocks.{}.ffn.2.weight", "blocks.{}.ffn.0.bias",
        "time_projection.1.weight", "text_embedding.0.weight",
    ]),
    (Kind::Expert, Naming::MlxVideo, &[
        // With a bias: the text encoder has the weight too.
        "blocks.{}.ffn.fc1.bias", "blocks.{}.ffn.fc2.bias",
        "patch_embedding_proj.weight", "time_projection.weight", "text_embedding_0.weight",
    ]),
    (Kind::Vae, Naming::Diffusers, &[
        // With a gamma: Stable Diffusion's VAEs have weights there.
        "decoder.mid_block.resnets.{}.norm1.gamma", "encoder.mid_block.resnets.{}.norm1.gamma",
        "decoder.mid_block.attentions.{}.norm.gamma", "decoder.norm_out.gamma", "encoder.norm_out.gamma",
    ]),
    // Of mlx-video too; the shapes decide.
    (Kind::Vae, Naming::Original, &[
        "decoder.middle.{}.residual.0.gamma", "encoder.middle.{}.residual.0.gamma",
        "decoder.middle.{}.norm.gamma", "decoder.head.0.gamma", "encoder.head.0.gamma",
    ]),
    // Of Wan2.2's.
    (Kind::Vae, Naming::MlxVideo, &[
        "decoder.middle.{}.residual.layer_0.gamma", "encoder.middle.{}.residual.layer_0.gamma",
        "decoder.head.layer_0.gamma", "encoder.head.layer_0.gamma",
    ]),
    // What makes frames of one and one of frames; the first not in taew2_2_super.
    (Kind::Vae, Naming::Taehv, &[
        "decoder.13.conv.weight", "decoder.7.conv.weight", "encoder.2.conv.weight", "encoder.7.conv.weight",
    ]),
    (Kind::TextEncoder, Naming::Diffusers, &[
        "encoder.block.{}.layer.0.SelfAttention.q.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight",
        "encoder.block.{}.layer.1.DenseReluDense.wo.weight", "encoder.final_layer_norm.weight",
    ]),
    (Kind::TextEncoder, Naming::Original, &[
        "blocks.{}.ffn.gate.0.weight", "blocks.{}.pos_embedding.embedding.weight", "token_embedding.weight",
    ]),
    (Kind::TextEncoder, Naming::MlxVideo, &[
        "blocks.{}.ffn.gate_proj.weight", "blocks.{}.pos_embedding.embedding.weight", "token_embedding.weight",
    ]),
    (Kind::TextEncoder, Naming::LlamaCpp, &[
        "enc.blk.{}.attn_q.weight", "enc.blk.{}.ffn_gate.weight", "enc.blk.{}.attn_rel_b.weight",
        "enc.output_norm.weight",
    ]),
    // Other vision encoders have no norm in front of their layers.
    (Kind::ImageEncoder, Naming::Diffusers, &[
        "pre_layrnorm.weight", "embeddings.class_embedding", "encoder.layers.{}.self_attn.q_proj.weight",
    ]),
    (Kind::ImageEncoder, Naming::Original, &[
        "pre_norm.weight", "cls_embedding", "transformer.{}.attn.to_qkv.weight",
    ]),
];

/// Where a level's upsampler is, with `{}` for its index in the level's list, and whether shortcuts lead
/// around levels then.
const UPSAMPLERS: &[(&str, bool)] = &[
    ("decoder.upsamples.{}.resample.1.weight", false),
    ("decoder.upsamples.0.upsamples.{}.resample.1.weight", true),
    ("decoder.upsamples.0.upsamples.{}.resample_weight", true),
    ("decoder.up_blocks.0.upsampler.resample.1.weight", true),
];

/// What the shapes and indices of a VAE's tensors say, under one prefix.
#[derive(Default)]
struct VaeSeen {
    channels_last: usize,
    channels_first: usize,
    first_upsampler: Option<usize>,
    residual: bool,
}

/// The one part that a file holds, from its tensors' names and shapes; nothing when there is
/// none or there are several.
pub fn detect<'a>(names: impl Iterator<Item = (&'a str, &'a [usize])>) -> Option<Detected> {
    let mut parts = parts(names);
    if parts.len() > 1 { None } else { parts.pop() }
}

/// Every part that a file holds: single files may carry a whole model under several prefixes.
///
/// Several entries for one network mean several copies of it.
pub fn parts<'a>(names: impl Iterator<Item = (&'a str, &'a [usize])>) -> Vec<Detected> {
    // Which marks of each row were seen, by prefix.
    let mut seen: BTreeMap<(usize, &str), BTreeSet<usize>> = BTreeMap::new();
    let mut vaes: BTreeMap<&str, VaeSeen> = BTreeMap::new();
    for (name, shape) in names {
        for (row, (_, _, marks)) in MARKS.iter().enumerate() {
            for (mark, template) in marks.iter().enumerate() {
                if let Some((prefix, _)) = ends(name, template) {
                    seen.entry((row, prefix)).or_default().insert(mark);
                }
            }
        }
        look_at_vae(&mut vaes, name, shape);
    }
    let mut parts: Vec<Detected> = seen
        .into_iter()
        .filter(|(_, marks)| marks.contains(&0) && marks.len() > 1)
        .filter_map(|((row, prefix), _)| {
            let &(kind, naming, _) = MARKS.get(row)?;
            Some((kind, naming, prefix))
        })
        .map(|(kind, naming, prefix)| {
            let vae = vaes.get(prefix).filter(|_| kind == Kind::Vae);
            Detected {
                kind,
                naming: match vae {
                    Some(vae)
                        if naming == Naming::Original && vae.channels_last > vae.channels_first =>
                    {
                        Naming::MlxVideo
                    }
                    _ => naming,
                },
                prefix: prefix.to_owned(),
                decoder_blocks: vae
                    .and_then(|vae| vae.first_upsampler)
                    .unwrap_or(DECODER_BLOCKS),
                residual: vae.is_some_and(|vae| vae.residual),
            }
        })
        .collect();
    let of_mlx_gen: Vec<String> = parts
        .iter()
        .filter(|part| part.naming == Naming::MlxGen)
        .map(|part| part.prefix.clone())
        .collect();
    let has_image = parts.iter().any(|part| part.kind == Kind::ImageEncoder);
    parts.retain(|part| {
        let is_diffusers = part.kind == Kind::Expert && part.naming == Naming::Diffusers;
        // The text half of a whole CLIP has feed-forward layers of the expert's names.
        let is_text_half = has_image && part.prefix == "textual.";
        !(is_diffusers && of_mlx_gen.contains(&part.prefix) || is_text_half)
    });
    parts.sort_by(|a, b| (a.kind, &a.prefix).cmp(&(b.kind, &b.prefix)));
    parts
}

/// Notes what tells the VAE's two arrangements apart, and how long a decoder level is.
fn look_at_vae<'a>(vaes: &mut BTreeMap<&'a str, VaeSeen>, name: &'a str, shape: &[usize]) {
    const KERNEL: &[usize] = &[3, 3, 3];
    for template in [
        "decoder.middle.{}.residual.2.weight",
        "encoder.middle.{}.residual.2.weight",
    ] {
        if let (Some((prefix, _)), [_, inner @ .., last]) = (ends(name, template), shape)
            && inner.len() == 3
        {
            let vae = vaes.entry(prefix).or_default();
            // As many channels in as out, and an even number of them: one of the two.
            vae.channels_last += usize::from(inner == KERNEL);
            vae.channels_first += usize::from(inner.ends_with(&[3, 3]) && *last == 3);
        }
    }
    for &(template, residual) in UPSAMPLERS {
        if let Some((prefix, index)) = ends(name, template) {
            let vae = vaes.entry(prefix).or_default();
            vae.residual |= residual;
            vae.first_upsampler = [vae.first_upsampler, index].into_iter().flatten().min();
        }
    }
}

/// What is in front of `template` at the end of `name`, nothing or something that ends in a dot,
/// and the index where the template has `{}`.
fn ends<'a>(name: &'a str, template: &str) -> Option<(&'a str, Option<usize>)> {
    let (prefix, index) = match template.split_once("{}") {
        None => (name.strip_suffix(template)?, None),
        Some((before, after)) => {
            let front = name.strip_suffix(after)?;
            let stem = front.trim_end_matches(|c: char| c.is_ascii_digit());
            let index = front.strip_prefix(stem).filter(|index| is_index(index))?;
            (stem.strip_suffix(before)?, index.parse().ok())
        }
    };
    (prefix.is_empty() || prefix.ends_with('.')).then_some((prefix, index))
}
