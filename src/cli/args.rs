//! The command line's flags.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::clip::{CacheSettings, GuideInterval, GuideScale, Model, Options, Request, Size};
use crate::media::Resize;
use crate::pipeline::plan::Budget;
use crate::runtime::{self, Device, DeviceKind, Precision};
use crate::sampling::Solver;
use crate::weights::{LoadBits, Sources};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::analyze::AnalyzeArgs;
use super::batch::BatchArgs;
use super::compare::CompareArgs;
use super::doctor::DoctorArgs;
use super::layers::ConfigArgs;
use super::outputs::OutputArgs;
use super::prompt;
use super::resume::{Open, ResumeArgs};
use super::shell::{CompletionsArgs, ManArgs};
use super::show::ShowArgs;
use super::source;
use super::stderr::Style;
use super::sweep::SweepArgs;
use super::tools::{BitsArgs, ConvertArgs, InspectArgs, PullArgs};
use super::values::{
    parse_area, parse_cache, parse_gigabytes, parse_guide_scale, parse_interval, parse_size,
};

static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\nMLX {}, backend {}\ndevice {}",
        env!("CARGO_PKG_VERSION"),
        runtime::mlx_version(),
        if runtime::metal_is_available() {
            "metal"
        } else {
            "cpu"
        },
        runtime::device_name(),
    )
});

/// What `--help` ends with.
const MORE: &str = "\
Examples:
  The built-in miniature, in seconds:
    wan-i2v -i start.png -p 'the red circle moves up'
  Wan2.2 on a Mac, fetched and quantized once:
    wan-i2v pull Wan-AI/Wan2.2-I2V-A14B --bits 4 --output wan2.2
    wan-i2v -m wan2.2 -i cat.jpg -p 'The cat jumps off the table' -o cat.mp4
  A prompt from a file, at 480p, with a seed:
    wan-i2v -m wan2.2 -i cat.jpg -p @cat.txt --area 480p -s 7 -o cat.mp4
  From one picture to another:
    wan-i2v -i start.png --last-image end.png -p 'the red circle moves up'
  In a script, the clip's path and nothing else:
    clip=$(wan-i2v -i start.png -p 'the red circle moves up' --quiet) && open \"$clip\"

Settings: flags come first, then WAN_I2V_* variables (WAN_I2V_STEPS for --steps), then the file
  of settings, then what the model recommends, then what is built in.

Streams: progress goes to stderr, results and nothing else to stdout.

Exit codes:
    0  done
    1  failed: the last line on stderr says why
    2  wrong usage: of the command line, a variable or the file of settings
  101  a mistake in the program
  130  stopped by Ctrl-C; the same command goes on
  143  stopped by SIGTERM; the same command goes on";

/// Makes a video clip from a picture and a prompt with Wan2.2 I2V
///
/// Progress goes to stderr, the clip's path and nothing else to stdout. A run that ended early goes
/// on with the same command.
#[derive(Debug, Parser)]
#[command(
    name = "wan-i2v",
    version = env!("CARGO_PKG_VERSION"),
    long_version = VERSION.as_str(),
    after_help = "All flags, examples and exit codes: wan-i2v --help",
    after_long_help = MORE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub generate: Box<GenerateArgs>,
}

impl Cli {
    /// The style that progress is shown in; `None` for what suits stderr.
    pub fn style(&self) -> Option<Style> {
        match &self.command {
            None => self.generate.style(),
            Some(Command::Batch(args)) => args.style(),
            Some(Command::Sweep(args)) => args.style(),
            Some(_) => None,
        }
    }
}

/// What is done instead of making a clip.
#[derive(Debug, Subcommand)]
pub enum Command {
    Analyze(AnalyzeArgs),
    Inspect(InspectArgs),
    Convert(ConvertArgs),
    Pull(PullArgs),
    Plan(Box<PlanArgs>),
    Batch(Box<BatchArgs>),
    Show(ShowArgs),
    Compare(CompareArgs),
    Doctor(Box<DoctorArgs>),
    Completions(CompletionsArgs),
    Man(ManArgs),
    Sweep(Box<SweepArgs>),
}

