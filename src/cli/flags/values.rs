//! Values of flags: the words of the library's enums, and what is more than a number or a word.

use crate::clip::{CacheSettings, GuideInterval, GuideScale, Size};
use crate::media::Resize;
use crate::runtime::{DeviceKind, Precision};
use crate::sampling::Solver;
use crate::util::show::chain;
use crate::weights::PartName;
use crate::weights::convert::Bits;
use clap::ValueEnum;
use clap::builder::PossibleValue;

/// Has clap read an enum of the library by these words.
macro_rules! words {
    ($($type:ident { $($variant:ident = $word:literal),+ })+) => {$(
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$variant),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(PossibleValue::new(match self {
                    $(Self::$variant => $word),+
                }))
            }
        }
    )+};
}

words! {
    Solver { UniPc = "unipc", DpmPlusPlus = "dpm++", Euler = "euler" }
    Resize { Lanczos = "lanczos", Bicubic = "bicubic" }
    DeviceKind { Gpu = "gpu", Cpu = "cpu" }
    Precision { F32 = "f32", Bf16 = "bf16" }
    Bits { Four = "4", Eight = "8", Sixteen = "16" }
    PartName { HighNoise = "high", LowNoise = "low", Vae = "vae", TextEncoder = "text-encoder" }
}

/// `WIDTHxHEIGHT`, in pixels.
pub(crate) fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once(['x', 'X', '*']);
    let parsed = sides.and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    match parsed {
        Some((width, height)) => Ok(Size::Exact { width, height }),
        None => Err("expected WIDTHxHEIGHT in pixels, such as 832x480".into()),
    }
}

/// Gigabytes (1e9), as bytes.
pub(crate) fn parse_gigabytes(text: &str) -> Result<u64, String> {
    let number = text.trim().trim_end_matches("GB").trim().parse::<f64>();
    match number {
        Ok(number) if (0.01..=1e6).contains(&number) => Ok((number * 1e9) as u64),
        _ => Err("expected gigabytes, such as 24 or 0.5".into()),
    }
}

/// Pixels in all, or the name of a usual size.
pub(crate) fn parse_area(text: &str) -> Result<Size, String> {
    match text {
        "480p" => Ok(Size::Area(832 * 480)),
        "720p" => Ok(Size::Area(1280 * 720)),
        _ => text
            .parse()
            .map(Size::Area)
            .map_err(|_| "expected a number of pixels, 480p or 720p".into()),
    }
}

/// One guidance for both experts, or `LOW,HIGH`.
pub(crate) fn parse_guide_scale(text: &str) -> Result<GuideScale, String> {
    let (low, high) = text.split_once(',').unwrap_or((text, text));
    match (low.trim().parse(), high.trim().parse()) {
        (Ok(low), Ok(high)) => Ok(GuideScale { low, high }),
        _ => Err("expected one number, or two as LOW,HIGH, such as 3.5 or 3.0,4.0".into()),
    }
}

/// `START,END`, shares of the steps.
pub(crate) fn parse_interval(text: &str) -> Result<GuideInterval, String> {
    let parsed = text
        .split_once(',')
        .and_then(|(start, end)| Some((start.trim().parse().ok()?, end.trim().parse().ok()?)));
    match parsed {
        Some((start, end)) => Ok(GuideInterval { start, end }),
        None => Err("expected two shares of the steps as START,END, such as 0,0.5".into()),
    }
}

/// A method and its settings, as [`CacheSettings`] reads them.
pub(crate) fn parse_cache(text: &str) -> Result<CacheSettings, String> {
    text.parse().map_err(|error| chain(&error))
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
        Ok(size) if size > 0.0 && size.is_finite() => Ok((size * 1e9) as u64),
        _ => Err("expected a number of gigabytes, or 0".into()),
    }
}
