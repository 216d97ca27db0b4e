//! The pipeline's order, and what each of a dump's tensors says of it (`docs/dump.md`).

/// A stage of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Where it comes: what sorts lower is computed earlier.
    pub order: (u8, usize, u8, String),
    /// What it is, and what to look at when it is the first that departs.
    pub about: String,
}

/// The stage that a dump's tensor is of; unknown ones come last.
pub fn stage(name: &str) -> Stage {
    let (place, about) = match name {
        "token_ids_cond" | "token_ids_uncond" => (
            0,
            "the prompts' tokens: other prompts, the cleaning of the text or the tokenizer".into(),
        ),
        "text_encoded_cond" | "text_encoded_uncond" => (
            1,
            "the text encoder's output, from the same tokens: its weights, its position buckets or \
             the dtype of its products"
                .into(),
        ),
        "mask" => (
            2,
            "which frames are given: another size or number of frames, or the mask's making".into(),
        ),
        "condition" => (
            3,
            "the mask and the encoded picture: the picture itself, how it was resized, or the VAE's \
             encoder (its weights, its chunks and what they carry over, the order of its temporal \
             downsampling, the latents' mean and deviation)"
                .into(),
        ),
        "image_features" => (
            3,
            "what the image encoder sees in the pictures: the pictures themselves, how they were resized, \
             or its weights"
                .into(),
        ),
        "first_frame" => (
            3,
            "the encoded picture, which is the first latent frame: the picture itself, how it was \
             resized, or the VAE's encoder"
                .into(),
        ),
        "noise" => (
            4,
            "the initial noise: another seed, or another order of drawing".into(),
        ),
        "timesteps" | "sigmas" => (
            5,
            "the noise schedule: other steps, another shift or solver, or how timesteps are rounded"
                .into(),
        ),
        _ => return step(name).unwrap_or_else(|| late(name)),
    };
    Stage {
        order: (place, 0, 0, name.to_owned()),
        about,
    }
}

/// Stages of denoising.
fn step(name: &str) -> Option<Stage> {
    if let Some(rest) = name.strip_prefix("text_embedding_") {
        let (expert, _) = rest.split_once('_')?;
        let expert = match expert {
            "single" => "transformer".to_owned(),
            expert => format!("{expert}-noise expert"),
        };
        return Some(Stage {
            order: (6, 0, 0, name.to_owned()),
            about: format!(
                "what the {expert} makes of the encoded text: its text-embedding \
                 weights, or those of the other expert taken for its own"
            ),
        });
    }
    let (number, what) = name.strip_prefix("step_")?.split_once('_')?;
    let number: usize = number.parse().ok()?;
    let prediction = |passes: &str| {
        format!(
            "the prediction of step {} for the {passes}, from latents, condition, text and time \
             that agree: the transformer itself (weights, patch embedding, rotary positions, \
             attention, the expert that was chosen), or a cache's reuse",
            number + 1
        )
    };
    let (place, about) = match what {
        "time" => (
            0,
            "how the timestep modulates the blocks: the timestep's rounding, the sinusoid or the \
             time MLP, or another expert"
                .into(),
        ),
        "cond" => (1, prediction("prompt")),
        "uncond" => (2, prediction("negative prompt")),
        "latents" => (
            3,
            format!(
                "the latents after step {}, from predictions that agree: the guidance formula or \
                 its scale, or the solver",
                number + 1
            ),
        ),
        _ => return None,
    };
    Some(Stage {
        order: (7, number, place, name.to_owned()),
        about,
    })
}

fn late(name: &str) -> Stage {
    let (place, about) = match name {
        "frames" => (
            8,
            "the decoded frames, from latents that agree: the VAE's decoder (its weights, what its \
             chunks carry over, tiles), or clipping",
        ),
        _ => (9, "no tensor that --dump writes"),
    };
    Stage {
        order: (place, 0, 0, name.to_owned()),
        about: about.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_pipelines() {
        let mut names = [
            "frames",
            "step_010_time",
            "step_009_latents",
            "step_009_cond",
            "something_else",
            "step_009_uncond",
            "step_000_time",
            "text_embedding_low_uncond",
            "sigmas",
            "noise",
            "condition",
            "mask",
            "text_encoded_cond",
            "token_ids_cond",
        ];
        names.sort_by_cached_key(|name| stage(name).order);
        assert_eq!(
            names,
            [
                "token_ids_cond",
                "text_encoded_cond",
                "mask",
                "condition",
                "noise",
                "sigmas",
                "text_embedding_low_uncond",
                "step_000_time",
                "step_009_cond",
                "step_009_uncond",
                "step_009_latents",
                "step_010_time",
                "frames",
                "something_else",
            ]
        );
        assert!(stage("step_009_cond").about.contains("step 10"));
        assert!(stage("text_embedding_low_cond").about.contains("low-noise"));
    }
}