/// A clip.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The picture the clip starts with: PNG, JPEG or WebP
    #[arg(
        short,
        long,
        value_name = "PATH",
        required = true,
        help_heading = "Input"
    )]
    image: Option<PathBuf>,

    /// What happens in the clip; - reads it from standard input, @PATH from a file
    ///
    /// Beyond 512 tokens it is cut, with a warning. A prompt that begins with @ itself is written
    /// with two of them.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        required = true,
        help_heading = "Input",
        allow_hyphen_values = true
    )]
    prompt: Option<String>,

    #[command(flatten)]
    model: ModelArgs,

    /// Where the clip goes: .mp4, .gif, or a folder (ends in / or exists) for PNG frames
    /// [default: the picture's name and the seed, .mp4, in the current folder]
    #[arg(short, long, value_name = "PATH", help_heading = "Output")]
    output: Option<PathBuf>,

    #[command(flatten)]
    pub beside: OutputArgs,

    #[command(flatten)]
    clip: ClipArgs,

    /// Seed of the noise, an integer from 0 [default: random, printed]
    ///
    /// It means the same as in PyTorch, diffusers and ComfyUI on the CPU; its low 32 bits count.
    #[arg(
        short,
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    seed: Option<u64>,

    /// How the picture is resized; bicubic equals the reference's
    #[arg(long, value_enum, default_value_t = ResizeArg::Lanczos, help_heading = "Sampling", hide_short_help = true)]
    resize: ResizeArg,

    #[command(flatten)]
    pub machine: MachineArgs,

    #[command(flatten)]
    pub resume: ResumeArgs,

    #[command(flatten)]
    reporting: ReportingArgs,

    #[command(flatten)]
    config: ConfigArgs,

    /// Write every intermediate tensor into this folder as .npy
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Machine",
        hide_short_help = true
    )]
    dump: Option<PathBuf>,
}

/// Which model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The model: a folder, a hub id (owner/name[@revision]), or `tiny` for the built-in miniature
    /// [default: tiny]
    #[arg(short, long, value_name = "DIR|ID|tiny")]
    model: Option<PathBuf>,

    /// The high-noise expert: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    high: Option<PathBuf>,

    /// The low-noise expert: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    low: Option<PathBuf>,

    /// The VAE: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    vae: Option<PathBuf>,

    /// The text encoder: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    text_encoder: Option<PathBuf>,

    /// The tokenizer: tokenizer.json or spiece.model, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    tokenizer: Option<PathBuf>,

    #[command(flatten)]
    bits: BitsArgs,
}

/// What the clip is like and how it is sampled.
#[derive(Debug, Args)]
pub struct ClipArgs {
    /// The picture the clip ends with: PNG, JPEG or WebP
    ///
    /// It is brought to the clip's size as the first one is, and given to the model through the same
    /// mask. The clip needs more than one frame.
    #[arg(long, value_name = "PATH", help_heading = "Input")]
    last_image: Option<PathBuf>,

    /// What to steer away from; - and @PATH as for --prompt [default: the model's]
    #[arg(
        short,
        long,
        value_name = "TEXT",
        help_heading = "Input",
        allow_hyphen_values = true
    )]
    negative_prompt: Option<String>,

    /// Exact size in pixels, multiples of 16
    #[arg(long, value_name = "WxH", value_parser = parse_size, allow_hyphen_values = true, conflicts_with = "area", help_heading = "Output")]
    size: Option<Size>,

    /// Pixels per frame, in the picture's aspect ratio; 480p is 832*480, 720p is 1280*720
    /// [default: the model's; Wan2.2 has 720p]
    #[arg(long, value_name = "PIXELS|480p|720p", value_parser = parse_area, allow_hyphen_values = true, help_heading = "Output")]
    area: Option<Size>,

    /// Frames of the clip, 4n+1 [default: the model's; Wan2.2 has 81]
    #[arg(
        short,
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Output"
    )]
    frames: Option<u32>,

    /// Frames per second [default: the model's; Wan2.2 has 16]
    #[arg(
        long,
        value_name = "FPS",
        allow_negative_numbers = true,
        help_heading = "Output"
    )]
    fps: Option<f64>,

    /// Denoising steps [default: the model's; Wan2.2 has 40]
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    steps: Option<u32>,

    /// How the differential equation is solved
    #[arg(long, value_enum, default_value_t = SolverArg::Unipc, help_heading = "Sampling")]
    solver: SolverArg,

    /// Shift of the noise schedule, a number above 0; more spends more steps on motion
    /// [default: the model's; Wan2.2 has 5]
    #[arg(
        long,
        hide_short_help = true,
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    shift: Option<f64>,

    /// Guidance for both experts, or for the low-noise and the high-noise one; 1 turns it off
    /// and halves the time [default: the model's; Wan2.2 has 3.5]
    #[arg(long, value_name = "G|LOW,HIGH", value_parser = parse_guide_scale, allow_hyphen_values = true, help_heading = "Sampling")]
    guide_scale: Option<GuideScale>,

    /// Guide only the steps between these shares of all, from 0 to 1; the others take half the time
    /// [default: 0,1]
    #[arg(long, hide_short_help = true, value_name = "START,END", value_parser = parse_interval, allow_hyphen_values = true, help_heading = "Sampling")]
    guide_interval: Option<GuideInterval>,

    /// Skip steps whose prediction changes little: teacache or easycache, then ,threshold=X
    /// ,retention=N (first steps of an expert) ,cutoff=N (last steps); approximate [default: off]
    #[arg(long, hide_short_help = true, value_name = "METHOD", value_parser = parse_cache, help_heading = "Sampling")]
    cache: Option<CacheSettings>,
}

