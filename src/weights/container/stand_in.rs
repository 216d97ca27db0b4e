//! What lies in a model's place: other files under its name, told by their first bytes.

use anyhow::{Result, bail};

use crate::media::read::npy::is_npy;
use crate::media::shows_pictures;

/// How much of a text is quoted, in characters.
const QUOTED: usize = 120;

/// Refuses what is no file with tensors but something else that can be named.
///
/// # Errors
/// Says what it is, and what to do.
pub fn refuse(file: &[u8]) -> Result<()> {
    let Some((what, hint)) = known(file) else {
        return Ok(());
    };
    let hint = if hint.is_empty() {
        String::new()
    } else {
        format!("\nhint: {hint}")
    };
    bail!("{what}, not a model; expected tensors: safetensors, GGUF or PyTorch's .pth{hint}")
}

/// Refuses what stands in a file's place where a repository was cloned without git-lfs.
///
/// # Errors
/// Says what it is, and what to do.
pub fn refuse_pointer(file: &[u8]) -> Result<()> {
    match pointer(file) {
        Some(pointer) => bail!("it is {pointer}\nhint: {LFS_PULL}"),
        None => Ok(()),
    }
}

const LFS_PULL: &str =
    "run git lfs pull in its folder, or fetch the model with wan-i2v pull OWNER/NAME";

/// What it is a pointer of, if it is one.
fn pointer(file: &[u8]) -> Option<String> {
    if !file.starts_with(b"version https://git-lfs") {
        return None;
    }
    let text = String::from_utf8_lossy(file.get(..256).unwrap_or(file));
    let size = text.lines().find_map(|line| line.strip_prefix("size "));
    let of = size.map_or(String::new(), |size| {
        format!(" of a file of {} bytes", size.trim())
    });
    Some(format!("a Git LFS pointer{of}"))
}

/// What `file` is and what to do, unless it may be a file with tensors.
fn known(file: &[u8]) -> Option<(String, &'static str)> {
    const DOWNLOAD: &str =
        "download the file itself, for example with wan-i2v pull OWNER/NAME FILE";
    let named = |what: &str, hint: &'static str| Some((what.to_owned(), hint));
    if let Some(pointer) = pointer(file) {
        return Some((pointer, LFS_PULL));
    }
    let first: [(&[u8], &str, &'static str); 8] = [
        (
            b"SQLite format 3\0",
            "an SQLite database, as Draw Things keeps its models in",
            "take the model from where Draw Things imported it; its own form is not read",
        ),
        (
            b"\x00\x05\x16\x07",
            "what macOS keeps beside a file on other disks (AppleDouble)",
            "name the file without ._ in front",
        ),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
        (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
        (b"\x1f\x8b", "a gzip archive", "unpack it"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it"),
        (b"\xfd7zXZ\0", "an xz archive", "unpack it"),
        (b"\x89HDF\r\n", "an HDF5 file", "take its safetensors form"),
    ];
    if let Some((_, what, hint)) = first.iter().find(|(start, ..)| file.starts_with(start)) {
        return named(what, hint);
    }
    if shows_pictures(file) {
        return named("a clip or a picture", "");
    }
    if is_npy(file) {
        return named("a single array, such as --dump writes", "");
    }
    let start = file.get(..4096).unwrap_or(file);
    if start.iter().all(|byte| *byte == 0) {
        return named(
            "a file that begins with zeros, as an unfinished download does",
            "download it again",
        );
    }
    // Text alone: a header's length in front of a safetensors file has bytes of zero.
    let text = std::str::from_utf8(start).or_else(|error| match error.error_len() {
        // A character that is cut in two.
        None => std::str::from_utf8(start.get(..error.valid_up_to()).unwrap_or_default()),
        Some(_) => Err(error),
    });
    let text = text.ok()?.trim_start_matches('\u{feff}').trim();
    let is_binary = |c: char| c.is_control() && !c.is_whitespace();
    if text.contains(is_binary) || text.is_empty() {
        return None;
    }
    if text.starts_with('<') {
        return named(
            "a web page, as hubs send one in place of a file that needs a login",
            DOWNLOAD,
        );
    }
    let quoted: String = text.chars().take(QUOTED).collect();
    let quoted = quoted.escape_debug();
    match text.starts_with('{') && text.contains("\"error\"") {
        true => Some((
            format!("a server's error message ({quoted})"),
            "accept the model's terms on the hub, set HF_TOKEN, and download it again",
        )),
        false => Some((format!("a text ({quoted})"), DOWNLOAD)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_models_place_is_named_with_a_remedy() {
        let pointer =
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 14305483416\n";
        for (file, what, hint) in [
            (
                pointer.as_bytes(),
                "pointer of a file of 14305483416 bytes",
                "git lfs pull",
            ),
            (b"<!doctype html><html>", "a web page", "wan-i2v pull"),
            (b"\n <html>", "a web page", "wan-i2v pull"),
            (
                br#"{"error":"Access to x is restricted."}"#,
                "error message",
                "HF_TOKEN",
            ),
            (
                b"Entry not found",
                "a text (Entry not found)",
                "wan-i2v pull",
            ),
            (b"SQLite format 3\0\x10", "Draw Things", "imported"),
            (b"\0\x05\x16\x07\0\x02\0\0", "AppleDouble", "without ._"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7z archive", "unpack"),
            (&[0; 64], "begins with zeros", "again"),
        ] {
            let error = refuse(file).unwrap_err().to_string();
            let (message, advice) = error.split_once("\nhint: ").unwrap();
            assert!(message.contains(what), "{error}");
            assert!(advice.contains(hint), "{error}");
        }
        let safetensors = b"\x40\0\0\0\0\0\0\0{\"a\":{";
        refuse(safetensors).unwrap();
        refuse(&[1; 64]).unwrap();
    }
}
