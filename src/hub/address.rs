//! Addresses: where a redirect leads, who may see the token, and what needs escaping.

use anyhow::{Context, Result, bail, ensure};
use ureq::http::{HeaderMap, Uri};

/// A header's text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Where a redirect leads.
pub(super) fn next(from: &Uri, headers: &HeaderMap) -> Result<Uri> {
    let location = header(headers, "location").context("it names no address")?;
    let scheme = from.scheme_str().unwrap_or("https");
    let to: Uri = if location.starts_with("//") {
        format!("{scheme}:{location}").parse()?
    } else if location.starts_with('/') {
        let host = from.authority().context("its origin is unknown")?;
        format!("{scheme}://{host}{location}").parse()?
    } else {
        location.parse()?
    };
    match to.scheme_str() {
        Some("https") => {}
        Some("http") if scheme == "http" => {}
        Some("http") => bail!("it leads from https to http"),
        _ => bail!("it leads to something that is no web address"),
    }
    ensure!(to.authority().is_some(), "it names no host");
    Ok(to)
}

/// Whether two addresses have the same scheme, host and port.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => Some(port),
        (None, Some("https")) => Some(443),
        (None, Some("http")) => Some(80),
        _ => None,
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// As [`escape`], `/` too: a branch's name is one part of an address.
pub(super) fn escape_all(name: &str) -> String {
    escape(name).replace('/', "%2F")
}

/// Escapes a path for a URL, all but `/` and what never needs it (RFC 3986, 2.3).
pub(super) fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn the_token_stays_with_its_origin() {
        let home = uri("https://huggingface.co");
        for (other, same) in [
            ("https://huggingface.co/a/b", true),
            ("https://HuggingFace.co:443/a", true),
            ("http://huggingface.co/a", false),
            ("https://huggingface.co:8443/a", false),
            ("https://cdn-lfs.huggingface.co/a", false),
            ("https://huggingface.co.evil.example/a", false),
            ("https://huggingface.co@evil.example/a", false),
        ] {
            assert_eq!(same_origin(&uri(other), &home), same, "{other}");
        }
    }

    #[test]
    fn redirects() {
        let leads = |from: &str, location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            next(&uri(from), &headers).map(|to| to.to_string())
        };
        let from = "https://h.example/a/b";
        assert_eq!(leads(from, "/c?d").unwrap(), "https://h.example/c?d");
        assert_eq!(
            leads(from, "//cdn.example/c").unwrap(),
            "https://cdn.example/c"
        );
        assert_eq!(
            leads(from, "https://cdn.example/c").unwrap(),
            "https://cdn.example/c"
        );
        for bad in [
            "http://cdn.example/c",
            "ftp://x/y",
            "file:///etc/passwd",
            "c",
            "",
            "https://",
        ] {
            assert!(leads(from, bad).is_err(), "{bad}");
        }
        assert!(leads("http://h.example/a", "http://cdn.example/c").is_ok());
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("a b/c#d?é%.json"), "a%20b/c%23d%3F%C3%A9%25.json");
    }
}
