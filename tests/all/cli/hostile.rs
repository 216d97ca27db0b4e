//! Pictures, prompts and surroundings that nobody means well with: a clip or one clear message.

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use image::{ColorType, DynamicImage, ImageFormat, RgbImage};

use crate::cli::running::Running;
use crate::cli::{Bench, Ran, program, run};

fn data(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/media");
    fs::read(folder.join(name)).unwrap()
}

/// A PNG whose header claims another size than it has, with the right checksum.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = data("rgb.png");
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&checksum);
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn small() -> RgbImage {
    RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 70]))
}

/// A PNG made by hand: grey pixels, after what `more` adds.
fn png_with(more: impl FnOnce(&mut png::Encoder<'_, &mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 16, 16);
    encoder.set_color(png::ColorType::Grayscale);
    more(&mut encoder);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[90; 256]).unwrap();
    drop(writer);
    bytes
}

/// A WebP of two frames (WebP container specification, "Animation").
fn animated_webp() -> Vec<u8> {
    let still = encoded(small(), ImageFormat::WebP);
    let side = [15, 0, 0];
    let chunk = |name: &[u8; 4], content: &[u8]| {
        let length = (content.len() as u32).to_le_bytes();
        [&name[..], &length, content].concat()
    };
    let frame = [&[0; 6][..], &side, &side, &[100, 0, 0, 0], &still[12..]].concat();
    let content = [
        b"WEBP".to_vec(),
        chunk(b"VP8X", &[&[2, 0, 0, 0][..], &side, &side].concat()),
        chunk(b"ANIM", &[0; 6]),
        chunk(b"ANMF", &frame),
        chunk(b"ANMF", &frame),
    ];
    chunk(b"RIFF", &content.concat())
}

