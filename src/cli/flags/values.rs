//! Values of flags: the words of the library's enums, and what is more than a number or a word.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::clip::{CacheSettings, GuideInterval, GuideScale, Size, Switch};
use crate::media::{Fit, Resize};
use crate::runtime::{DeviceKind, Precision};
use crate::sampling::{Sigmas, Solver};
use crate::text::clean;
use crate::util::limits;
use crate::util::show::chain;
use crate::weights::PartName;
use crate::weights::convert::Bits;
use crate::weights::quantize::GROUP_SIZES;
use anyhow::ensure;
use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Command, ValueEnum};

use super::PromptSource;

/// The pixels that sides are multiples of: a latent has 8, a token two of them.
const SIDES: u32 = 16;
/// The smallest area that is taken: less is a mistake, such as 720 for 720p.
const MIN_AREA: u64 = 1024;
/// Heights that are meant as names of sizes.
const HEIGHTS: [u64; 3] = [1080, 1440, 2160];
/// The most frames at the lowest rate.
const MAX_SECONDS: f64 = 40_010.0;
/// An adapter's largest strength; what is larger is a mistake.
const MAX_STRENGTH: f64 = 100.0;
/// The most of anything that is counted.
const MAX_COUNT: usize = 1_000_000;

/// Has clap read an enum of the library by these words, or by others for the same.
macro_rules! words {
    ($($type:ident { $($variant:ident = $word:literal $(or $other:literal)*),+ })+) => {$(
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$variant),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $(Self::$variant => PossibleValue::new($word)$(.alias($other))*),+
                })
            }
        }
    )+};
}

words! {
    Solver { UniPc = "unipc" or "uni_pc", DpmPlusPlus = "dpm++" or "dpmpp" or "dpmpp_2m", Euler = "euler", Lcm = "lcm" }
    Resize { Lanczos = "lanczos", Bicubic = "bicubic" }
    Fit { Crop = "crop", Pad = "pad", Stretch = "stretch" }
    DeviceKind { Gpu = "gpu", Cpu = "cpu" }
    Precision { F32 = "f32", F16 = "f16", Bf16 = "bf16" }
    Bits { Three = "3", Four = "4", Five = "5", Six = "6", Eight = "8", Sixteen = "16" }
    PartName { HighNoise = "high", LowNoise = "low", Vae = "vae", TextEncoder = "text-encoder", Transformer = "transformer", ImageEncoder = "image-encoder" }
}

/// Reads a number, then has it checked. `what` is expected.
fn number<T: FromStr + Copy>(
    text: &str,
    what: &str,
    check: impl Fn(T) -> anyhow::Result<()>,
) -> Result<T, String> {
    let number = text
        .trim()
        .parse()
        .map_err(|_| format!("expected {what}"))?;
    check(number).map_err(|error| chain(&error))?;
    Ok(number)
}

/// Frames of a clip.
pub(crate) fn parse_frames(text: &str) -> Result<u32, String> {
    number(text, "a whole number, such as 81", |frames| {
        limits::check_frames("", frames)
    })
}

/// How long a clip is.
pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    number(text, "seconds, such as 5", |seconds: f64| {
        ensure!(
            seconds > 0.0 && seconds <= MAX_SECONDS,
            "expected more than 0 and at most {MAX_SECONDS} seconds"
        );
        Ok(())
    })
}

/// A clip's width or height.
pub(crate) fn parse_side(text: &str) -> Result<u32, String> {
    number(text, "pixels, such as 832", |side| {
        limits::check_side("", side, SIDES)
    })
}

/// How many are shown.
pub(crate) fn parse_most(text: &str) -> Result<usize, String> {
    number(text, "a whole number from 0 on", |_| Ok(()))
}

/// Rows of a product, from 1 on.
pub(crate) fn parse_rows(text: &str) -> Result<i32, String> {
    number(text, "a whole number from 1 on", |rows: i32| {
        ensure!(rows > 0, "expected a whole number from 1 on");
        Ok(())
    })
}

/// GB of memory that a Mac may have.
pub(crate) fn parse_machine(text: &str) -> Result<u64, String> {
    number(text, "a Mac's memory in GB, such as 32", |gigabytes| {
        ensure!(
            (8..=1024).contains(&gigabytes),
            "expected a Mac's memory in GB, from 8 to 1024"
        );
        Ok(())
    })
}

/// Frames per second.
pub(crate) fn parse_fps(text: &str) -> Result<f64, String> {
    number(text, "a number, such as 16", |fps| {
        limits::check_fps("", fps)
    })
}

