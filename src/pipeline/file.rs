//! The clip's file, and its film strip.

use std::path::Path;

use anyhow::{Context, Result};
use image::RgbImage;

use crate::clip::{Request, Settings};
use crate::media::clip::ClipWriter;
use crate::media::strip::{FilmStrip, Title};
use crate::media::tags::Tags;
use crate::model::vae::VaeConfig;
use crate::util::show::Show;

/// A clip being written; it appears under its name when it is finished.
pub(super) struct ClipFile<'a> {
    output: &'a Path,
    writer: ClipWriter,
    strip: Option<FilmStrip>,
}

impl<'a> ClipFile<'a> {
    /// Begins the file and the strip that are asked for.
    ///
    /// # Errors
    /// When they cannot be created.
    pub(super) fn create(
        request: &'a Request,
        settings: &Settings,
        vae: &VaeConfig,
        tags: Option<Tags>,
    ) -> Result<Self> {
        let output = request.output.as_path();
        let writer = ClipWriter::create(output, &settings.clip_spec(vae), tags.as_ref())
            .with_context(|| format!("--output {}", output.shown()))?;
        let strip = request.strip.as_deref();
        let strip = strip.map(|path| {
            let strip = FilmStrip::new(path, settings.frames, tags)?;
            Ok::<_, anyhow::Error>(strip.titled(title(request, settings)))
        });
        Ok(Self {
            output,
            writer,
            strip: strip.transpose().context("--strip")?,
        })
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn push(&mut self, frame: &RgbImage) -> Result<()> {
        if let Some(strip) = &mut self.strip {
            strip.push(frame);
        }
        self.writer.push(frame)
    }

    /// Completes both.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn finish(self) -> Result<()> {
        let output = self.output;
        let finished = self.writer.finish();
        finished.with_context(|| format!("--output {}", output.shown()))?;
        let strip = self.strip.map(FilmStrip::finish).transpose();
        strip.context("--strip; the clip is complete")?;
        Ok(())
    }
}

/// What stands above pictures of a clip. Without metadata it tells what the clip itself shows.
pub(super) fn title(request: &Request, settings: &Settings) -> Title {
    let Settings {
        frames, fps, seed, ..
    } = settings;
    let length = format!("{frames} frames, {:.1} s", f64::from(*frames) / fps);
    match request.metadata {
        true => Title {
            prompt: Some(request.prompt.clone()),
            facts: format!("seed {seed}, {length}"),
        },
        false => Title {
            prompt: None,
            facts: length,
        },
    }
}
