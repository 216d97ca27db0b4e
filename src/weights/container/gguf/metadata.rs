//! Reading what stands before a GGUF file's data, a value at a time.

use anyhow::{Context, Result, bail, ensure};

use super::MAGIC;

/// Arrays of more numbers are not kept as text.
const MAX_LISTED: usize = 64;
/// Longer strings are not kept; templates of chats have some ten thousand bytes.
const MAX_TEXT: usize = 1 << 20;
/// The format's own limit for keys.
const MAX_KEY: usize = 0xffff;
/// Arrays of arrays are not in use, but the format has them.
const MAX_DEPTH: usize = 4;
/// Length of a key's length, type and a value of one byte.
const MIN_ENTRY: usize = 8 + 4 + 1;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn new(number: u32) -> Result<Self> {
        Ok(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => bail!("a value of type {number}; expected 0 to 12"),
        })
    }

    /// Bytes of a number; `None` for strings and arrays.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// A number as text. `bytes` has its size.
    fn text(self, bytes: &[u8]) -> Option<String> {
        Some(match self {
            Self::F32 => f32::from_le_bytes(bytes.try_into().ok()?).to_string(),
            Self::F64 => f64::from_le_bytes(bytes.try_into().ok()?).to_string(),
            Self::Bool => (bytes != [0]).to_string(),
            Self::U64 => u64::from_le_bytes(bytes.try_into().ok()?).to_string(),
            _ => self.integer(bytes)?.to_string(),
        })
    }

    /// An integer below 2^63. `bytes` has its size.
    fn integer(self, bytes: &[u8]) -> Option<i64> {
        Some(match self {
            Self::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U64 => u64::from_le_bytes(bytes.try_into().ok()?).try_into().ok()?,
            Self::I64 => i64::from_le_bytes(bytes.try_into().ok()?),
            Self::F32 | Self::F64 | Self::Bool | Self::String | Self::Array => return None,
        })
    }
}

/// A value of the metadata, checked to lie in the file and not yet read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(Kind, &'a [u8]),
    String(&'a [u8]),
    Array {
        kind: Kind,
        count: usize,
        /// The elements.
        bytes: &'a [u8],
    },
}

impl Value<'_> {
    /// The value as text, unless it is a long array or one of something else than numbers.
    pub(super) fn text(&self) -> Option<String> {
        match *self {
            Self::Number(kind, bytes) => kind.text(bytes),
            Self::String(bytes) if bytes.len() <= MAX_TEXT => {
                // Of a copy, which nobody changes once it is known to be UTF-8: the file is mapped.
                let copy = bytes.to_vec();
                Some(String::from_utf8_lossy(&copy).into_owned())
            }
            Self::Array { kind, count, bytes } if count <= MAX_LISTED => {
                let numbers = bytes.chunks_exact(kind.size()?).map(|b| kind.text(b));
                let list = numbers.collect::<Option<Vec<_>>>()?.join(", ");
                Some(format!("[{list}]"))
            }
            Self::String(_) | Self::Array { .. } => None,
        }
    }

    pub(super) fn strings(&self) -> Result<Vec<String>> {
        let Self::Array {
            kind: Kind::String,
            count,
            bytes,
        } = *self
        else {
            bail!("found something else");
        };
        let mut cursor = Cursor::new(bytes);
        let string = |index| {
            let bytes = cursor.string("a string")?.to_vec();
            String::from_utf8(bytes).with_context(|| format!("string {index} is not UTF-8"))
        };
        (0..count).map(string).collect()
    }

    pub(super) fn floats(&self) -> Result<Vec<f32>> {
        let Self::Array {
            kind: Kind::F32,
            bytes,
            ..
        } = *self
        else {
            bail!("found something else");
        };
        let numbers = bytes.as_chunks().0.iter();
        Ok(numbers.map(|b| f32::from_le_bytes(*b)).collect())
    }

    pub(super) fn integers(&self) -> Result<Vec<i64>> {
        let Self::Array { kind, bytes, .. } = *self else {
            bail!("found something else");
        };
        let size = kind.size().context("found something else")?;
        let numbers = bytes.chunks_exact(size).map(|b| kind.integer(b));
        numbers
            .collect::<Option<Vec<_>>>()
            .context("found something else")
    }
}

