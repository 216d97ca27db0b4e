//! The result.

use serde::Serialize;

use super::frames::{FirstFrame, FrameStats};
use super::latents::LatentStats;
use super::table;
use super::verdict::{Status, Symptom, Verdict};

/// The version of the report's JSON (`docs/analyze.md`). A new one means that something was removed
/// or changed its meaning; what is added leaves it as it is.
pub const SCHEMA: u32 = 1;

/// Statistics of a clip's frames, or of its latents, and what they say.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whether any symptom is an alarm.
    pub alarm: bool,
    /// Of a frame, or of a latent frame.
    pub size: Size,
    /// Of every frame; empty for latents.
    pub frames: Vec<FrameStats>,
    /// Of every latent frame; empty for frames.
    pub latents: Vec<LatentStats>,
    /// How well the first frame meets the picture; `None` when there is none to compare with.
    pub first_frame: Option<FirstFrame>,
    /// One for each symptom, in the order of [`Symptom`].
    pub verdicts: Vec<Verdict>,
}

/// Width and height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Values per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Report {
    pub(super) fn new(size: Size, verdicts: Vec<Verdict>) -> Self {
        Self {
            schema: SCHEMA,
            alarm: verdicts.iter().any(|v| v.status == Status::Alarm),
            size,
            frames: Vec::new(),
            latents: Vec::new(),
            first_frame: None,
            verdicts,
        }
    }

    /// What was found: alarms, and what is worth knowing.
    pub fn findings(&self) -> impl Iterator<Item = &Verdict> {
        let found = |v: &&Verdict| matches!(v.status, Status::Alarm | Status::Note);
        self.verdicts.iter().filter(found)
    }

    /// What it is of and what it comes to, in a sentence.
    pub fn headline(&self) -> String {
        let Size { width, height } = self.size;
        let what = match self.frames.len() {
            0 => format!("{} latent frames of {width}x{height}", self.latents.len()),
            count => format!("{count} frames of {width}x{height} pixels"),
        };
        let alarms = self.verdicts.iter().filter(|v| v.status == Status::Alarm);
        match alarms.count() {
            0 => format!("{what}, no alarm"),
            1 => format!("{what}, 1 alarm"),
            count => format!("{what}, {count} alarms"),
        }
    }

    /// The figures as text: a header, then a row for each (latent) frame.
    pub fn rows(&self) -> Vec<Vec<String>> {
        table::rows(self)
    }

    /// The verdict on a symptom.
    pub fn verdict(&self, symptom: Symptom) -> Option<&Verdict> {
        self.verdicts.iter().find(|v| v.symptom == symptom)
    }
}
