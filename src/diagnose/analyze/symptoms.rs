//! From statistics to verdicts. `docs/analyze.md` has the measurements that every limit rests on.

use super::causes;
use super::frames::{FirstFrame, FrameStats, STEP};
use super::verdict::{Run, Status, Symptom, Verdict};

/// A frame is black below this mean and this contrast, in levels.
const BLACK_MEAN: f64 = 8.0;
const BLACK_CONTRAST: f64 = 4.0;
/// A frame is grey (of one colour) below this share of the picture's contrast, or of the first frame's
/// if the picture is unknown, and below this contrast in levels in any case.
const GREY_SHARE: f64 = 0.2;
const GREY_CONTRAST: f64 = 4.0;
/// A frame is noise from this standard deviation of white noise, in levels, if that is also this
/// multiple of the picture's or the first frame's.
const NOISE_LEVEL: f64 = 10.0;
const NOISE_SHARE: f64 = 3.0;
/// Frames that have nothing to do with those before have less coherence than this.
const COHERENCE: f64 = 0.3;
/// Frames repeat below this difference in levels.
const REPEATED: f64 = 0.02;
/// A tail is frozen from so many frames: two latent frames.
const FROZEN_FRAMES: usize = 8;
/// Nothing moves where no frame differs more from the first one than by this share of its contrast, or
/// than half a level.
const STILL: f64 = 0.1;
const STILL_LEVEL: f64 = 0.5;
/// A checkerboard shows from this amplitude beyond the picture's own, in levels, by period.
const CHECKERBOARD: [f64; 3] = [1.0, 1.0, 1.5];
/// Smooth noise has some of a checkerboard by chance: among frames that have nothing to do with each
/// other it takes this share of the contrast.
const CHECKERBOARD_SHARE: f64 = 0.2;
/// What a checkerboard of 2 pixels adds to a frame's noise, by its amplitude: Immerkær's mask answers
/// it with 16 times the amplitude, sqrt(pi / 2) / 6 of which is the deviation.
const CHECKERBOARD_NOISE: f64 = 3.342;
/// The first frame meets the picture from this PSNR in dB and this SSIM.
const FIRST_PSNR: f64 = 23.0;
const FIRST_SSIM: f64 = 0.7;
/// The first frame that no longer belongs to the first two latent frames.
const LATER: usize = 6;

/// Verdicts on a clip's frames, of which there is at least one.
pub(super) fn verdicts(frames: &[FrameStats], first: Option<&FirstFrame>) -> Vec<Verdict> {
    let clip = Clip {
        frames,
        picture: first.map(|first| &first.picture),
    };
    let grey = clip.grey();
    let content_lost = clip.content_lost(&grey);
    vec![
        non_finite(frames.iter().map(|f| f.non_finite)),
        clip.black(),
        first_frame(first),
        content_lost,
        grey,
        clip.noise(),
        clip.frozen(),
        clip.checkerboard(),
    ]
}

/// On values that are no numbers, counted by (latent) frame.
pub(super) fn non_finite(counts: impl Iterator<Item = usize>) -> Verdict {
    let counts: Vec<usize> = counts.collect();
    match Run::around(counts.len(), |i| counts[i] > 0) {
        None => Verdict::ok(Symptom::NonFinite, "every value is a number"),
        Some(run) => {
            let text = format!("{} values are no numbers", counts.iter().sum::<usize>());
            Verdict::alarm(Symptom::NonFinite, run, text, causes::NON_FINITE)
        }
    }
}

fn first_frame(first: Option<&FirstFrame>) -> Verdict {
    let symptom = Symptom::FirstFrame;
    let Some(first) = first else {
        return Verdict::new(symptom, Status::Unknown, "give the picture with --image");
    };
    let psnr = first.psnr.unwrap_or(f64::INFINITY);
    let ssim = first.ssim.unwrap_or(1.0);
    let text = format!("PSNR {psnr:.1} dB and SSIM {ssim:.3} against the picture");
    if psnr >= FIRST_PSNR && ssim >= FIRST_SSIM {
        return Verdict::ok(symptom, text);
    }
    let run = Run {
        first: 0,
        last: 0,
        count: usize::MAX,
    };
    Verdict::alarm(symptom, run, text, causes::FIRST_FRAME)
}

struct Clip<'a> {
    frames: &'a [FrameStats],
    picture: Option<&'a FrameStats>,
}

fn is_black(frame: &FrameStats) -> bool {
    frame.mean < BLACK_MEAN && frame.contrast < BLACK_CONTRAST
}

