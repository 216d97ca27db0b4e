//! What usually lies behind a symptom. Each was seen in a port of this model or in MLX's issue
//! tracker; `docs/analyze.md` has the checks that tell them apart.

pub(super) const NON_FINITE: &[&str] = &[
    "an overflow in a kernel or in float16 sums: run with --device cpu or --dtype f32 to compare",
    "damaged weights: wan-i2v inspect says whether tensors are missing",
];

pub(super) const BLACK: &[&str] = &[
    "latents that are no numbers: a NaN becomes black when it is turned into 8 bits",
    "a kernel that was given more than 32,767 rows (MLX's quantized products and masked attention \
     count rows in 16 bits): 81 frames at 480p in one batch of both prompts do that, 17 do not",
];

pub(super) const FIRST_FRAME: &[&str] = &[
    "another picture, or another way to resize it (--resize)",
    "a VAE encoder without its weights: it answers every picture with the same latents",
    "latents of the condition that are not normalised, or mask and latents in the wrong order",
];

pub(super) const CONTENT_LOST: &[&str] = &[
    "guidance without effect: the predictions for both prompts are nearly equal (compare step_NNN_cond \
     with step_NNN_uncond of a --dump), as when both get the same text",
    "a condition that was encoded at once instead of frame by frame with the encoder's caches",
    "the mask of the condition: ones in the first latent frame only",
];

pub(super) const GREY: &[&str] = &[
    "a condition that was encoded at once instead of frame by frame with the encoder's caches",
    "guidance without effect, as when both prompts get the same text",
    "too few steps, or a schedule whose last noise level is not 0",
];

pub(super) const NOISE: &[&str] = &[
    "text embeddings of one expert given to both: each has an embedding of its own",
    "wrong rotary tables: each axis has its own frequencies",
    "swapped experts, or a boundary at the wrong timestep",
    "a run that ended before its last step, or noise levels that are not the model's",
];

pub(super) const FROZEN: &[&str] = &[
    "a condition that shows the picture in later frames too, where it is to be followed by zeros",
    "steps that reuse an old prediction: try without --cache",
    "decoding that repeats frames: the decoder's caches are not handed on",
];

pub(super) const CHECKERBOARD_2: &[&str] = &[
    "wrong rotary tables: grows with the distance from the first frame",
    "the decoder's last upsampling",
];

pub(super) const CHECKERBOARD_8: &[&str] = &[
    "a VAE encoder that halves time in the wrong stages (none in the first, then in the second and \
     the third)",
    "latents that are not brought back to the VAE's scale before they are decoded",
];

pub(super) const CHECKERBOARD_16: &[&str] = &[
    "patches put together in the wrong order: 2 x 2 latent pixels by 16 channels",
    "wrong rotary tables of the two spatial axes",
];

pub(super) const COLLAPSED: &[&str] = &[
    "a network that answers with a constant: weights missing or all zero",
    "a kernel that was given more than 32,767 rows",
];
