//! Frames of a folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Frame, check_size};
use crate::media::clip::frame_index;
use crate::media::frames::to_rgb8;
use crate::media::picture::Picture;
use crate::util::files::is_litter;

/// In order; what is no picture by its name is left out.
pub fn read(folder: &Path, each: &mut dyn FnMut(Frame) -> Result<()>) -> Result<()> {
    let files = files(folder)?;
    ensure!(
        !files.is_empty(),
        "the folder holds no frames (frame_00000.png and so on, or other PNG, JPEG or WebP files)"
    );
    for path in files {
        let picture = Picture::open(&path)?;
        let (width, height) = (picture.width(), picture.height());
        check_size(width as u64, height as u64)?;
        let unit = picture.pixels();
        let signed = unit.mapv(|value| value * 2.0 - 1.0);
        each(to_rgb8(signed.view())?.into())?;
    }
    Ok(())
}

/// The frames of a clip of this program if there are any, else all pictures.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut frames, mut pictures) = (Vec::new(), Vec::new());
    for entry in folder.read_dir()? {
        let name = entry?.file_name();
        if let Some(index) = frame_index(&name) {
            frames.push((index, name));
        } else if is_picture(&name) {
            pictures.push((in_order(&name), name));
        }
    }
    frames.sort();
    pictures.sort();
    let names: Vec<_> = match frames.is_empty() {
        true => pictures.into_iter().map(|(_, name)| name).collect(),
        false => frames.into_iter().map(|(_, name)| name).collect(),
    };
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether the folder has a clip's frames, or pictures and nothing else that is seen.
pub fn is_clip(folder: &Path) -> Result<bool> {
    let (mut pictures, mut others) = (0, 0);
    for entry in folder.read_dir()? {
        let name = entry?.file_name();
        if frame_index(&name).is_some() {
            return Ok(true);
        }
        let hidden = name.as_encoded_bytes().starts_with(b".");
        match is_picture(&name) {
            true => pictures += 1,
            false => others += usize::from(!hidden && !is_litter(&name.to_string_lossy())),
        }
    }
    Ok(pictures > 0 && others == 0)
}

fn is_picture(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    extension.is_some_and(|found| {
        let known = ["png", "jpg", "jpeg", "webp"];
        known.iter().any(|known| found.eq_ignore_ascii_case(known))
    }) && !name.as_encoded_bytes().starts_with(b".")
}

/// A key that sorts `2.png` before `10.png`: digits become numbers.
fn in_order(name: &OsStr) -> Vec<(u64, String)> {
    let name = name.to_string_lossy();
    let mut parts = Vec::new();
    let mut rest = name.as_ref();
    while !rest.is_empty() {
        let text = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, after) = rest.split_at(text);
        let digits = after
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(after.len());
        let (digits, after) = after.split_at(digits);
        parts.push((0, text.to_owned()));
        parts.push((digits.parse().unwrap_or(u64::MAX), digits.to_owned()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_their_order() {
        let mut names = ["b.png", "a10.png", "a2.png", "a2b.png", "10.png", "9.png"];
        names.sort_by_key(|name| in_order(OsStr::new(name)));
        assert_eq!(
            names,
            ["9.png", "10.png", "a2.png", "a2b.png", "a10.png", "b.png"]
        );
    }
}
