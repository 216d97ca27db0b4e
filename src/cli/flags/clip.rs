//! A clip's inputs, size and sampling.

use std::path::PathBuf;

use crate::clip::{CacheSettings, GuideInterval, GuideScale, Size};
use crate::media::{Fit, Resize};
use crate::sampling::{Sigmas, Solver};
use clap::Args;

use super::values::{
    Steps, parse_area, parse_cache, parse_fps, parse_frames, parse_guide_scale, parse_interval,
    parse_machine, parse_machines, parse_prompt, parse_seconds, parse_seed, parse_shift,
    parse_side, parse_sigmas, parse_size, parse_steps,
};
use super::{
    AfterArgs, ConfigArgs, GroupArgs, MachineArgs, ModelArgs, OutputArgs, PromptSource,
    ReportingArgs, ResumeArgs,
};

/// A clip and the run that makes it.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) clip: ClipArgs,

    #[command(flatten)]
    pub(crate) resume: ResumeArgs,

    #[command(flatten)]
    pub(crate) reporting: ReportingArgs,

    #[command(flatten)]
    pub(crate) after: AfterArgs,

    #[command(flatten)]
    pub(crate) group: GroupArgs,
}

/// A clip: whatever its pixels and its file depend on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct ClipArgs {
    /// Picture the clip starts with; - reads stdin
    ///
    /// Models that make clips from text alone take none.
    /// PNG, JPEG, WebP, TIFF, BMP or GIF. An address that begins with https:// is fetched. On a Mac HEIC and AVIF are read as well.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    pub(crate) image: Option<PathBuf>,

    /// What happens in the clip; @PATH reads a file
    ///
    /// A - reads standard input. Text beyond 512 tokens is cut off, with a warning. Write a prompt that itself begins with @ as
    /// @@.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        required = true,
        value_parser = parse_prompt,
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<PromptSource>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    /// Seed of the noise [default: random, printed]
    ///
    /// 0 or above. The same noise as PyTorch, diffusers and ComfyUI make on the CPU. Only the low 32 bits count.
    #[arg(
        short,
        long,
        value_name = "N",
        value_parser = parse_seed, allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub(crate) seed: Option<u64>,

    /// Resize the picture this way; bicubic matches the reference
    #[arg(long, value_enum, default_value_t = Resize::Lanczos, help_heading = "Sampling", hide_short_help = true)]
    pub(crate) resize: Resize,

    /// Bring a picture of another shape into the clip's: its middle, all of it between black bars,
    /// or stretched [default: crop with --size; the reference stretches to --area, by less than
    /// 16 pixels]
    #[arg(long, value_enum, help_heading = "Sampling", hide_short_help = true)]
    pub(crate) fit: Option<Fit>,

    /// Replace what is at the output's place; without it only what the same command has made is
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub(crate) overwrite: bool,

    /// Leave out of the clip's file how it was made (see `wan-i2v show`)
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub(crate) no_metadata: bool,

    /// Agree beforehand to fetching the model, and to a run of more than an hour
    #[arg(short, long, help_heading = "Machine", hide_short_help = true)]
    pub(crate) yes: bool,

    /// Let a Mac fall asleep while it computes; without it caffeinate keeps it awake, its display not
    #[arg(long, help_heading = "Machine", hide_short_help = true)]
    pub(crate) allow_sleep: bool,

    /// End at an error of the GPU instead of resuming in a fresh process
    #[arg(long, help_heading = "Machine", hide_short_help = true)]
    pub(crate) no_retry: bool,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

impl SamplingArgs {
    /// The size of the clip, however it is given.
    pub(crate) fn size(&self) -> Option<Size> {
        let sides = match (self.width, self.height) {
            (Some(width), Some(height)) => Some(Size::Exact { width, height }),
            (Some(width), None) => Some(Size::Width(width)),
            (None, height) => height.map(Size::Height),
        };
        self.size.or(self.area).or(sides)
    }
}

