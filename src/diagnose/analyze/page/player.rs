//! The clip itself on a page.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::media::clip::OutputKind;
use crate::util::files::{read_head, read_small};
use crate::util::html::{address, escaped, way};
use crate::util::show::Show;

/// The largest file that a page has in it, in bytes; of a larger one it has the address.
const MOST: u64 = 16 << 20;

/// A clip that a browser plays.
#[derive(Clone, Debug)]
pub struct Player {
    kind: OutputKind,
    source: String,
}

impl Player {
    /// Of the clip at `file`, for a page at `page`; `None` of what is no MP4 or GIF.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(file: &Path, page: &Path) -> Result<Option<Self>> {
        let cannot = || format!("cannot read {}", file.shown());
        let file = &file.canonicalize().with_context(cannot)?;
        let head = match file.is_dir() {
            true => return Ok(None),
            false => read_head(file, 8).with_context(cannot)?,
        };
        let (kind, mime) = match head.as_slice() {
            [_, _, _, _, b'f', b't', b'y', b'p'] => (OutputKind::Mp4, "video/mp4"),
            [b'G', b'I', b'F', b'8', ..] => (OutputKind::Gif, "image/gif"),
            _ => return Ok(None),
        };
        let small = file.metadata().with_context(cannot)?.len() <= MOST;
        let source = match small {
            true => {
                let bytes = read_small(file, MOST).with_context(cannot)?;
                format!("data:{mime};base64,{}", STANDARD.encode(bytes))
            }
            false => {
                let folder = page
                    .parent()
                    .filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new(".")).canonicalize();
                address(&way(&folder.with_context(cannot)?, file))
            }
        };
        Ok(Some(Self { kind, source }))
    }

    pub(super) fn html(&self) -> String {
        let source = escaped(&self.source);
        match self.kind {
            OutputKind::Gif => format!("<img class=\"clip\" alt=\"the clip\" src=\"{source}\">"),
            _ => format!(
                "<video class=\"clip\" controls loop muted playsinline src=\"{source}\"></video>"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_clip_is_in_the_page_and_a_large_one_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let clip = folder.path().join("it's \"1\" #.mp4");
        let page = folder.path().join("pages/page.html");
        std::fs::create_dir(folder.path().join("pages")).unwrap();
        std::fs::write(&clip, b"\0\0\0\x18ftypisom").unwrap();
        let html = |path: &Path| Player::of(path, &page).unwrap().map(|player| player.html());
        let small = html(&clip).unwrap();
        assert!(
            small.contains("src=\"data:video/mp4;base64,AAAAGGZ0eXBpc29t\""),
            "{small}"
        );
        let file = std::fs::OpenOptions::new().write(true).open(&clip).unwrap();
        file.set_len(MOST + 1).unwrap();
        let large = html(&clip).unwrap();
        assert!(
            large.contains("src=\"../it%27s%20%221%22%20%23.mp4\""),
            "{large}"
        );
        let gif = folder.path().join("a.gif");
        std::fs::write(&gif, b"GIF89a").unwrap();
        assert!(html(&gif).unwrap().starts_with("<img"));
        assert!(html(folder.path()).is_none());
    }
}
