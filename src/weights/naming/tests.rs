use std::collections::BTreeSet;

use super::golden::{Tensor, tensors, wan22_vae};
use super::*;

const KINDS: [Kind; 3] = [Kind::Expert, Kind::Vae, Kind::TextEncoder];

/// The namings that exist for a network.
fn namings(kind: Kind) -> Vec<Naming> {
    let mut all = vec![Naming::Diffusers, Naming::Original, Naming::MlxVideo];
    all.extend((kind == Kind::TextEncoder).then_some(Naming::LlamaCpp));
    all
}

/// The names and shapes of a file.
fn file(tensors: &[Tensor], naming: Naming, prefix: &str) -> Vec<(String, Vec<usize>)> {
    let entry = |t: &Tensor| {
        let (name, shape) = t.stored(naming);
        (format!("{prefix}{name}"), shape.to_vec())
    };
    tensors.iter().map(entry).collect()
}

fn parts_of(file: &[(String, Vec<usize>)]) -> Vec<Detected> {
    parts(file.iter().map(|(n, s)| (n.as_str(), s.as_slice())))
}

fn detected(file: &[(String, Vec<usize>)]) -> Option<Detected> {
    detect(file.iter().map(|(n, s)| (n.as_str(), s.as_slice())))
}

fn renamed(names: &[&str]) -> Vec<(String, Vec<usize>)> {
    names
        .iter()
        .map(|n| ((*n).to_owned(), vec![8, 8]))
        .collect()
}

#[test]
fn every_name_and_shape_is_the_projects_own() {
    for (kind, count) in KINDS.into_iter().zip([69, 194, 22]) {
        let tensors = tensors(kind);
        assert_eq!(tensors.len(), count);
        for naming in namings(kind) {
            let mut names = BTreeSet::new();
            for tensor in &tensors {
                let found = stored(kind, naming, &tensor.canonical, &tensor.shape).unwrap();
                let (name, shape) = tensor.stored(naming);
                assert_eq!(found.name, name, "{}", tensor.canonical);
                assert_eq!(found.shape, shape, "{}", tensor.canonical);
                assert!(found.fits(shape));
                assert!(names.insert(found.name), "two tensors called {name}");
                let back = Detected::plain(kind, naming).canonical_shape(&tensor.canonical, shape);
                if found.arrangement != Arrangement::Reshaped {
                    assert_eq!(back, tensor.shape, "{}", tensor.canonical);
                }
            }
        }
    }
}

#[test]
fn canonical_axes_are_found_in_channels_last_weights() {
    // mlx-video transposes (0, 2, 3, 4, 1) and (0, 2, 3, 1): stored axis k is canonical `by[k]`.
    for (shape, by) in [
        (vec![2, 3, 4, 5, 6], vec![0, 2, 3, 4, 1]),
        (vec![2, 3, 4, 5], vec![0, 2, 3, 1]),
    ] {
        let name = "decoder.conv_in.weight";
        let found = stored(Kind::Vae, Naming::MlxVideo, name, &shape).unwrap();
        let transposed: Vec<usize> = by.iter().map(|&axis| shape[axis]).collect();
        assert_eq!(found.shape, transposed);
        let Arrangement::Permuted(axes) = found.arrangement else {
            panic!("{found:?}");
        };
        for (canonical, &stored) in axes.iter().enumerate() {
            assert_eq!(by[stored], canonical);
        }
    }
}

#[test]
fn names_that_the_architecture_has_not_are_refused() {
    for (kind, name) in [
        (Kind::Expert, ""),
        (Kind::Expert, "weight"),
        (Kind::Expert, "patch_embedding"),
        (Kind::Expert, "patch_embedding.gamma"),
        (Kind::Expert, "blocks.0.attn1.norm_q.bias"),
        (Kind::Expert, "blocks.01.attn1.to_q.weight"),
        (Kind::Expert, "blocks.-1.attn1.to_q.weight"),
        (Kind::Expert, "blocks..attn1.to_q.weight"),
        (Kind::Expert, "blocks.0.1.attn1.to_q.weight"),
        (Kind::Expert, "blocks.0.attn1.to_out.weight"),
        (Kind::Expert, "blocks.0.norm3.weight"),
        (Kind::Expert, "blocks.0.scale_shift_table.weight"),
        (Kind::Expert, "blocks.0.self_attn.q.weight"),
        (Kind::TextEncoder, "shared.bias"),
        (Kind::TextEncoder, "encoder.embed_tokens.weight"),
        (
            Kind::TextEncoder,
            "encoder.block.0.layer.2.layer_norm.weight",
        ),
        (Kind::Vae, "conv_in.weight"),
        (Kind::Vae, "encoder.conv_in.gamma"),
        (Kind::Vae, "decoder.norm_out.weight"),
        (Kind::Vae, "decoder.up_blocks.0.resnets.3.conv1.weight"),
        (
            Kind::Vae,
            "decoder.up_blocks.0.upsamplers.1.resample.1.weight",
        ),
        (Kind::Vae, "decoder.mid_block.resnets.2.conv1.weight"),
        (Kind::Vae, "encoder.down_blocks.0.resnets.0.conv1.weight"),
        (
            Kind::Vae,
            "decoder.up_blocks.99999999999999999999.resnets.0.conv1.weight",
        ),
    ] {
        for naming in namings(kind) {
            let error = stored(kind, naming, name, &[1]).unwrap_err().to_string();
            assert!(
                error.contains(&format!("no tensor named {name}")),
                "{error}"
            );
        }
    }
    let name = "patch_embedding.bias";
    assert!(stored(Kind::Expert, Naming::LlamaCpp, name, &[1]).is_err());
}

