//! PyTorch checkpoints: what `torch.save` writes is found byte for byte, and what is damaged or
//! hostile is refused. The files come from `scripts/golden_pth.py`.

mod hostile;
mod properties;
mod zips;

use std::fs;
use std::path::PathBuf;

use wan_i2v::weights::container::pth::header;

/// A file of the golden folder.
fn golden(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pth")
}

/// The golden files with this ending, sorted; without the ending.
fn names(ending: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(ending).map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// A checkpoint as lines of name, encoding, shape and bytes.
fn listing(file: &[u8]) -> String {
    let header = header(file).unwrap();
    assert!(header.metadata.is_empty());
    let line = |t: &wan_i2v::weights::container::header::Found| {
        let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
        let bytes: Vec<String> = file[t.start..t.end]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        format!(
            "{} {:?} [{}] {}\n",
            t.name,
            t.encoding,
            shape.join(","),
            bytes.concat()
        )
    };
    header.tensors.iter().map(line).collect()
}

fn message(file: &[u8]) -> String {
    match header(file) {
        Ok(header) => panic!("accepted: {:?}", header.tensors),
        Err(error) => format!("{error:#}"),
    }
}

#[track_caller]
fn assert_refused(file: &[u8], part: &str) {
    let message = message(file);
    assert!(message.contains(part), "expected {part:?} in: {message}");
}

#[test]
fn what_torch_saves_is_found_byte_for_byte() {
    let names = names(".txt");
    assert_eq!(names.len(), 10, "{names:?}");
    for name in names {
        let expected = String::from_utf8(golden(&format!("{name}.txt"))).unwrap();
        assert_eq!(listing(&golden(&format!("{name}.pth"))), expected, "{name}");
    }
}

#[test]
fn tensors_that_share_a_storage_share_their_bytes() {
    let file = golden("views.pth");
    let header = header(&file).unwrap();
    let place = |name: &str| {
        let found = header.tensors.iter().find(|t| t.name == name).unwrap();
        (found.start, found.end)
    };
    let (start, end) = place("whole");
    assert_eq!(end - start, 48);
    assert_eq!(place("again"), (start, end));
    assert_eq!(place("tail"), (start + 40, end));
    assert_eq!(place("scalar"), (start + 10, start + 12));
}

#[test]
fn other_things_that_torch_saves_are_refused_by_name() {
    let expected = [
        (
            "transposed",
            "\"bad.weight\": of shape [3, 2] has the strides [1, 3]",
        ),
        ("expanded", "\"wide\": of shape [4] has the strides [0]"),
        ("complex", "the global torch.ComplexFloatStorage"),
        ("negated", "with metadata"),
        ("sparse", "the global torch._utils._rebuild_sparse_tensor"),
        (
            "tensor",
            "the checkpoint is a tensor; expected a dictionary",
        ),
        ("list", "the checkpoint is a list; expected a dictionary"),
        ("plain", "holds no tensors"),
        ("module", "the global __main__.Small"),
    ];
    for (name, part) in expected {
        assert_refused(&golden(&format!("{name}.pth")), part);
    }
    let refused = names(".pth").len() - names(".txt").len();
    assert_eq!(refused, expected.len());
}

#[test]
fn other_formats_are_refused_with_the_way_out() {
    assert_refused(b"", "not a PyTorch checkpoint");
    assert_refused(b"\x10\0\0\0\0\0\0\0{", "not a PyTorch checkpoint");
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    assert_refused(legacy, "from before version 1.6");
    assert_refused(
        legacy,
        "torch.save(torch.load(path, weights_only=True), path)",
    );
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    for name in names(".txt") {
        let file = golden(&format!("{name}.pth"));
        for length in 0..file.len() {
            assert!(header(&file[..length]).is_err(), "{name} to byte {length}");
        }
    }
}
