//! The table of character replacements that a SentencePiece model can carry.

use anyhow::{Context, Result, ensure};

/// The largest table that is read. That of all of NFKC, which T5 and mT5 carry, has 237,539 bytes.
const MAX_BYTES: usize = 2 << 20;

/// The longest replacement of a character, in bytes; NFKC's has 33 (of U+FDFA).
const MAX_REPLACEMENT: usize = 64;

/// Checks that `map`, a `precompiled_charsmap`, can be followed for every text.
///
/// Its layout, as google/sentencepiece `src/normalizer.cc` has it: the byte length of a
/// double-array trie (u32), the trie's units (u32 each, little-endian), and the replacements,
/// UTF-8 with a NUL after each. A value of the trie is a byte position among the replacements.
///
/// The `tokenizers` library indexes with whatever the units say. Walking them here means that it
/// cannot panic later, and that it does not reserve the memory that a false length asks for.
///
/// # Errors
/// If a length, a unit or a replacement leads out of the table.
pub(super) fn check(map: &[u8]) -> Result<()> {
    ensure!(
        map.len() <= MAX_BYTES,
        "its character map has {} bytes; expected at most {MAX_BYTES}",
        map.len()
    );
    let (length, rest) = map
        .split_first_chunk()
        .context("its character map is cut short")?;
    let length = u32::from_le_bytes(*length);
    let (trie, replacements) = usize::try_from(length)
        .ok()
        .filter(|length| length % 4 == 0)
        .and_then(|length| rest.split_at_checked(length))
        .with_context(|| {
            format!(
                "its character map says that {length} bytes of trie follow, in units of 4; {} do",
                rest.len()
            )
        })?;
    let replacements =
        std::str::from_utf8(replacements).context("the replacements of its character map")?;
    let units: Vec<Unit> = trie
        .as_chunks()
        .0
        .iter()
        .map(|bytes| Unit(u32::from_le_bytes(*bytes)))
        .collect();
    walk(&units, replacements)
}

/// One unit of the double array; the bits are those of darts-clone's `DoubleArrayUnit`.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_value(self) -> bool {
        self.0 & (1 << 8) != 0
    }

    fn value(self) -> u32 {
        self.0 & !(1 << 31)
    }

    /// The byte that leads here, or more than 255 if this unit holds a value.
    fn label(self) -> u32 {
        self.0 & (1 << 31 | 0xFF)
    }

    fn offset(self) -> u32 {
        (self.0 >> 10) << ((self.0 & (1 << 9)) >> 6)
    }
}

/// Visits every node that some text reaches. The children of a node lie in one block of 256
/// units, at `node ^ byte`, and its value at `node` itself.
fn walk(units: &[Unit], replacements: &str) -> Result<()> {
    let mut seen = vec![false; units.len()];
    let mut open = Vec::new();
    let mut reach = |node: u32| -> Result<Option<Unit>> {
        let index = usize::try_from(node)?;
        ensure!(
            index | 0xFF < seen.len(),
            "its character map is damaged: unit {node} of {} is referred to",
            seen.len()
        );
        let new = !std::mem::replace(&mut seen[index], true);
        Ok(new.then_some(units[index]))
    };
    let root = units.first().context("its character map is empty")?;
    reach(root.offset())?;
    open.push(root.offset());
    while let Some(node) = open.pop() {
        for byte in 1..=0xFF {
            // In bounds: `reach` checked the block of `node`.
            let child = node ^ byte;
            let unit = units[usize::try_from(child)?];
            if unit.label() != byte {
                continue;
            }
            let next = child ^ unit.offset();
            let new = reach(next)?;
            if unit.has_value() {
                let value = units[usize::try_from(next)?].value();
                ensure!(
                    replacements.is_char_boundary(usize::try_from(value)?),
                    "its character map is damaged: no replacement starts at byte {value} of {}",
                    replacements.len()
                );
                let replacement = &replacements[usize::try_from(value)?..];
                ensure!(
                    replacement.find('\0').unwrap_or(replacement.len()) <= MAX_REPLACEMENT,
                    "its character map replaces a character by more than {MAX_REPLACEMENT} bytes"
                );
            }
            if new.is_some() {
                open.push(next);
            }
        }
    }
    Ok(())
}
