//! From pictures to what the transformer sees of them.

use anyhow::{Context, Result, ensure};
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};
use ndarray::{Array3, ArrayView3};

use crate::clip::Settings;
use crate::media::bicubic;
use crate::model::MemoryPlan;
use crate::model::clip_vision::ClipVision;
use crate::model::dit::DitConfig;
use crate::model::vae::{Chunk, TEMPORAL_STRIDE, VaeEncoder, steps};
use crate::persist::dump::Dump;
use crate::progress::{Network, Phase, Progress, RunningPhase, load};
use crate::runtime::{Device, State, all_finite, rows};
use crate::weights::{Checkpoint, Conditioning, MASK_CHANNELS};

/// What the transformer is told of pictures; nothing where a clip has none.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// Channels that are joined to the noise: `[4 + z_dim, frames, height, width]`, the mask and
    /// then the normalised latents of the picture followed by zeros.
    pub beside: Option<Array>,
    /// The first latent frame, which is given and has no noise: `[z_dim, 1, height, width]`, normalised.
    pub first: Option<Array>,
    /// CLIP features `[rows, image_dim]`.
    pub features: Option<Array>,
}

/// The pictures that a clip is made from, each `[height, width, 3]` in [-1, 1], of the clip's size.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// What it starts with.
    pub first: ArrayView3<'a, f32>,
    /// What it ends with, if that is given.
    pub last: Option<ArrayView3<'a, f32>>,
    /// The same as the image encoder takes them, stretched from their own size to squares; made of the
    /// above where there are none.
    pub squares: &'a [Array3<f32>],
}

impl<'a> From<ArrayView3<'a, f32>> for Ends<'a> {
    fn from(first: ArrayView3<'a, f32>) -> Self {
        Self {
            first,
            last: None,
            squares: &[],
        }
    }
}

/// Loads the VAE's encoder, encodes the conditioning video (the first picture, then zeros, and in
/// the very last pixel frame the last picture if there is one), in tiles if `memory` asks for them,
/// and drops the encoder.
///
/// Source: `WanImageToVideoPipeline.prepare_latents` of diffusers, with and without `last_image`.
///
/// # Errors
/// When a weight is damaged or MLX fails.
pub fn encode_condition<'a>(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    ends: impl Into<Ends<'a>>,
    settings: &Settings,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
) -> Result<Condition> {
    let ends = ends.into();
    let units = image_units(memory, settings, checkpoint);
    let mut phase = RunningPhase::start(Phase::Image, units, 0, progress);
    let features = match checkpoint.image_encoder {
        Some(_) => {
            let encoder = FeatureEncoder::load(checkpoint, device, progress)?;
            Some(encoder.encode(ends, &mut phase, progress)?)
        }
        None => None,
    };
    clear_cache()?;
    let encoder = ImageEncoder::load(checkpoint, device, progress)?;
    let condition = encoder.encode(memory, ends, settings, &mut phase, progress)?;
    let condition = Condition {
        features,
        ..condition
    };
    if let Some(dump) = dump {
        condition.dump(dump)?;
    }
    drop(encoder);
    clear_cache()?;
    phase.finish(progress);
    Ok(condition)
}

/// The normalised latents `[z_dim, frames, height, width]` of a picture and zeros behind it, whatever the
/// model makes of pictures.
///
/// # Errors
/// As [`encode_condition`].
pub fn encode_video(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    picture: ArrayView3<'_, f32>,
    settings: &Settings,
) -> Result<Array> {
    let encoder = checkpoint.load_vae_encoder(device)?;
    let grid = settings.latent_grid(&checkpoint.vae);
    let latents = video(&encoder, memory, picture.into(), grid, &mut || Ok(()))?;
    drop(encoder);
    clear_cache()?;
    let latents = checkpoint.vae.normalize(&latents)?;
    check_finite(&latents, LATENTS)?;
    Ok(latents)
}

/// Units of encoding a clip's pictures: each one's features, and the frames of the conditioning video.
pub(super) fn image_units(
    memory: &MemoryPlan,
    settings: &Settings,
    checkpoint: &Checkpoint,
) -> usize {
    checkpoint.family.conditioning.features() + frame_units(memory, settings, checkpoint)
}

/// Those of the VAE alone.
pub(super) fn frame_units(
    memory: &MemoryPlan,
    settings: &Settings,
    checkpoint: &Checkpoint,
) -> usize {
    steps(memory.encode_tiling, encoded_grid(checkpoint, settings))
}

