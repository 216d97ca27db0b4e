//! The pickle of a PyTorch checkpoint, in an archive that is sound.
#![no_main]

mod common;

use common::container::pth;
use common::util;

libfuzzer_sys::fuzz_target!(|pickle: &[u8]| common::check(&archive(pickle), pth::header));

/// A zip archive of the pickle and the storages of tests/data/pth/wrapped.pth, so that there is a
/// pickle to begin with that is accepted.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let records: [(&str, &[u8]); 6] = [
        ("a/data.pkl", pickle),
        ("a/data/0", &[0; 16]),
        ("a/data/1", &[0; 4]),
        ("a/data/2", &[0; 12]),
        ("a/data/3", &[]),
        ("a/version", b"3\n"),
    ];
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in records {
        let offset = (file.len() as u32).to_le_bytes();
        let size = (data.len() as u32).to_le_bytes();
        // Version, flags, method, time, date and checksum are 0; twice the size; two lengths.
        let common = [&[0; 14], &size[..], &size[..], &[name.len() as u8, 0, 0, 0]].concat();
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\0\0", &common[..], &[0; 10], &offset].concat());
        directory.extend(name.as_bytes());
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    let count = [records.len() as u8, 0];
    file.extend(directory);
    file.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count[..]].concat());
    file.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}
