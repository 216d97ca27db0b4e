//! Inputs that jobs share while they are prepared.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;

use super::source_image::SourceImage;
use super::text::{PromptIds, tokenize_with};
use crate::clip::{Model, Settings};
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, Loading};

/// Models, their tokenizers and pictures that are opened once for many jobs.
#[derive(Debug, Default)]
pub struct InputCache {
    /// Whether a model may be there by the heads of its files alone.
    heads_only: bool,
    models: Vec<Opened>,
    pictures: HashMap<PathBuf, SourceImage>,
}

/// A model.
#[derive(Debug)]
pub(super) struct Opened {
    model: Model,
    loading: Loading,
    checkpoint: Rc<Checkpoint>,
    tokenizer: Option<Tokenizer>,
}

impl InputCache {
    /// With `heads_only` models are described, not used: their weights may not be there.
    pub fn new(heads_only: bool) -> Self {
        Self {
            heads_only,
            ..Self::default()
        }
    }

    /// A model that is loaded like this.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub(super) fn model(&mut self, model: &Model, loading: &Loading) -> Result<&mut Opened> {
        let found = self
            .models
            .iter()
            .position(|opened| opened.model == *model && opened.loading == *loading);
        let index = match found {
            Some(index) => index,
            None => {
                let checkpoint = model.open(loading.clone())?;
                if !self.heads_only {
                    checkpoint.check_filled()?;
                }
                self.models.push(Opened {
                    model: model.clone(),
                    loading: loading.clone(),
                    checkpoint: Rc::new(checkpoint),
                    tokenizer: None,
                });
                self.models.len() - 1
            }
        };
        Ok(&mut self.models[index])
    }

    /// A picture. Only the first job that asks for it gets pixels that are in memory.
    ///
    /// # Errors
    /// As [`Picture::open`](crate::media::picture::Picture::open).
    pub(super) fn picture(&mut self, path: &Path) -> Result<SourceImage> {
        if let Some(image) = self.pictures.get(path) {
            return Ok(image.clone());
        }
        SourceImage::open(path)
    }

    /// Keeps a picture, without its pixels, for the next job that asks for it.
    pub(super) fn keep_picture(&mut self, path: &Path, image: &SourceImage) {
        self.pictures.insert(path.to_owned(), image.clone());
    }
}

impl Opened {
    pub(super) fn checkpoint(&self) -> Rc<Checkpoint> {
        Rc::clone(&self.checkpoint)
    }

    /// As [`tokenize`](super::tokenize).
    ///
    /// # Errors
    /// As there.
    pub(super) fn tokenize(&mut self, prompt: &str, settings: &Settings) -> Result<PromptIds> {
        let tokenizer = match &mut self.tokenizer {
            Some(tokenizer) => tokenizer,
            empty => empty.insert(self.checkpoint.load_tokenizer()?),
        };
        tokenize_with(tokenizer, prompt, settings)
    }
}
