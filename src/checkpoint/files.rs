//! The files of a checkpoint: in a folder, or embedded in the program.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use serde::de::DeserializeOwned;

/// A file that is part of the program.
#[derive(Clone, Copy)]
pub struct EmbeddedFile {
    /// Path below the checkpoint's root, with `/`.
    pub path: &'static str,
    /// Content.
    pub bytes: &'static [u8],
}

impl fmt::Debug for EmbeddedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path, self.bytes.len())
    }
}

/// A folder of a checkpoint.
#[derive(Clone, Debug)]
pub enum Files {
    /// On disk.
    Folder(PathBuf),
    /// In the program.
    Embedded {
        /// The folder's path below the checkpoint's root; ends in `/` unless it is the root.
        prefix: String,
        /// Every file of the checkpoint.
        files: &'static [EmbeddedFile],
    },
}

/// A file's content: mapped, or part of the program.
#[derive(Debug)]
pub enum Bytes {
    /// Mapped from disk.
    Mapped(Mmap),
    /// In the program.
    Static(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

impl From<&Path> for Files {
    fn from(folder: &Path) -> Self {
        Files::Folder(folder.to_owned())
    }
}

/// The folder's name in messages.
impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Files::Folder(folder) => folder.display().fmt(f),
            Files::Embedded { prefix, .. } => write!(f, "tiny/{}", prefix.trim_end_matches('/')),
        }
    }
}

impl Files {
    /// The folder `name` in this one.
    pub fn sub(&self, name: &str) -> Self {
        match self {
            Files::Folder(folder) => Files::Folder(folder.join(name)),
            Files::Embedded { prefix, files } => Files::Embedded {
                prefix: format!("{prefix}{name}/"),
                files,
            },
        }
    }

    /// A file's name in messages.
    pub fn name(&self, file: &str) -> String {
        match self {
            Files::Folder(folder) => folder.join(file).display().to_string(),
            Files::Embedded { prefix, .. } => format!("tiny/{prefix}{file}"),
        }
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        let Files::Embedded { prefix, files } = self else {
            return None;
        };
        let found = files
            .iter()
            .find(|entry| entry.path.strip_prefix(prefix.as_str()) == Some(file));
        found.map(|entry| entry.bytes)
    }

    /// Whether there is such a file.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Files::Folder(folder) => folder.join(file).is_file(),
            Files::Embedded { .. } => self.embedded(file).is_some(),
        }
    }

    /// The names of what is in the folder, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Files::Folder(folder) => fs::read_dir(folder)
                .with_context(|| format!("cannot read the folder {self}"))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<Vec<_>>>()?,
            Files::Embedded { prefix, files } => files
                .iter()
                .filter_map(|entry| entry.path.strip_prefix(prefix.as_str()))
                .map(str::to_owned)
                .collect(),
        };
        names.sort();
        Ok(names)
    }

    /// A small file's content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Files::Folder(folder) => fs::read(folder.join(file))
                .map(Cow::Owned)
                .with_context(|| format!("cannot read {}", self.name(file))),
            Files::Embedded { .. } => self
                .embedded(file)
                .map(Cow::Borrowed)
                .with_context(|| format!("{} is not there", self.name(file))),
        }
    }

    /// A JSON file, parsed.
    ///
    /// # Errors
    /// When it cannot be read or holds something else.
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        serde_json::from_slice(&self.read(file)?)
            .with_context(|| format!("{} does not hold what is expected there", self.name(file)))
    }

    /// A large file's content, without reading it.
    ///
    /// # Errors
    /// When it cannot be opened or is too short to hold anything.
    pub fn map(&self, file: &str) -> Result<Bytes> {
        let Files::Folder(folder) = self else {
            let bytes = self.embedded(file);
            return bytes
                .map(Bytes::Static)
                .with_context(|| format!("{} is not there", self.name(file)));
        };
        let name = self.name(file);
        let file = File::open(folder.join(file)).with_context(|| format!("cannot open {name}"))?;
        ensure!(
            file.metadata()?.len() > 8,
            "{name}: the file is empty or cut off; download it again"
        );
        // SAFETY: the map is only read. A file that another program truncates meanwhile would
        // raise SIGBUS; checkpoints are not written while they are in use.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {name}"))?;
        Ok(Bytes::Mapped(map))
    }
}
