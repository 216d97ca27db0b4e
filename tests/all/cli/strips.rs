//! `--strip`.

use std::fs;
use std::ops::Range;

use image::RgbImage;

use crate::cli::Bench;

#[test]
fn a_strip_is_written_beside_the_clip() {
    let bench = Bench::new("a");
    let one = ["--steps", "1", "--guide-scale", "1"];
    let ran = bench.small("clip.gif", &[&one[..], &["--strip", "strip.png"]].concat());
    ran.assert_wrote("clip.gif");
    let expected = ["clip.gif".to_owned(), "strip.png".to_owned()];
    assert_eq!(bench.written(), expected.into());
    // Five frames of 32 x 32, seven times as large, side by side below a line.
    let page = image::open(bench.path("strip.png")).unwrap().into_rgb8();
    const TITLE: u32 = 28;
    assert_eq!(
        page.dimensions(),
        (5 * (7 * 32 + 4) + 4, 7 * 32 + 30 + TITLE)
    );
    // The prompt is on the left, and the seed and the length on the right.
    assert!(ink(&page, TITLE, 0..300) > 100 && ink(&page, TITLE, 900..1144) > 100);
    // They are the clip's.
    bench.small("frames/", &one).assert_wrote("frames/");
    for n in 0..5_u32 {
        let path = bench.path(&format!("frames/frame_{n:05}.png"));
        let frame = image::open(path).unwrap().into_rgb8();
        for (x, y, pixel) in frame.enumerate_pixels() {
            let shown = page.get_pixel(n * 228 + 4 + 7 * x + 3, TITLE + 4 + 7 * y + 3);
            assert_eq!(shown, pixel, "frame {n} at {x}, {y}");
        }
    }
    // What the clip keeps to itself the strip does not tell: its length alone is above it.
    let more = [&one[..], &["--no-metadata", "--strip", "strip.png"]].concat();
    bench.small("clip.gif", &more).assert_wrote("clip.gif");
    let page = image::open(bench.path("strip.png")).unwrap().into_rgb8();
    assert!(ink(&page, TITLE, 0..200) > 100);
    assert_eq!(ink(&page, TITLE, 200..1144), 0);
}

/// Pixels with ink in the topmost rows.
fn ink(page: &RgbImage, rows: u32, columns: Range<u32>) -> usize {
    let places = columns.flat_map(|x| (0..rows).map(move |y| (x, y)));
    places
        .filter(|&(x, y)| page.get_pixel(x, y)[0] > 80)
        .count()
}

#[test]
fn a_strip_replaces_nothing_else() {
    let bench = Bench::new("a");
    fs::create_dir(bench.path("frames")).unwrap();
    let picture = bench.picture();
    for (output, strip, parts) in [
        (
            "clip.mp4",
            "strip.gif",
            &["--strip", "strip.gif", ".png"][..],
        ),
        (
            "clip.mp4",
            "none/strip.png",
            &["--strip", "none", "does not exist"],
        ),
        (
            "clip.mp4",
            picture.to_str().unwrap(),
            &["--strip", "would replace the start picture"],
        ),
        (
            "frames/",
            "./frames/frame_00007.png",
            &["--strip", "is a frame of the clip"],
        ),
    ] {
        let ran = bench.small(output, &["--strip", strip]);
        ran.assert_refused(1, parts);
    }
    assert_eq!(bench.written(), ["frames".to_owned()].into());
}