impl Bench {
    fn start(&self, image: &Path, prompt: &str) -> Command {
        let mut command = program();
        command.current_dir(self.work.path());
        command.arg("--model").arg(self.checkpoint.root());
        command.arg("--image").arg(image);
        command.arg(format!("--prompt={prompt}"));
        command.args(["--size=32x32", "--frames=1", "--steps=1", "--seed=7"]);
        command.args([
            "--device=cpu",
            "--no-checkpoint",
            "--output=clip.mp4",
            "--overwrite",
        ]);
        command
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.checkpoint.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

#[test]
fn pictures_of_every_kind_are_read() {
    let bench = Bench::new("a");
    let wide = RgbImage::from_fn(65_535, 1, |x, _| image::Rgb([x as u8, 0, 0]));
    let high = RgbImage::from_fn(1, 65_535, |_, y| image::Rgb([y as u8, 0, 0]));
    let deep = DynamicImage::ImageRgb8(small()).into_rgba16();
    // A text that unpacks to fifty megabytes.
    let text = png_with(|encoder| {
        encoder
            .add_ztxt_chunk("Comment".into(), " ".repeat(50_000_000))
            .unwrap();
    });
    let moving = png_with(|encoder| {
        encoder.set_animated(1, 0).unwrap();
    });
    let jpeg = encoded(small(), ImageFormat::Jpeg);
    let trailing = [&jpeg[..], &b"PK\x03\x04 and more"[..]].concat();
    for (name, bytes) in [
        ("wide.png", encoded(wide, ImageFormat::Png)),
        ("high.png", encoded(high, ImageFormat::Png)),
        ("one.png", encoded(RgbImage::new(1, 1), ImageFormat::Png)),
        ("deep.png", encoded(deep, ImageFormat::Png)),
        ("bilevel.png", data("bilevel.png")),
        ("palette.png", data("palette.png")),
        ("cmyk.jpg", data("cmyk.jpg")),
        ("progressive.jpg", data("progressive.jpg")),
        ("moving.webp", animated_webp()),
        ("moving.png", moving),
        ("text.png", text),
        ("jpeg.png", jpeg),
        ("trailing.jpg", trailing),
        ("no extension", data("rgb.webp")),
        ("\u{202e}gnp.\u{1f408}", data("rgb.png")),
    ] {
        let ran = run(&mut bench.start(&bench.put(name, &bytes), "a cat"));
        assert_eq!(ran.code, Some(0), "{name:?}: {}", ran.stderr);
        ran.assert_wrote("clip.mp4");
    }
    // Through a pipe with a name.
    let pipe = bench.checkpoint.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let writer = {
        let pipe = pipe.clone();
        thread::spawn(move || {
            File::create(pipe)
                .unwrap()
                .write_all(&data("rgb.png"))
                .unwrap()
        })
    };
    run(&mut bench.start(&pipe, "a cat")).assert_wrote("clip.mp4");
    writer.join().unwrap();
}

#[test]
fn pictures_that_are_none_are_refused() {
    let bench = Bench::new("a");
    let png = data("rgb.png");
    let jpeg = data("rgb.jpg");
    let webp = data("rgb.webp");
    let mut flipped = png.clone();
    // Inside of the pixels' chunk.
    flipped[60] ^= 0xff;
    let mut riff = webp.clone();
    riff[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    // A frame of 65,535 x 65,535 (ITU-T T.81, B.2.2).
    let mut huge = jpeg.clone();
    let frame = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    huge[frame + 5..frame + 9].fill(0xff);
    let bmp = [&b"BM"[..], &[0; 60]].concat();
    let none = "no PNG, JPEG, WebP, TIFF, BMP or GIF";
    for (name, bytes, part) in [
        ("empty.png", Vec::new(), "is empty"),
        ("text.png", b"not a picture".to_vec(), none),
        ("signature.png", png[..8].to_vec(), "damaged"),
        ("header.png", png[..33].to_vec(), "damaged"),
        ("cut.png", png[..png.len() / 2].to_vec(), "damaged"),
        ("flipped.png", flipped, "damaged"),
        ("no-columns.png", claiming(0, 16), "damaged"),
        ("no-rows.png", claiming(16, 0), "damaged"),
        ("bomb.png", claiming(65_535, 65_535), "65535x65535"),
        ("widest.png", claiming(u32::MAX, u32::MAX), ""),
        ("more-rows.png", claiming(24, 400), "damaged"),
        ("more-columns.png", claiming(4000, 16), "damaged"),
        ("start.jpg", b"\xff\xd8\xff\xe0".to_vec(), "cut off"),
        ("cut.jpg", jpeg[..jpeg.len() - 40].to_vec(), "cut off"),
        ("huge.jpg", huge, "65535x65535"),
        ("cut.webp", webp[..webp.len() - 9].to_vec(), "cut off"),
        ("riff.webp", riff, "cut off"),
        ("riff-alone.webp", b"RIFF\x04\0\0\0WEBP".to_vec(), "damaged"),
        (
            "moving.gif",
            b"GIF89a\x10\0\x10\0\0\0\0;".to_vec(),
            "damaged",
        ),
        (
            "phone.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1".to_vec(),
            "HEIC",
        ),
        ("scan.tiff", b"II*\0\x08\0\0\0\0\0".to_vec(), "damaged"),
        ("old.bmp", bmp, "damaged"),
        (
            "drawing.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(),
            none,
        ),
        ("paper.pdf", b"%PDF-1.7\n%".to_vec(), none),
        ("script.png", b"#!/bin/sh\nrm -rf ~\n".to_vec(), none),
        ("zeros.png", vec![0; 1 << 20], none),
    ] {
        let path = bench.put(name, &bytes);
        let ran = run(&mut bench.start(&path, "a cat"));
        ran.assert_refused(1, &["--image", name, part]);
    }
    let at = |name: &str| bench.checkpoint.path(name);
    symlink(at("loop-b"), at("loop-a")).unwrap();
    symlink(at("loop-a"), at("loop-b")).unwrap();
    symlink(at("gone.png"), at("dangling.png")).unwrap();
    fs::write(at("unreadable.png"), &png).unwrap();
    fs::set_permissions(at("unreadable.png"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut places = vec![
        (at("loop-a"), "loop-a"),
        (at("dangling.png"), "No such file"),
        (at("vae"), "it is a folder"),
        (at("start.png/x.png"), "Not a directory"),
        (at(&"x".repeat(300)), "too long"),
        ("/dev/null".into(), "is empty"),
    ];
    if cfg!(target_os = "linux") {
        // Where reading has no end.
        places.push(("/dev/zero".into(), none));
    }
    if fs::read(at("unreadable.png")).is_err() {
        places.push((at("unreadable.png"), "ermission denied"));
    }
    for (path, part) in places {
        run(&mut bench.start(&path, "a cat")).assert_refused(1, &["--image", part]);
    }
    // What a name holds cannot command the terminal.
    let ran = run(&mut bench.start(Path::new("\u{1b}[2Ja\n\u{202e}"), "a cat"));
    ran.assert_refused(1, &["--image", "\\u{1b}[2Ja", "\\u{202e}"]);
    assert!(!ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
    assert!(bench.written().is_empty());
}

#[test]
fn prompts_of_every_kind_are_read() {
    let bench = Bench::new("a");
    let picture = bench.picture();
    let long = "the cat jumps off the table, ".repeat(3500);
    let combining = format!("Z{}", "\u{300}\u{328}\u{34f}".repeat(500));
    let controls: String = ('\u{1}'..='\u{9f}').filter(|c| c.is_control()).collect();
    for (prompt, is_cut) in [
        ("a", false),
        (long.as_str(), true),
        ("word", false),
        ("-", false),
        ("--help", false),
        ("a\0cat\0", false),
        (&format!("a{controls}cat"), false),
        ("a\u{1b}[31m red \u{1b}]0;title\u{7}cat", false),
        (
            "$(reboot) `reboot` ; rm -rf / | cat > /dev/null & %s %n {} \\",
            false,
        ),
        ("'; DROP TABLE clips; --", false),
        (
            "<script>alert(1)</script> &lt;b&gt; &#x1F408; &bogus;",
            false,
        ),
        ("../../etc/passwd", false),
        ("line\nline\r\nline\u{2028}line\u{85}line\u{b}line", false),
        ("\u{feff}a\u{200b}c\u{200d}a\u{2060}t", false),
        ("\u{202e}tac a\u{202c} \u{2067}isolate\u{2069}", false),
        ("קפץ מהשולחן החתול", false),
        ("القطة تقفز عن الطاولة", false),
        ("一只猫从桌子上跳下来", false),
        ("猫がテーブルから飛び降りる ｶﾀｶﾅ", false),
        (
            "고양이가 탁자에서 뛰어내린다 \u{1112}\u{1161}\u{11ab}",
            false,
        ),
        ("बिल्ली मेज़ से कूदती है", false),
        ("แมวกระโดดลงจากโต๊ะ", false),
        ("Кошка спрыгивает со стола", false),
        ("Η γάτα πηδάει", false),
        ("ድመቷ ዘለለች ᏣᎳᎩ ᚠᚢᚦ 𒀀𒁀 𓃠 𐌰𐌱 𝔠𝔞𝔱", false),
        (
            "🐈🏳\u{fe0f}\u{200d}🌈👩🏽\u{200d}🚀🇩🇪 1\u{fe0f}\u{20e3}",
            false,
        ),
        ("é e\u{301} ﬁ ½ Å \u{212b} ǅ İ ß", false),
        (&combining, true),
        ("\u{fffd}\u{fffe}\u{ffff}\u{10ffff}\u{e000}", false),
        ("Ã©tÃ© â€œquotedâ€\u{9d} mojibake", false),
        ("<extra_id_0> </s> <pad> ▁▁▁", false),
        (&"🐈".repeat(1000), true),
        (&"x".repeat(10_000), true),
    ] {
        let shown: String = prompt.chars().take(30).collect();
        let file = bench.put("prompt.txt", prompt.as_bytes());
        let at = format!("@{}", file.display());
        let ran = run(&mut bench.start(&picture, &at));
        assert_eq!(ran.code, Some(0), "{shown:?}: {}", ran.stderr);
        ran.assert_wrote("clip.mp4");
        assert_eq!(
            ran.stderr.contains("warning: "),
            is_cut,
            "{shown:?}: {}",
            ran.stderr
        );
        // The clip's file keeps it as it was given.
        let show = run(program()
            .args(["show", "--json"])
            .arg(bench.path("clip.mp4")));
        let json: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
        let given = prompt
            .trim_start_matches('\u{feff}')
            .trim_end_matches(['\n', '\r']);
        assert_eq!(json["prompt"], given, "{shown:?}");
        // In a GIF and a PNG too, and for people without what moves a cursor.
        let show = run(program().arg("show").arg(bench.path("clip.mp4")));
        let text = String::from_utf8(show.stdout).unwrap();
        assert!(
            !text.contains(['\u{1b}', '\0', '\u{7}', '\u{202e}']),
            "{shown:?}"
        );
    }
    // An argument, where no NUL can be.
    for prompt in ["\u{1b}[0m", "\u{200b}", "\0"] {
        let file = bench.put("prompt.txt", prompt.as_bytes());
        let ran = run(&mut bench.start(&picture, &format!("@{}", file.display())));
        if ran.code != Some(0) {
            ran.assert_refused(1, &["--prompt is empty"]);
        }
    }
    assert_eq!(bench.written(), ["clip.mp4".to_owned()].into());
}

/// What the clip's file says survives in its other forms.
#[test]
fn a_nul_in_a_prompt_damages_no_file() {
    let bench = Bench::new("a");
    let file = bench.put("prompt.txt", b"a\0cat\0");
    for output in ["clip.gif", "frames/"] {
        let mut command = bench.start(&bench.picture(), &format!("@{}", file.display()));
        let ran = run(command.args(["--output", output]));
        // The flag is there twice.
        ran.assert_refused(2, &["--output"]);
        let mut command = bench.command();
        command.arg(format!("--prompt=@{}", file.display()));
        command.args([
            "--size=32x32",
            "--frames=1",
            "--steps=1",
            "--output",
            output,
        ]);
        run(&mut command).assert_wrote(output);
        let show = run(program().args(["show", "--json"]).arg(bench.path(output)));
        let json: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
        assert_eq!(json["prompt"], "a\0cat\0");
    }
    let frame = image::open(bench.path("frames/frame_00000.png")).unwrap();
    assert_eq!(frame.color(), ColorType::Rgb8);
}

/// The low-noise expert is cut short after it was checked and before it is read.
#[test]
fn a_model_that_is_truncated_while_it_is_used_ends_the_run_with_a_message() {
    let bench = Bench::new("a");
    let expert = "transformer_2/diffusion_pytorch_model.safetensors";
    let expert = bench.checkpoint.path(expert);
    let whole = fs::read(&expert).unwrap();
    // More than a pipe holds: the run waits to be read before it is there.
    let flags = ["--steps", "130"];
    for length in [0, 4096, whole.len() as u64 / 2, whole.len() as u64 - 1] {
        let anew = [&flags[..], &["--resume", "never"]].concat();
        let mut running = Running::start(&mut bench.clip("clip.mp4", &anew));
        running.wait_for("step");
        let file = File::options().write(true).open(&expert).unwrap();
        file.set_len(length).unwrap();
        let (code, events) = running.end();
        assert_eq!(code, Some(1), "{events:#?}");
        let last = events.last().unwrap();
        let error = (&last["event"], &last["exit_code"]);
        assert_eq!(error, (&"error".into(), &1.into()));
        let message = last["message"].as_str().unwrap();
        assert!(message.contains(expert.to_str().unwrap()), "{message}");
        assert!(message.contains("download it again"), "{message}");
        fs::write(&expert, &whole).unwrap();
    }
    // Whole again, it goes on.
    let ran = run(&mut bench.clip("clip.mp4", &flags));
    assert!(
        ran.stderr.contains("resuming after step "),
        "{}",
        ran.stderr
    );
    ran.assert_wrote("clip.mp4");
    bench.assert_only(&["clip.mp4"]);
}

/// Results that nobody can take.
#[test]
fn a_closed_or_full_stdout_is_an_error_and_no_panic() {
    let bench = Bench::new("a");
    bench.small("clip.mp4", &[]).assert_wrote("clip.mp4");
    for arguments in [
        &["show", "clip.mp4"][..],
        &["plan", "--json", "--device=cpu"],
        &["inspect", "tiny"],
        &["completions", "bash"],
        &["man"],
    ] {
        let spawn = |stdout: Stdio| -> Ran {
            let mut command = program();
            command.current_dir(bench.work.path()).args(arguments);
            let child = command
                .stdout(stdout)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let output = child.wait_with_output().unwrap();
            Ran {
                code: output.status.code(),
                stdout: output.stdout,
                stderr: String::from_utf8(output.stderr).unwrap(),
            }
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        spawn(writer.into()).assert_refused(1, &["cannot write to stdout"]);
        if cfg!(target_os = "linux") {
            let full = File::options().write(true).open("/dev/full").unwrap();
            spawn(full.into()).assert_refused(1, &["cannot write to stdout"]);
        }
    }
}

/// A file system that takes nothing, where only a process of its own sees it.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder_is_refused_before_anything_is_computed() {
    let bench = Bench::new("a");
    fs::create_dir(bench.path("fixed")).unwrap();
    let script = "mount -t tmpfs -o ro none fixed || exit 77; exec \"$@\"";
    for (flag, path) in [
        ("--output", "fixed/clip.mp4"),
        ("--strip", "fixed/strip.png"),
        ("--checkpoint", "fixed/state"),
        ("--preview", "fixed/preview.png"),
        ("--dump", "fixed/dump"),
    ] {
        let output = if flag == "--output" { path } else { "clip.mp4" };
        let clip = bench.clip(output, &[]);
        let mut command = bench.unshared(script, &clip);
        if flag != "--output" {
            command.args([flag, path]);
        }
        let ran = run(&mut command);
        if ran.code == Some(77) || ran.stderr.starts_with("unshare") {
            eprintln!("skipped: this system lets no read-only file system be mounted");
            return;
        }
        ran.assert_refused(1, &[path.split('/').next().unwrap(), "ead-only"]);
        bench.assert_only(&["fixed"]);
    }
}