/// Frames, rows and columns of the latents that pictures are encoded to.
pub(super) fn encoded_grid(checkpoint: &Checkpoint, settings: &Settings) -> [i32; 3] {
    let [frames, rows, columns] = settings.latent_grid(&checkpoint.vae);
    match checkpoint.family.conditioning {
        Conditioning::FirstFrame => [1, rows, columns],
        _ => [frames, rows, columns],
    }
}

/// The image encoder, loaded.
#[derive(Debug)]
pub(super) struct FeatureEncoder {
    encoder: ClipVision,
    pictures: usize,
}

impl FeatureEncoder {
    /// Loads it.
    ///
    /// # Errors
    /// When the model has none, a weight is damaged, or the run shall stop here.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let (encoder, _) = load(Network::ImageEncoder, progress, || {
            checkpoint.load_image_encoder(device)
        })?;
        Ok(Self {
            encoder,
            pictures: checkpoint.family.conditioning.features(),
        })
    }

    /// The features `[rows, image_dim]` of as many pictures as the model looks at, the first one's rows first.
    ///
    /// # Errors
    /// When one is missing, MLX fails, they are not finite, or the run shall stop here.
    pub(super) fn encode(
        &self,
        ends: Ends<'_>,
        phase: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<Array> {
        let side = self.encoder.config().image_size as usize;
        let all = [Some(ends.first), ends.last];
        let mut rows = Vec::new();
        for (index, picture) in all.into_iter().take(self.pictures).enumerate() {
            let picture = picture.context("the model needs a last picture too")?;
            let made;
            let square = match ends.squares.get(index) {
                Some(square) => square,
                None => {
                    made = bicubic(picture, side, side);
                    &made
                }
            };
            rows.push(self.encoder.encode(square.view())?);
            phase.advance(progress)?;
        }
        let features = concatenate(&rows, 0)?;
        check_finite(&features, "image encoder's features")?;
        Ok(features)
    }
}

/// The VAE's encoder, loaded.
#[derive(Debug)]
pub(super) struct ImageEncoder<'a> {
    checkpoint: &'a Checkpoint,
    encoder: VaeEncoder,
}

impl<'a> ImageEncoder<'a> {
    /// Loads it.
    ///
    /// # Errors
    /// When a weight is damaged, or the run shall stop here.
    pub(super) fn load(
        checkpoint: &'a Checkpoint,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let (encoder, _) = load(Network::VaeEncoder, progress, || {
            checkpoint.load_vae_encoder(device)
        })?;
        Ok(Self {
            checkpoint,
            encoder,
        })
    }

    /// See [`encode_condition`].
    ///
    /// # Errors
    /// When MLX fails, the latents are not finite, or the run shall stop here.
    pub(super) fn encode(
        &self,
        memory: &MemoryPlan,
        ends: Ends<'_>,
        settings: &Settings,
        phase: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<Condition> {
        encode(
            self.checkpoint,
            &self.encoder,
            memory,
            ends,
            settings,
            &mut || phase.advance(progress),
        )
    }
}

impl Condition {
    /// Writes it, and its mask by itself.
    pub(super) fn dump(&self, dump: &Dump) -> Result<()> {
        if let Some(beside) = &self.beside {
            dump.array("mask", &rows(beside, 0, MASK_CHANNELS)?)?;
            dump.array("condition", beside)?;
        }
        if let Some(first) = &self.first {
            dump.array("first_frame", first)?;
        }
        if let Some(features) = &self.features {
            dump.array("image_features", features)?;
        }
        Ok(())
    }

    /// Puts it where a run is saved.
    pub(crate) fn save(&self, state: &mut State) {
        state.set_optional("condition", self.beside.as_ref());
        state.set_optional("first_frame", self.first.as_ref());
        state.set_optional("image_features", self.features.as_ref());
    }

    /// What [`Self::save`] put there.
    pub(crate) fn restore(state: &State) -> Self {
        Self {
            beside: state.optional("condition"),
            first: state.optional("first_frame"),
            features: state.optional("image_features"),
        }
    }

    /// `latents` `[z_dim, frames, height, width]` with the frame that is given in its place.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn put_into(&self, latents: &Array) -> Result<Array> {
        let Some(first) = &self.first else {
            return Ok(latents.clone());
        };
        let rest = latents.try_index((.., 1.., .., ..))?;
        Ok(concatenate(&[first, &rest], 1)?)
    }

    /// The tokens of the frame that is given, of a clip of `grid` latents.
    pub(crate) fn given_tokens(&self, config: &DitConfig, [_, rows, columns]: [i32; 3]) -> i32 {
        match self.first {
            Some(_) => config.tokens([config.patch_size[0], rows, columns]),
            None => 0,
        }
    }
}