#[test]
fn every_layout_is_recognised_with_and_without_prefix() {
    for kind in KINDS {
        let tensors = tensors(kind);
        for naming in namings(kind) {
            for prefix in [
                "",
                "model.",
                "diffusion_model.",
                "model.diffusion_model.",
                "vae.",
                "text_encoders.umt5xxl.transformer.",
            ] {
                let file = file(&tensors, naming, prefix);
                let found = detected(&file).unwrap();
                let expected = Detected {
                    prefix: prefix.to_owned(),
                    ..Detected::plain(kind, naming)
                };
                assert_eq!(found, expected);
                let (name, _) = &file[0];
                assert_eq!(&found.name(&tensors[0].canonical).unwrap(), name);
            }
        }
    }
}

#[test]
fn a_shard_is_recognised_by_what_it_holds() {
    for kind in [Kind::Expert, Kind::TextEncoder] {
        let block = |t: &Tensor| t.canonical.contains(".1.");
        let tensors: Vec<Tensor> = tensors(kind).into_iter().filter(block).collect();
        for naming in namings(kind) {
            let found = detected(&file(&tensors, naming, "")).unwrap();
            assert_eq!((found.kind, found.naming), (kind, naming));
        }
    }
}

#[test]
fn a_whole_checkpoint_is_several_parts() {
    let mut whole = file(
        &tensors(Kind::Expert),
        Naming::Original,
        "model.diffusion_model.",
    );
    whole.extend(file(
        &tensors(Kind::Vae),
        Naming::Original,
        "first_stage_model.",
    ));
    let text = "text_encoders.umt5xxl.transformer.";
    whole.extend(file(&tensors(Kind::TextEncoder), Naming::Diffusers, text));
    assert_eq!(detected(&whole), None);
    let parts = parts_of(&whole);
    let found: Vec<_> = parts
        .iter()
        .map(|p| (p.kind, p.naming, p.prefix.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (Kind::Expert, Naming::Original, "model.diffusion_model."),
            (Kind::Vae, Naming::Original, "first_stage_model."),
            (Kind::TextEncoder, Naming::Diffusers, text),
        ]
    );
    let spiece = "text_encoders.umt5xxl.spiece_model";
    let role = companion(&parts[2], spiece).unwrap().role;
    assert_eq!(role, Role::Tokenizer);
    assert_eq!(companion(&parts[0], spiece), None);
}

#[test]
fn near_misses_are_nothing() {
    for names in [
        &[][..],
        &["", ".", "weight", "blocks.0.ffn.0.weight"],
        // A LoRA that carries two whole tensors (InvokeAI's tests know such files).
        &[
            "diffusion_model.patch_embedding.weight",
            "diffusion_model.text_embedding.0.weight",
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight",
            "diffusion_model.blocks.0.ffn.0.lora_A.weight",
        ],
        // A VACE module alone.
        &[
            "vace_blocks.0.ffn.0.weight",
            "vace_blocks.0.ffn.0.bias",
            "vace_blocks.0.ffn.2.weight",
        ],
        // The VAE of Stable Diffusion under diffusers' names.
        &[
            "decoder.mid_block.resnets.0.norm1.weight",
            "decoder.conv_in.weight",
            "quant_conv.weight",
        ],
        // An index that no writer writes.
        &[
            "blocks.00.ffn.0.weight",
            "blocks.00.ffn.2.weight",
            "time_projection.1.weight",
        ],
        // Marks under two prefixes.
        &["a.blocks.0.ffn.0.weight", "b.time_projection.1.weight"],
        // CLIP of Wan2.1.
        &[
            "visual.transformer.0.attn.to_qkv.weight",
            "textual.token_embedding.weight",
        ],
    ] {
        assert_eq!(parts_of(&renamed(names)), [], "{names:?}");
    }
}

