//! What other programs for the same models call this program's flags: Wan's `generate.py`,
//! diffusers, ComfyUI, mlx-video, musubi-tuner.

/// Names that mean exactly what a flag here means, and are taken for it: flag, then names. Every
/// name is also taken with `_` for `-`.
pub(super) const ALIASES: &[(&str, &[&str])] = &[
    (
        "image",
        &[
            "image-path",
            "input-image",
            "init-image",
            "start-image",
            "first-frame",
        ],
    ),
    ("prompt", &["positive-prompt"]),
    (
        "negative-prompt",
        &["negative", "neg-prompt", "n-prompt", "sample-neg-prompt"],
    ),
    ("last-image", &["last-frame", "end-image", "end-frame"]),
    (
        "model",
        &["ckpt-dir", "model-dir", "model-path", "model-id"],
    ),
    (
        "high",
        &["high-noise", "high-noise-model", "dit-high-noise"],
    ),
    ("low", &["low-noise", "low-noise-model"]),
    ("vae", &["vae-path"]),
    ("text-encoder", &["t5", "text-encoder-path"]),
    (
        "image-encoder",
        &["clip", "clip-vision", "clip-path", "image-encoder-path"],
    ),
    ("bits", &["quantize"]),
    ("lora", &["loras", "lora-path", "lora-weights"]),
    (
        "output",
        &["out", "output-file", "output-path", "save-file"],
    ),
    ("size", &["video-size"]),
    ("area", &["max-area"]),
    (
        "frames",
        &["num-frames", "frame-num", "length", "video-length"],
    ),
    ("seconds", &["duration"]),
    ("fps", &["frame-rate"]),
    ("seed", &["base-seed", "noise-seed"]),
    (
        "steps",
        &[
            "sample-steps",
            "num-inference-steps",
            "infer-steps",
            "num-steps",
        ],
    ),
    ("solver", &["sampler", "sample-solver", "sampler-name"]),
    ("shift", &["sample-shift", "flow-shift"]),
    (
        "guide-scale",
        &["cfg", "cfg-scale", "guidance-scale", "sample-guide-scale"],
    ),
    ("overwrite", &["force"]),
];

/// Names of what this program does otherwise, or not at all, and what to do instead.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &[
            "lora-weight",
            "lora-scale",
            "lora-strength",
            "lora-multiplier",
        ],
        "the strength follows the adapter: --lora PATH:0.8",
    ),
    (
        &["scheduler", "beta-schedule"],
        "--solver chooses the solver, --shift moves the steps, --sigmas names their noise levels",
    ),
    (
        &[
            "guidance-scale-2",
            "guide-scale-2",
            "cfg-2",
            "cfg-high",
            "cfg-low",
        ],
        "--guide-scale LOW,HIGH has a scale for each expert",
    ),
    (
        &["resolution"],
        "--size 832x480 is a size in pixels, --area 480p one in the picture's aspect ratio",
    ),
    (
        &["aspect-ratio", "aspect"],
        "--area 480p keeps the picture's aspect ratio; --size and --fit choose another",
    ),
    (
        &["task", "mode", "pipeline"],
        "every clip begins with a picture (--image); leave it out",
    ),
    (
        &[
            "offload-model",
            "offload",
            "t5-cpu",
            "lowvram",
            "low-vram",
            "blocks-to-swap",
            "convert-model-dtype",
            "vae-tiling",
            "tiling",
            "enable-vae-tiling",
            "enable-model-cpu-offload",
        ],
        "what does not fit into the memory is computed in smaller parts; --memory-budget GB says how \
         much there is",
    ),
    (
        &["teacache", "teacache-thresh", "tea-cache", "easycache"],
        "--cache teacache,threshold=0.2 or --cache easycache",
    ),
    (
        &[
            "batch-size",
            "num-videos",
            "num-videos-per-prompt",
            "num-samples",
            "count",
        ],
        "for several clips: wan-i2v sweep --vary seed=1..4 --output-dir DIR, or wan-i2v batch",
    ),
    (
        &["denoise", "denoising-strength", "strength"],
        "every clip begins with noise alone; leave it out",
    ),
    (
        &[
            "boundary",
            "boundary-ratio",
            "timestep-boundary",
            "switch-step",
        ],
        "where the experts change over is the model's own; leave it out",
    ),
    (
        &["prompt-extend", "use-prompt-extend", "enhance-prompt"],
        "the prompt is used as it is written; leave it out",
    ),
    (&["cpu", "no-gpu"], "--device cpu"),
    (&["gpu", "mps", "cuda", "metal"], "--device gpu"),
    (
        &["dit", "unet", "ckpt", "checkpoint-dir", "checkpoint-path"],
        "--model names a model's folder, --high and --low its experts",
    ),
    (&["download"], "wan-i2v pull owner/name fetches a model"),
    (
        &["video", "input-video"],
        "every clip begins with a picture: --image",
    ),
];

