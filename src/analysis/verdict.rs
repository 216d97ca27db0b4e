//! From statistics to verdicts. Every limit has its measurements in `docs/analyze.md`.

use serde::Serialize;

use super::causes;
use super::frames::{FirstFrame, FrameStats};
use super::latents::LatentStats;

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
    /// What was measured, in a sentence.
    pub text: String,
    /// What may lie behind it, the likeliest first; of alarms only.
    pub causes: Vec<&'static str>,
}

/// A frame is black below this mean and with less contrast than [`BLACK_CONTRAST`], in levels.
const BLACK_MEAN: f64 = 8.0;
const BLACK_CONTRAST: f64 = 4.0;
/// A frame is grey (of one colour) with less than this share of the first frame's contrast, and
/// any frame is below this contrast in levels.
const GREY_SHARE: f64 = 0.2;
const GREY_CONTRAST: f64 = 2.0;
/// A frame is noise from this standard deviation in levels, and from this multiple of the
/// reference's.
const NOISE_LEVEL: f64 = 8.0;
const NOISE_SHARE: f64 = 3.0;
/// Frames stand still below this difference in levels, and in a clip that moves below this share
/// of its median difference.
const STILL_DIFFERENCE: f64 = 0.1;
const STILL_SHARE: f64 = 0.05;
/// A tail is frozen from so many frames.
const FROZEN_FRAMES: usize = 4;
/// A checkerboard shows from this amplitude in levels beyond the picture's own.
const CHECKERBOARD: [f64; 3] = [2.0, 2.0, 3.0];
/// The first frame meets the picture from this PSNR in dB and this SSIM.
const FIRST_PSNR: f64 = 22.0;
const FIRST_SSIM: f64 = 0.7;
/// The last frame that still may belong to the second latent frame.
const FIRST_LATENTS: usize = 5;
/// Latents have collapsed below this standard deviation within channels; they are about 1.
const COLLAPSED_STD: f64 = 0.05;
/// Latents are noise below this correlation of neighbours.
const NOISE_CORRELATION: f64 = 0.1;

impl Verdict {
    fn new(symptom: Symptom, status: Status, text: impl Into<String>) -> Self {
        Self {
            symptom,
            status,
            first: None,
            last: None,
            text: text.into(),
            causes: Vec::new(),
        }
    }

    fn ok(symptom: Symptom, text: impl Into<String>) -> Self {
        Self::new(symptom, Status::Ok, text)
    }

