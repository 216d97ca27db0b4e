//! The flags of what is written beside the clip.

use std::path::{Path, PathBuf};

use crate::clip::Request;
use clap::Args;

use super::preview::PreviewArgs;

/// What is written beside the clip.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Also write a film strip of the clip, its frames with their numbers, as PNG
    #[arg(long, value_name = "PATH")]
    strip: Option<PathBuf>,

    /// Do not keep in the clip's file how it was made (see `wan-i2v show`)
    #[arg(long, hide_short_help = true)]
    no_metadata: bool,

    #[command(flatten)]
    pub preview: PreviewArgs,
}

impl OutputArgs {
    /// Where the film strip goes.
    pub fn strip(&self) -> Option<&Path> {
        self.strip.as_deref()
    }

    /// The request with these.
    pub fn apply(self, request: Request) -> Request {
        Request {
            strip: self.strip,
            metadata: !self.no_metadata,
            ..request
        }
    }
}
