//! The HTML page and the sheet.

use image::Rgb;
use npyz::{WriteOptions, WriterBuilder};
use tempfile::TempDir;
use wan_i2v::diagnose::analyze::page::{self, Pictures};
use wan_i2v::diagnose::analyze::{self, Report};
use wan_i2v::media::clip::{ClipSpec, ClipWriter};

use super::drawn::{HEIGHT, WIDTH, flat, moving};

/// A clip with a grey tail in a folder, its report and its pictures.
fn analyzed(folder: &TempDir) -> (Report, Pictures) {
    let path = folder.path().join("frames/");
    let spec = ClipSpec {
        width: WIDTH,
        height: HEIGHT,
        fps: 16.0,
    };
    let mut writer = ClipWriter::create(&path, &spec, None).unwrap();
    for frame in moving(9)
        .into_iter()
        .chain([flat([128; 3]), flat([128; 3])])
    {
        writer.push(&frame).unwrap();
    }
    writer.finish().unwrap();
    let report = analyze::file(&path, None).unwrap();
    let pictures = Pictures::of(&path, &report).unwrap();
    (report, pictures)
}

#[test]
fn the_page_needs_nothing_else() {
    let folder = TempDir::new().unwrap();
    let (report, pictures) = analyzed(&folder);
    let html = page::html("<a> & \"b\"", &report, &pictures, None).unwrap();
    assert!(html.contains("<h1>&lt;a&gt; &amp; &quot;b&quot;</h1>"));
    assert!(html.contains("found: from frame 9"));
    assert!(html.matches("<svg").count() >= 8);
    // Nothing is fetched, and nothing is run.
    for outside in ["<script", "<link", "@import", "url(", "src=\"http", "href"] {
        assert!(!html.contains(outside), "{outside}");
    }
    for source in html.split("src=\"").skip(1) {
        assert!(source.starts_with("data:image/png;base64,"));
    }
    assert!(html.contains("prefers-color-scheme:dark"));
    assert!(html.contains("default-src 'none'"));
    let path = folder.path().join("page.html");
    page::check(&path).unwrap();
    page::write(&path, &html).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), html);
    let refused = |name: &str| {
        page::check(&folder.path().join(name))
            .unwrap_err()
            .to_string()
    };
    assert!(refused("page.txt").contains("end its name in .html"));
    assert!(refused("none/page.html").contains("does not exist"));
}

/// There is ink of the verdicts' and of the plots' colours, and text is drawn.
#[test]
fn the_sheet_shows_verdicts_strip_and_plots() {
    let folder = TempDir::new().unwrap();
    let (report, pictures) = analyzed(&folder);
    let sheet = page::sheet("frames", &report, &pictures).unwrap();
    assert!(sheet.height() > pictures.strip.height() + 500);
    // Letters and lines have soft edges.
    let count = |colour: [u8; 3]| {
        let near = |p: &&Rgb<u8>| p.0.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 40);
        sheet.pixels().filter(near).count()
    };
    assert!(count([240, 110, 100]) > 50, "no alarm in red");
    assert!(count([120, 200, 130]) > 50, "no verdict in green");
    assert!(count([38, 120, 200]) > 500, "no line of a plot");
    // The same report gives the same picture.
    assert_eq!(page::sheet("frames", &report, &pictures).unwrap(), sheet);
}

#[test]
fn latents_have_pages_too() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("latents.npy");
    let file = std::fs::File::create(&path).unwrap();
    let options = WriteOptions::new().default_dtype().shape(&[4, 3, 4, 6]);
    let mut writer = options.writer(file).begin_nd().unwrap();
    writer.extend((0..288).map(|i| (i as f32).sin())).unwrap();
    writer.finish().unwrap();
    let report = analyze::file(&path, None).unwrap();
    let pictures = Pictures::of(&path, &report).unwrap();
    assert!(
        page::html("latents.npy", &report, &pictures, None)
            .unwrap()
            .contains("correlation")
    );
    assert!(
        page::sheet("latents.npy", &report, &pictures)
            .unwrap()
            .height()
            > 400
    );
}
