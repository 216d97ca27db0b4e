//! The command line's flags. Parsing is pure: it reads nothing else and does nothing.
//! `commands::resolve` turns flags into requests.

mod after;
mod clip;
mod command;
mod diagnose;
#[cfg(test)]
mod flags_md;
mod foreign;
mod machine;
mod many;
mod model;
mod output;
mod prompt;
mod reason;
mod settings;
mod shell;
mod values;

pub(crate) use after::{AfterArgs, ExecCommand};
pub(crate) use clip::{ClipArgs, GenerateArgs, PlanArgs, SamplingArgs};
pub(crate) use command::{command, parse};
pub(crate) use diagnose::{AnalyzeArgs, CompareArgs, DoctorArgs, TuneArgs};
pub(crate) use foreign::advice;
pub(crate) use machine::{GroupArgs, Host, LaunchArgs, MachineArgs};
pub(crate) use many::{BatchArgs, ManyArgs, SweepArgs, clip_command, job_command};
pub(crate) use model::{ConvertArgs, InspectArgs, LoraArgs, ModelArgs, PullArgs};
pub(crate) use output::{OutputArgs, PreviewArgs, ReportingArgs, ResumeArgs, ResumeFrom};
pub(crate) use prompt::PromptSource;
pub(crate) use reason::{context, reason};
pub(crate) use settings::ConfigArgs;
pub(crate) use shell::{CompletionsArgs, ManArgs, ModelsArgs, PresetsArgs, ShowArgs};
pub(crate) use values::{Steps, parse_guide_scale, parse_lora, parse_steps};

use std::sync::LazyLock;

use crate::runtime;
use crate::util::show::Show as _;
use clap::{Parser, Subcommand};

use super::ui::Colours;

static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\nMLX {}, backend {}, {}\ndevice {}",
        env!("CARGO_PKG_VERSION"),
        runtime::mlx_version(),
        if runtime::metal_is_available() {
            "metal"
        } else {
            "cpu"
        },
        runtime::mlx_library().map_or_else(
            || "built in".into(),
            |library| format!("from {}", library.shown())
        ),
        runtime::device_name(),
    )
});

/// What `-h` ends with.
const SHORT: &str = "\
Examples (all flags, more examples and exit codes: wan-i2v --help):
  wan-i2v -i start.png -p 'the red circle moves up'
  wan-i2v -m wan2.2 -i cat.jpg -p 'The cat jumps off the table' -o cat.mp4";

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
    clip=$(wan-i2v -i start.png -p 'the circle moves up' -q) && open \"$clip\"

Settings: flags come first, then WAN_I2V_* variables (WAN_I2V_STEPS for --steps),
  then the config file, then what the model recommends, then what is built in.

Streams: progress goes to stderr, results and nothing else to stdout.

Exit codes:
    0  done
    1  failed: the lines from error: on say why
    2  wrong usage: of the command line, a variable or the config file
    3  another machine that shares the work is lost; the same command resumes
  101  a bug in the program
  130  stopped by Ctrl-C; the same command resumes
  143  stopped by SIGTERM; the same command resumes";

/// Make a video clip from a picture and a prompt with Wan2.2 I2V
///
/// Progress goes to stderr, the clip's path and nothing else to stdout. The same command resumes a
/// run that ended early.
#[derive(Debug, Parser)]
#[command(
    name = "wan-i2v",
    version = env!("CARGO_PKG_VERSION"),
    long_version = VERSION.as_str(),
    after_help = SHORT,
    after_long_help = MORE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) generate: Box<GenerateArgs>,

    /// Whether messages and help have colours; auto also heeds NO_COLOR and CLICOLOR_FORCE
    #[arg(
        long,
        global = true,
        value_name = "auto|always|never",
        value_enum,
        default_value_t = Colours::Auto,
        hide_possible_values = true,
        hide_short_help = true,
        help_heading = "Progress"
    )]
    pub(crate) color: Colours,

    /// Print the licences of everything in the program
    #[arg(long, exclusive = true, help_heading = "About", hide_short_help = true)]
    pub(crate) licenses: bool,
}

impl Cli {
    /// The other machines that share the work.
    pub(crate) fn group(&self) -> Option<&GroupArgs> {
        match &self.command {
            None => Some(&self.generate.group),
            Some(Command::Batch(args)) => Some(&args.generate.group),
            Some(Command::Sweep(args)) => Some(&args.group),
            Some(Command::Doctor(args)) => Some(&args.group),
            Some(_) => None,
        }
    }

    /// How a run is reported, of commands that make clips.
    pub(crate) fn reporting(&self) -> Option<&ReportingArgs> {
        match &self.command {
            None => Some(&self.generate.reporting),
            Some(Command::Batch(args)) => Some(&args.generate.reporting),
            Some(Command::Sweep(args)) => Some(&args.reporting),
            Some(_) => None,
        }
    }
}

/// A command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Batch(Box<BatchArgs>),
    Sweep(Box<SweepArgs>),
    Launch(LaunchArgs),
    Models(Box<ModelsArgs>),
    Pull(PullArgs),
    Convert(ConvertArgs),
    Inspect(InspectArgs),
    Plan(Box<PlanArgs>),
    Presets(PresetsArgs),
    Show(ShowArgs),
    Analyze(AnalyzeArgs),
    Compare(CompareArgs),
    Doctor(Box<DoctorArgs>),
    Tune(TuneArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}
