//! Zip archives that are not what PyTorch writes.

use wan_i2v::weights::container::pth::header;

use super::{assert_refused, golden};

/// A record of an archive, with what its headers say.
#[derive(Clone)]
pub struct Record {
    name: String,
    local_name: String,
    data: Vec<u8>,
    method: u16,
    flags: u16,
    size: u32,
    unpacked: u32,
    offset: Option<u32>,
}

impl Record {
    pub fn new(name: &str, data: &[u8]) -> Self {
        let size = u32::try_from(data.len()).unwrap();
        Self {
            name: name.into(),
            local_name: name.into(),
            data: data.into(),
            method: 0,
            flags: 0,
            size,
            unpacked: size,
            offset: None,
        }
    }

    fn rename(&mut self, name: &str) {
        self.name = name.into();
        self.local_name = name.into();
    }
}

/// What the end of an archive says.
#[derive(Default)]
pub struct End {
    count: Option<u16>,
    zip64: Option<[u64; 4]>,
}

fn push16(bytes: &mut Vec<u8>, numbers: &[u16]) {
    bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
}

fn push32(bytes: &mut Vec<u8>, numbers: &[u32]) {
    bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
}

/// An archive of `records`, with lies in its end.
pub fn archive_with(records: &[Record], end: &End) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for record in records {
        let offset = u32::try_from(file.len()).unwrap();
        let offset = record.offset.unwrap_or(offset);
        let (name, local) = (record.name.as_bytes(), record.local_name.as_bytes());
        file.extend(b"PK\x03\x04");
        push16(&mut file, &[20, record.flags, record.method, 0, 0]);
        push32(&mut file, &[0, record.size, record.unpacked]);
        push16(&mut file, &[local.len() as u16, 0]);
        file.extend(local);
        file.extend(&record.data);
        directory.extend(b"PK\x01\x02");
        push16(&mut directory, &[20, 20, record.flags, record.method, 0, 0]);
        push32(&mut directory, &[0, record.size, record.unpacked]);
        push16(&mut directory, &[name.len() as u16, 0, 0, 0, 0]);
        push32(&mut directory, &[0, offset]);
        directory.extend(name);
    }
    let start = file.len() as u32;
    let size = directory.len() as u32;
    file.extend(directory);
    let count = end.count.unwrap_or(records.len() as u16);
    match end.zip64 {
        None => {
            file.extend(b"PK\x05\x06");
            push16(&mut file, &[0, 0, count, count]);
            push32(&mut file, &[size, start]);
        }
        Some(numbers) => {
            let here = file.len() as u64;
            file.extend(b"PK\x06\x06");
            file.extend(44_u64.to_le_bytes());
            push16(&mut file, &[45, 45]);
            push32(&mut file, &[0, 0]);
            file.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            file.extend(b"PK\x06\x07\0\0\0\0");
            file.extend(here.to_le_bytes());
            file.extend(b"\x01\0\0\0PK\x05\x06");
            push16(&mut file, &[0, 0, 0xffff, 0xffff]);
            push32(&mut file, &[0xffff_ffff, 0xffff_ffff]);
        }
    }
    push16(&mut file, &[0]);
    file
}

/// An archive of `records`.
pub fn archive(records: &[Record]) -> Vec<u8> {
    archive_with(records, &End::default())
}

/// The records around `pickle` that make it a checkpoint with two storages: "0" of eight bytes
/// and "1" of none.
pub fn records(pickle: &[u8]) -> Vec<Record> {
    vec![
        Record::new("a/data.pkl", pickle),
        Record::new("a/byteorder", b"little"),
        Record::new("a/data/0", &[1, 2, 3, 4, 5, 6, 7, 8]),
        Record::new("a/data/1", b""),
        Record::new("a/version", b"3\n"),
    ]
}

/// The pickle of `{"w": a tensor of two f32 in the storage "0"}`.
pub fn pair() -> Vec<u8> {
    dict(&[("w", &tensor("FloatStorage", "0", 2, 0, &[2], &[1]))])
}

/// The pickle of a dictionary; the values are instructions.
pub fn dict(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (key, value) in entries {
        pickle.extend(string(key));
        pickle.extend(*value);
    }
    pickle.extend(b"u.");
    pickle
}

/// The instruction that pushes a string.
pub fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [b"X", length.to_le_bytes().as_slice(), text.as_bytes()].concat()
}

/// The instruction that pushes a number.
pub fn number(number: i64) -> Vec<u8> {
    [b"\x8a\x08", number.to_le_bytes().as_slice()].concat()
}

/// The instructions that push a tuple of numbers.
pub fn numbers(values: &[i64]) -> Vec<u8> {
    let inner: Vec<u8> = values.iter().flat_map(|n| number(*n)).collect();
    [b"(", inner.as_slice(), b"t"].concat()
}

