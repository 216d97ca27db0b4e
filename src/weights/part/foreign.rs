//! What a file with tensors is when it is no part that this program computes: another model, or this
//! one in a form that is not read. Told by what the tools that write them call their tensors.

use crate::weights::store::TensorStore;

/// What to do about another model.
pub(crate) const OTHER_MODEL: &str =
    "take Wan-AI/Wan2.2-I2V-A14B, or a model made from it in any layout";
const OTHER_FORM: &str = "take the model in fp16, bf16, fp8 (scaled) or as GGUF instead";

/// Something with tensors that is not computed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it is, with an article.
    pub what: &'static str,
    /// What to do instead.
    pub hint: &'static str,
    /// Whether it is a transformer of another model, so that its repository is that model's.
    pub is_expert: bool,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.what)
    }
}

/// Parts of names, the more telling ones first, and what has them.
#[rustfmt::skip]
const NAMES: &[(&[&str], &str)] = &[
    (&[".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1", "_lora.up.", "_lora.down."], LORA),
    (&["_checkpoint_wrapped_module.", ".int8_weight", ".attn_op.local_attn.proj_l."], "an expert of TurboDiffusion, which computes another attention"),
    (&[".weight._data._data", ".weight._shift"], "a model quantized by quanto to 4 or 2 bits"),
    (&["_weight_qdata"], "a model quantized by torchao"),
    (&[".quant_state.bitsandbytes__", ".weight.absmax"], "a model quantized by bitsandbytes (nf4 or fp4)"),
    (&[".SCB"], "a model quantized by bitsandbytes to int8"),
    (&[".weight_packed"], "a model quantized by compressed-tensors"),
    (&[".W_q"], "a model quantized by HQQ"),
    (&[".wscales", ".smooth_factor"], "a model quantized by Nunchaku (SVDQuant)"),
    (&[".qweight"], "a model quantized by GPTQ or AWQ"),
    (&["vace_blocks.", "vace_patch_embedding."], "an expert of Wan VACE"),
    (&["face_adapter.", "pose_patch_embedding."], "an expert of Wan2.2 Animate"),
    (&["casual_audio_encoder.", "audio_injector.", "trainable_cond_mask."], "an expert of Wan2.2 S2V (speech to video)"),
    (&["audio_proj.", ".audio_cross_attn."], "an expert that follows speech (MultiTalk, InfiniteTalk)"),
    (&["control_adapter."], "an expert of Wan Fun-Camera or Fun-Control"),
    (&["ref_conv."], "an expert of Wan Fun-Control"),
    (&["vision_model.encoder.", "visual.transformer.resblocks.", "vision_model.embeddings."], VISION),
    (&["text_model.encoder.layers."], "a CLIP text encoder"),
    (&["label_emb.0.0.", "input_blocks.0.0.", "add_embedding.linear_1."], "an image model (Stable Diffusion, SDXL)"),
    (&["joint_blocks.", "adaln_single."], "a transformer of another family (SD3, LTX)"),
    (&["double_blocks.", "single_transformer_blocks."], "a transformer of another family (Flux, HunyuanVideo)"),
    (&["model.layers.0.self_attn."], "a language model"),
    (&["control_net.", "controlnet_"], "a ControlNet"),
];
const LORA: &str = "a LoRA, not a whole model";
const VISION: &str = "a vision encoder, but not CLIP ViT-H/14's under a name that is known";
/// What CLIP's vision encoder has and others do not, by transformers.
const OF_CLIP: &str = "pre_layrnorm.weight";
const TINY_VAE: &str = "a tiny autoencoder for another family (TAESD, TAEHV)";
const SUPER: &str = "taew2_2_super, a small decoder of another structure";

/// What the files hold, when it is known and not computed here.
pub fn foreign(store: &TensorStore) -> Option<Foreign> {
    let entries = store.entries();
    let is_clip = entries.keys().any(|name| says(name, OF_CLIP));
    let found = NAMES.iter().find(|(marks, what)| {
        let has = |name: &String| marks.iter().any(|mark| says(name, mark));
        entries.keys().any(has) && !(is_clip && *what == VISION)
    });
    if let Some(&(_, what)) = found {
        let is_expert = what.starts_with("an expert");
        return Some(Foreign {
            what,
            hint: match what {
                LORA => "give it with --lora, beside a model",
                VISION => {
                    "take clip_vision_h.safetensors, or image_encoder/ of a Wan2.1 repository of diffusers' \
                     layout"
                }
                _ if what.starts_with("a model quantized") => OTHER_FORM,
                _ => OTHER_MODEL,
            },
            is_expert,
        });
    }
    // UMT5 has a table in every block, T5 in the first.
    let has = |name: &str| entries.keys().any(|key| key.ends_with(name));
    let table = |block: usize| {
        format!("encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight")
    };
    if has(&table(0)) && !has(&table(1)) && has("encoder.block.1.layer.0.SelfAttention.q.weight") {
        return Some(Foreign {
            what: "a T5 text encoder (of Flux or SD3), not UMT5",
            hint: "take umt5_xxl, which Wan was trained with",
            is_expert: false,
        });
    }
    let tiny = [
        "encoder.0.weight",
        "decoder.1.weight",
        "taesd_decoder.1.weight",
    ];
    let has = |name: &str| entries.contains_key(name);
    // taew2_1 and taew2_2 are computed.
    let is_tiny = tiny.into_iter().any(has) && !has("decoder.13.conv.weight");
    let is_super = has("decoder.0.weight") && has("decoder.7.conv.weight");
    is_tiny.then_some(Foreign {
        what: if is_super { SUPER } else { TINY_VAE },
        hint: "take taew2_1 or the VAE of Wan2.1 (wan_2.1_vae.safetensors or Wan2.1_VAE.pth); for TI2V-5B \
               taew2_2 or Wan2.2's",
        is_expert: false,
    })
}

/// Whether a name has `mark` at the beginning of a module's name.
fn says(name: &str, mark: &str) -> bool {
    name.match_indices(mark).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|at| name.as_bytes().get(at));
        !mark.starts_with(|first: char| first.is_ascii_alphabetic())
            || before.is_none_or(|before| *before == b'.')
    })
}
