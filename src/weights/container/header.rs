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
}

/// What a file's header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Every tensor, in the file's order.
    pub tensors: Vec<Found>,
    /// What else it says, as text by name.
    pub metadata: BTreeMap<String, String>,
}
