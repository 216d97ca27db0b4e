//! Film strips, read back.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use tempfile::TempDir;
use wan_i2v::media::strip::{FilmStrip, check};

/// Writes the strip of a clip whose frame `n` is all of the colour `colour(n)`.
fn strip(path: &Path, count: u32, width: u32, height: u32) -> RgbImage {
    let mut strip = FilmStrip::new(path, count, None).unwrap();
    for n in 0..count {
        strip.push(&RgbImage::from_pixel(width, height, colour(n)));
    }
    strip.finish().unwrap();
    image::open(path).unwrap().into_rgb8()
}

fn colour(n: u32) -> Rgb<u8> {
    Rgb([(100 + n % 100) as u8, 0, (100 + n / 100) as u8])
}

/// The frames on a page, row by row: what a clip's colours stand for, where another pixel or line
/// precedes them.
fn shown(page: &RgbImage) -> Vec<u32> {
    let number = |x: u32, y: u32| match page.get_pixel_checked(x, y)?.0 {
        [low, 0, high] => Some((u32::from(high) - 100) * 100 + u32::from(low) - 100),
        _ => None,
    };
    let mut shown = Vec::new();
    for y in 1..page.height() {
        for x in 1..page.width() {
            let here = number(x, y);
            if here.is_some() && number(x - 1, y) != here && number(x, y - 1) != here {
                shown.extend(here);
            }
        }
    }
    shown
}

#[test]
fn a_strip_shows_the_first_and_the_last_frame_and_some_between() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("strip.png");
    for (count, distance) in [(1, 1), (5, 1), (17, 1), (25, 1), (29, 2), (81, 4), (125, 6)] {
        let mut expected: Vec<u32> = (0..count).step_by(distance).collect();
        if expected.last() != Some(&(count - 1)) {
            expected.push(count - 1);
        }
        assert_eq!(shown(&strip(&path, count, 64, 48)), expected, "{count}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn frames_of_any_size_fit_the_page() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("strip.png");
    for (width, height) in [(16, 16), (1280, 720), (720, 1280), (3000, 1), (240, 240)] {
        let page = strip(&path, 17, width, height);
        assert_eq!(shown(&page).len(), 17, "{width}x{height}");
        assert!(page.width() <= 1604, "{width}x{height}: {}", page.width());
    }
    // Small frames keep their pixels: 16 x 16 becomes 240 x 240 with a number beneath.
    assert_eq!(strip(&path, 1, 16, 16).dimensions(), (248, 270));
}

#[test]
fn each_frame_has_its_number() {
    let folder = TempDir::new().unwrap();
    let page = strip(&folder.path().join("strip.png"), 81, 64, 64);
    // Numbers are the only bright things.
    let ink = |left: u32| {
        let place = (left..left + 40).flat_map(|x| (192..230).map(move |y| (x, y)));
        place
            .filter(|&(x, y)| page.get_pixel(x, y)[1] > 200)
            .count()
    };
    // The first row begins with 0, 4, 8, 12: one digit, then two.
    let tile = 64 * 3 + 4;
    assert!((1..4).all(|n| ink(n * tile) > 0));
    assert!(ink(3 * tile) > ink(tile));
    assert_ne!(ink(0), ink(tile));
}

#[test]
fn a_strip_is_a_png_in_a_folder_that_exists() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("folder.png")).unwrap();
    for (name, part) in [
        ("strip.jpg", "end its name in .png"),
        ("strip", "end its name in .png"),
        ("folder.png", "is a folder"),
        ("none/strip.png", "does not exist"),
    ] {
        let error = format!("{:#}", check(&folder.path().join(name)).unwrap_err());
        assert!(error.contains(part), "{name}: {error}");
    }
    check(&folder.path().join("strip.PNG")).unwrap();
    let strip = FilmStrip::new(&folder.path().join("strip.png"), 5, None).unwrap();
    assert!(strip.finish().is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
