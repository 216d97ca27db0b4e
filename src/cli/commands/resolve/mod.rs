//! From flags to requests: reads prompts, finds the model or fetches it, draws a seed. Before
//! this nothing is read but variables and the config file.

pub(super) mod catalogue;
pub(super) mod fetch;
pub(super) mod model;
pub(super) mod picture;
mod prompt;

use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use crate::clip::{Model, Options, Request};
use crate::runtime::again;
use crate::tiny;
use crate::weights::adapter::{Source, Wanted};
use anyhow::{Context, Result, ensure};

use self::model::Models;
use self::picture::Pictures;

use crate::cli::config::Catalogue;
use crate::cli::flags::{
    ClipArgs, MachineArgs, ModelArgs, OutputArgs, PlanArgs, PreviewArgs, PromptSource, SamplingArgs,
};

/// The beginning of a clip's name without a picture.
const UNNAMED: &str = "clip";
/// The preset for which the miniature has adapters.
const LIGHTNING: &str = "lightning";

/// Settings that the user has left open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    /// Any seed will do.
    pub(crate) seed: bool,
    /// The beginning of the clip's name when the seed is to be a part of it.
    pub(crate) stem: Option<PathBuf>,
}

impl Open {
    /// The clip's names with a seed, in the order of choice, unless the user has named it.
    /// Those after the first have their number at the end.
    pub(crate) fn outputs(&self, seed: u64) -> Option<impl Iterator<Item = PathBuf>> {
        let stem = self.stem.as_ref()?.as_os_str();
        Some((1..).map(move |number: u64| {
            let mut name = stem.to_owned();
            name.push(match number {
                1 => format!("-{seed}.mp4"),
                _ => format!("-{seed}-{number}.mp4"),
            });
            name.into()
        }))
    }
}

/// What a command names and that is not on this machine's disk.
#[derive(Debug, Default)]
pub(crate) struct Elsewhere {
    /// Models of the hub.
    pub(crate) models: Models,
    /// Pictures of the web and of standard input.
    pub(crate) pictures: Pictures,
}

impl Elsewhere {
    /// With `heads_only` models are described, not used.
    pub(crate) fn new(heads_only: bool, catalogue: &Catalogue) -> Self {
        Self {
            models: Models::new(heads_only, catalogue),
            ..Self::default()
        }
    }
}

/// A resolved command line for a clip.
pub(crate) struct Resolved {
    /// The clip.
    pub(crate) request: Request,
    /// Where it is computed.
    pub(crate) machine: MachineArgs,
    /// Pictures while it is made.
    pub(crate) preview: PreviewArgs,
    /// Settings that were left open.
    pub(crate) open: Open,
    /// Whether the user has agreed to whatever takes long.
    pub(crate) yes: bool,
    /// Whether a Mac may fall asleep meanwhile.
    pub(crate) allow_sleep: bool,
    /// Whether an error of the GPU ends the run for good.
    pub(crate) no_retry: bool,
}

