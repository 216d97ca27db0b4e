//! Pictures of all kinds that people have, against what a colour-managed viewer shows
//! (scripts/golden_colour.py).

use std::fs;
use std::path::{Path, PathBuf};

use wan_i2v::media::picture::Picture;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/colour")
        .join(name)
}

/// The mean and the largest difference of two pictures, in levels.
fn differences(a: &Picture, b: &Picture) -> (f32, f32) {
    assert_eq!(a.pixels().dim(), b.pixels().dim());
    let levels: Vec<f32> = (a.pixels().iter().zip(b.pixels().iter()))
        .map(|(a, b)| 255.0 * (a - b).abs())
        .collect();
    let mean = levels.iter().sum::<f32>() / levels.len() as f32;
    (mean, levels.into_iter().fold(0.0, f32::max))
}

#[test]
fn pictures_look_as_in_a_colour_managed_viewer() {
    let mut names = Vec::new();
    for entry in fs::read_dir(data("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("want_") {
            names.push(name);
        }
    }
    assert_eq!(names.len(), 15);
    for name in names {
        let picture = Picture::open(&data(&name)).unwrap();
        let want = Picture::open(&data(&format!("want_{}.png", name.replace('.', "_")))).unwrap();
        let (mean, most) = differences(&picture, &want);
        // The reference has whole levels.
        let (mean_bound, most_bound) = match name.as_str() {
            "usual.png" | "plain.bmp" | "plain.tiff" | "plain.gif" | "two.gif" => (0.001, 0.001),
            // Halved colour planes.
            "endless.jpg" | "trailer.jpg" => (1.0, 12.0),
            _ => (0.6, 4.0),
        };
        assert!(
            mean <= mean_bound && most <= most_bound,
            "{name}: {mean}, {most}"
        );
    }
}

#[test]
fn a_jpeg_that_lacks_rows_is_refused() {
    let whole = fs::read(data("endless.jpg")).unwrap();
    for keep in (4..whole.len() - 4).step_by(7) {
        assert!(Picture::decode(&whole[..keep]).is_err(), "{keep}");
    }
}