#[test]
fn two_copies_under_two_prefixes_are_not_one_part() {
    let tensors = tensors(Kind::Expert);
    let mut both = file(&tensors, Naming::Original, "");
    both.extend(file(&tensors, Naming::Original, "model_ema."));
    assert_eq!(detected(&both), None);
    assert_eq!(parts_of(&both).len(), 2);
}

#[test]
fn the_decoders_list_tells_how_long_a_level_is() {
    // One residual block per encoder level, two per decoder level.
    let names = |naming| {
        let part = Detected {
            decoder_blocks: 2,
            ..Detected::plain(Kind::Vae, naming)
        };
        [
            "0.resnets.1.conv1",
            "0.upsamplers.0.resample.1",
            "1.resnets.0.conv_shortcut",
        ]
        .map(|name| {
            part.name(&format!("decoder.up_blocks.{name}.weight"))
                .unwrap()
        })
    };
    let original = names(Naming::Original);
    assert_eq!(
        original,
        [
            "decoder.upsamples.1.residual.2.weight",
            "decoder.upsamples.2.resample.1.weight",
            "decoder.upsamples.3.shortcut.weight",
        ]
    );
    let mut file = renamed(&["decoder.middle.0.residual.0.gamma", "decoder.head.0.gamma"]);
    file.extend(renamed(&original.each_ref().map(String::as_str)));
    file.extend(renamed(&["decoder.upsamples.5.resample.1.weight"]));
    assert_eq!(detected(&file).unwrap().decoder_blocks, 2);
}

/// Names in diffusers' and the original naming are the projects' own; mlx-video's follow the rules of
/// its `sanitize_wan22_vae_weights`.
#[test]
fn the_vae_of_wan2_2_has_its_names_in_every_layout() {
    let named = |naming| Detected {
        residual: true,
        ..Detected::plain(Kind::Vae, naming)
    };
    let tensors = wan22_vae();
    assert_eq!(tensors.len(), 196);
    for naming in [Naming::Diffusers, Naming::Original] {
        for tensor in &tensors {
            let found = named(naming).stored(&tensor.canonical, &tensor.shape);
            let found = found.unwrap();
            assert_eq!(found.name, tensor.names[&naming]);
            assert_eq!(found.shape, tensor.shape);
        }
        assert_eq!(detected(&file(&tensors, naming, "")), Some(named(naming)));
    }
    let of_mlx = |name: &str, shape: &[usize]| {
        let found = named(Naming::MlxVideo).stored(name, shape).unwrap();
        assert!(found.fits(&found.shape));
        (found.name, found.shape)
    };
    for (name, shape, expected, expected_shape) in [
        (
            "encoder.down_blocks.1.resnets.0.norm1.gamma",
            &[4, 1, 1, 1][..],
            "encoder.downsamples.1.downsamples.0.residual.layer_0.gamma",
            &[4][..],
        ),
        (
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            &[8, 4, 1, 1, 1],
            "encoder.downsamples.1.downsamples.0.shortcut.weight",
            &[8, 1, 1, 1, 4],
        ),
        (
            "decoder.up_blocks.0.upsampler.resample.1.weight",
            &[24, 20, 3, 3],
            "decoder.upsamples.0.upsamples.3.resample_weight",
            &[24, 3, 3, 20],
        ),
        (
            "decoder.up_blocks.0.upsampler.time_conv.bias",
            &[48],
            "decoder.upsamples.0.upsamples.3.time_conv.bias",
            &[48],
        ),
        (
            "decoder.mid_block.attentions.0.to_qkv.bias",
            &[72],
            "decoder.middle.1.to_qkv_bias",
            &[72],
        ),
        (
            "encoder.conv_out.weight",
            &[14, 16, 3, 3, 3],
            "encoder.head.layer_2.weight",
            &[14, 3, 3, 3, 16],
        ),
    ] {
        assert_eq!(
            of_mlx(name, shape),
            (expected.into(), expected_shape.into())
        );
    }
    let file: Vec<_> = (tensors.iter())
        .map(|tensor| of_mlx(&tensor.canonical, &tensor.shape))
        .collect();
    assert_eq!(detected(&file), Some(named(Naming::MlxVideo)));
    // Not of the other kind.
    let plain = Detected::plain(Kind::Vae, Naming::Original);
    let name = "encoder.down_blocks.0.resnets.0.conv1.weight";
    assert!(plain.name(name).is_err());
}

