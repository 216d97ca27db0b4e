//! Text and names of files in HTML pages.

use std::path::{Component, Path, PathBuf};

use super::show::is_unseen;

/// A text that is nothing but text, in an element or in an attribute's double quotes. What is unseen is
/// escaped as messages escape it.
pub(crate) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            '\'' => html += "&#39;",
            '\n' => html.push('\n'),
            c if is_unseen(c) => html.extend(c.escape_unicode()),
            c => html.push(c),
        }
    }
    html
}

/// A relative path as an address: bytes that have a meaning there, or are no ASCII, by their numbers.
pub(crate) fn address(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.as_encoded_bytes()),
        Component::ParentDir => Some(b"..".as_slice()),
        _ => None,
    });
    let encoded = parts.map(|part| {
        let bytes = part.iter().map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        });
        bytes.collect::<String>()
    });
    encoded.collect::<Vec<_>>().join("/")
}

/// The way from a folder to a file, both without links and dots.
pub(crate) fn way(folder: &Path, file: &Path) -> PathBuf {
    let common = folder
        .components()
        .zip(file.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = folder
        .components()
        .skip(common)
        .map(|_| Component::ParentDir);
    up.chain(file.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_a_text() {
        assert_eq!(
            escaped("<script>alert(\"a\" & 'b')</script>\u{202e}\u{1b}"),
            "&lt;script&gt;alert(&quot;a&quot; &amp; &#39;b&#39;)&lt;/script&gt;\\u{202e}\\u{1b}"
        );
    }

    #[test]
    fn a_name_stays_a_name() {
        for (path, expected) in [
            ("clips/a b.mp4", "clips/a%20b.mp4"),
            ("javascript:alert(1).mp4", "javascript%3Aalert%281%29.mp4"),
            ("it's \"50%\" #1?.mp4", "it%27s%20%2250%25%22%20%231%3F.mp4"),
            ("猫.gif", "%E7%8C%AB.gif"),
            ("../x/y", "../x/y"),
        ] {
            assert_eq!(address(Path::new(path)), expected);
        }
    }

    #[test]
    fn the_way_leads_to_the_file() {
        let way = |folder: &str, file: &str| way(Path::new(folder), Path::new(file));
        assert_eq!(way("/a/b", "/a/b/c.mp4"), Path::new("c.mp4"));
        assert_eq!(way("/a/b/d", "/a/c/e.mp4"), Path::new("../../c/e.mp4"));
    }
}
