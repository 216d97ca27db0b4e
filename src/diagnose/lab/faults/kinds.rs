//! The faults, and the cases that are looked at.

/// One thing that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// K/V of the low-noise expert's text in both.
    SharedText,
    /// Noise of 42% on the high-noise expert's text embedding.
    TextOff,
    /// Every tensor of the VAE's encoder zero.
    EncoderOfZeros,
    /// Every tensor of the VAE's encoder as before training.
    EncoderAtRandom,
    /// One table of frequencies cut in three.
    OneRotaryTable,
    /// Time halved at the encoder's levels 0 and 1 instead of 1 and 2.
    TemporalOrder,
    /// All frames encoded as one chunk behind zeros.
    AtOnce,
    /// Zeros for what the encoder saw before each chunk.
    NoMemory,
    /// The prompt in both passes.
    SamePrompt,
    /// The negative prompt in both passes.
    NoPrompt,
    /// The passes in each other's place.
    SwappedGuidance,
    /// No guidance.
    Unguided,
    /// Timesteps with their fractions.
    FloatTimesteps,
    /// Noise levels for timesteps.
    ShareTimesteps,
    /// Each expert in the other's steps.
    SwappedExperts,
    /// The high-noise expert in all steps.
    HighAlone,
    /// The low-noise expert in all steps.
    LowAlone,
    /// The mask says that no frame is given.
    MaskOfZeros,
    /// The mask says that all frames are given.
    MaskOfOnes,
    /// The mask says that the first frame is not given and all others are.
    MaskInverted,
    /// The mask behind the latents instead of in front.
    MaskLast,
    /// The condition's latents as the VAE gives them.
    NotNormalised,
    /// Black frames behind the picture in the conditioning video.
    BlackFrames,
    /// Normalised latents given to the decoder.
    NotDenormalised,
    /// Initial noise times 0.7.
    WeakNoise,
    /// Initial noise times 1.3.
    StrongNoise,
    /// No padding rows behind the prompts.
    NoPadding,
    /// Norms of queries and keys with weights of 1.
    PlainNorms,
    /// Products of the blocks zero in unconditional passes: rows beyond what a kernel counts to.
    ZeroRows,
    /// Predictions zero from the third latent frame on.
    ZeroTail,
}

/// What is wrong with a run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// A short name.
    pub name: &'static str,
    /// What is wrong, in words.
    pub what: &'static str,
    /// The same as faults.
    pub faults: &'static [Fault],
}

impl Case {
    /// Whether this is wrong.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The case of this name.
    pub fn named(name: &str) -> Option<Self> {
        CASES.into_iter().find(|case| case.name == name)
    }
}

const fn case(name: &'static str, what: &'static str, faults: &'static [Fault]) -> Case {
    Case { name, what, faults }
}

/// The cases: the sound one, the report's, and others.
pub const CASES: [Case; 34] = [
    case("sound", "nothing", &[]),
    case(
        "shared-text",
        "report's bug 1: the low-noise expert's text K/V in both experts",
        &[Fault::SharedText],
    ),
    case(
        "text-off",
        "text embedding of the high-noise expert off by 42%, as bug 1 was measured to do in A14B",
        &[Fault::TextOff],
    ),
    case(
        "encoder-zeros",
        "report's bug 2: the VAE encoder's weights are zeros",
        &[Fault::EncoderOfZeros],
    ),
    case(
        "encoder-random",
        "report's bug 2: the VAE encoder's weights are random",
        &[Fault::EncoderAtRandom],
    ),
    case(
        "one-rope-table",
        "report's bug 3, its \"fix\": one RoPE table cut in three",
        &[Fault::OneRotaryTable],
    ),
    case(
        "temporal-order",
        "report's bug 4: the encoder halves time at levels 0 and 1",
        &[Fault::TemporalOrder],
    ),
    case(
        "encoded-at-once",
        "report's bug 5: all frames encoded at once behind zeros",
        &[Fault::AtOnce],
    ),
    case(
        "no-memory",
        "report's bug 5 in chunks: zeros for what was before each",
        &[Fault::NoMemory],
    ),
    case(
        "report-1",
        "the report's first stage: bugs 1 (as text-off), 4 and 5",
        &[Fault::TextOff, Fault::TemporalOrder, Fault::AtOnce],
    ),
    case(
        "report-2",
        "its second stage: bugs 1 and 4",
        &[Fault::TextOff, Fault::TemporalOrder],
    ),
    case(
        "report-3",
        "its third stage: bug 4 and the \"fix\" 3; its fourth is one-rope-table",
        &[Fault::TemporalOrder, Fault::OneRotaryTable],
    ),
    case(
        "same-prompt",
        "the prompt in both guidance passes",
        &[Fault::SamePrompt],
    ),
    case(
        "no-prompt",
        "the negative prompt in both guidance passes",
        &[Fault::NoPrompt],
    ),
    case(
        "swapped-guidance",
        "guidance passes swapped",
        &[Fault::SwappedGuidance],
    ),
    case(
        "unguided",
        "guidance 1: no fault, for comparison",
        &[Fault::Unguided],
    ),
    case(
        "float-timesteps",
        "timesteps not truncated to integers",
        &[Fault::FloatTimesteps],
    ),
    case(
        "share-timesteps",
        "timesteps from 0 to 1, not to 1000",
        &[Fault::ShareTimesteps],
    ),
    case(
        "swapped-experts",
        "experts swapped",
        &[Fault::SwappedExperts],
    ),
    case(
        "high-alone",
        "the high-noise expert for all steps",
        &[Fault::HighAlone],
    ),
    case(
        "low-alone",
        "the low-noise expert for all steps",
        &[Fault::LowAlone],
    ),
    case("mask-zeros", "mask all zeros", &[Fault::MaskOfZeros]),
    case("mask-ones", "mask all ones", &[Fault::MaskOfOnes]),
    case("mask-inverted", "mask inverted", &[Fault::MaskInverted]),
    case(
        "mask-last",
        "mask behind the condition latents",
        &[Fault::MaskLast],
    ),
    case(
        "not-normalised",
        "condition latents not normalised",
        &[Fault::NotNormalised],
    ),
    case(
        "black-frames",
        "condition encoded with black frames behind the picture, not zeros",
        &[Fault::BlackFrames],
    ),
    case(
        "not-denormalised",
        "finished latents not brought back to the VAE's scale",
        &[Fault::NotDenormalised],
    ),
    case("weak-noise", "initial noise times 0.7", &[Fault::WeakNoise]),
    case(
        "strong-noise",
        "initial noise times 1.3",
        &[Fault::StrongNoise],
    ),
    case(
        "no-padding",
        "the prompts' padding rows masked out",
        &[Fault::NoPadding],
    ),
    case(
        "plain-norms",
        "q/k norms without their weights",
        &[Fault::PlainNorms],
    ),
    case(
        "zero-rows",
        "products of the blocks zero in the unconditional half of a batch",
        &[Fault::ZeroRows],
    ),
    case(
        "zero-tail",
        "predictions zero from the third latent frame on",
        &[Fault::ZeroTail],
    ),
];
