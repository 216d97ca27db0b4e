//! The records of a PyTorch zip archive, by position.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::header::Record;
use anyhow::{Context, Result, bail, ensure};
use rawzip::{CompressionMethod, ZipFileHeaderRecord, ZipLocator, ZipSliceArchive, crc32};

/// Records of an archive at most.
const MAX_RECORDS: u64 = 1 << 17;
/// Bytes of the pickle at most; those of large models have some hundred thousand.
const MAX_PICKLE: usize = 64 << 20;
/// The end of a zip archive: a fixed part and a comment.
const END: u64 = 22 + 0xffff;
/// How a local header of a zip archive begins, so the file too.
const ZIP: &[u8] = b"PK\x03\x04";
/// How files begin that `torch.save` wrote before version 1.6: a pickle of a number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// Format versions that PyTorch reads (`caffe2/serialize/versions.h`).
const VERSIONS: Range<u64> = 1..11;

/// The records of an archive, below its one folder.
pub(super) struct Records<'a> {
    file: &'a [u8],
    ranges: BTreeMap<String, Record>,
}

impl<'a> Records<'a> {
    /// Reads the archive's directory and the header of each record.
    ///
    /// # Errors
    /// When `file` is no whole archive of PyTorch's; names the record.
    pub fn open(file: &'a [u8]) -> Result<Self> {
        if !file.starts_with(ZIP) {
            ensure!(
                !file.starts_with(LEGACY),
                "the file is in PyTorch's format from before version 1.6, which is not read\nhint: convert it in Python: torch.save(torch.load(path, weights_only=True), path)"
            );
            bail!("not a PyTorch checkpoint: it does not begin as a zip archive");
        }
        let archive = ZipLocator::new()
            .max_search_space(END)
            .locate_in_slice(file)
            .map_err(|(_, error)| error)
            .context(
                "the file is cut off or damaged (no end of a zip archive)\nhint: download it again",
            )?;
        ensure!(
            archive.end_offset() == file.len() as u64,
            "{} bytes follow the end of the zip archive; expected none",
            (file.len() as u64).saturating_sub(archive.end_offset())
        );
        let ranges = ranges(&archive)?;
        let Some(folder) = folder(&ranges)? else {
            bail!("the zip archive holds no data.pkl: it is not a checkpoint of torch.save");
        };
        let ranges = below(&folder, ranges)?;
        let records = Self { file, ranges };
        records.check_format()?;
        Ok(records)
    }

    fn check_format(&self) -> Result<()> {
        for name in self.ranges.keys() {
            ensure!(
                name != "constants.pkl" && !name.starts_with("code/"),
                "the file is a TorchScript program (it holds {name:?}), not a dictionary of \
                 tensors; expected what torch.save(model.state_dict(), path) writes"
            );
        }
        if let Some(order) = self.small("byteorder")? {
            ensure!(
                order == b"little",
                "the byte order is \"{}\"; expected \"little\"",
                order.escape_ascii()
            );
        }
        let version = match self.small(".data/version")? {
            Some(version) => version,
            None => self
                .small("version")?
                .context("the zip archive holds no record \"version\"")?,
        };
        let number = str::from_utf8(&version)
            .ok()
            .and_then(|text| text.trim_ascii().parse().ok());
        ensure!(
            number.is_some_and(|n| VERSIONS.contains(&n)),
            "the format version is \"{}\"; expected a number from {} to {}",
            version.escape_ascii(),
            VERSIONS.start,
            VERSIONS.end - 1
        );
        Ok(())
    }

    /// A copy of a record of a few bytes.
    fn small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(range) = self.ranges.get(name) else {
            return Ok(None);
        };
        let length = range.end - range.start;
        ensure!(
            length <= 64,
            "the record {name:?} has {length} bytes; expected at most 64"
        );
        Ok(Some(self.file[range.start..range.end].to_vec()))
    }

    /// A copy of the pickle: strings are borrowed from it, and the file, mapped, may change.
    ///
    /// # Errors
    /// When it is missing, damaged or too large.
    pub fn pickle(&self) -> Result<Vec<u8>> {
        let range = self.ranges.get("data.pkl").context("no data.pkl")?;
        let length = range.end - range.start;
        ensure!(
            length <= MAX_PICKLE,
            "data.pkl has {length} bytes; expected at most {MAX_PICKLE}"
        );
        let pickle = self.file[range.start..range.end].to_vec();
        ensure!(
            range.crc32 == 0 || crc32(&pickle) == range.crc32,
            "data.pkl is damaged: its checksum is not the archive's"
        );
        Ok(pickle)
    }

    /// Where the bytes of the storage `key` are.
    ///
    /// # Errors
    /// When there is no such record.
    pub fn storage(&self, key: &str) -> Result<Record> {
        let range = self.ranges.get(&format!("data/{key}"));
        range.copied().with_context(|| {
            format!(
                "its storage is missing: no record {:?}",
                format!("data/{key}")
            )
        })
    }
}

