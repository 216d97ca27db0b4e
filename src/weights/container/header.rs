//! What a checkpoint file's header says, whatever its container.

use std::collections::BTreeMap;

use super::encoding::Encoding;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name as the file has it.
    pub name: String,
    /// How the elements are stored.
    pub encoding: Encoding,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Position of the first byte in the file.
    pub start: usize,
    /// Position after the last byte.
    pub end: usize,
    /// The bytes that these are a part of and that have a checksum of their own, if there are such.
    pub record: Option<Record>,
}

/// Bytes of a file with their checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Position of the first byte.
    pub start: usize,
    /// Position after the last byte.
    pub end: usize,
    /// Their CRC-32, as zip archives have it.
    pub crc32: u32,
}

/// What a file's header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Every tensor, in the file's order.
    pub tensors: Vec<Found>,
    /// What else it says, as text by name.
    pub metadata: BTreeMap<String, String>,
}
