//! From flags to requests: reads prompts, finds the model or fetches it, draws a seed. Before
//! this nothing is read but variables and the config file.

pub(super) mod model;
mod prompt;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use crate::clip::{Options, Request};
use anyhow::{Context, Result};

use crate::cli::flags::{
    ClipArgs, MachineArgs, ModelArgs, OutputArgs, PlanArgs, PreviewArgs, PromptSource, SamplingArgs,
};

/// Settings that the user has left open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    /// Any seed will do.
    pub(crate) seed: bool,
    /// The beginning of the clip's name when the seed is to be a part of it.
    pub(crate) stem: Option<PathBuf>,
}

impl Open {
    /// The clip's name with a seed, unless the user has named it.
    pub(crate) fn output(&self, seed: u64) -> Option<PathBuf> {
        let mut name = self.stem.clone()?.into_os_string();
        name.push(format!("-{seed}.mp4"));
        Some(name.into())
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
}

/// Resolves the flags of a clip.
///
/// # Errors
/// When a prompt cannot be read or the model cannot be had.
pub(crate) fn clip(clip: ClipArgs, output: OutputArgs) -> Result<Resolved> {
    // Both are there: only a subcommand does without.
    let image = clip.image.context("--image is missing")?;
    let prompt = clip.prompt.context("--prompt is missing")?;
    let seed = clip.seed.unwrap_or_else(random_seed);
    let stem = PathBuf::from(image.file_stem().unwrap_or_default());
    let open = Open {
        seed: clip.seed.is_none(),
        stem: output.output.is_none().then_some(stem),
    };
    let path = output.output.or_else(|| open.output(seed));
    let mut request = request(clip.model, image, prompt, clip.sampling)?;
    request.output = path.context("--output is missing")?;
    (request.strip, request.dump) = (output.strip, output.dump);
    request.metadata = !clip.no_metadata;
    request.options.seed = Some(seed);
    request.options.resize = Some(clip.resize);
    Ok(Resolved {
        request,
        machine: clip.machine,
        preview: output.preview,
        open,
    })
}

/// The request of `plan`, with neither picture nor prompt when none is given.
///
/// # Errors
/// As [`clip`].
pub(crate) fn plan(args: PlanArgs) -> Result<Request> {
    let prompt = args.prompt.unwrap_or(PromptSource::Text(String::new()));
    let image = args.image.unwrap_or_default();
    request(args.model, image, prompt, args.sampling)
}

fn request(
    model: ModelArgs,
    image: PathBuf,
    prompt: PromptSource,
    sampling: SamplingArgs,
) -> Result<Request> {
    let (prompt, negative_prompt) = prompt::read_both(prompt, sampling.negative_prompt)?;
    let (model, bits) = model::resolve(model)?;
    Ok(Request {
        model,
        bits,
        image,
        last_image: sampling.last_image,
        prompt,
        options: Options {
            size: sampling.size.or(sampling.area),
            frames: sampling.frames,
            fps: sampling.fps,
            steps: sampling.steps,
            solver: Some(sampling.solver),
            shift: sampling.shift,
            guide_scale: sampling.guide_scale,
            guide_interval: sampling.guide_interval,
            cache: sampling.cache,
            seed: None,
            resize: None,
            negative_prompt,
        },
        output: PathBuf::new(),
        strip: None,
        metadata: true,
        dump: None,
    })
}

/// 32 bits, since PyTorch's generator uses no more; from the standard library's random hasher.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}
