//! The head of a PyTorch archive that stays on the hub.
//!
//! Its directory is at the end, its pickle mostly at the beginning, and each tensor's record has
//! a header of its own in between. Those hundreds of headers say again what the directory says,
//! but for their own length, which does not matter when no data are read: so they are not
//! fetched but written here, without the padding that PyTorch puts into them.

use anyhow::{Context, Result, ensure};
use rawzip::ZipLocator;

use super::sparse::Sparse;

/// The end of the file that is fetched at once: the directory of a model's hundreds of tensors.
const TAIL: u64 = 128 << 10;
/// A directory or a pickle may have so many bytes.
const MAX_HEAD: u64 = 64 << 20;
/// An archive may have so many records; each takes a block of the disk here.
const MAX_RECORDS: usize = 1 << 14;
/// The fixed part of a record's header (PKWARE's appnote.txt, 4.3.7).
const LOCAL: u64 = 30;
/// The records that say how the others are stored have at most so many bytes.
const SMALL: u64 = 64;
/// What is in the names of the records that hold tensors.
const TENSOR: &[u8] = b"/data/";
/// What is fetched of the place of such a record: header, name, padding and content.
const SMALL_PLACE: u64 = 512;

/// A record as the directory has it.
struct Record {
    name: Vec<u8>,
    at: u64,
    size: u64,
}

/// Fetches what tells the tensors of the archive; its beginning is there already.
pub(super) fn fetch(sparse: &mut Sparse) -> Result<()> {
    let size = sparse.size();
    sparse.fetch(size.saturating_sub(TAIL)..size)?;
    let directory = sparse.look(|file| Ok(locate(file)?.directory_offset()))?;
    let length = size.saturating_sub(directory);
    ensure!(
        length <= MAX_HEAD,
        "its directory has {length} bytes; expected at most {MAX_HEAD}"
    );
    sparse.fetch(directory..size)?;
    for record in sparse.look(records)? {
        let Record { name, at, size } = record;
        let named = u64::try_from(name.len())?;
        let header = at..at.saturating_add(LOCAL).saturating_add(named);
        if name.ends_with(b"/data.pkl") {
            ensure!(
                size <= MAX_HEAD,
                "data.pkl has {size} bytes; expected at most {MAX_HEAD}"
            );
            sparse.fetch(header)?;
            let [low, high, more_low, more_high] = sparse.bytes(at.saturating_add(26))?;
            let lengths = [[low, high], [more_low, more_high]].map(u16::from_le_bytes);
            let data = lengths
                .iter()
                .fold(at.saturating_add(LOCAL), |sum, &length| {
                    sum.saturating_add(u64::from(length))
                });
            sparse.fetch(data..data.saturating_add(size))?;
        } else if size <= SMALL && !name.windows(TENSOR.len()).any(|part| part == TENSOR) {
            sparse.fetch(at..at.saturating_add(SMALL_PLACE))?;
        } else if sparse.touches(&header) {
            sparse.fetch(header)?;
        } else if header.end <= sparse.size() {
            sparse.put(at, &local_header(&name, size)?)?;
        }
    }
    Ok(())
}

fn locate(file: &[u8]) -> Result<rawzip::ZipSliceArchive<&[u8]>> {
    ZipLocator::new()
        .max_search_space(TAIL)
        .locate_in_slice(file)
        .map_err(|(_, error)| error)
        .context("the file is cut off or damaged (no end of a zip archive)")
}

fn records(file: &[u8]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in locate(file)?.entries() {
        let entry = entry.context("the zip archive's directory is damaged")?;
        ensure!(
            records.len() < MAX_RECORDS,
            "the zip archive has more than {MAX_RECORDS} records"
        );
        records.push(Record {
            name: entry.file_path().as_ref().to_vec(),
            at: entry.local_header_offset(),
            size: entry.compressed_size_hint(),
        });
    }
    Ok(records)
}

/// A record's header as plain as can be: uncompressed, the sizes in it, no padding.
fn local_header(name: &[u8], size: u64) -> Result<Vec<u8>> {
    // Larger records have their sizes in the directory alone, where the reader takes them from.
    let size = u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
    let length = u16::try_from(name.len())?.to_le_bytes();
    // Version 2.0; no flags, method, time, date and checksum.
    let fixed = [b"PK\x03\x04\x14\0".as_slice(), &[0; 12], &size, &size];
    Ok([&fixed.concat(), length.as_slice(), &[0; 2], name].concat())
}