fn encode(
    checkpoint: &Checkpoint,
    encoder: &VaeEncoder,
    memory: &MemoryPlan,
    ends: Ends<'_>,
    settings: &Settings,
    advance: &mut dyn FnMut() -> Result<()>,
) -> Result<Condition> {
    let grid = settings.latent_grid(&checkpoint.vae);
    if checkpoint.family.conditioning == Conditioning::FirstFrame {
        let grid = encoded_grid(checkpoint, settings);
        let latents = video(encoder, memory, ends, grid, advance)?;
        let first = checkpoint.vae.normalize(&latents)?.contiguous()?;
        check_finite(&first, LATENTS)?;
        return Ok(Condition {
            first: Some(first),
            ..Condition::default()
        });
    }
    let latents = video(encoder, memory, ends, grid, advance)?;
    let latents = checkpoint.vae.normalize(&latents)?;
    let mask = frame_mask(grid, ends.last.is_some())?;
    let beside = concatenate(&[mask, latents], 0)?.contiguous()?;
    check_finite(&beside, LATENTS)?;
    Ok(Condition {
        beside: Some(beside),
        ..Condition::default()
    })
}

/// The latents of the conditioning video, of `grid` latents: the first picture, then zeros, and in the last
/// pixel frame the last picture.
fn video(
    encoder: &VaeEncoder,
    memory: &MemoryPlan,
    Ends { first, last, .. }: Ends<'_>,
    [frames, rows, columns]: [i32; 3],
    advance: &mut dyn FnMut() -> Result<()>,
) -> Result<Array> {
    let [height, width] = [rows, columns].map(|side| side * encoder.side());
    let frame = |pixels: ArrayView3<'_, f32>| {
        ensure!(
            pixels.dim() == (height as usize, width as usize, 3),
            "the picture was resized to {:?}; expected {height} x {width} RGB",
            pixels.dim()
        );
        let pixels: Vec<f32> = pixels.iter().copied().collect();
        Ok(Array::from_slice(&pixels, &[1, height, width, 3]))
    };
    ensure!(
        last.is_none() || frames > 1,
        "a clip of one frame has no last picture besides the first"
    );
    let picture = Chunk::Pixels(frame(first)?);
    let ending = match last {
        Some(last) => {
            let blanks = [TEMPORAL_STRIDE - 1, height, width, 3];
            let blanks = zeros_dtype(&blanks, Dtype::Float32)?;
            Chunk::Pixels(concatenate(&[blanks, frame(last)?], 0)?)
        }
        None => Chunk::Blank,
    };
    let chunk = |index| {
        Ok(match index {
            0 => &picture,
            index if index == frames - 1 => &ending,
            _ => &Chunk::Blank,
        }
        .clone())
    };
    encoder.encode(frames, &chunk, memory, advance)
}

/// What is not finite when it is the VAE's.
const LATENTS: &str = "VAE's encoding";

fn check_finite(encoded: &Array, what: &str) -> Result<()> {
    encoded.eval()?;
    ensure!(
        all_finite(encoded)?,
        "the {what} of the picture is not finite; its weights are damaged, or try \
         --device cpu and please report it"
    );
    Ok(())
}

/// The mask `[4, frames, height, width]` of the pixel frames that are given: its channels are the
/// four pixel frames of a latent frame. Ones in latent frame 0, which holds one picture four times,
/// and, when the last picture is given, in the last channel of the last latent frame.
pub fn frame_mask(grid: [i32; 3], last: bool) -> Result<Array> {
    let [frames, height, width] = grid;
    let plane = (height * width) as usize;
    let is_given = |channel, frame| {
        let ends = last && frame == frames - 1 && channel == TEMPORAL_STRIDE - 1;
        frame == 0 || ends
    };
    let mask: Vec<f32> = (0..TEMPORAL_STRIDE)
        .flat_map(|channel| (0..frames).map(move |frame| (channel, frame)))
        .flat_map(|(channel, frame)| {
            let value = if is_given(channel, frame) { 1.0 } else { 0.0 };
            std::iter::repeat_n(value, plane)
        })
        .collect();
    Ok(Array::from_slice(
        &mask,
        &[TEMPORAL_STRIDE, frames, height, width],
    ))
}