/// Where it is computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Where to compute [default: gpu where there is one]
    #[arg(long, value_enum)]
    device: Option<DeviceArg>,

    /// Dtype of matrix products [default: bf16 on the gpu, f32 on the cpu]
    #[arg(long, value_enum, hide_short_help = true)]
    dtype: Option<DtypeArg>,

    /// Memory that arrays may take, in GB (1e9 bytes); more work is done where less does not fit
    /// [default: what Metal recommends, or three quarters of the machine's memory]
    #[arg(long, value_name = "GB", value_parser = parse_gigabytes, allow_negative_numbers = true)]
    memory_budget: Option<u64>,

    /// Rows from which a product unpacks quantized weights once instead of for each row
    /// [default: 768 on the gpu, 2 on the cpu, none there in bf16]
    #[arg(long, hide_short_help = true, value_name = "ROWS", value_parser = clap::value_parser!(i32).range(1..))]
    dense_above: Option<i32>,
}

/// How a run is told of.
#[derive(Debug, Args)]
#[command(next_help_heading = "Progress")]
pub struct ReportingArgs {
    /// How progress is shown on stderr; json is an event a line (docs/progress.md)
    /// [default: bar in a terminal, plain elsewhere]
    #[arg(
        long,
        value_enum,
        value_name = "bar|plain|json|none",
        hide_possible_values = true
    )]
    progress: Option<ProgressArg>,

    /// Show warnings and errors only
    #[arg(short, long, conflicts_with = "progress")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProgressArg {
    Bar,
    Plain,
    Json,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SolverArg {
    Unipc,
    #[value(name = "dpm++")]
    DpmPlusPlus,
    Euler,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResizeArg {
    Lanczos,
    Bicubic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeviceArg {
    Gpu,
    Cpu,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    F32,
    Bf16,
}

impl ReportingArgs {
    /// The style that progress is shown in; `None` for what suits stderr.
    pub fn style(&self) -> Option<Style> {
        if self.quiet {
            return Some(Style::Quiet);
        }
        self.progress.map(|progress| match progress {
            ProgressArg::Bar => Style::Bar,
            ProgressArg::Plain => Style::Plain,
            ProgressArg::Json => Style::Json,
            ProgressArg::None => Style::None,
        })
    }
}

impl MachineArgs {
    /// The device to compute on.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn device(&self) -> Result<Device> {
        let device = self.device.map(|device| match device {
            DeviceArg::Gpu => DeviceKind::Gpu,
            DeviceArg::Cpu => DeviceKind::Cpu,
        });
        let precision = self.dtype.map(|dtype| match dtype {
            DtypeArg::F32 => Precision::F32,
            DtypeArg::Bf16 => Precision::Bf16,
        });
        let device = Device::select(device, precision)?;
        Ok(Device {
            dense_above: self.dense_above.unwrap_or(device.dense_above),
            ..device
        })
    }

    /// The memory that may be taken.
    pub fn budget(&self, device: Device) -> Budget {
        Budget {
            bytes: self
                .memory_budget
                .unwrap_or_else(|| runtime::default_memory_budget(device.kind)),
            asked: self.memory_budget.is_some(),
        }
    }
}

impl ModelArgs {
    /// The model, fetched if it is the hub's, and the bits that it is loaded with.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn into_model(self) -> Result<(Model, LoadBits)> {
        let parts = [self.high, self.low, self.vae, self.text_encoder];
        let named = parts.iter().flatten().chain(&self.tokenizer).next();
        let is_tiny = |model: &PathBuf| model.as_os_str() == "tiny";
        let model = match &self.model {
            Some(model) if !is_tiny(model) => Some(source::local(model, "--model")?),
            Some(_) if named.is_some() => bail!(
                "--model tiny is whole; --high, --low, --vae, --text-encoder and --tokenizer go \
                 with a model on disk, or all five without --model"
            ),
            _ => None,
        };
        let bits = self.bits.quantized();
        if model.is_none() && named.is_none() {
            return Ok((Model::Tiny, bits));
        }
        let sources = Sources {
            model,
            parts,
            tokenizer: self.tokenizer,
        };
        Ok((Model::Disk(sources), bits))
    }
}

/// The parts of a request that say neither picture nor place.
struct Blank {
    model: Model,
    bits: LoadBits,
    image: PathBuf,
    prompt: String,
    negative_prompt: Option<String>,
    output: PathBuf,
    seed: Option<u64>,
}

