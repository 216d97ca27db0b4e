//! `--preview`.

use std::fs;

use crate::cli::Bench;

#[test]
fn previews_are_written_and_change_nothing_of_the_clip() {
    let bench = Bench::new("a");
    for solver in ["unipc", "dpm++", "euler"] {
        let more = ["--solver", solver, "--steps", "4", "--dtype", "bf16"];
        bench.small("clip.mp4", &more).assert_wrote("clip.mp4");
        let clip = fs::read(bench.path("clip.mp4")).unwrap();
        for preview in ["preview.png", "preview.gif"] {
            for every in ["1", "3"] {
                let flags = ["--preview", preview, "--preview-every", every];
                let ran = bench.small("clip.mp4", &[&more[..], &flags].concat());
                ran.assert_wrote("clip.mp4");
                assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
                assert!(
                    fs::read(bench.path("clip.mp4")).unwrap() == clip,
                    "{solver}"
                );
            }
        }
    }
    let written = ["clip.mp4", "preview.gif", "preview.png"].map(str::to_owned);
    assert_eq!(bench.written(), written.into());
    // Two latent frames of 4 x 4, sixty times as large, below a title of one line; two in the GIF.
    let page = image::open(bench.path("preview.png")).unwrap();
    assert_eq!((page.width(), page.height()), (2 * 244 + 4, 270 + 28));
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let file = fs::File::open(bench.path("preview.gif")).unwrap();
    let mut decoder = options.read_info(file).unwrap();
    let mut delays = Vec::new();
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        assert_eq!((frame.width, frame.height), (240, 240 + 48));
        delays.push(frame.delay);
    }
    // Four pixel frames at 16 a second each.
    assert_eq!(delays, [25, 25]);
}

#[test]
fn previews_that_cannot_be_are_refused() {
    let bench = Bench::new("a");
    let picture = bench.picture();
    for (flags, code, parts) in [
        (
            &["--preview", "p.jpg"][..],
            1,
            &["--preview", "p.jpg", ".png"][..],
        ),
        (&["--preview", "p.mp4"], 1, &["--preview", "p.mp4", ".png"]),
        (
            &["--preview", "none/p.gif"],
            1,
            &["--preview", "none", "does not exist"],
        ),
        (
            &["--preview", picture.to_str().unwrap()],
            1,
            &["--preview", "would replace the start picture"],
        ),
        (
            &["--preview", "x.png", "--strip", "./x.png"],
            1,
            &["--preview x.png", "would replace the film strip"],
        ),
        (
            &["--preview", "p.png", "--preview-every", "0"],
            2,
            &["--preview-every"],
        ),
    ] {
        bench.small("clip.mp4", flags).assert_refused(code, parts);
    }
    bench
        .small("clip.gif", &["--preview", "clip.gif"])
        .assert_refused(1, &["--preview", "would replace the clip"]);
    // Where stderr is a pipe, whatever the terminal is.
    for (name, value, part) in [
        ("TERM", "xterm", "stderr is not a terminal"),
        ("TERM", "dumb", "has no colours"),
    ] {
        let mut command = bench.command();
        for inherited in [
            "TERM_PROGRAM",
            "KITTY_WINDOW_ID",
            "LC_TERMINAL",
            "TMUX",
            "STY",
            "TERM",
        ] {
            command.env_remove(inherited);
        }
        command.args(["--prompt", "x", "--output", "clip.mp4", "--preview", "-"]);
        let ran = crate::cli::run(command.env(name, value));
        ran.assert_refused(1, &["--preview -", part]);
    }
    assert!(bench.written().is_empty());
}

#[test]
fn a_model_s_own_colours_are_used() {
    let bench = Bench::new("a");
    let settings = |text: &str| fs::write(bench.checkpoint.path("wan_i2v.json"), text).unwrap();
    let preview = ["--preview", "p.png"];
    // No channel counts: all is the bias.
    let zeros = "[0, 0, 0], ".repeat(15) + "[0, 0, 0]";
    settings(&format!(
        r#"{{"latent_rgb": {{"factors": [{zeros}], "bias": [1, 0.2, -3]}}}}"#
    ));
    bench.small("clip.mp4", &preview).assert_wrote("clip.mp4");
    let page = image::open(bench.path("p.png")).unwrap().into_rgb8();
    assert_eq!(page.get_pixel(100, 100).0, [255, 153, 0]);
    settings(r#"{"latent_rgb": {"factors": [[0, 0, 0]], "bias": [0, 0, 0]}}"#);
    bench.small("clip.mp4", &[]).assert_wrote("clip.mp4");
    let parts = ["--preview", "latent_rgb", "for 1 latent channels", "has 16"];
    bench.small("clip.mp4", &preview).assert_refused(1, &parts);
    settings(r#"{"latent_rgb": {"factors": [[0, 0, 1e39]], "bias": [0, 0, 0]}}"#);
    let parts = ["wan_i2v.json", "latent_rgb"];
    bench.small("clip.mp4", &[]).assert_refused(1, &parts);
}