/// A place in a file.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    /// Entries of the metadata.
    pub(super) entries: usize,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            entries: 0,
            bytes,
            at: 0,
        }
    }

    /// Checks the first bytes of a file; stands at the metadata then. Also the count of tensors.
    pub(super) fn start(file: &'a [u8]) -> Result<(Self, usize)> {
        let mut cursor = Self::new(file);
        let magic = cursor.take(MAGIC.len(), "the magic number")?;
        ensure!(
            magic == MAGIC,
            "not a GGUF file: starts with \"{}\"; expected \"GGUF\"",
            magic.escape_ascii()
        );
        let version = cursor.u32("the version")?;
        ensure!(
            !(1..=0xff).contains(&version.swap_bytes()),
            "a big-endian GGUF file; expected a little-endian one, convert it"
        );
        ensure!(
            matches!(version, 2 | 3),
            "GGUF version {version}; expected 2 or 3"
        );
        let tensors = cursor.count("tensors", 1)?;
        cursor.entries = cursor.count("metadata entries", MIN_ENTRY)?;
        Ok((cursor, tensors))
    }

    /// Bytes from the start of the file.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next key and value.
    pub(super) fn entry(&mut self, index: usize) -> Result<(String, Value<'a>)> {
        let entries = self.entries;
        let key = self
            .name("the key", MAX_KEY)
            .with_context(|| format!("metadata entry {} of {entries}", index + 1))?;
        let value = self
            .value()
            .with_context(|| format!("the metadata's {key:?}"))?;
        Ok((key, value))
    }

    fn value(&mut self) -> Result<Value<'a>> {
        let kind = Kind::new(self.u32("the type of a value")?)?;
        match (kind, kind.size()) {
            (_, Some(size)) => {
                let bytes = self.take(size, "a number")?;
                ensure!(
                    kind != Kind::Bool || bytes[0] < 2,
                    "a boolean of {}; expected 0 or 1",
                    bytes[0]
                );
                Ok(Value::Number(kind, bytes))
            }
            (Kind::Array, None) => {
                let (kind, count) = self.array()?;
                let start = self.at;
                self.skip(kind, count, 1)?;
                Ok(Value::Array {
                    kind,
                    count,
                    bytes: &self.bytes[start..self.at],
                })
            }
            (_, None) => Ok(Value::String(self.string("a string")?)),
        }
    }

    /// An array's type and count.
    fn array(&mut self) -> Result<(Kind, usize)> {
        let kind = Kind::new(self.u32("the type of an array")?)?;
        let smallest = match kind {
            Kind::String => 8,
            Kind::Array => 4 + 8,
            _ => kind.size().unwrap_or(1),
        };
        Ok((kind, self.count("elements of an array", smallest)?))
    }

    /// Passes over an array's elements. Every one takes bytes, so it ends with the file.
    fn skip(&mut self, kind: Kind, count: usize, depth: usize) -> Result<()> {
        ensure!(
            depth <= MAX_DEPTH,
            "arrays in arrays more than {MAX_DEPTH} deep"
        );
        if let Some(size) = kind.size() {
            let bytes = size.checked_mul(count).context("an array is too long")?;
            self.take(bytes, "an array")?;
            return Ok(());
        }
        for _ in 0..count {
            if kind == Kind::String {
                self.string("a string of an array")?;
            } else {
                let (kind, count) = self.array()?;
                self.skip(kind, count, depth + 1)?;
            }
        }
        Ok(())
    }

    /// A number of things that take `smallest` bytes each at least.
    fn count(&mut self, what: &str, smallest: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let small = usize::try_from(count)
            .ok()
            .with_context(|| format!("{count} {what}; the file cannot hold so many"))?;
        self.check_count(what, small, smallest)?;
        Ok(small)
    }

    /// Refuses a count of things that the rest of the file cannot hold.
    pub(super) fn check_count(&self, what: &str, count: usize, smallest: usize) -> Result<()> {
        let rest = self.bytes.len() - self.at;
        ensure!(
            count <= rest / smallest,
            "{count} {what}; the {rest} bytes left in the file cannot hold so many"
        );
        Ok(())
    }

    /// A string of at most `limit` bytes that has to be UTF-8; a copy, since the file is mapped and
    /// may change.
    pub(super) fn name(&mut self, what: &str, limit: usize) -> Result<String> {
        let bytes = self.string(what)?;
        ensure!(
            bytes.len() <= limit,
            "{what} has {} bytes; expected at most {limit}",
            bytes.len()
        );
        String::from_utf8(bytes.to_vec()).with_context(|| format!("{what} is not UTF-8"))
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.u64(what)?;
        // What does not fit goes past the end as well.
        self.take(usize::try_from(length).unwrap_or(usize::MAX), what)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into()?))
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).with_context(|| {
            format!(
                "the file ends in {what}: {length} bytes at position {}, but the file has {}; it \
                 is cut off or damaged, download it again",
                self.at,
                self.bytes.len()
            )
        })?;
        self.at += length;
        Ok(taken)
    }
}