/// The instructions that push a tensor.
pub fn tensor(
    class: &str,
    key: &str,
    elements: i64,
    offset: i64,
    shape: &[i64],
    strides: &[i64],
) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        string("storage"),
        format!("ctorch\n{class}\n").into(),
        string(key),
        string("cpu"),
        number(elements),
        b"tQ".to_vec(),
        number(offset),
        numbers(shape),
        numbers(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

#[test]
fn the_plain_archive_is_read() {
    let file = archive(&records(&pair()));
    let header = header(&file).unwrap();
    assert_eq!(header.tensors.len(), 1);
    let found = &header.tensors[0];
    assert_eq!(file[found.start..found.end], [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// Changes one of the usual records and expects a refusal.
#[track_caller]
fn changed(change: impl FnOnce(&mut Vec<Record>), part: &str) {
    let mut records = records(&pair());
    change(&mut records);
    assert_refused(&archive(&records), part);
}

#[test]
fn records_that_lie_are_refused() {
    changed(
        |r| r[2] = Record::new("a/data/0", &[0; 12]),
        "12 bytes; expected 2 times 4",
    );
    changed(
        |r| r[2] = Record::new("a/data/0", &[0; 7]),
        "7 bytes; expected 2 times 4",
    );
    changed(|r| drop(r.remove(2)), "no record \"data/0\"");
    changed(|r| r[2].method = 8, "\"a/data/0\": is compressed (method 8");
    changed(|r| r[2].unpacked = 9, "is compressed");
    changed(|r| r[2].flags = 1, "is encrypted");
    changed(|r| r[2].local_name = "a/data/9".into(), "has another name");
    changed(|r| r[3].name = "a/data/0".into(), "has another name");
    changed(|r| r[3] = r[2].clone(), "have the same name \"a/data/0\"");
    changed(|r| r[2].size = u32::MAX, "is compressed");
    changed(
        |r| {
            r[2].size = u32::MAX;
            r[2].unpacked = u32::MAX;
        },
        "does not lie within the file",
    );
    changed(
        |r| r[2].offset = Some(u32::MAX),
        "does not lie within the file",
    );
    changed(|r| r[2].offset = Some(1), "does not lie within the file");
}

#[test]
fn a_compressed_record_called_stored_is_refused() {
    let mut file = archive(&records(&pair()));
    let name = file.windows(8).position(|w| w == b"a/data/0").unwrap();
    file[name - 22] = 8;
    assert_refused(&file, "\"a/data/0\": has another name or compression");
}

#[test]
fn a_pickle_of_more_than_64_mib_is_refused() {
    let pickle = vec![0; (64 << 20) + 1];
    assert_refused(&archive(&records(&pickle)), "data.pkl has 67108865 bytes");
}

#[test]
fn overlapping_records_are_refused() {
    // A whole archive's records within the data of another.
    let inner = archive(&[Record::new("a/data/1", b"")]);
    let mut records = records(&pair());
    records[2] = Record::new("a/data/0", &inner);
    let before = archive(&records);
    let at = before
        .windows(8)
        .position(|window| window == b"a/data/1")
        .unwrap();
    records[3].offset = Some(u32::try_from(at - 30).unwrap());
    assert_refused(&archive(&records), "\"a/data/0\" and \"a/data/1\" overlap");
    // The last record reaches into the directory.
    let mut records = super::zips::records(&pair());
    records[4].size += 1;
    records[4].unpacked += 1;
    assert_refused(
        &archive(&records),
        "\"a/version\" and \"directory\" overlap",
    );
}

#[test]
fn the_archives_own_records_are_checked() {
    changed(
        |r| r[1] = Record::new("a/byteorder", b"big"),
        "the byte order is \"big\"",
    );
    changed(
        |r| r[1] = Record::new("a/byteorder", &[b'x'; 65]),
        "65 bytes",
    );
    changed(|r| drop(r.remove(4)), "no record \"version\"");
    changed(
        |r| r[4] = Record::new("a/version", b"11\n"),
        "the format version is \"11\\n\"",
    );
    changed(
        |r| r[4] = Record::new("a/version", b"\xff"),
        "the format version is \"\\xff\"",
    );
    changed(|r| drop(r.remove(0)), "holds no data.pkl");
    changed(|r| r[0].rename("data.pkl"), "holds no data.pkl");
    changed(|r| r[0].rename("a/b/data.pkl"), "holds no data.pkl");
    changed(
        |r| r[1] = Record::new("b/data.pkl", b""),
        "data.pkl in two folders",
    );
    changed(
        |r| r[1] = Record::new("b/byteorder", b"little"),
        "not in the archive's folder \"a/\"",
    );
    changed(
        |r| r.push(Record::new("a/constants.pkl", b"")),
        "TorchScript",
    );
    changed(|r| r.push(Record::new("a/code/x.py", b"")), "TorchScript");
    // Files of older versions have no byte order.
    let mut old = records(&pair());
    old.remove(1);
    assert!(header(&archive(&old)).is_ok());
}

#[test]
fn an_end_that_lies_is_refused() {
    let records = records(&pair());
    let good = archive(&records);
    for count in [0, 4, 6, u16::MAX] {
        let end = End {
            count: Some(count),
            zip64: None,
        };
        assert_refused(&archive_with(&records, &end), "records");
    }
    let mut trailing = good.clone();
    trailing.push(0);
    assert_refused(&trailing, "1 bytes follow the end");
    let mut before = good.clone();
    before.insert(0, 0);
    assert_refused(&before, "does not begin as a zip archive");

    let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u64;
    let size = good.len() as u64 - 22 - directory;
    let zip64 = |numbers| {
        let end = End {
            count: None,
            zip64: Some(numbers),
        };
        archive_with(&records, &end)
    };
    assert!(header(&zip64([5, 5, size, directory])).is_ok());
    let many = 1 << 40;
    assert_refused(&zip64([many, many, size, directory]), "at most 131072");
    for numbers in [
        [6, 6, size, directory],
        [u64::MAX, u64::MAX, size, directory],
        [5, 5, size, directory + 1],
        [5, 5, size, u64::MAX],
        [5, 5, size, 0],
    ] {
        assert!(header(&zip64(numbers)).is_err(), "{numbers:?}");
    }
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let check = |class, elements, offset, shape: &[i64], strides: &[i64], part: &str| {
        let tensor = tensor(class, "0", elements, offset, shape, strides);
        assert_refused(&archive(&records(&dict(&[("w", &tensor)]))), part);
    };
    const MAX: i64 = i64::MAX;
    check("FloatStorage", 2, 0, &[3], &[1], "reaches past its storage");
    check("FloatStorage", 2, 1, &[2], &[1], "reaches past its storage");
    check("FloatStorage", 2, 3, &[0], &[1], "reaches past its storage");
    check(
        "FloatStorage",
        2,
        MAX,
        &[1],
        &[1],
        "reaches past its storage",
    );
    check(
        "FloatStorage",
        2,
        0,
        &[MAX, 4],
        &[4, 1],
        "reaches past its storage",
    );
    check(
        "FloatStorage",
        2,
        0,
        &[4, MAX, 2],
        &[-1, 2, 1],
        "strides that are no counts",
    );
    check("FloatStorage", 2, -1, &[2], &[1], "negative offset");
    check(
        "FloatStorage",
        2,
        0,
        &[-2],
        &[1],
        "shape that are no counts",
    );
    check("FloatStorage", 2, 0, &[2], &[], "strides []");
    check("FloatStorage", 2, 0, &[2], &[2], "strides [2]");
    check("FloatStorage", 2, 0, &[1; 17], &[1; 17], "17 shape");
    check(
        "FloatStorage",
        1,
        0,
        &[1],
        &[1],
        "8 bytes; expected 1 times 4",
    );
    check("FloatStorage", -2, 0, &[1], &[1], "-2 elements");
    check(
        "FloatStorage",
        MAX,
        0,
        &[1],
        &[1],
        "expected 9223372036854775807 times 4",
    );
    check(
        "DoubleStorage",
        2,
        0,
        &[1],
        &[1],
        "8 bytes; expected 2 times 8",
    );
    check(
        "UntypedStorage",
        8,
        0,
        &[8],
        &[1],
        "the global torch.UntypedStorage",
    );
}

#[test]
fn the_strides_of_no_elements_are_free() {
    let tensor = tensor("FloatStorage", "1", 0, 0, &[0, 3], &[9, 9]);
    let header = header(&archive(&records(&dict(&[("w", &tensor)])))).unwrap();
    assert_eq!(header.tensors[0].shape, [0, 3]);
    assert_eq!(header.tensors[0].start, header.tensors[0].end);
}

#[test]
fn one_storage_of_two_types_is_refused() {
    let (float, int) = (
        tensor("FloatStorage", "0", 2, 0, &[2], &[1]),
        tensor("IntStorage", "0", 2, 0, &[2], &[1]),
    );
    let pickle = dict(&[("f", &float), ("i", &int)]);
    assert_refused(
        &archive(&records(&pickle)),
        "\"0\" is described in two ways",
    );
}

#[test]
fn messages_stay_short() {
    let long = "k".repeat(100_000);
    let tensor = tensor("FloatStorage", &long, 2, 0, &[2], &[1]);
    let pickle = dict(&[("w", &tensor)]);
    assert_refused(&archive(&records(&pickle)), "storage has 100000 bytes");
    let pickle = dict(&[(&long, b"N"), (&long, b"N")]);
    assert!(super::message(&archive(&records(&pickle))).len() < 200);
}

#[test]
fn the_golden_files_are_archives_with_zip64_ends() {
    // Else the files of over 4 GiB would go untested.
    let file = golden("views.pth");
    assert!(file.windows(4).any(|window| window == b"PK\x06\x06"));
}
