//! Values of flags that are more than a number or a word.

use crate::clip::{CacheSettings, GuideInterval, GuideScale, Size};

/// `WIDTHxHEIGHT`, in pixels.
pub fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once(['x', 'X', '*']);
    let parsed = sides.and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    match parsed {
        Some((width, height)) => Ok(Size::Exact { width, height }),
        None => Err("expected WIDTHxHEIGHT in pixels, such as 832x480".into()),
    }
}

/// Gigabytes (1e9), as bytes.
pub fn parse_gigabytes(text: &str) -> Result<u64, String> {
    let number = text.trim().trim_end_matches("GB").trim().parse::<f64>();
    match number {
        Ok(number) if (0.01..=1e6).contains(&number) => Ok((number * 1e9) as u64),
        _ => Err("expected gigabytes, such as 24 or 0.5".into()),
    }
}

/// Pixels in all, or the name of a usual size.
pub fn parse_area(text: &str) -> Result<Size, String> {
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
pub fn parse_guide_scale(text: &str) -> Result<GuideScale, String> {
    let (low, high) = text.split_once(',').unwrap_or((text, text));
    match (low.trim().parse(), high.trim().parse()) {
        (Ok(low), Ok(high)) => Ok(GuideScale { low, high }),
        _ => Err("expected one number, or two as LOW,HIGH, such as 3.5 or 3.0,4.0".into()),
    }
}

/// `START,END`, shares of the steps.
pub fn parse_interval(text: &str) -> Result<GuideInterval, String> {
    let parsed = text
        .split_once(',')
        .and_then(|(start, end)| Some((start.trim().parse().ok()?, end.trim().parse().ok()?)));
    match parsed {
        Some((start, end)) => Ok(GuideInterval { start, end }),
        None => Err("expected two shares of the steps as START,END, such as 0,0.5".into()),
    }
}

/// A method and its settings, as [`CacheSettings`] reads them.
pub fn parse_cache(text: &str) -> Result<CacheSettings, String> {
    text.parse().map_err(|error| format!("{error:#}"))
}