impl Clip<'_> {
    /// What frames are held to: the picture, or else the first frame.
    fn start(&self) -> &FrameStats {
        self.picture.unwrap_or(&self.frames[0])
    }

    fn last_run(&self, holds: impl Fn(&FrameStats) -> bool) -> Option<Run> {
        Run::last_of(self.frames.len(), 0, |i| holds(&self.frames[i]))
    }

    fn most(&self, value: impl Fn(&FrameStats) -> f64) -> f64 {
        self.frames.iter().map(value).fold(f64::MIN, f64::max)
    }

    fn is_grey(&self, frame: &FrameStats) -> bool {
        let limit = (GREY_SHARE * self.start().contrast).max(GREY_CONTRAST);
        frame.contrast < limit && !is_black(frame)
    }

    /// Whether it has nothing to do with the frames before.
    fn is_unlike(&self, frame: &FrameStats) -> bool {
        let coherence = frame.coherence.unwrap_or(1.0);
        coherence < COHERENCE && !self.is_grey(frame)
    }

    fn black(&self) -> Verdict {
        let symptom = Symptom::Black;
        let Some(run) = self.last_run(is_black) else {
            return Verdict::ok(symptom, "no frame is black");
        };
        let frame = &self.frames[run.first];
        let text = format!("mean {:.1}, contrast {:.1}", frame.mean, frame.contrast);
        match self.picture.is_some_and(is_black) {
            true => Verdict::note(symptom, run, format!("{text}, as is the picture")),
            false => Verdict::alarm(symptom, run, text, causes::BLACK),
        }
    }

    fn grey(&self) -> Verdict {
        let symptom = Symptom::Grey;
        let own = self.start().contrast;
        let Some(run) = self.last_run(|f| self.is_grey(f)) else {
            let least = -self.most(|f| -f.contrast);
            let text = format!("contrast of at least {least:.1}, {own:.1} at the start");
            return Verdict::ok(symptom, text);
        };
        let text = format!(
            "contrast {:.1}, {own:.1} at the start",
            self.frames[run.first].contrast
        );
        match self
            .picture
            .is_some_and(|picture| picture.contrast < GREY_CONTRAST)
        {
            true => Verdict::note(
                symptom,
                run,
                format!("{text}: the picture is of one colour"),
            ),
            false => Verdict::alarm(symptom, run, text, causes::GREY),
        }
    }

    fn content_lost(&self, grey: &Verdict) -> Verdict {
        let symptom = Symptom::ContentLost;
        match (grey.status, grey.first, grey.last) {
            (Status::Alarm, Some(first), Some(last))
                if grey.to_end && (1..LATER).contains(&first) =>
            {
                let run = Run {
                    first,
                    last,
                    count: self.frames.len(),
                };
                let text = "the first latent frame has content, the rest has none";
                Verdict::alarm(symptom, run, text, causes::CONTENT_LOST)
            }
            _ => Verdict::ok(symptom, "the frames after the first have content"),
        }
    }

    fn noise(&self) -> Verdict {
        let symptom = Symptom::Noise;
        let own = self.start().noise;
        let limit = NOISE_LEVEL.max(NOISE_SHARE * own);
        let is_noise = |i: usize| {
            let f = &self.frames[i];
            f.noise - CHECKERBOARD_NOISE * f.checkerboard.px2 >= limit || self.is_unlike(f)
        };
        let noise = self.most(|f| f.noise);
        let coherence = -self.most(|f| -f.coherence.unwrap_or(1.0));
        let text = format!(
            "noise of at most {noise:.1} levels, {own:.1} at the start; coherence of at least \
             {coherence:.2}"
        );
        // After a cut, as many frames as a latent frame has are unlike those before.
        let run = Run::last_of(self.frames.len(), STEP, is_noise);
        match run.filter(|run| run.len() > STEP || run.len() == STEP && run.is_tail()) {
            Some(run) => Verdict::alarm(symptom, run, text, causes::NOISE),
            None => Verdict::ok(symptom, text),
        }
    }

    fn frozen(&self) -> Verdict {
        let symptom = Symptom::Frozen;
        let count = self.frames.len();
        let from_first = self.most(|f| f.from_first.unwrap_or_default());
        let whole = Run {
            first: 0,
            last: count - 1,
            count,
        };
        if count > 1 && from_first < (STILL * self.frames[0].contrast).max(STILL_LEVEL) {
            let text = format!(
                "nothing moves (at most {from_first:.2} levels from the first frame); right if the \
                 prompt says so"
            );
            return Verdict::note(symptom, whole, text);
        }
        let repeats = |f: &FrameStats| f.difference.is_some_and(|d| d < REPEATED);
        match self.last_run(repeats) {
            Some(run) if run.is_tail() && run.len() >= FROZEN_FRAMES => {
                let text = "every frame is the one before, and there was motion";
                Verdict::alarm(symptom, run, text, causes::FROZEN)
            }
            _ => {
                let most = self.most(|f| f.difference.unwrap_or_default());
                Verdict::ok(
                    symptom,
                    format!("at most {most:.2} levels from frame to frame"),
                )
            }
        }
    }

    fn checkerboard(&self) -> Verdict {
        let symptom = Symptom::Checkerboard;
        let own = self.picture.map(|p| p.checkerboard).unwrap_or_default();
        let own = own.by_period().map(|(_, amplitude)| amplitude);
        let excess = |f: &FrameStats, place: usize| {
            let chance = match self.is_unlike(f) {
                true => CHECKERBOARD_SHARE * f.contrast,
                false => 0.0,
            };
            f.checkerboard.by_period()[place].1 - own[place].max(chance)
        };
        let share = |place: &usize| self.most(|f| excess(f, *place)) / CHECKERBOARD[*place];
        let worst = (0..CHECKERBOARD.len()).max_by(|a, b| share(a).total_cmp(&share(b)));
        let worst = worst.unwrap_or_default();
        let (period, _) = self.frames[0].checkerboard.by_period()[worst];
        let text = format!(
            "amplitude of at most {:.2} levels at {period} pixels; power at 8 pixels at most {:.1} \
             times its neighbours'",
            self.most(|f| f.checkerboard.by_period()[worst].1),
            self.most(|f| f.grid_power.unwrap_or(1.0))
        );
        let causes = [
            causes::CHECKERBOARD_2,
            causes::CHECKERBOARD_8,
            causes::CHECKERBOARD_16,
        ];
        let shows = |i: usize| excess(&self.frames[i], worst) >= CHECKERBOARD[worst];
        match Run::around(self.frames.len(), shows) {
            Some(run) => Verdict::alarm(symptom, run, text, causes[worst]),
            None => Verdict::ok(symptom, text),
        }
    }
}