/// The data of every record by its full name, after checking that nothing overlaps.
fn ranges(archive: &ZipSliceArchive<&[u8]>) -> Result<BTreeMap<String, Record>> {
    let expected = archive.entries_hint();
    ensure!(
        expected <= MAX_RECORDS,
        "the zip archive has {expected} records; expected at most {MAX_RECORDS}"
    );
    let mut ranges = BTreeMap::new();
    // From each record's header to the end of its data.
    let mut taken = Vec::new();
    let mut count = 0;
    for entry in archive.entries() {
        let entry = entry.context("the zip archive's directory is damaged")?;
        count += 1;
        ensure!(
            count <= expected,
            "the zip archive's directory has more than the {expected} records it says"
        );
        let name = String::from_utf8(entry.file_path().as_ref().to_vec())
            .context("the name of a record is not UTF-8")?;
        let range = data(archive, &entry).with_context(|| format!("the record {name:?}"))?;
        taken.push((entry.local_header_offset(), range.end as u64, name.clone()));
        ensure!(
            ranges.insert(name, range).is_none(),
            "two records of the zip archive have the same name {:?}",
            taken.last().map_or("", |(_, _, name)| name)
        );
    }
    ensure!(
        count == expected,
        "the zip archive's directory has {count} records; expected the {expected} that it says"
    );
    taken.sort();
    taken.push((archive.directory_offset(), u64::MAX, "directory".into()));
    for pair in taken.windows(2) {
        ensure!(
            pair[0].1 <= pair[1].0,
            "in the zip archive {:?} and {:?} overlap; the file is damaged or hostile",
            pair[0].2,
            pair[1].2
        );
    }
    Ok(ranges)
}

/// Where the bytes of one record are.
fn data(archive: &ZipSliceArchive<&[u8]>, entry: &ZipFileHeaderRecord) -> Result<Record> {
    let method = entry.compression_method();
    ensure!(
        method == CompressionMethod::STORE
            && entry.compressed_size_hint() == entry.uncompressed_size_hint(),
        "is compressed (method {}, {} bytes to {}); torch.save does not compress",
        method.as_u16(),
        entry.uncompressed_size_hint(),
        entry.compressed_size_hint()
    );
    let flags = entry.flags();
    ensure!(
        !flags.is_encrypted() && !flags.has_strong_encryption(),
        "is encrypted"
    );
    let local = archive
        .get_entry(entry.wayfinder())
        .context("does not lie within the file; it is cut off or damaged, get it again")?;
    let header = local.local_header();
    ensure!(
        header.file_path().as_ref() == entry.file_path().as_ref()
            && header.compression_method() == method,
        "has another name or compression where it lies than in the archive's directory"
    );
    let (start, end) = local.compressed_data_range();
    Ok(Record {
        start: usize::try_from(start)?,
        end: usize::try_from(end)?,
        crc32: entry.crc32(),
    })
}

/// The folder that holds `data.pkl`, with its `/`.
fn folder(ranges: &BTreeMap<String, Record>) -> Result<Option<String>> {
    let mut folders = ranges
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|folder| {
            folder
                .find('/')
                .is_some_and(|slash| slash + 1 == folder.len())
        });
    let folder = folders.next().map(str::to_owned);
    ensure!(
        folders.next().is_none(),
        "the zip archive holds data.pkl in two folders; expected one"
    );
    Ok(folder)
}

/// The ranges by their names within `folder`.
fn below(folder: &str, ranges: BTreeMap<String, Record>) -> Result<BTreeMap<String, Record>> {
    ranges
        .into_iter()
        .map(|(name, range)| match name.strip_prefix(folder) {
            Some(rest) => Ok((rest.to_owned(), range)),
            None => bail!("the record {name:?} is not in the archive's folder {folder:?}"),
        })
        .collect()
}
