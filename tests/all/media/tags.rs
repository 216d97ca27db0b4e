//! What a clip's file says of itself, written and read back, and read from files of others.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::RgbImage;
use tempfile::TempDir;
use wan_i2v::media::clip::{ClipSpec, ClipWriter};
use wan_i2v::media::strip::FilmStrip;
use wan_i2v::media::tags::{Tags, comment_of, read_comment};

const KINDS: [&str; 3] = ["clip.mp4", "clip.gif", "frames/"];

fn tags(comment: &str) -> Tags {
    Tags {
        software: "wan-i2v 1.2.3".into(),
        description: "一只猫 \u{1f3f3}".into(),
        comment: comment.into(),
    }
}

fn write(path: &Path, frames: usize, tags: Option<&Tags>) {
    let spec = ClipSpec {
        width: 16,
        height: 16,
        fps: 16.0,
    };
    let mut writer = ClipWriter::create(path, &spec, tags).unwrap();
    for _ in 0..frames {
        writer.push(&RgbImage::new(16, 16)).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn comments_come_back_from_every_kind_of_clip() {
    let folder = TempDir::new().unwrap();
    // More than a GIF's block of 255 bytes and its multiples hold.
    for length in [0, 1, 255, 256, 510, 100_000] {
        let comment = "x".repeat(length);
        for name in KINDS {
            let path = folder.path().join(name);
            write(&path, 2, Some(&tags(&comment)));
            assert_eq!(
                read_comment(&path).unwrap(),
                Some(comment.clone()),
                "{name}"
            );
        }
    }
    for name in KINDS {
        write(&folder.path().join(name), 2, None);
        assert_eq!(read_comment(&folder.path().join(name)).unwrap(), None);
    }
    let path = folder.path().join("strip.png");
    let mut strip = FilmStrip::new(&path, 1, Some(tags("of a strip"))).unwrap();
    strip.push(&RgbImage::new(16, 16));
    strip.finish().unwrap();
    assert_eq!(read_comment(&path).unwrap().unwrap(), "of a strip");
}

#[test]
fn tags_leave_the_pictures_alone() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["frames/", "plain/"] {
        write(&path(name), 1, (name == "frames/").then_some(&tags("x")));
    }
    let frame = |name: &str| image::open(path(name).join("frame_00000.png")).unwrap();
    assert_eq!(frame("frames"), frame("plain"));
    // In an MP4 they come before the samples, which move.
    write(&path("clip.mp4"), 3, Some(&tags("x")));
    write(&path("plain.mp4"), 3, None);
    let samples = |name: &str| {
        let bytes = fs::read(path(name)).unwrap();
        let at = bytes.windows(4).position(|kind| kind == b"mdat").unwrap();
        (at as u64 + 4, bytes[at + 4..].to_vec())
    };
    let (tagged, plain) = (samples("clip.mp4"), samples("plain.mp4"));
    assert!(tagged.0 > plain.0);
    assert_eq!(tagged.1, plain.1);
    let (moov, _) = super::clip::read_mp4(&path("clip.mp4"));
    let chunks = moov.trak[0].mdia.minf.stbl.co64.as_ref().unwrap();
    assert_eq!(chunks.entries, [tagged.0]);
    let list = moov.udta.unwrap().meta.unwrap();
    let found = list.items.iter().find_map(|item| match item {
        mp4_atom::Any::Ilst(list) => Some(list),
        _ => None,
    });
    let list = found.unwrap();
    assert_eq!(list.desc.as_ref().unwrap().text, tags("").description);
    assert_eq!(list.ctoo.as_ref().unwrap().text, "wan-i2v 1.2.3");
}

#[test]
fn a_folder_is_read_by_its_first_frame() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("frames");
    write(&folder.path().join("frames/"), 12, Some(&tags("x")));
    fs::write(target.join("a.png"), "no picture").unwrap();
    for n in 0..9 {
        fs::remove_file(target.join(format!("frame_{n:05}.png"))).unwrap();
    }
    assert_eq!(read_comment(&target).unwrap().unwrap(), "x");
    fs::write(target.join("frame_00003.png"), "damaged").unwrap();
    let error = format!("{:#}", read_comment(&target).unwrap_err());
    assert!(error.contains("frame_00003.png"), "{error}");
    let error = format!("{:#}", read_comment(folder.path()).unwrap_err());
    assert!(error.contains("holds no frames"), "{error}");
}