#[test]
fn folded_shapes_fit_and_transposed_ones_do_not() {
    let patch = stored(
        Kind::Expert,
        Naming::Original,
        "patch_embedding.weight",
        &[5120, 36, 1, 2, 2],
    )
    .unwrap();
    for shape in [
        &[5120, 36, 1, 2, 2][..],
        &[5120, 36, 2, 2],
        &[184_320, 1, 2, 2],
        &[5120, 144],
        &[1, 5120, 36, 1, 2, 2],
    ] {
        assert!(patch.fits(shape), "{shape:?}");
    }
    for shape in [
        &[][..],
        &[0],
        &[5120, 1, 2, 2, 36],
        &[36, 5120, 2, 2],
        &[5120, 36, 2],
        &[5120, 36, 2, 2, 2],
        &[5120, 0, 2, 2],
        &[usize::MAX, 2],
    ] {
        assert!(!patch.fits(shape), "{shape:?}");
    }
    let linear = stored(
        Kind::Expert,
        Naming::Original,
        "blocks.0.ffn.net.2.weight",
        &[5120, 13824],
    )
    .unwrap();
    assert!(linear.fits(&[5120, 13824]) && linear.fits(&[5120, 13824, 1]));
    assert!(!linear.fits(&[13824, 5120]) && !linear.fits(&[5120 * 13824]));
    let table = stored(
        Kind::Expert,
        Naming::Original,
        "scale_shift_table",
        &[1, 2, 8],
    )
    .unwrap();
    assert!(table.fits(&[2, 8]) && !table.fits(&[8, 2]));
    let conv = stored(
        Kind::Vae,
        Naming::MlxVideo,
        "decoder.conv_in.weight",
        &[384, 16, 3, 3, 3],
    )
    .unwrap();
    assert!(conv.fits(&[384, 3, 3, 3, 16]));
    assert!(!conv.fits(&[384, 16, 3, 3, 3]) && !conv.fits(&[384, 27, 16]));
}

#[test]
fn companions_are_known_and_name_their_weight() {
    let expert = Detected {
        prefix: "model.".into(),
        ..Detected::plain(Kind::Expert, Naming::Original)
    };
    let text = Detected::plain(Kind::TextEncoder, Naming::Diffusers);
    let weight = "model.blocks.0.ffn.0.weight";
    for (part, name, role, owner) in [
        (&expert, "model.scaled_fp8", Role::Fp8Marker, None),
        (
            &expert,
            "model.blocks.0.ffn.0.scale_weight",
            Role::WeightScale,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.weight_scale",
            Role::WeightScale,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.weight_scale_2",
            Role::SecondScale,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.scale_input",
            Role::InputScale,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.input_scale",
            Role::InputScale,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.comfy_quant",
            Role::QuantFormat,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.scales",
            Role::AffineScales,
            Some(weight),
        ),
        (
            &expert,
            "model.blocks.0.ffn.0.biases",
            Role::AffineBiases,
            Some(weight),
        ),
        (&expert, "model.freqs", Role::RotaryTable, None),
        (
            &expert,
            "model.model_type.Wan2_1-FLF2V-14B-720P",
            Role::Note,
            None,
        ),
        (&text, "spiece_model", Role::Tokenizer, None),
        (
            &text,
            "encoder.embed_tokens.weight",
            Role::TiedEmbedding,
            None,
        ),
    ] {
        let found = companion(part, name).unwrap();
        assert_eq!(
            (found.role, found.owner.as_deref()),
            (role, owner),
            "{name}"
        );
        assert!(!role.reason().is_empty());
    }
    for (part, name) in [
        (&expert, weight),
        (&expert, "scaled_fp8"),
        (&expert, "model.spiece_model"),
        (&expert, "model.encoder.embed_tokens.weight"),
        (&text, "freqs"),
        (&text, "lm_head.weight"),
    ] {
        assert_eq!(companion(part, name), None, "{name}");
    }
    assert_eq!(
        scale_names(weight).unwrap(),
        [
            "model.blocks.0.ffn.0.scale_weight",
            "model.blocks.0.ffn.0.weight_scale"
        ]
    );
    let (scales, biases) = affine_names(weight).unwrap();
    assert!(scales.ends_with(".ffn.0.scales") && biases.ends_with(".ffn.0.biases"));
    assert_eq!(scale_names("head.modulation"), None);
}
