//! The files of a checkpoint: in a folder, or embedded in the program.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow, ensure};
use memmap2::Mmap;
use serde::de::DeserializeOwned;

use super::container::mapped::Mapped;
use super::container::stand_in;
use crate::util::files::{MAX_JSON, is_litter, open_regular, read_small};
use crate::util::show::Show;

/// The most bytes of a small file: UMT5-XXL's tokenizer.json, the largest, has 17 MB.
const MAX_SMALL: u64 = 64 << 20;

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
    Mapped(Mapped),
    /// In the program.
    Static(&'static [u8]),
}

impl Bytes {
    /// Lets the machine drop the pages that lie within `range`; they are read again when needed.
    pub fn release(&self, range: Range<usize>) {
        // Pages of 16 KiB on Apple silicon; smaller ones divide it.
        const PAGE: usize = 16 << 10;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self
            && start < end
        {
            map.release(start..end);
        }
        #[cfg(not(unix))]
        let _ = (start, end);
    }

    /// Where the bytes lie that are to be read from a disk first, as far as the machine says.
    pub fn absent(&self) -> Vec<Range<usize>> {
        match self {
            Bytes::Mapped(map) => map.absent(),
            Bytes::Static(_) => Vec::new(),
        }
    }
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
            Files::Folder(folder) => folder.shown().fmt(f),
            Files::Embedded { prefix, .. } => write!(f, "tiny/{}", prefix.trim_end_matches('/')),
        }
    }
}

impl Files {
    /// The root of a checkpoint that is part of the program.
    pub fn embedded_root(files: &'static [EmbeddedFile]) -> Self {
        Files::Embedded {
            prefix: String::new(),
            files,
        }
    }

    /// A file's folder and its name there.
    pub fn holding(path: &Path) -> (Self, String) {
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (Files::from(folder), name.into_owned())
    }

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
            Files::Folder(folder) => folder.join(file).shown().to_string(),
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

    /// A file's size and time of change, which a changed file does not keep: `[bytes, nanoseconds]`,
    /// integers, since JSON may bring back another float than it was given.
    pub fn stamp(&self, file: &str) -> (u64, u64) {
        match self {
            Files::Folder(folder) => fs::metadata(folder.join(file)).map_or((0, 0), |meta| {
                let changed = meta.modified().ok();
                let since = changed.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
                let nanoseconds = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
                (meta.len(), nanoseconds.unwrap_or_default())
            }),
            Files::Embedded { .. } => {
                let bytes = self.embedded(file).map_or(0, <[u8]>::len);
                (bytes as u64, 0)
            }
        }
    }

    /// Whether there is such a file.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Files::Folder(folder) => folder.join(file).is_file(),
            Files::Embedded { .. } => self.embedded(file).is_some(),
        }
    }

    /// Whether the folder is there.
    pub fn exists(&self) -> bool {
        match self {
            Files::Folder(folder) => folder.is_dir(),
            Files::Embedded { prefix, files } => {
                files.iter().any(|entry| entry.path.starts_with(prefix))
            }
        }
    }

    /// The names of the folders in this one that are not hidden, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn folders(&self) -> Result<Vec<String>> {
        let Files::Folder(folder) = self else {
            return Ok(Vec::new());
        };
        let mut names = self.names()?;
        names.retain(|name| !name.starts_with('.') && folder.join(name).is_dir());
        Ok(names)
    }

    /// The names of what is in the folder, sorted, without what systems leave there.
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
        names.retain(|name| !is_litter(name));
        names.sort();
        Ok(names)
    }

    /// A small file's content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        let Files::Folder(folder) = self else {
            return self
                .embedded(file)
                .map(Cow::Borrowed)
                .with_context(|| format!("{} is not there", self.name(file)));
        };
        let cannot = || format!("cannot read {}", self.name(file));
        let content = read_small(&folder.join(file), MAX_SMALL).with_context(cannot)?;
        stand_in::refuse_pointer(&content).with_context(cannot)?;
        Ok(Cow::Owned(content))
    }

    /// A JSON file, parsed.
    ///
    /// # Errors
    /// When it cannot be read or holds something else.
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        let content = self.read(file)?;
        ensure!(
            content.len() as u64 <= MAX_JSON,
            "{}: it has {} bytes; expected at most {MAX_JSON}",
            self.name(file),
            content.len()
        );
        serde_json::from_slice(&content)
            .map_err(|error| anyhow!("{}", error.to_string().shown()))
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
        let file =
            open_regular(&folder.join(file)).with_context(|| format!("cannot open {name}"))?;
        ensure!(
            file.metadata()?.len() > 8,
            "{name}: the file is empty or cut off\nhint: download it again"
        );
        // SAFETY: the map is only read. A file that another program truncates meanwhile raises
        // SIGBUS, which ends the program with a message; see `mapped_at`.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {name}"))?;
        Ok(Bytes::Mapped(Mapped::new(map, &name)))
    }
}