impl ClipArgs {
    fn into_request(self, blank: Blank) -> Request {
        Request {
            model: blank.model,
            bits: blank.bits,
            image: blank.image,
            last_image: self.last_image,
            prompt: blank.prompt,
            options: Options {
                size: self.size.or(self.area),
                frames: self.frames,
                fps: self.fps,
                steps: self.steps,
                solver: Some(match self.solver {
                    SolverArg::Unipc => Solver::UniPc,
                    SolverArg::DpmPlusPlus => Solver::DpmPlusPlus,
                    SolverArg::Euler => Solver::Euler,
                }),
                shift: self.shift,
                guide_scale: self.guide_scale,
                guide_interval: self.guide_interval,
                cache: self.cache,
                seed: blank.seed,
                resize: None,
                negative_prompt: blank.negative_prompt,
            },
            output: blank.output,
            strip: None,
            metadata: true,
            dump: None,
        }
    }
}

/// What a command line for a clip says.
pub struct Generate {
    /// The clip.
    pub request: Request,
    /// Where it is computed.
    pub machine: MachineArgs,
    /// How it may be stopped and gone on with.
    pub resume: ResumeArgs,
    /// What was left open.
    pub open: Open,
}

impl GenerateArgs {
    /// The style that progress is shown in; `None` for what suits stderr.
    pub fn style(&self) -> Option<Style> {
        self.reporting.style()
    }

    /// The start picture.
    pub fn picture(&self) -> Option<&Path> {
        self.image.as_deref()
    }

    /// What is written, besides previews.
    pub fn written(&self) -> impl Iterator<Item = &Path> {
        let paths = [
            self.output.as_deref(),
            self.beside.strip(),
            self.dump.as_deref(),
        ];
        paths.into_iter().flatten()
    }

    /// What it says, with a model from the hub fetched.
    ///
    /// # Errors
    /// When a model cannot be had.
    pub fn into_request(mut self) -> Result<Generate> {
        // Both are there: only a subcommand does without.
        let image = self.image.context("--image is missing")?;
        let prompt = self.prompt.context("--prompt is missing")?;
        let (prompt, negative_prompt) =
            prompt::read_both(prompt, self.clip.negative_prompt.take())?;
        let seed = self.seed.unwrap_or_else(random_seed);
        let stem = PathBuf::from(image.file_stem().unwrap_or_default());
        let open = Open {
            seed: self.seed.is_none(),
            stem: self.output.is_none().then_some(stem),
        };
        let output = self.output.or_else(|| open.output(seed));
        let output = output.context("--output is missing")?;
        let (model, bits) = self.model.into_model()?;
        let mut request = self.clip.into_request(Blank {
            model,
            bits,
            image,
            prompt,
            negative_prompt,
            output,
            seed: Some(seed),
        });
        request.options.resize = Some(match self.resize {
            ResizeArg::Lanczos => Resize::Lanczos,
            ResizeArg::Bicubic => Resize::Bicubic,
        });
        request.dump = self.dump;
        Ok(Generate {
            request: self.beside.apply(request),
            machine: self.machine,
            resume: self.resume,
            open,
        })
    }
}

/// Says what a clip will cost: operations, memory and time of every phase.
///
/// Reads headers only. Time is at this machine's rates, which are measured in a second and kept.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The picture, for its aspect ratio [default: 832 x 480]
    #[arg(short, long, value_name = "PATH", help_heading = "Input")]
    image: Option<PathBuf>,

    /// What happens in the clip, for its length; - and @PATH as for a clip [default: 64 tokens]
    #[arg(
        short,
        long,
        value_name = "TEXT",
        help_heading = "Input",
        allow_hyphen_values = true
    )]
    prompt: Option<String>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    clip: ClipArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    config: ConfigArgs,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Measure this machine's rates again; do it when nothing else runs
    #[arg(long, help_heading = "Machine")]
    pub measure: bool,
}

impl PlanArgs {
    /// The request, with neither picture nor prompt when none is given, and where it is computed.
    ///
    /// # Errors
    /// When a model cannot be had.
    pub fn into_request(mut self) -> Result<(Request, MachineArgs)> {
        let prompt = self.prompt.unwrap_or_default();
        let (prompt, negative_prompt) =
            prompt::read_both(prompt, self.clip.negative_prompt.take())?;
        let (model, bits) = self.model.into_model()?;
        let request = self.clip.into_request(Blank {
            model,
            bits,
            image: self.image.unwrap_or_default(),
            prompt,
            negative_prompt,
            output: PathBuf::new(),
            seed: None,
        });
        Ok((request, self.machine))
    }
}

/// 32 bits, since PyTorch's generator uses no more; from the standard library's random hasher.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}