    fn alarm(
        symptom: Symptom,
        run: (usize, usize),
        text: impl Into<String>,
        causes: &[&'static str],
    ) -> Self {
        Self {
            first: Some(run.0),
            last: Some(run.1),
            causes: causes.to_vec(),
            ..Self::new(symptom, Status::Alarm, text)
        }
    }
}

/// The last run of frames for which something holds: its first and its last one.
fn last_run(count: usize, holds: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
    let last = (0..count).rev().find(|&i| holds(i))?;
    let first = (0..=last).rev().take_while(|&i| holds(i)).last()?;
    Some((first, last))
}

/// Verdicts on a clip's frames, of which there is at least one.
pub(super) fn of_frames(frames: &[FrameStats], first: Option<&FirstFrame>) -> Vec<Verdict> {
    let black = black(frames, first);
    let grey = grey(frames, &black, first);
    vec![
        non_finite(frames.iter().map(|f| f.non_finite)),
        black,
        first_frame(first),
        content_lost(frames, &grey),
        grey,
        noise(frames, first),
        frozen(frames),
        checkerboard(frames, first),
    ]
}

/// Verdicts on latent frames, of which there is at least one.
pub(super) fn of_latents(frames: &[LatentStats]) -> Vec<Verdict> {
    vec![
        non_finite(frames.iter().map(|f| f.non_finite)),
        collapsed(frames),
    ]
}

fn non_finite(counts: impl Iterator<Item = usize>) -> Verdict {
    let counts: Vec<usize> = counts.collect();
    let found = |&i: &usize| counts[i] > 0;
    let Some(at) = (0..counts.len()).find(found) else {
        return Verdict::ok(Symptom::NonFinite, "every value is a number");
    };
    let last = (0..counts.len()).rfind(found).unwrap_or(at);
    let text = format!("{} values are no numbers", counts.iter().sum::<usize>());
    Verdict::alarm(Symptom::NonFinite, (at, last), text, causes::NON_FINITE)
}

fn is_black(frame: &FrameStats) -> bool {
    frame.mean < BLACK_MEAN && frame.contrast < BLACK_CONTRAST
}

fn black(frames: &[FrameStats], first: Option<&FirstFrame>) -> Verdict {
    let symptom = Symptom::Black;
    let Some((from, to)) = last_run(frames.len(), |i| is_black(&frames[i])) else {
        return Verdict::ok(symptom, "no frame is black");
    };
    let text = format!(
        "mean level {:.1} and contrast {:.1}",
        frames[from].mean, frames[from].contrast
    );
    if first.is_some_and(|first| is_black(&first.picture)) {
        return Verdict {
            first: Some(from),
            last: Some(to),
            ..Verdict::new(symptom, Status::Note, format!("{text}, as is the picture"))
        };
    }
    Verdict::alarm(symptom, (from, to), text, causes::BLACK)
}

fn first_frame(first: Option<&FirstFrame>) -> Verdict {
    let symptom = Symptom::FirstFrame;
    let Some(first) = first else {
        return Verdict::new(
            symptom,
            Status::Unknown,
            "not checked: no picture was given",
        );
    };
    let psnr = first.psnr.unwrap_or(f64::INFINITY);
    let ssim = first.ssim.unwrap_or(1.0);
    let text = format!("PSNR {psnr:.1} dB, SSIM {ssim:.3} against the picture");
    if psnr < FIRST_PSNR || ssim < FIRST_SSIM {
        return Verdict::alarm(symptom, (0, 0), text, causes::FIRST_FRAME);
    }
    Verdict::ok(symptom, text)
}

/// The contrast that frames are held to: the picture's, or the first frame's.
fn reference<T>(
    frames: &[FrameStats],
    first: Option<&FirstFrame>,
    value: impl Fn(&FrameStats) -> T,
) -> Option<T> {
    first
        .map(|first| &first.picture)
        .or(frames.first())
        .map(value)
}

fn grey(frames: &[FrameStats], black: &Verdict, first: Option<&FirstFrame>) -> Verdict {
    let symptom = Symptom::Grey;
    let contrast = reference(frames, first, |f| f.contrast).unwrap_or_default();
    let limit = (GREY_SHARE * contrast).max(GREY_CONTRAST);
    let is_grey = |i: usize| frames[i].contrast < limit && !is_black(&frames[i]);
    let least = frames
        .iter()
        .map(|f| f.contrast)
        .fold(f64::INFINITY, f64::min);
    let Some((from, to)) = last_run(frames.len(), is_grey) else {
        return Verdict::ok(
            symptom,
            format!("least contrast {least:.1} of {contrast:.1}"),
        );
    };
    if contrast < GREY_CONTRAST && first.is_some() && black.status != Status::Alarm {
        return Verdict::new(symptom, Status::Note, "of one colour, as is the picture");
    }
    let text = format!("contrast {:.1} of {contrast:.1}", frames[from].contrast);
    Verdict::alarm(symptom, (from, to), text, causes::GREY)
}

fn content_lost(frames: &[FrameStats], grey: &Verdict) -> Verdict {
    let symptom = Symptom::ContentLost;
    match (grey.status, grey.first, grey.last) {
        (Status::Alarm, Some(from), Some(to))
            if (1..=FIRST_LATENTS).contains(&from) && to + 1 == frames.len() =>
        {
            let text = "what the first latent frame shows is gone in the next";
            Verdict::alarm(symptom, (from, to), text, causes::CONTENT_LOST)
        }
        _ => Verdict::ok(symptom, "what the first latent frame shows stays"),
    }
}

fn noise(frames: &[FrameStats], first: Option<&FirstFrame>) -> Verdict {
    let symptom = Symptom::Noise;
    let own = reference(frames, first, |f| f.noise).unwrap_or_default();
    let limit = NOISE_LEVEL.max(NOISE_SHARE * own);
    let most = frames.iter().map(|f| f.noise).fold(0.0, f64::max);
    let Some(run) = last_run(frames.len(), |i| frames[i].noise > limit) else {
        return Verdict::ok(symptom, format!("at most {most:.1} levels"));
    };
    let text = format!("{most:.1} levels at most, {own:.1} at the start");
    Verdict::alarm(symptom, run, text, causes::NOISE)
}

fn frozen(frames: &[FrameStats]) -> Verdict {
    let symptom = Symptom::Frozen;
    let differences: Vec<f64> = frames.iter().filter_map(|f| f.difference).collect();
    if differences.is_empty() {
        return Verdict::ok(symptom, "a single frame");
    }
    let mut sorted = differences.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let most = sorted[sorted.len() - 1];
    if most < STILL_DIFFERENCE {
        let text = "nothing moves; right if the prompt says so";
        return Verdict {
            first: Some(0),
            last: Some(frames.len() - 1),
            ..Verdict::new(symptom, Status::Note, text)
        };
    }
    let limit = STILL_DIFFERENCE.min(STILL_SHARE * median.max(most / 4.0));
    let run = last_run(differences.len(), |i| differences[i] < limit);
    match run {
        Some((from, to)) if to + 1 == differences.len() && to - from + 1 >= FROZEN_FRAMES => {
            let text = format!("differences below {limit:.2} levels, {most:.2} at most before");
            Verdict::alarm(symptom, (from, frames.len() - 1), text, causes::FROZEN)
        }
        _ => Verdict::ok(symptom, format!("differences of {median:.2} levels")),
    }
}

fn checkerboard(frames: &[FrameStats], first: Option<&FirstFrame>) -> Verdict {
    let symptom = Symptom::Checkerboard;
    let causes = [
        causes::CHECKERBOARD_2,
        causes::CHECKERBOARD_8,
        causes::CHECKERBOARD_16,
    ];
    let own = first.map(|f| f.picture.checkerboard).unwrap_or_default();
    let own = own.by_period().map(|(_, amplitude)| amplitude);
    let mut worst = (0.0, 0, 0.0);
    for (place, limit) in CHECKERBOARD.into_iter().enumerate() {
        let excess = |f: &FrameStats| f.checkerboard.by_period()[place].1 - own[place];
        let most = frames.iter().map(excess).fold(0.0, f64::max);
        if most / limit > worst.0 {
            worst = (most / limit, place, most);
        }
    }
    let (ratio, place, most) = worst;
    let period = frames[0].checkerboard.by_period()[place].0;
    let text = format!("amplitude of at most {most:.1} levels at {period} pixels");
    if ratio < 1.0 {
        return Verdict::ok(symptom, text);
    }
    let shows =
        |i: usize| frames[i].checkerboard.by_period()[place].1 - own[place] >= CHECKERBOARD[place];
    let from = (0..frames.len()).find(|&i| shows(i)).unwrap_or_default();
    let to = (0..frames.len()).rfind(|&i| shows(i)).unwrap_or(from);
    Verdict::alarm(symptom, (from, to), text, causes[place])
}

fn collapsed(frames: &[LatentStats]) -> Verdict {
    let symptom = Symptom::Collapsed;
    let least = frames
        .iter()
        .map(|f| f.contrast)
        .fold(f64::INFINITY, f64::min);
    let text = format!("least standard deviation {least:.3}");
    let _ = NOISE_CORRELATION;
    match last_run(frames.len(), |i| frames[i].contrast < COLLAPSED_STD) {
        Some(run) => Verdict::alarm(symptom, run, text, causes::COLLAPSED),
        None => Verdict::ok(symptom, text),
    }
}