/// Resolves the flags of a clip.
///
/// # Errors
/// When a prompt cannot be read or the model cannot be had.
pub(crate) fn clip(
    clip: ClipArgs,
    output: OutputArgs,
    elsewhere: &mut Elsewhere,
) -> Result<Resolved> {
    // Both are there: only a subcommand does without.
    let image = clip.image;
    ensure!(
        image.as_ref().is_none_or(|image| image.as_os_str() != "-")
            || clip.prompt != Some(PromptSource::Stdin),
        "--image - and --prompt -: standard input can only be one of them\nhint: give a file, such as \
         --prompt @prompt.txt"
    );
    let pictures = &mut elsewhere.pictures;
    let image = image.map(|image| pictures.local("--image", image));
    let image = image.transpose()?;
    let prompt = clip.prompt.context("--prompt is missing")?;
    let seed = clip.seed.unwrap_or_else(random_seed);
    let stem = image.as_deref().and_then(Path::file_stem);
    let stem = short(stem.unwrap_or(OsStr::new(UNNAMED)));
    let open = Open {
        seed: clip.seed.is_none(),
        stem: output.output.is_none().then_some(stem),
    };
    let path = match output.output {
        Some(path) => Some(path),
        // Where a link leads is another's place.
        None => (open.outputs(seed)).and_then(|mut all| all.find(|path| !path.is_symlink())),
    };
    elsewhere.models.yes = clip.yes;
    let mut request = request(clip.model, image, prompt, clip.sampling, elsewhere)?;
    request.output = path.context("--output is missing")?;
    (request.strip, request.dump) = (output.strip, output.dump);
    request.preview_vae = output.preview.decoder().cloned();
    request.metadata = !clip.no_metadata;
    request.overwrite = clip.overwrite;
    request.options.seed = Some(seed);
    request.options.resize = Some(clip.resize);
    request.options.fit = clip.fit;
    Ok(Resolved {
        request,
        machine: clip.machine,
        preview: output.preview,
        open,
        // Who has agreed once is not asked again.
        yes: clip.yes || again().is_some(),
        allow_sleep: clip.allow_sleep,
        no_retry: clip.no_retry,
    })
}

/// The request of `plan`, with neither picture nor prompt when none is given.
///
/// # Errors
/// As [`clip`].
pub(crate) fn plan(args: PlanArgs, elsewhere: &mut Elsewhere) -> Result<Request> {
    let prompt = args.prompt.unwrap_or(PromptSource::Text(String::new()));
    let pictures = &mut elsewhere.pictures;
    let image = args.image.map(|image| pictures.local("--image", image));
    let image = image.transpose()?;
    request(args.model, image, prompt, args.sampling, elsewhere)
}

fn request(
    model: ModelArgs,
    image: Option<PathBuf>,
    prompt: PromptSource,
    sampling: SamplingArgs,
    elsewhere: &mut Elsewhere,
) -> Result<Request> {
    let size = sampling.size();
    let pictures = &mut elsewhere.pictures;
    let last_image = sampling.last_image;
    let last_image = last_image.map(|source| pictures.local("--last-image", source));
    let last_image = last_image.transpose()?;
    let (prompt, negative_prompt) = prompt::read_both(prompt, sampling.negative_prompt)?;
    let (model, mut loading) = elsewhere.models.resolve(model)?;
    // The miniature brings the adapters for its preset along.
    let asks = sampling.preset.as_deref() == Some(LIGHTNING);
    if asks && model == Model::Tiny && loading.adapters.is_empty() {
        loading.adapters.push(Wanted {
            source: Source::Embedded(tiny::LIGHTNING),
            strength: 1.0,
            expert: None,
        });
    }
    Ok(Request {
        model,
        loading,
        image,
        last_image,
        prompt,
        options: Options {
            size,
            seconds: sampling.seconds,
            frames: sampling.frames,
            fps: sampling.fps,
            steps: sampling.steps.map(|steps| steps.all),
            switch: sampling.steps.map(|steps| steps.switch),
            sigmas: sampling.sigmas,
            solver: sampling.solver,
            shift: sampling.shift,
            guide_scale: sampling.guide_scale,
            guide_interval: sampling.guide_interval,
            cache: sampling.cache,
            seed: None,
            resize: None,
            fit: None,
            negative_prompt,
        },
        output: PathBuf::new(),
        strip: None,
        overwrite: false,
        metadata: true,
        dump: None,
        preview_vae: None,
    })
}

/// The beginning of a file's name, which has room for a seed, a number and an ending.
fn short(stem: &OsStr) -> PathBuf {
    const MOST: usize = 200;
    if stem.len() <= MOST {
        return stem.into();
    }
    let text = stem.to_string_lossy();
    let fits = |(at, character): &(usize, char)| at + character.len_utf8() <= MOST;
    let short: String = (text.char_indices().take_while(fits))
        .map(|(_, character)| character)
        .collect();
    short.into()
}

/// 32 bits, since PyTorch's generator uses no more; from the standard library's random hasher.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}