/// A clip's size and sampling.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Picture the clip ends with
    ///
    /// Read and resized like the first one. The clip needs more than one frame.
    #[arg(
        long,
        value_name = "PATH",
        help_heading = "Input",
        hide_short_help = true
    )]
    pub(crate) last_image: Option<PathBuf>,

    /// What to steer away from [default: the model's]
    ///
    /// - and @PATH as for --prompt, '' for nothing.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        help_heading = "Input",
        allow_hyphen_values = true
    )]
    pub(crate) negative_prompt: Option<PromptSource>,

    /// Size in the picture's shape: 480p, 720p or pixels
    ///
    /// 480p is 832*480 pixels in all, 720p is 1280*720 [default: the model's; Wan2.2 has 720p]
    #[arg(long, value_name = "480p|720p|N", value_parser = parse_area, allow_hyphen_values = true, help_heading = "Output")]
    pub(crate) area: Option<Size>,

    /// Exact size in pixels, multiples of 16
    #[arg(long, hide_short_help = true, value_name = "WxH", value_parser = parse_size, allow_hyphen_values = true, conflicts_with = "area", help_heading = "Output")]
    pub(crate) size: Option<Size>,

    /// Width in pixels, a multiple of 16; without --height, that follows from the picture's shape
    #[arg(short = 'W', long, hide_short_help = true, value_name = "PIXELS", value_parser = parse_side, allow_negative_numbers = true, conflicts_with_all = ["area", "size"], help_heading = "Output")]
    pub(crate) width: Option<u32>,

    /// Height in pixels, a multiple of 16; without --width, that follows from the picture's shape
    #[arg(short = 'H', long, hide_short_help = true, value_name = "PIXELS", value_parser = parse_side, allow_negative_numbers = true, conflicts_with_all = ["area", "size"], help_heading = "Output")]
    pub(crate) height: Option<u32>,

    /// Length of the clip, rounded up to 4n+1 frames
    #[arg(long, value_name = "S", value_parser = parse_seconds, allow_negative_numbers = true, conflicts_with = "frames", help_heading = "Output")]
    pub(crate) seconds: Option<f64>,

    /// Frames of the clip, 4n+1
    ///
    /// [default: the model's; Wan2.2 has 81]
    #[arg(
        short,
        long,
        hide_short_help = true,
        value_name = "N",
        value_parser = parse_frames, allow_negative_numbers = true,
        help_heading = "Output"
    )]
    pub(crate) frames: Option<u32>,

    /// Frames per second [default: the model's; Wan2.2 has 16]
    #[arg(
        long,
        hide_short_help = true,
        value_name = "FPS",
        value_parser = parse_fps, allow_negative_numbers = true,
        help_heading = "Output"
    )]
    pub(crate) fps: Option<f64>,

    /// Settings by one name, such as lightning
    ///
    /// `wan-i2v presets` lists them; none takes none. Any other flag overrides its part. Without the flag a preset is taken when an adapter's
    /// or model's name asks for it.
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,

    /// Denoising steps
    ///
    /// One number, or one for the low-noise and one for the high-noise expert, whose steps come first;
    /// otherwise the noise level decides whose a step is [default: the model's; Wan2.2 has 40]
    #[arg(long, value_name = "N|LOW,HIGH", value_parser = parse_steps, allow_negative_numbers = true)]
    pub(crate) steps: Option<Steps>,

    /// Solver of the sampling equation [default: unipc]
    #[arg(long, value_enum, hide_short_help = true)]
    pub(crate) solver: Option<Solver>,

    /// Noise levels of the steps: wan, flow (of step-distilled models), or a list such as
    /// 1,0.757,0.522 [default: wan]
    #[arg(long, value_name = "wan|flow|LIST", value_parser = parse_sigmas, hide_short_help = true)]
    pub(crate) sigmas: Option<Sigmas>,

    /// Shift of the noise schedule, above 0; a larger one spends more steps on motion
    /// [default: the model's; Wan2.2 has 5]
    #[arg(
        long,
        hide_short_help = true,
        value_name = "X",
        value_parser = parse_shift, allow_negative_numbers = true
    )]
    pub(crate) shift: Option<f64>,

    /// Guidance; 1 turns it off and halves the time
    ///
    /// One number for both experts, or one for the low-noise and one for the high-noise expert
    /// [default: the model's; Wan2.2 has 3.5]
    #[arg(long, value_name = "G|LOW,HIGH", value_parser = parse_guide_scale, allow_hyphen_values = true)]
    pub(crate) guide_scale: Option<GuideScale>,

    /// Guide only the steps between these fractions of the run, 0 to 1; the others take half the
    /// time
    /// [default: 0,1]
    #[arg(long, hide_short_help = true, value_name = "START,END", value_parser = parse_interval, allow_hyphen_values = true)]
    pub(crate) guide_interval: Option<GuideInterval>,

    /// Skip steps whose prediction changes little, such as easycache or teacache,threshold=0.2:
    /// faster and approximate [default: off]
    ///
    /// METHOD is off, teacache or easycache. Settings follow it after commas: threshold=X (a larger
    /// one skips more), retention=N (first steps of each expert that are never skipped), cutoff=N
    /// (last steps that are never skipped).
    #[arg(long, hide_short_help = true, value_name = "METHOD", value_parser = parse_cache)]
    pub(crate) cache: Option<CacheSettings>,
}

/// Forecast what a clip costs: memory, time, operations
///
/// For each phase, and for other sizes, frames and bits; then what of Wan2.2 I2V-A14B fits on which Mac.
/// Reads headers, and a sample of the weights to time their loading. Times follow from parts of the model that
/// this machine measures at the clip's sizes, in some seconds, and keeps.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct PlanArgs {
    /// Picture, for its aspect ratio [default: 832x480]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) image: Option<PathBuf>,

    /// Prompt, for its length [default: 64 tokens]
    ///
    /// - and @PATH as for a clip.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<PromptSource>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    #[command(flatten)]
    pub(crate) config: ConfigArgs,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Answer for a Mac with so many GB of memory
    ///
    /// Whatever this machine is. Its rates are not known, so there are no times.
    #[arg(long = "machine", value_name = "GB", value_parser = parse_machine, allow_negative_numbers = true, conflicts_with_all = ["device", "memory_budget", "measure"], help_heading = "Machine")]
    pub(crate) mac: Option<u64>,

    /// Answer for N machines that share the clip: what each sends and holds (docs/machines.md)
    #[arg(long, value_name = "N", value_parser = parse_machines, allow_negative_numbers = true, help_heading = "Machine", hide_short_help = true)]
    pub(crate) machines: Option<u64>,

    /// Measure this machine's rates again, while nothing else runs
    #[arg(long, help_heading = "Machine", hide_short_help = true)]
    pub(crate) measure: bool,
}
