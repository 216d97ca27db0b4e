//! What is said of a symptom.

use serde::Serialize;

/// What may be wrong with a clip or with latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Symptom {
    /// Values that are infinite or no number.
    NonFinite,
    /// Black frames.
    Black,
    /// The first frame is not the picture.
    FirstFrame,
    /// The picture in the first latent frame, nothing after it.
    ContentLost,
    /// Frames of one colour.
    Grey,
    /// Frames of noise.
    Noise,
    /// Motion that stops, or none at all.
    Frozen,
    /// A checkerboard on the grid of pixels, latents or patches.
    Checkerboard,
    /// Latents that do not vary.
    Collapsed,
}

impl Symptom {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::NonFinite => "non-finite values",
            Self::Black => "black frames",
            Self::FirstFrame => "first frame",
            Self::ContentLost => "content lost",
            Self::Grey => "grey frames",
            Self::Noise => "noise",
            Self::Frozen => "frozen",
            Self::Checkerboard => "checkerboard",
            Self::Collapsed => "collapsed latents",
        }
    }
}

/// What is said of a symptom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not there.
    Ok,
    /// Worth knowing, and right in many clips.
    Note,
    /// A sound model does not make such a clip.
    Alarm,
    /// Cannot be told from what was given.
    Unknown,
}

/// A symptom and whether it is there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The symptom.
    pub symptom: Symptom,
    /// Whether it is there.
    pub status: Status,
    /// The (latent) frame that it begins at, when it was found.
    pub first: Option<usize>,
    /// The last (latent) frame that has it, when it was found.
    pub last: Option<usize>,
    /// Whether the clip ends with it.
    pub to_end: bool,
    /// What was measured, in a sentence.
    pub text: String,
    /// What may lie behind it, the likeliest first; of alarms only.
    pub causes: Vec<&'static str>,
}

/// Frames from the first to the last one of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub first: usize,
    pub last: usize,
    pub count: usize,
}

impl Run {
    /// The last run of frames, out of `count`, for which something holds, but for gaps of at most
    /// `gap` frames.
    pub fn last_of(count: usize, gap: usize, holds: impl Fn(usize) -> bool) -> Option<Self> {
        let last = (0..count).rev().find(|&i| holds(i))?;
        let mut first = last;
        while let Some(before) = (first.saturating_sub(gap + 1)..first).find(|&i| holds(i)) {
            first = before;
        }
        Some(Self { first, last, count })
    }

    /// From the first frame for which something holds to the last such.
    pub fn around(count: usize, holds: impl Fn(usize) -> bool) -> Option<Self> {
        let first = (0..count).find(|&i| holds(i))?;
        let last = (0..count).rev().find(|&i| holds(i))?;
        Some(Self { first, last, count })
    }

    /// Its number of frames.
    pub fn len(self) -> usize {
        self.last - self.first + 1
    }

    /// Whether it reaches the end.
    pub fn is_tail(self) -> bool {
        self.last + 1 == self.count
    }
}

impl Verdict {
    /// Whether it was found and where: `ok`, `found: from frame 5`.
    pub fn found(&self) -> String {
        let found = match self.status {
            Status::Ok => return "ok".into(),
            Status::Unknown => return "not checked".into(),
            Status::Note => "note",
            Status::Alarm => "found",
        };
        match (self.first, self.last) {
            (Some(first), Some(last)) if self.to_end && first < last => {
                format!("{found}: from frame {first}")
            }
            (Some(first), Some(last)) if first < last => {
                format!("{found}: frames {first} to {last}")
            }
            (Some(first), _) => format!("{found}: frame {first}"),
            _ => found.into(),
        }
    }

    pub(super) fn new(symptom: Symptom, status: Status, text: impl Into<String>) -> Self {
        Self {
            symptom,
            status,
            first: None,
            last: None,
            to_end: false,
            text: text.into(),
            causes: Vec::new(),
        }
    }

    pub(super) fn ok(symptom: Symptom, text: impl Into<String>) -> Self {
        Self::new(symptom, Status::Ok, text)
    }

    pub(super) fn note(symptom: Symptom, run: Run, text: impl Into<String>) -> Self {
        Self::new(symptom, Status::Note, text).at(run)
    }

    pub(super) fn alarm(
        symptom: Symptom,
        run: Run,
        text: impl Into<String>,
        causes: &[&'static str],
    ) -> Self {
        Self {
            causes: causes.to_vec(),
            ..Self::new(symptom, Status::Alarm, text).at(run)
        }
    }

    fn at(self, run: Run) -> Self {
        Self {
            first: Some(run.first),
            last: Some(run.last),
            to_end: run.is_tail(),
            ..self
        }
    }
}
