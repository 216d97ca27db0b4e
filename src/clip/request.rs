//! A clip as it is asked for.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Options, Settings};
use crate::media::clip::is_frame_name;
use crate::text::clean;
use crate::tiny;
use crate::util::show::Show;
use crate::weights::{Checkpoint, Family, Loading, Sources};

/// Which checkpoint is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// The miniature that is part of the program (see [`crate::tiny`]).
    Tiny,
    /// A model on disk.
    Disk(Sources),
    /// A published one whose files are not here: what it costs can be told.
    Published(&'static Family),
}

impl Model {
    /// Reads and checks the checkpoint's configuration and tensor headers.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(&self, loading: Loading) -> Result<Checkpoint> {
        match self {
            Model::Tiny => Checkpoint::embedded(tiny::FILES, loading),
            Model::Disk(sources) => Checkpoint::open(sources, loading),
            Model::Published(family) => Ok(Checkpoint::published_as(family, loading)),
        }
    }
}

/// A clip to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// The checkpoint.
    pub model: Model,
    /// How it is loaded: bits and adapters.
    pub loading: Loading,
    /// The start picture, where the clip starts with one.
    pub image: Option<PathBuf>,
    /// The picture that the clip is to end with.
    pub last_image: Option<PathBuf>,
    /// What happens in the clip.
    pub prompt: String,
    /// The settings that are given.
    pub options: Options,
    /// Where the clip goes: `.mp4`, `.gif`, or a folder for PNG frames.
    pub output: PathBuf,
    /// Where a film strip of the clip goes, a PNG.
    pub strip: Option<PathBuf>,
    /// Whether what is at `output` or `strip` is replaced, whatever it is.
    pub overwrite: bool,
    /// Whether the clip's file keeps how it was made (see [`crate::clip::metadata`]).
    pub metadata: bool,
    /// Folder for every intermediate tensor.
    pub dump: Option<PathBuf>,
    /// A small decoder that previews are made with.
    pub preview_vae: Option<PathBuf>,
}

impl Request {
    /// Checks what needs neither the model nor the picture.
    ///
    /// # Errors
    /// Names the flag, what was given and what is expected.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !clean(&self.prompt).is_empty(),
            "--prompt is empty\nhint: say what happens in the clip"
        );
        self.options.check()
    }

    /// The clip's settings with the model's recommendations, for a picture of `picture` (width,
    /// height) pixels, if there is one.
    ///
    /// # Errors
    /// As [`Options::resolve`], and when a clip of one frame shall end with another picture, or the model
    /// has no experts to have settings of their own.
    pub fn resolve(
        &self,
        checkpoint: &Checkpoint,
        picture: Option<(usize, usize)>,
    ) -> Result<Settings> {
        let token = checkpoint.token_side();
        let settings = (self.options).resolve(&checkpoint.settings, picture, token)?;
        ensure!(
            self.last_image.is_none() || settings.frames > 1,
            "--last-image needs more --frames than 1"
        );
        if checkpoint.family.boundary.is_none() {
            let name = checkpoint.family.name;
            let scale = settings.guide_scale;
            ensure!(
                scale.low == scale.high,
                "--guide-scale {},{}: {name} has one transformer\nhint: give one scale",
                scale.low,
                scale.high
            );
            ensure!(
                settings.switch.0.is_none(),
                "--steps of each expert: {name} has one transformer\nhint: give their sum"
            );
        }
        Ok(settings)
    }

    /// Refuses an output that would replace a picture, and a folder of frames that a picture itself
    /// is one of: it would be replaced, or removed as a surplus frame of an older clip.
    ///
    /// # Errors
    /// Names both paths.
    pub fn check_output_spares_images(&self) -> Result<()> {
        let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        for (what, image) in self.images() {
            let is_frame = image.file_name().is_some_and(is_frame_name);
            ensure!(
                !(same(image, &self.output) || is_frame && same(folder_of(image), &self.output)),
                "--output {}: the clip would replace {what} {}\nhint: choose another folder or name",
                self.output.shown(),
                image.shown()
            );
        }
        Ok(())
    }

    /// The pictures that are given.
    fn images(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let last = self
            .last_image
            .iter()
            .map(|image| ("the last picture", image));
        let first = self.image.iter().map(|image| ("the start picture", image));
        first.chain(last)
    }

    /// Refuses a further output that would replace the picture, the clip, one of its frames or
    /// another output.
    ///
    /// # Errors
    /// Names `flag`, its path and what it would replace.
    pub fn check_spares_others(&self, flag: &str, path: &Path) -> Result<()> {
        // Where the file will be, though neither it nor the clip may be there yet.
        let place = |path: &Path| {
            Some((
                folder_of(path).canonicalize().ok()?,
                path.file_name()?.to_owned(),
            ))
        };
        let here = place(path);
        let is_frame = path.file_name().is_some_and(is_frame_name)
            && matches!((folder_of(path).canonicalize(), self.output.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let strip = self.strip.as_ref().filter(|_| flag != "--strip");
        let others = [("the clip", Some(&self.output)), ("the film strip", strip)];
        let others = others
            .into_iter()
            .filter_map(|(what, path)| Some((what, path?)));
        for (what, other) in self.images().chain(others) {
            ensure!(
                here.is_none() || here != place(other),
                "{flag} {}: would replace {what}\nhint: choose another name",
                path.shown()
            );
        }
        ensure!(
            !is_frame,
            "{flag} {}: is a frame of the clip\nhint: choose another name",
            path.shown()
        );
        Ok(())
    }
}

/// The folder that a file is in, or is to be.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
