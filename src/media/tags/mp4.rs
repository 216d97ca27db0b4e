//! iTunes lists in MP4 files: what QuickTime, FFmpeg, VLC and ExifTool read.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use super::{Tags, check_length, text};

const COMMENT: [u8; 4] = *b"\xa9cmt";

/// Atoms of one level that are looked at, at most.
const MAX_ATOMS: usize = 4096;

/// The atom `udta` with a list of the texts.
pub fn user_data(tags: &Tags) -> Result<Vec<u8>> {
    let entry = |kind: [u8; 4], text: &str| {
        // Type 1 is UTF-8; then the locale, which is none.
        let head = [[0, 0, 0, 1], [0; 4]].concat();
        atom(kind, &[&atom(*b"data", &[&head, text.as_bytes()])?])
    };
    let list = atom(
        *b"ilst",
        &[
            &entry(*b"\xa9nam", &tags.description)?,
            &entry(*b"desc", &tags.description)?,
            &entry(*b"\xa9too", &tags.software)?,
            &entry(COMMENT, &tags.comment)?,
        ],
    )?;
    // Version and flags, a field of QuickTime's, the kind of list, its vendor, reserved, no name.
    let handler = atom(*b"hdlr", &[&[0; 8], b"mdirappl", &[0; 9]])?;
    let meta = atom(*b"meta", &[&[0; 4], &handler, &list])?;
    atom(*b"udta", &[&meta])
}

fn atom(kind: [u8; 4], parts: &[&[u8]]) -> Result<Vec<u8>> {
    let body = parts.concat();
    let size = u32::try_from(body.len() + 8)?;
    Ok([&size.to_be_bytes(), kind.as_slice(), &body].concat())
}

/// The comment of the file's list.
pub fn read(mut file: impl Read + Seek) -> Result<Option<String>> {
    let mut range = 0..file.seek(SeekFrom::End(0))?;
    for kind in [*b"moov", *b"udta", *b"meta", *b"ilst", COMMENT, *b"data"] {
        let Some(mut found) = find(&mut file, range, kind)? else {
            ensure!(kind != *b"moov", "the MP4 data has no index; it is damaged");
            return Ok(None);
        };
        if kind == *b"meta" {
            found.start += 4; // version and flags
        }
        range = found;
    }
    // Past the type and the locale.
    let start = range.start + 8;
    let length = range
        .end
        .checked_sub(start)
        .context("the MP4 data is damaged: its comment is cut off")?;
    check_length(length)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    text(bytes).map(Some)
}

/// The content of the first atom of a kind within a range of the file.
fn find(
    file: &mut (impl Read + Seek),
    within: Range<u64>,
    kind: [u8; 4],
) -> Result<Option<Range<u64>>> {
    let mut at = within.start;
    for _ in 0..MAX_ATOMS {
        // Less than a header is padding.
        if at.checked_add(8).is_none_or(|end| end > within.end) {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; 8];
        file.read_exact(&mut header)?;
        let [a, b, c, d, found @ ..] = header;
        let (size, head) = match u32::from_be_bytes([a, b, c, d]) {
            0 => (within.end - at, 8),
            1 => {
                let mut size = [0; 8];
                file.read_exact(&mut size)?;
                (u64::from_be_bytes(size), 16)
            }
            size => (size.into(), 8),
        };
        let end = at.checked_add(size).filter(|&end| end <= within.end);
        let end = match end {
            Some(end) if size >= head => end,
            _ => bail!(
                "the MP4 data is damaged or cut off: {:?} at byte {at} claims {size} bytes",
                String::from_utf8_lossy(&found)
            ),
        };
        if found == kind {
            return Ok(Some(at + head..end));
        }
        at = end;
    }
    Ok(None)
}