/// What to do instead of a flag that is not this program's; `name` is without hyphens in front.
pub(crate) fn advice(name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-");
    let mut known = ADVICE.iter();
    let (_, advice) = known.find(|(names, _)| names.contains(&name.as_str()))?;
    Some(advice)
}

/// The words by which other programs call a flag here.
pub(super) fn aliases(flag: &str) -> &'static [&'static str] {
    let mut known = ALIASES.iter();
    known
        .find(|(own, _)| *own == flag)
        .map_or(&[], |(_, names)| names)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::flags::command;

    #[test]
    fn every_name_is_there_once_and_no_flag_s() {
        let command = command();
        let own: BTreeSet<&str> = (command.get_arguments())
            .filter_map(|arg| arg.get_long())
            .collect();
        let mut seen = BTreeSet::new();
        for (flag, names) in ALIASES {
            assert!(own.contains(flag), "{flag}");
            for name in *names {
                assert!(!own.contains(name) && seen.insert(*name), "{name}");
            }
        }
        for name in ADVICE.iter().flat_map(|(names, _)| *names) {
            assert!(!own.contains(name) && seen.insert(*name), "{name}");
        }
    }

    /// What people bring from elsewhere, with the flag that it is taken for.
    #[test]
    fn names_of_other_programs_are_taken_for_the_flag_that_they_mean() {
        for (given, flag) in [
            // Wan's generate.py.
            (["--ckpt_dir", "m"], "model"),
            (["--frame_num", "81"], "frames"),
            (["--sample_steps", "40"], "steps"),
            (["--sample_shift", "5.0"], "shift"),
            (["--sample_guide_scale", "3.5"], "guide_scale"),
            (["--sample_solver", "dpm++"], "solver"),
            (["--base_seed", "42"], "seed"),
            (["--save_file", "a.mp4"], "output"),
            (["--size", "832*480"], "size"),
            // diffusers.
            (["--num_frames", "81"], "frames"),
            (["--num_inference_steps", "40"], "steps"),
            (["--guidance-scale", "3.5"], "guide_scale"),
            (["--flow-shift", "5"], "shift"),
            (["--negative_prompt", "x"], "negative_prompt"),
            (["--last_image", "x.png"], "last_image"),
            (["--max_area", "399360"], "area"),
            // ComfyUI.
            (["--cfg", "3.5"], "guide_scale"),
            (["--length", "81"], "frames"),
            (["--noise_seed", "1"], "seed"),
            (["--sampler", "uni_pc"], "solver"),
            (["--negative", "x"], "negative_prompt"),
            // mlx-video, musubi-tuner.
            (["--output-path", "x.mp4"], "output"),
            (["--model-dir", "m"], "model"),
            (["--infer_steps", "20"], "steps"),
            (["--video_length", "81"], "frames"),
            (["--video_size", "832x480"], "size"),
            (["--image_path", "x.png"], "image"),
            (["--t5", "x"], "text_encoder"),
            // And here.
            (["--guide_scale", "3.5"], "guide_scale"),
            (["--duration", "5"], "seconds"),
            (["-W", "832"], "width"),
            (["-H", "480"], "height"),
        ] {
            let mut command = command().mut_args(|arg| arg.required(false));
            let matches = command.try_get_matches_from_mut(["wan-i2v", given[0], given[1]]);
            let matches = matches.unwrap_or_else(|error| panic!("{given:?}: {error}"));
            let raw = matches.get_raw(flag).and_then(|mut values| values.next());
            assert_eq!(raw, Some(given[1].as_ref()), "{given:?}");
        }
    }
}