/// Denoising steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Of both experts.
    pub(crate) all: u32,
    /// Those of the high-noise one, if that is said.
    pub(crate) switch: Switch,
}

/// Denoising steps of both experts, or of the low-noise and the high-noise one.
pub(crate) fn parse_steps(text: &str) -> Result<Steps, String> {
    let one = |text: &str| {
        number(
            text,
            "a whole number, such as 40, or two, such as 2,2",
            |_: u32| Ok(()),
        )
    };
    let steps = match text.split_once(',') {
        None => Steps {
            all: one(text)?,
            switch: Switch(None),
        },
        Some((low, high)) => {
            let (low, high) = (one(low)?, one(high)?);
            Steps {
                all: low.saturating_add(high),
                switch: Switch(Some(high)),
            }
        }
    };
    limits::check_steps("", steps.all).map_err(|error| chain(&error))?;
    Ok(steps)
}

/// Noise levels, as [`Sigmas`] reads them.
pub(crate) fn parse_sigmas(text: &str) -> Result<Sigmas, String> {
    text.parse()
        .map_err(|error: anyhow::Error| error.to_string())
}

/// The schedule's shift.
pub(crate) fn parse_shift(text: &str) -> Result<f64, String> {
    number(text, "a number, such as 5", |shift| {
        limits::check_shift("", shift)
    })
}

/// A seed.
pub(crate) fn parse_seed(text: &str) -> Result<u64, String> {
    number(
        text,
        &format!("a whole number from 0 to {}", u64::MAX),
        |_| Ok(()),
    )
}

/// How many or how often, from 1 on.
pub(crate) fn parse_count(text: &str) -> Result<NonZeroUsize, String> {
    let what = format!("a whole number from 1 to {MAX_COUNT}");
    number(text, &what, |count: NonZeroUsize| {
        ensure!(count.get() <= MAX_COUNT, "expected {what}");
        Ok(())
    })
}

/// Machines that share a clip.
pub(crate) fn parse_machines(text: &str) -> Result<u64, String> {
    let what = "a number of machines, from 2 to 64";
    number(text, what, |count| {
        ensure!((2..=64).contains(&count), "expected {what}");
        Ok(())
    })
}

/// A prompt with something in it, unless it is read from elsewhere.
pub(crate) fn parse_prompt(text: &str) -> Result<PromptSource, String> {
    let prompt = PromptSource::from(text.to_owned());
    match &prompt {
        PromptSource::Text(text) if clean(text).is_empty() => {
            Err("it is empty; expected what happens in the clip".into())
        }
        _ => Ok(prompt),
    }
}

/// `WIDTHxHEIGHT`, in pixels.
pub(crate) fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once(['x', 'X', '*']);
    let parsed = sides.and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    match parsed {
        Some((width, height)) => {
            limits::check_size("", width, height, SIDES).map_err(|error| chain(&error))?;
            Ok(Size::Exact { width, height })
        }
        None => Err("expected WIDTHxHEIGHT in pixels, such as 832x480".into()),
    }
}

/// Bits of every layer, or the size within which each gets its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllBits {
    /// The same for all.
    Fixed(Bits),
    /// Bytes of the whole converted folder.
    Within(u64),
}

/// Reads [`AllBits`]; completions offer the numbers.
#[derive(Clone, Debug)]
pub(crate) struct AllBitsParser;

impl TypedValueParser for AllBitsParser {
    type Value = AllBits;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<AllBits, clap::Error> {
        let parse: fn(&str) -> Result<AllBits, String> = |text| match text.split_once(':') {
            // What is too little for a model is told with what it needs.
            Some(("auto", size)) => gigabytes(size, 1e-9).map(AllBits::Within),
            _ => <Bits as ValueEnum>::from_str(text, false)
                .map(AllBits::Fixed)
                .map_err(|_| "expected 3, 4, 5, 6, 8, 16 or auto:GB, such as auto:20".into()),
        };
        parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let all = Bits::value_variants().iter();
        Some(Box::new(all.filter_map(ValueEnum::to_possible_value)))
    }
}

/// Inputs that share a scale and a bias.
pub(crate) fn parse_group_size(text: &str) -> Result<usize, String> {
    number(text, "32 or 64", |size| {
        ensure!(GROUP_SIZES.contains(&size), "expected 32 or 64");
        Ok(())
    })
}

