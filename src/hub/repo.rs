//! Naming a repository of the hub.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};

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
        if is_address(text) {
            return from_address(text);
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

/// Hosts whose pages are addresses without `https://` too.
const HOSTS: [&str; 4] = [
    "huggingface.co/",
    "www.huggingface.co/",
    "hf.co/",
    "hf-mirror.com/",
];

/// Whether `text` is a page's address, as people paste it.
pub(crate) fn is_address(text: &str) -> bool {
    text.contains("://") || HOSTS.iter().any(|host| text.starts_with(host))
}

/// The repository of a page `owner/name[/tree/revision]`.
fn from_address(text: &str) -> Result<RepoId> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let path = HOSTS.iter().find_map(|host| bare.strip_prefix(host));
    let path = path.with_context(|| {
        format!("{text:?} is an address, and none of the hub's; expected owner/name[@revision]")
    })?;
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let parse = |owner, name, revision| format!("{owner}/{name}@{revision}").parse();
    match parts.as_slice() {
        [owner, name] => parse(owner, name, &DEFAULT_REVISION),
        [owner, name, "tree", revision] => parse(owner, name, revision),
        [owner, name, _, revision, file @ ..] if !file.is_empty() => {
            let repo: RepoId = parse(owner, name, revision)?;
            let file = file.join("/");
            bail!(
                "{text:?} is the address of something in a repository; expected owner/name[@revision]\n\
                 hint: wan-i2v pull {repo} {file}"
            )
        }
        _ => bail!("{text:?} is the address of no repository; expected owner/name[@revision]"),
    }
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
    fn a_pasted_address_is_its_repository() {
        for (address, id) in [
            ("https://huggingface.co/Wan-AI/Wan2.2", "Wan-AI/Wan2.2"),
            ("https://huggingface.co/a/b/", "a/b"),
            ("https://huggingface.co/a/b/tree/main", "a/b"),
            ("https://huggingface.co/a/b/tree/v1.0", "a/b@v1.0"),
            ("huggingface.co/a/b?x=y", "a/b"),
            ("hf.co/a/b", "a/b"),
        ] {
            let repo: RepoId = address.parse().unwrap();
            assert_eq!(repo.to_string(), id, "{address}");
        }
        for (address, said) in [
            (
                "https://huggingface.co/a/b/blob/main/c/d.gguf",
                "pull a/b c/d.gguf",
            ),
            ("https://huggingface.co/a", "the address of no repository"),
            ("http://example.org/a/b", "none of the hub's"),
            ("https://../../etc", "none of the hub's"),
            (
                "https://huggingface.co/../..",
                "is no repository of the hub",
            ),
        ] {
            let error = address.parse::<RepoId>().unwrap_err().to_string();
            assert!(error.contains(said), "{address}: {error}");
        }
    }
}