/// Files cut off anywhere, with any byte of their heads changed: an answer, and never a panic.
#[test]
fn damaged_files_are_answered() {
    let folder = TempDir::new().unwrap();
    for name in ["clip.mp4", "clip.gif", "frames/"] {
        write(&folder.path().join(name), 1, Some(&tags("a comment")));
    }
    for name in ["clip.mp4", "clip.gif", "frames/frame_00000.png"] {
        let whole = fs::read(folder.path().join(name)).unwrap();
        let (mut refused, mut lost) = (0, 0);
        let mut look = |bytes: &[u8]| match comment_of(Cursor::new(bytes)) {
            Ok(Some(_)) => {}
            Ok(None) => lost += 1,
            Err(_) => refused += 1,
        };
        for length in 0..whole.len() {
            look(&whole[..length]);
        }
        for at in 0..whole.len().min(2000) {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= change;
                look(&changed);
            }
        }
        assert!(refused > 20, "{name}: {refused} refused, {lost} lost");
    }
}

fn atom(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u32 + 8).to_be_bytes();
    [&size, kind.as_slice(), body].concat()
}

#[test]
fn hostile_sizes_are_refused() {
    let ftyp = atom(b"ftyp", b"isom");
    let refused = |content: &[u8], part: &str| {
        let error = format!("{:#}", comment_of(Cursor::new(content)).unwrap_err());
        assert!(error.contains(part), "{error}");
    };
    // Sizes of atoms: less than a header, more than the file, more than 64 bits count.
    for size in [1_u32, 2, 7, 9999, u32::MAX] {
        let head = [&size.to_be_bytes(), b"moov".as_slice()].concat();
        let long = [head.as_slice(), &[0xff; 8]].concat();
        refused(&[&ftyp, head.as_slice(), &long].concat(), "damaged");
    }
    refused(&ftyp, "no index");
    refused(&ftyp[..7], "no MP4, GIF or PNG");
    // No end of the first level.
    let many = atom(b"free", b"").repeat(100_000);
    refused(&[ftyp.as_slice(), &many].concat(), "no index");
    // A comment that is longer than is read, and one that is none.
    let list = |comment: &[u8]| {
        let list = atom(b"ilst", &atom(b"\xa9cmt", &atom(b"data", comment)));
        let meta = atom(b"meta", &[&[0; 4], list.as_slice()].concat());
        [ftyp.clone(), atom(b"moov", &atom(b"udta", &meta))].concat()
    };
    assert!(comment_of(Cursor::new(list(&[0; 8]))).unwrap().is_some());
    refused(&list(&vec![b'x'; 9 + (1 << 20)]), "bytes; at most");
    refused(&list(b"abcd"), "cut off");
    refused(&list(b"\0\0\0\x01\0\0\0\0\xff\xfe"), "UTF-8");

    let gif = |blocks: &[u8]| [b"GIF89a\x10\0\x10\0\0\0\0", blocks].concat();
    refused(&gif(b""), "cut off");
    refused(&gif(b"\x21\xfe\x05ab"), "cut off");
    refused(&gif(b"\x99"), "begins with 0x99");
    let block = [&[0xff; 1], [b'x'; 255].as_slice()].concat();
    refused(
        &gif(&[b"\x21\xfe".as_slice(), &block.repeat(5000)].concat()),
        "at most",
    );
    assert_eq!(comment_of(Cursor::new(gif(b";"))).unwrap(), None);
    let many = gif(&b"\x21\xf9\0".repeat(100_000));
    assert_eq!(comment_of(Cursor::new(many)).unwrap(), None);

    refused(b"\x89PNG\r\n\x1a\n", "damaged");
    refused(b"\x89PNG no picture at all", "damaged");
}

/// A megabyte of the same letter packs into a thousandth: such a text is not unpacked whole.
#[test]
fn a_packed_text_is_not_unpacked_without_bounds() {
    for (length, read) in [(1000, true), (64 << 20, false)] {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 1, 1);
        let mut chunk = png::text_metadata::ITXtChunk::new("Comment", "x".repeat(length));
        chunk.compressed = true;
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_text_chunk(&chunk).unwrap();
        writer.write_image_data(&[0; 3]).unwrap();
        writer.finish().unwrap();
        assert_eq!(comment_of(Cursor::new(file)).is_ok(), read, "{length}");
    }
}
