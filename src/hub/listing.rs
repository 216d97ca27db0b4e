//! What a revision of a repository holds.

use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::Hash;
use super::repo::is_commit;

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path below the repository's root, with `/`; safe to join to a folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Hash of the content; `None` only for a file that the cache holds under no hash.
    pub hash: Option<Hash>,
}

/// What a revision holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The commit that the revision is.
    pub commit: String,
    /// Its files, sorted by path; offline, those that are in the cache.
    pub files: Vec<RemoteFile>,
}

/// The hub's description of a revision, as far as it matters here.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

/// A file in it. The size and the hashes come with `blobs=true` (`RepoSibling` and `ModelInfo`
/// in `huggingface_hub/hf_api.py`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: u64,
    sha256: String,
}

/// Reads the hub's listing of a revision.
pub(super) fn parse_listing(answer: &[u8]) -> Result<Listing> {
    let info: Info = serde_json::from_slice(answer).context("is not what was expected")?;
    ensure!(is_commit(&info.sha), "names the commit {:?}", info.sha);
    let file = |sibling: Sibling| -> Result<RemoteFile> {
        let path = sibling.rfilename;
        check_path(&path)?;
        let (size, hash) = match (sibling.lfs, sibling.size, sibling.blob_id) {
            (Some(lfs), _, _) => (lfs.size, Hash::sha256(&lfs.sha256)),
            (None, Some(size), Some(blob)) => (size, Hash::git_blob(&blob)),
            _ => bail!("{path}: has no size or no hash"),
        };
        let hash = Some(hash.with_context(|| path.clone())?);
        Ok(RemoteFile { path, size, hash })
    };
    let mut files: Vec<RemoteFile> = info.siblings.into_iter().map(file).collect::<Result<_>>()?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(pair) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
        bail!("{} is there twice", pair[0].path);
    }
    Ok(Listing {
        commit: info.sha,
        files,
    })
}

/// That a path stays below the folder that it is joined to.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let tidy = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    ensure!(
        plain && tidy && !path.contains('\\') && !path.chars().any(char::is_control),
        "holds a file with the unusable name {path:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "206a9ee1b7bfaaf8f7e4d81335650533490646a3";

    fn parse(siblings: &str) -> Result<Listing> {
        parse_listing(format!(r#"{{"sha":"{COMMIT}","siblings":[{siblings}]}}"#).as_bytes())
    }

    #[test]
    fn a_listing_is_read() {
        let sha = "ab".repeat(32);
        let blob = "cd".repeat(20);
        let listing = parse(&format!(
            r#"{{"rfilename":"b/w.safetensors","size":7,"blobId":"{blob}",
                 "lfs":{{"sha256":"{sha}","size":9,"pointerSize":134}}}},
               {{"rfilename":"a.json","size":3,"blobId":"{blob}"}}"#
        ))
        .unwrap();
        assert_eq!(listing.commit, COMMIT);
        let found: Vec<_> = listing
            .files
            .iter()
            .map(|f| (f.path.as_str(), f.size))
            .collect();
        assert_eq!(found, [("a.json", 3), ("b/w.safetensors", 9)]);
        assert_eq!(listing.files[0].hash, Some(Hash::GitBlob(blob)));
        assert_eq!(listing.files[1].hash, Some(Hash::Sha256(sha)));
    }

    #[test]
    fn hostile_listings_are_refused() {
        let blob = "cd".repeat(20);
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "./a",
            "a/.",
            "a/",
            "a\\\\b",
            "a\\nb",
        ] {
            let entry = format!(r#"{{"rfilename":"{name}","size":1,"blobId":"{blob}"}}"#);
            let error = parse(&entry).unwrap_err().to_string();
            assert!(error.contains("unusable name"), "{name}: {error}");
        }
        for entry in [
            r#"{"rfilename":"a","size":1}"#.to_owned(),
            format!(r#"{{"rfilename":"a","blobId":"{blob}"}}"#),
            format!(r#"{{"rfilename":"a","size":-1,"blobId":"{blob}"}}"#),
            r#"{"rfilename":"a","size":1,"blobId":"../../../etc"}"#.to_owned(),
            r#"{"rfilename":"a","lfs":{"sha256":"../x","size":1}}"#.to_owned(),
            format!(
                r#"{{"rfilename":"a","size":1,"blobId":"{blob}"}},{{"rfilename":"a","size":1,"blobId":"{blob}"}}"#
            ),
        ] {
            assert!(parse(&entry).is_err(), "{entry}");
        }
        assert!(parse_listing(br#"{"sha":"main","siblings":[]}"#).is_err());
        assert!(parse_listing(b"<html>").is_err());
    }
}
