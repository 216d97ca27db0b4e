//! Naming a repository of the hub.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, bail, ensure};

/// The branch that is meant when none is named.
const DEFAULT_REVISION: &str = "main";

/// The hub's limits on an id and (ours) on a revision, in characters.
const MAX_ID: usize = 96;
const MAX_REVISION: usize = 200;

/// A model repository and a revision of it: `owner/name[@revision]`.
///
/// Every part is checked when it is parsed, so that it can become part of a URL and of a path in
/// the cache as it is. The rules for ids are those of `huggingface_hub`
/// (`utils/_validators.py`, `validate_repo_id`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId {
    id: String,
    revision: String,
}

impl RepoId {
    /// `owner/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The branch, tag, pull request (`refs/pr/1`) or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

/// As it is typed; the default branch is left out.
impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = page(text) {
            match from_page(path) {
                Some(repo) => bail!("{text:?} is an address: type {repo}"),
                None => bail!("{text:?} is an address: type owner/name[@revision] instead"),
            }
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        check_id(id)?;
        check_revision(revision)?;
        Ok(Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

/// Whether `text` is a commit: 40 lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The path of a page's address; `None` when `text` is no address.
fn page(text: &str) -> Option<&str> {
    let hosts = ["huggingface.co/", "www.huggingface.co/", "hf.co/"];
    let bare = match text.split_once("://") {
        Some((_, rest)) => rest,
        None if hosts.iter().any(|host| text.starts_with(host)) => text,
        None => return None,
    };
    Some(bare.split_once('/').map_or("", |(_, path)| path))
}

/// The repository of a page `owner/name[/tree/revision[/...]]`.
fn from_page(path: &str) -> Option<RepoId> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (owner, name) = (parts.first()?, parts.get(1)?);
    let revision = match parts.get(2) {
        Some(&("tree" | "blob" | "resolve" | "raw")) => parts.get(3),
        _ => None,
    };
    let revision = revision.unwrap_or(&DEFAULT_REVISION);
    format!("{owner}/{name}@{revision}").parse().ok()
}

fn check_id(id: &str) -> Result<()> {
    let parts: Vec<&str> = id.split('/').collect();
    ensure!(
        parts.len() == 2 && parts.iter().all(|part| !part.is_empty()),
        "{id:?} is no repository of the hub: expected owner/name[@revision], such as \
         Wan-AI/Wan2.2-I2V-A14B"
    );
    ensure!(
        id.len() <= MAX_ID,
        "{id:?} is no repository of the hub: ids have at most {MAX_ID} characters"
    );
    for part in parts {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            part.chars().all(allowed),
            "{id:?} is no repository of the hub: letters, digits, '-', '_' and '.' are allowed \
             in {part:?}"
        );
        ensure!(
            !part.starts_with(['-', '.']) && !part.ends_with(['-', '.']),
            "{id:?} is no repository of the hub: {part:?} begins or ends with '-' or '.'"
        );
    }
    ensure!(
        !id.contains("--") && !id.contains("..") && !id.ends_with(".git"),
        "{id:?} is no repository of the hub: '--', '..' and a final '.git' are not allowed"
    );
    Ok(())
}

/// Fewer names than git allows: what needs no escaping in a URL and is harmless in a path.
fn check_revision(revision: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let part_ok = |part: &str| {
        !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(['.', '-'])
    };
    ensure!(
        revision.len() <= MAX_REVISION
            && revision.chars().all(allowed)
            && !revision.contains("..")
            && revision.split('/').all(part_ok),
        "{revision:?} is not a revision that can be used: give a branch, a tag or a commit made of \
         letters, digits, '-', '_', '.', '+' and '/'"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_apart() {
        let repo: RepoId = "Wan-AI/Wan2.2-I2V-A14B".parse().unwrap();
        assert_eq!(
            (repo.id(), repo.revision()),
            ("Wan-AI/Wan2.2-I2V-A14B", "main")
        );
        assert_eq!(repo.to_string(), "Wan-AI/Wan2.2-I2V-A14B");
        let repo: RepoId = "a/b@refs/pr/1".parse().unwrap();
        assert_eq!((repo.id(), repo.revision()), ("a/b", "refs/pr/1"));
        assert_eq!(repo.to_string(), "a/b@refs/pr/1");
    }

    #[test]
    fn hostile_ids_are_refused() {
        let long = format!("a/{}", "b".repeat(95));
        let ids = [
            "", "/", "a", "a/", "/b", "a/b/c", "a/b/c/d", "../b", "a/..", "a/b..c", "a/b--c",
            "a b/c", "a/b c", " a/b", "a/b\n", "a\\b/c", "a/.b", "a/b.", "-a/b", "a/b.git", "a/é",
            "a/b%2e", "a/b?x", "a/b#x", "~/b", &long,
        ];
        for id in ids {
            let error = id.parse::<RepoId>().unwrap_err().to_string();
            assert!(
                error.contains("is no repository of the hub"),
                "{id:?}: {error}"
            );
        }
    }

    #[test]
    fn hostile_revisions_are_refused() {
        for revision in [
            "", "..", "a/../b", "/a", "a/", "a//b", ".a", "a b", "a%2fb", "a?b", "a#b", "a\\b",
            "-x", "é", "a@b",
        ] {
            let error = format!("a/b@{revision}")
                .parse::<RepoId>()
                .unwrap_err()
                .to_string();
            assert!(error.contains("not a revision"), "{revision:?}: {error}");
        }
    }

    #[test]
    fn an_address_is_answered_with_what_to_type() {
        for (address, typed) in [
            ("https://huggingface.co/Wan-AI/Wan2.2", "type Wan-AI/Wan2.2"),
            ("https://huggingface.co/a/b/", "type a/b"),
            ("https://huggingface.co/a/b/tree/v1.0/sub", "type a/b@v1.0"),
            ("huggingface.co/a/b?x=y", "type a/b"),
            ("hf.co/a/b", "type a/b"),
            ("http://example.org/a/b", "type a/b"),
            (
                "https://huggingface.co/a",
                "type owner/name[@revision] instead",
            ),
            ("https://../../etc", "type owner/name[@revision] instead"),
        ] {
            let error = address.parse::<RepoId>().unwrap_err().to_string();
            assert!(error.ends_with(typed), "{address}: {error}");
        }
    }
}