/// Gigabytes (1e9), as bytes.
pub(crate) fn parse_gigabytes(text: &str) -> Result<u64, String> {
    gigabytes(text, 0.01)
}

fn gigabytes(text: &str, least: f64) -> Result<u64, String> {
    let number = text.trim().trim_end_matches("GB").trim().parse::<f64>();
    match number {
        Ok(number) if (least..=1e6).contains(&number) => Ok((number * 1e9) as u64),
        _ => Err("expected gigabytes, such as 24 or 0.5".into()),
    }
}

/// Pixels in all, or the name of a usual size.
pub(crate) fn parse_area(text: &str) -> Result<Size, String> {
    match text {
        "480p" => Ok(Size::Area(832 * 480)),
        "720p" => Ok(Size::Area(1280 * 720)),
        _ => number(text, "a number of pixels, 480p or 720p", |area| {
            ensure!(
                (MIN_AREA..=limits::MAX_AREA).contains(&area) && !HEIGHTS.contains(&area),
                "expected {MIN_AREA} to {} pixels, 480p or 720p",
                limits::MAX_AREA
            );
            Ok(())
        })
        .map(Size::Area)
        .map_err(|error| match text {
            "480" | "720" => format!("{error}; {text}p is a size by name"),
            _ => error,
        }),
    }
}

/// One guidance for both experts, or `LOW,HIGH`.
pub(crate) fn parse_guide_scale(text: &str) -> Result<GuideScale, String> {
    let (low, high) = text.split_once(',').unwrap_or((text, text));
    match (low.trim().parse(), high.trim().parse()) {
        (Ok(low), Ok(high)) => {
            limits::check_guide_scale("", low, high).map_err(|error| chain(&error))?;
            Ok(GuideScale { low, high })
        }
        _ => Err("expected one number, or two as LOW,HIGH, such as 3.5 or 3.0,4.0".into()),
    }
}

/// `START,END`, shares of the steps.
pub(crate) fn parse_interval(text: &str) -> Result<GuideInterval, String> {
    let parsed = text
        .split_once(',')
        .and_then(|(start, end)| Some((start.trim().parse().ok()?, end.trim().parse().ok()?)));
    match parsed {
        Some((start, end)) => {
            limits::check_interval("", start, end).map_err(|error| chain(&error))?;
            Ok(GuideInterval { start, end })
        }
        None => Err("expected two shares of the steps as START,END, such as 0,0.5".into()),
    }
}

/// A method and its settings, as [`CacheSettings`] reads them.
pub(crate) fn parse_cache(text: &str) -> Result<CacheSettings, String> {
    text.parse().map_err(|error| chain(&error))
}

/// An adapter as a flag names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lora {
    /// A path, or a file of the hub.
    pub(crate) source: PathBuf,
    /// What its change is multiplied by.
    pub(crate) strength: f64,
}

/// `PATH` or `PATH:STRENGTH`. What is a path as a whole is one, colons and all.
pub(crate) fn parse_lora(text: &str) -> Result<Lora, String> {
    let whole = || Lora {
        source: text.into(),
        strength: 1.0,
    };
    if text.trim().is_empty() {
        return Err("it is empty; expected an adapter's file or folder".into());
    }
    let Some((source, strength)) = text.rsplit_once(':').filter(|_| !Path::new(text).exists())
    else {
        return Ok(whole());
    };
    match strength.trim().parse::<f64>() {
        _ if source.is_empty() => Err(format!("found only {text}; expected PATH{text}")),
        Ok(strength) if strength.abs() <= MAX_STRENGTH => Ok(Lora {
            source: source.into(),
            strength,
        }),
        Ok(strength) => Err(format!(
            "the strength is {strength}; expected -{MAX_STRENGTH} to {MAX_STRENGTH}, such as 0.8"
        )),
        Err(_) if strength.is_empty() => {
            Err("nothing follows the colon; expected a strength, such as 0.8".into())
        }
        // owner/name:file
        Err(_) => Ok(whole()),
    }
}

/// A tolerance.
pub(crate) fn parse_tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number from 0 on, such as 1e-3".into()),
    }
}

/// Gigabytes (1e9) of a file as bytes; 0 for no limit.
pub(crate) fn parse_file_size(text: &str) -> Result<u64, String> {
    match text.trim().parse::<f64>() {
        Ok(0.0) => Ok(u64::MAX),
        Ok(size) if (0.001..=1e6).contains(&size) => Ok((size * 1e9) as u64),
        _ => Err("expected gigabytes from 0.001 to 1000000, or 0 for no limit".into()),
    }
}
