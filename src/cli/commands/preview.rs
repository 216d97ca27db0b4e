//! `--preview`: pictures of a clip that is still being denoised, in a file or in the terminal.

use std::path::{Path, PathBuf};

use crate::clip::Request;
use crate::media::preview::{self, LatentRgb};
use crate::media::strip::Title;
use crate::pipeline::{Job, Observer, PreviewDecoder};
use crate::runtime::Device;
use crate::util::show::chain;
use anyhow::{Context, Result, ensure};
use indicatif::MultiProgress;
use mlx_rs::Array;

use crate::cli::flags::PreviewArgs;
use crate::cli::ui::{Protocol, Space, Style, stderr, style, terminal};

/// Where previews go, checked.
#[derive(Debug)]
pub(crate) enum Screen {
    File(PathBuf),
    Terminal(Protocol),
}

impl Screen {
    /// Where previews go, if there shall be any.
    ///
    /// # Errors
    /// When the file cannot be written or would replace another one of the run, or the terminal
    /// has no colours.
    pub(crate) fn of(args: &PreviewArgs, request: &Request) -> Result<Option<Self>> {
        let Some(path) = args.preview.as_deref() else {
            return Ok(None);
        };
        if path == Path::new("-") {
            let protocol = Protocol::of(|name| std::env::var(name).ok()).context("--preview -")?;
            ensure!(
                terminal::is_seen(),
                "--preview -: stderr is not a terminal\nhint: give a file, such as --preview preview.png"
            );
            ensure!(
                style() != Style::Json,
                "--preview - shows pictures where --progress json has lines of JSON\nhint: give a file"
            );
            return Ok(Some(Screen::Terminal(protocol)));
        }
        preview::check(path).context("--preview")?;
        request.check_spares_others("--preview", path)?;
        Ok(Some(Screen::File(path.to_owned())))
    }
}

/// Shows previews of `job` there, without disturbing what `console` shows.
///
/// # Errors
/// When the model names no colours for its latents.
pub(crate) fn attach(
    args: &PreviewArgs,
    job: &mut Job,
    screen: Screen,
    device: Device,
    console: MultiProgress,
) -> Result<()> {
    let look = match job.take_preview_decoder() {
        Some(decoder) => Look::Decoded(Box::new(decoder), device),
        None => Look::Colours(job.latent_rgb()?.clone()),
    };
    let observer = Previews {
        look,
        every: args.preview_every.get(),
        fps: job.settings().fps,
        title: job.title(),
        screen: Some(screen),
        space: Space::of(terminal::stderr_size()),
        rows: 0,
        console,
    };
    job.observe(Box::new(observer));
    Ok(())
}

/// How latents are shown.
#[derive(Debug)]
enum Look {
    Colours(LatentRgb),
    Decoded(Box<PreviewDecoder>, Device),
}

/// Turns estimates into pictures and puts them where they are to be seen.
#[derive(Debug)]
struct Previews {
    look: Look,
    every: usize,
    fps: f64,
    title: Title,
    /// `None` after a failure, which is reported once and does not end the run.
    screen: Option<Screen>,
    /// Where pictures in the terminal go.
    space: Space,
    /// Lines that the last one takes.
    rows: u32,
    console: MultiProgress,
}

impl Observer for Previews {
    fn wants(&self, index: usize, steps: usize) -> bool {
        self.screen.is_some() && ((index + 1).is_multiple_of(self.every) || index + 1 == steps)
    }

    fn estimate(&mut self, clean: &Array) {
        if let Err(error) = self.show(clean) {
            self.screen = None;
            let text = format!("the run continues without --preview: {}", chain(&error));
            self.console.suspend(|| stderr::warning(&text));
        }
    }
}

impl Previews {
    fn show(&mut self, clean: &Array) -> Result<()> {
        let pictures = match &mut self.look {
            Look::Colours(map) => map.pictures(clean)?,
            Look::Decoded(decoder, device) => decoder.pictures(clean, *device)?,
        };
        match &self.screen {
            Some(Screen::File(path)) => preview::write(path, &pictures, self.fps, &self.title),
            Some(Screen::Terminal(protocol)) => {
                let page = preview::page(&pictures, protocol.side_by_side());
                let (text, rows) = protocol.draw(&page, self.space, self.rows)?;
                self.rows = rows;
                self.console
                    .suspend(|| terminal::draw(&text))
                    .context("cannot write to the terminal")
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn previews(every: usize, screen: Option<Screen>) -> Previews {
        Previews {
            look: Look::Colours(LatentRgb::default()),
            every,
            fps: 16.0,
            title: Title {
                prompt: None,
                facts: String::new(),
            },
            screen,
            space: Space::of((80, 24)),
            rows: 0,
            console: MultiProgress::new(),
        }
    }

    #[test]
    fn every_nth_step_and_the_last_one_are_shown() {
        let shown = |every| -> Vec<usize> {
            let previews = previews(every, Some(Screen::File("x.png".into())));
            (0..7).filter(|&index| previews.wants(index, 7)).collect()
        };
        assert_eq!(shown(1), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(shown(3), [2, 5, 6]);
        assert_eq!(shown(100), [6]);
    }

    #[test]
    fn a_failure_ends_the_previews_and_not_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/preview.png");
        let mut previews = previews(1, Some(Screen::File(path)));
        previews.estimate(&Array::from_slice(&[0.0_f32; 16], &[16, 1, 1, 1]));
        assert!(!previews.wants(0, 7));
    }
}
