//! What a clip's file says of itself: texts beside the pictures, in each format's own way.
//!
//! * MP4: an iTunes list (`moov/udta/meta/ilst`) with `©nam`, `desc`, `©too` and `©cmt`.
//! * GIF: a comment extension.
//! * PNG: text chunks `Software`, `Description` and `Comment`.
//!
//! Reading trusts nothing: it goes from header to header and takes no text above a megabyte.

mod gif;
mod mp4;
mod png;

pub(super) use gif::write as write_gif;
pub(super) use mp4::user_data;
pub(super) use png::write as write_png;

use std::io::{BufRead, BufReader, Read as _, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::clip::frame_index;
use crate::util::show::Show;
use crate::util::suggest;

/// The longest comment that is read, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// Texts that go into a clip's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// The program that made it.
    pub software: String,
    /// What it shows.
    pub description: String,
    /// Everything about it, for programs; ASCII, as a GIF's comment and PNG's older chunks are.
    pub comment: String,
}

/// The comment in a `.mp4`, a `.gif`, a `.png`, or the first frame of a folder of frames; `None`
/// when there is none. Kinds are told apart by content.
///
/// # Errors
/// When the file cannot be read, is none of these or is damaged.
pub fn read_comment(path: &Path) -> Result<Option<String>> {
    let path = match path.is_dir() {
        true => first_frame(path)?,
        false => path.to_owned(),
    };
    suggest::open_regular(&path)
        .and_then(|file| comment_of(BufReader::new(file)))
        .with_context(|| format!("cannot read {}", path.shown()))
}

/// As [`read_comment`], of a file's content.
///
/// # Errors
/// As there.
pub fn comment_of(mut file: impl BufRead + Seek) -> Result<Option<String>> {
    let mut start = Vec::new();
    (&mut file).take(8).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    match start.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => png::read(file),
        [b'G', b'I', b'F', b'8', ..] => gif::read(file),
        [_, _, _, _, b'f', b't', b'y', b'p'] => mp4::read(file),
        _ => bail!("its content is no MP4, GIF or PNG"),
    }
}

/// The frame with the lowest number in a folder.
fn first_frame(folder: &Path) -> Result<PathBuf> {
    let mut first = None;
    for entry in folder
        .read_dir()
        .with_context(|| format!("cannot read {}", folder.shown()))?
    {
        let name = entry?.file_name();
        let index = frame_index(&name);
        if index.is_some() && first.as_ref().is_none_or(|(least, _)| index < *least) {
            first = Some((index, name));
        }
    }
    let (_, name) = first.with_context(|| {
        format!(
            "{}: the folder holds no frames (frame_00000.png and so on)",
            folder.shown()
        )
    })?;
    Ok(folder.join(name))
}

/// A comment's bytes as text.
fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context("its comment is no valid UTF-8")
}

fn check_length(length: u64) -> Result<()> {
    ensure!(
        length <= MAX_TEXT,
        "its comment has {length} bytes; at most {MAX_TEXT} are read"
    );
    Ok(())
}
