//! What usually lies behind a symptom. Each was seen in a port of this model or in MLX's issue
//! tracker, or put into the miniature on purpose (`docs/verification.md`).

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
    "wrong rotary tables: each axis has its own frequencies, over the whole range; one table cut in \
     three loses the picture after the first latent frame",
    "the mask of the condition: ones in the first latent frame only, and before the latents",
    "latents of the condition that are not normalised",
    "q and k norms without their weights",
];

pub(super) const GREY: &[&str] = &[
    "the mask of the condition: if it calls all frames given, the others become the grey of the \
     conditioning video",
    "latents of the condition that are not normalised, or of a VAE encoder without its weights",
    "wrong rotary tables: each axis has its own frequencies, over the whole range",
    "too few steps, or a schedule whose last noise level is not 0",
];

pub(super) const NOISE: &[&str] = &[
    "a run that ended before its last step, or noise levels that are not the model's",
    "latents or predictions that a broken kernel left as they were",
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
