//! The hashes by which the hub names a file's content.

use std::fmt;

use anyhow::{Result, ensure};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::util::hex::to_hex;

/// A file's hash; the file in the cache's `blobs` is named by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-256 of the content, for files in large-file storage (LFS or Xet).
    Sha256(String),
    /// git's blob id, the SHA-1 of `blob <size>\0` and the content, for all others.
    GitBlob(String),
}

impl Hash {
    /// A SHA-256 from 64 hexadecimal digits.
    ///
    /// # Errors
    /// When `hex` is something else.
    pub fn sha256(hex: &str) -> Result<Self> {
        Ok(Self::Sha256(checked(hex, 64, "SHA-256")?))
    }

    /// A blob id from 40 hexadecimal digits.
    ///
    /// # Errors
    /// When `hex` is something else.
    pub fn git_blob(hex: &str) -> Result<Self> {
        Ok(Self::GitBlob(checked(hex, 40, "git blob id")?))
    }

    /// The hash whose hexadecimal digits name a blob; `None` when it is no such name.
    pub(super) fn from_blob_name(name: &str) -> Option<Self> {
        Self::sha256(name).or_else(|_| Self::git_blob(name)).ok()
    }

    /// Its digits, in lower case.
    pub fn hex(&self) -> &str {
        match self {
            Hash::Sha256(hex) | Hash::GitBlob(hex) => hex,
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hash::Sha256(hex) => write!(f, "sha256 {hex}"),
            Hash::GitBlob(hex) => write!(f, "git blob {hex}"),
        }
    }
}

/// The digits become a file's name, hence this strict.
fn checked(hex: &str, digits: usize, kind: &str) -> Result<String> {
    ensure!(
        hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit()),
        "expected a {kind} of {digits} hexadecimal digits, found {:?}",
        hex.chars().take(80).collect::<String>()
    );
    Ok(hex.to_ascii_lowercase())
}

/// Computes the hash of content that arrives in pieces.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// A hasher of the kind of `expected`, for content of `size` bytes.
    pub(super) fn new(expected: &Hash, size: u64) -> Self {
        match expected {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::GitBlob(_) => {
                Self::GitBlob(Sha1::new().chain_update(format!("blob {size}\0").as_bytes()))
            }
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Hash {
        match self {
            Self::Sha256(hasher) => Hash::Sha256(to_hex(&hasher.finalize())),
            Self::GitBlob(hasher) => Hash::GitBlob(to_hex(&hasher.finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(expected: &Hash, content: &[u8]) -> Hash {
        let mut hasher = Hasher::new(expected, content.len() as u64);
        for piece in content.chunks(3) {
            hasher.update(piece);
        }
        hasher.finish()
    }

    /// The values are those of `git hash-object` and `sha256sum`.
    #[test]
    fn known_content() {
        let blob = Hash::git_blob("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        assert_eq!(of(&blob, b"hello\n"), blob);
        let empty = Hash::git_blob("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391").unwrap();
        assert_eq!(of(&empty, b""), empty);
        let sha = Hash::sha256("5891B5B522D5DF086D0FF0B110FBD9D21BB4FC7163AF34D08286A2E846F6BE03")
            .unwrap();
        assert_eq!(of(&sha, b"hello\n"), sha);
    }

    #[test]
    fn only_digits_become_file_names() {
        let long = "g".repeat(64);
        for hex in ["", "../../etc/passwd", "abc", long.as_str()] {
            assert!(Hash::sha256(hex).is_err());
            assert!(Hash::git_blob(hex).is_err());
            assert_eq!(Hash::from_blob_name(hex), None);
        }
    }
}
