//! GGUF headers: what the gguf package wrote, what is refused, and random damage.

use proptest::prelude::*;
use proptest::sample::Index;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::container::gguf::{floats, header, integers, strings};

use crate::support::check;
use crate::support::gguf::{Tensor, Value, file};
use crate::weights::encoding::{golden, weights};

/// The message of reading the header of `bytes`.
fn error(bytes: &[u8]) -> String {
    format!("{:#}", header(bytes).unwrap_err())
}

/// Fails unless the header of `bytes` is refused with a message that holds every part.
fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let message = error(bytes);
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

fn ones(name: &str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::new(name, shape, Encoding::F32, &vec![1.0; count])
}

/// A small file with something of everything.
fn sample() -> Vec<u8> {
    let metadata = [
        ("general.architecture", Value::Text("wan")),
        ("general.alignment", Value::U32(32)),
        ("test.f32", Value::F32(0.5)),
        (
            "test.strings",
            Value::Strings(vec!["a".into(), "▁b".into()]),
        ),
        ("test.floats", Value::Floats(vec![1.0, -2.5])),
        ("test.ints", Value::Ints(vec![1, 2, 3])),
    ];
    let tensors = [
        ones("blocks.0.modulation", &[1, 6, 4]),
        Tensor::new(
            "blocks.0.ffn.0.weight",
            &[2, 256],
            Encoding::Q4K,
            &weights(512),
        ),
        ones("patch_embedding.weight", &[3, 2, 1, 2, 2]),
    ];
    file(&metadata, &tensors)
}

/// A file of one tensor record made by hand, with `data` bytes of data.
fn record(name: &str, dimensions: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
    records(&[(name, dimensions, kind, offset)], data)
}

fn records(tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
    let mut out = start(tensors.len() as u64, 0);
    for (name, dimensions, kind, offset) in tensors {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((dimensions.len() as u32).to_le_bytes());
        out.extend(dimensions.iter().flat_map(|d| d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

/// Magic, version 3 and counts.
fn start(tensors: u64, entries: u64) -> Vec<u8> {
    let counts = [tensors.to_le_bytes(), entries.to_le_bytes()].concat();
    [b"GGUF".to_vec(), 3_u32.to_le_bytes().to_vec(), counts].concat()
}

/// A file of one metadata entry `k` with this type and bytes.
fn entry(kind: u32, bytes: &[u8]) -> Vec<u8> {
    file(&[("k", Value::Raw(kind, bytes.to_vec()))], &[])
}

/// An array's type, count and bytes.
fn array(kind: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
}

#[test]
fn the_gguf_packages_file_is_read() {
    let bytes = golden("types.gguf");
    let found = header(&bytes).unwrap();
    let metadata: Vec<(&str, &str)> = found
        .metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let expected = [
        ("comfy.gguf.orig_shape.some.weight", "[1, 6, 40]"),
        ("general.architecture", "wan"),
        ("test.bool", "true"),
        ("test.f32", "0.000001"),
        ("test.f64", "0.1"),
        ("test.i16", "-30000"),
        ("test.i32", "-2000000000"),
        ("test.i64", "-9223372036854775808"),
        ("test.i8", "-100"),
        ("test.string", "naïve ▁"),
        ("test.u16", "60000"),
        ("test.u32", "4000000000"),
        ("test.u64", "18446744073709551615"),
        ("test.u8", "200"),
        ("tokenizer.ggml.precompiled_charsmap", "[0, 127, 128, 255]"),
        ("tokenizer.ggml.scores", "[0, 0, 0, -3.5, -12.25]"),
        ("tokenizer.ggml.token_type", "[3, 3, 2, 1, 1]"),
    ];
    assert_eq!(metadata, expected);
    let tensors: Vec<(&str, Encoding, &[usize])> = found
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.encoding, t.shape.as_slice()))
        .collect();
    let expected: [(&str, Encoding, &[usize]); 24] = [
        ("q4_0", Encoding::Q4_0, &[2, 160]),
        ("q4_1", Encoding::Q4_1, &[2, 160]),
        ("q5_0", Encoding::Q5_0, &[2, 160]),
        ("q5_1", Encoding::Q5_1, &[2, 160]),
        ("q8_0", Encoding::Q8_0, &[2, 160]),
        ("q2_k", Encoding::Q2K, &[2, 512]),
        ("q3_k", Encoding::Q3K, &[2, 512]),
        ("q4_k", Encoding::Q4K, &[2, 512]),
        ("q5_k", Encoding::Q5K, &[2, 512]),
        ("q6_k", Encoding::Q6K, &[2, 512]),
        ("iq4_nl", Encoding::Iq4Nl, &[2, 160]),
        ("iq4_xs", Encoding::Iq4Xs, &[2, 512]),
        ("mxfp4", Encoding::Mxfp4, &[2, 160]),
        ("nvfp4", Encoding::Nvfp4, &[2, 320]),
        ("f64", Encoding::F64, &[3, 7]),
        ("f32", Encoding::F32, &[3, 7]),
        ("f16", Encoding::F16, &[3, 7]),
        ("bf16", Encoding::Bf16, &[3, 7]),
        ("patch_embedding.weight", Encoding::F32, &[4, 3, 1, 2, 2]),
        ("blocks.0.modulation", Encoding::F16, &[1, 6, 8]),
        ("int8", Encoding::I8, &[6]),
        ("int16", Encoding::I16, &[6]),
        ("int32", Encoding::I32, &[6]),
        ("int64", Encoding::I64, &[6]),
    ];
    assert_eq!(tensors, expected);
    for tensor in &found.tensors {
        let length = tensor.encoding.byte_len(&tensor.shape);
        assert_eq!(Some(tensor.end - tensor.start), length, "{}", tensor.name);
    }
    // The values of types.gguf's tensors are in encoding.rs; these have none there.
    let last = found.tensors.last().unwrap();
    let values: Vec<u8> = (-3_i64..3).flat_map(i64::to_le_bytes).collect();
    assert_eq!(&bytes[last.start..last.end], values);
}

#[test]
fn long_arrays_are_read_by_key() {
    let bytes = golden("types.gguf");
    let tokens = strings(&bytes, "tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens, ["<pad>", "</s>", "<unk>", "▁der", "ж"]);
    let scores = floats(&bytes, "tokenizer.ggml.scores").unwrap().unwrap();
    assert_eq!(scores, [0.0, 0.0, 0.0, -3.5, -12.25]);
    let long = integers(&bytes, "test.long").unwrap().unwrap();
    assert_eq!(long, (-50..50).collect::<Vec<i64>>());
    let map = integers(&bytes, "tokenizer.ggml.precompiled_charsmap").unwrap();
    assert_eq!(map.unwrap(), [0, 127, 128, 255]);
    assert_eq!(strings(&bytes, "tokenizer.ggml.merges").unwrap(), None);
    assert_eq!(floats(&bytes, "tokenizer.ggml.merges").unwrap(), None);
    assert_eq!(integers(&bytes, "tokenizer.ggml.merges").unwrap(), None);
    for key in ["test.long", "test.string", "tokenizer.ggml.scores"] {
        let message = format!("{:#}", strings(&bytes, key).unwrap_err());
        assert!(
            message.contains("expected an array of strings"),
            "{message}"
        );
    }
    assert!(floats(&bytes, "test.long").is_err());
    assert!(integers(&bytes, "tokenizer.ggml.scores").is_err());
    assert!(integers(&bytes, "tokenizer.ggml.tokens").is_err());
}

#[test]
fn version_2_is_read_alike_and_others_are_refused() {
    let mut bytes = sample();
    let third = header(&bytes).unwrap();
    bytes[4] = 2;
    assert_eq!(header(&bytes).unwrap(), third);
    bytes[4] = 1;
    assert_refused(&bytes, &["GGUF version 1; expected 2 or 3"]);
    bytes[4] = 4;
    assert_refused(&bytes, &["GGUF version 4; expected 2 or 3"]);
    bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert_refused(&bytes, &["big-endian"]);
    assert_refused(b"PK\x03\x04 and more", &["not a GGUF file", "PK\\x03\\x04"]);
    assert_refused(b"", &["the file ends in the magic number"]);
}

#[test]
fn the_test_writers_file_is_read() {
    let bytes = sample();
    let found = header(&bytes).unwrap();
    assert_eq!(found.metadata["general.architecture"], "wan");
    assert_eq!(found.metadata["test.f32"], "0.5");
    assert_eq!(found.metadata["test.ints"], "[1, 2, 3]");
    assert_eq!(found.tensors.len(), 3);
    assert_eq!(found.tensors[1].encoding, Encoding::Q4K);
    assert_eq!(found.tensors[2].shape, [3, 2, 1, 2, 2]);
    assert_eq!(
        strings(&bytes, "test.strings").unwrap().unwrap(),
        ["a", "▁b"]
    );
    let patch = &found.tensors[2];
    let ones = [1.0_f32; 24].iter().flat_map(|v| v.to_le_bytes());
    assert!(bytes[patch.start..patch.end].iter().copied().eq(ones));
}

/// No cut file is taken for a whole one, wherever it is cut.
#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = sample();
    let last = header(&bytes).unwrap().tensors[2].end;
    for length in 0..last {
        let message = error(&bytes[..length]);
        let says = ["cut off", "cannot hold so many"]
            .iter()
            .any(|s| message.contains(s));
        assert!(says, "{length}: {message}");
    }
    // After the data there is only padding.
    assert!(header(&bytes[..last]).is_ok());
}

#[test]
fn impossible_counts_and_lengths_are_refused() {
    for count in [1 << 63, u64::MAX, 1 << 32, 100] {
        assert_refused(&start(count, 0), &["tensors", "cannot hold so many"]);
        assert_refused(
            &start(0, count),
            &["metadata entries", "cannot hold so many"],
        );
        for kind in 0..=12 {
            assert_refused(
                &entry(9, &array(kind, count, &[])),
                &["\"k\"", "cannot hold so many"],
            );
        }
        // A string in the metadata, a key, a string of an array, a tensor's name.
        assert_refused(
            &entry(8, &count.to_le_bytes()),
            &["the file ends in a string"],
        );
        let key = [start(0, 1), count.to_le_bytes().to_vec(), vec![0; 20]].concat();
        assert_refused(&key, &["metadata entry 1 of 1", "the file ends in the key"]);
        let bytes = array(8, 1, &count.to_le_bytes());
        assert_refused(
            &entry(9, &bytes),
            &["the file ends in a string of an array"],
        );
        let name = [start(1, 0), count.to_le_bytes().to_vec(), vec![0; 20]].concat();
        assert_refused(&name, &["tensor 1 of 1", "the file ends in the name"]);
    }
    // Fewer tensors than bytes, but more than records.
    let bytes = [start(5, 0), vec![0; 5 * 24 - 1]].concat();
    assert_refused(&bytes, &["5 tensors; the 119 bytes left"]);
}

#[test]
fn hostile_values_are_refused() {
    assert_refused(&entry(13, &[0; 8]), &["\"k\"", "type 13; expected 0 to 12"]);
    assert_refused(&entry(9, &array(99, 0, &[])), &["type 99"]);
    assert_refused(&entry(7, &[2]), &["a boolean of 2"]);
    let twice = [("k", Value::U32(1)), ("k", Value::Ints(vec![0; 100]))];
    assert_refused(&file(&twice, &[]), &["the key \"k\" twice"]);
    let long = "k".repeat(0x1_0000);
    assert_refused(
        &file(&[(&long, Value::U32(1))], &[]),
        &["the key has 65536 bytes"],
    );
    let mut key = file(&[("k", Value::U32(1))], &[]);
    let place = key.iter().position(|&b| b == b'k').unwrap();
    key[place] = 0xff;
    assert_refused(&key, &["the key is not UTF-8"]);
}

#[test]
fn arrays_of_arrays_are_passed_over_to_a_depth() {
    let nested = |depth| {
        let innermost = array(0, 3, &[1, 2, 3]);
        (0..depth).fold(innermost, |inner, _| array(9, 1, &inner))
    };
    for depth in 0..4 {
        let found = header(&entry(9, &nested(depth))).unwrap();
        assert_eq!(found.metadata.contains_key("k"), depth == 0);
        let ints = integers(&entry(9, &nested(depth)), "k");
        assert_eq!(ints.is_ok(), depth == 0);
    }
    for depth in [4, 5, 100_000] {
        assert_refused(&entry(9, &nested(depth)), &["more than 4 deep"]);
    }
    // Wide instead of deep: half a million empty arrays.
    let wide = array(9, 500_000, &array(0, 0, &[]).repeat(500_000));
    assert!(header(&entry(9, &wide)).is_ok());
}

#[test]
fn text_that_is_not_utf8_or_too_long_is_taken_with_care() {
    let text = [3_u64.to_le_bytes().to_vec(), b"a\xffb".to_vec()].concat();
    let found = header(&entry(8, &text)).unwrap();
    assert_eq!(found.metadata["k"], "a\u{fffd}b");
    let bytes = entry(9, &array(8, 1, &text));
    let message = format!("{:#}", strings(&bytes, "k").unwrap_err());
    assert!(message.contains("string 0 is not UTF-8"), "{message}");
    let length = (1_usize << 20) + 1;
    let text = [(length as u64).to_le_bytes().to_vec(), vec![b'a'; length]].concat();
    assert!(header(&entry(8, &text)).unwrap().metadata.is_empty());
    let huge = u64::MAX.to_le_bytes();
    assert!(integers(&entry(9, &array(10, 1, &huge)), "k").is_err());
}

#[test]
fn alignment_is_kept() {
    let aligned = |value| {
        let metadata = [("general.alignment", value)];
        file(&metadata, &[ones("a", &[8]), ones("b", &[8])])
    };
    // The writer pads to 32, which suits smaller alignments too.
    assert!(header(&aligned(Value::U32(32))).is_ok());
    for wrong in [0, 3, 31, 48, u32::MAX] {
        let expected = format!("general.alignment is {wrong}; expected a power of two");
        assert_refused(&aligned(Value::U32(wrong)), &[&expected]);
    }
    for wrong in [Value::Text("32"), Value::F32(32.0), Value::Ints(vec![32])] {
        assert_refused(&aligned(wrong), &["general.alignment is no u32"]);
    }
    assert_refused(
        &aligned(Value::U32(1 << 31)),
        &["\"a\"", "behind the end of the file"],
    );
    assert_refused(
        &aligned(Value::U32(64)),
        &["\"b\"", "a multiple of the alignment, 64"],
    );
}

#[test]
fn tensors_out_of_place_are_refused() {
    let good = record("t", &[2, 4], 0, 0, 32);
    assert_eq!(header(&good).unwrap().tensors[0].shape, [4, 2]);
    assert!(header(&record("t", &[2, 4], 0, 32, 64)).is_ok());
    assert_refused(
        &record("t", &[2, 4], 0, 16, 64),
        &["starts at byte 16", "alignment, 32"],
    );
    assert_refused(
        &record("t", &[2, 4], 0, 0, 31),
        &["\"t\"", "behind the end", "32 bytes"],
    );
    for offset in [32, 1 << 62, 1 << 63, u64::MAX - 31] {
        assert_refused(
            &record("t", &[2, 4], 0, offset, 32),
            &["\"t\"", "behind the end"],
        );
    }
    let twice = records(&[("t", &[8], 0, 0), ("t", &[8], 0, 32)], 64);
    assert_refused(&twice, &["\"t\" is listed twice"]);
    // Out of order, and around each other.
    assert!(header(&records(&[("a", &[8], 0, 32), ("b", &[8], 0, 0)], 64)).is_ok());
    let same = records(&[("a", &[8], 0, 0), ("b", &[8], 0, 0)], 64);
    assert_refused(&same, &["\"a\"", "\"b\"", "overlap"]);
    let within = records(&[("a", &[8], 0, 64), ("b", &[64], 0, 0)], 256);
    assert_refused(&within, &["\"a\"", "\"b\"", "overlap"]);
    // An empty tensor takes no place.
    assert!(header(&records(&[("a", &[8], 0, 0), ("b", &[0], 0, 0)], 32)).is_ok());
}

#[test]
fn impossible_shapes_are_refused() {
    let many = [1; 9];
    assert_refused(
        &record("t", &many, 0, 0, 32),
        &["\"t\"", "9 dimensions; expected at most 8"],
    );
    assert!(header(&record("t", &many[..8], 0, 0, 32)).is_ok());
    assert_eq!(
        header(&record("t", &[], 0, 0, 32)).unwrap().tensors[0].shape,
        [0; 0]
    );
    for shape in [
        [1 << 32, 1 << 32],
        [1 << 63, 2],
        [u64::MAX, 1],
        [u64::MAX, u64::MAX],
    ] {
        assert_refused(
            &record("t", &shape, 0, 0, 32),
            &["\"t\"", "a size that a file can have"],
        );
    }
    assert_refused(
        &record("t", &[128, 2], 12, 0, 144),
        &["q4_k", "a multiple of 256"],
    );
    assert_refused(
        &record(&"t".repeat(1025), &[8], 0, 0, 32),
        &["the name has 1025 bytes"],
    );
}

#[test]
fn unsupported_types_are_named() {
    for (kind, name) in [
        (9, "Q8_1"),
        (21, "IQ3_S"),
        (34, "TQ1_0"),
        (1000, "unknown"),
        (u32::MAX, "unknown"),
    ] {
        let expected = format!("type {kind} ({name})");
        assert_refused(
            &record("t", &[256], kind, 0, 1024),
            &["\"t\"", &expected, "Q6_K"],
        );
    }
}

/// Reads everything; where the header is taken, every tensor lies in the file, alone.
fn read_all(bytes: &[u8]) -> bool {
    for key in [
        "test.strings",
        "test.floats",
        "test.ints",
        "general.alignment",
    ] {
        let _ = strings(bytes, key);
        let _ = floats(bytes, key);
        let _ = integers(bytes, key);
    }
    let Ok(found) = header(bytes) else {
        return false;
    };
    let mut places: Vec<(usize, usize)> = Vec::new();
    for tensor in &found.tensors {
        let length = tensor.encoding.byte_len(&tensor.shape);
        assert_eq!(Some(tensor.end - tensor.start), length);
        assert!(tensor.end <= bytes.len());
        if tensor.end > tensor.start {
            places.push((tensor.start, tensor.end));
        }
    }
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    true
}

#[test]
fn random_damage_never_panics() {
    let bytes = sample();
    let data = header(&bytes).unwrap().tensors[0].start;
    let number = prop_oneof![
        Just(0),
        Just(1 << 32),
        Just(1 << 63),
        Just(u64::MAX),
        0..200_u64,
        any::<u64>(),
    ];
    let damage = (any::<Index>(), 0..4, number);
    let damages = prop::collection::vec(damage, 1..4);
    let taken = std::cell::Cell::new(0);
    check(4000, &damages, |damages| {
        let mut bytes = bytes.clone();
        for (place, kind, number) in damages {
            let at = place.index(data.min(bytes.len()));
            match kind {
                0 => bytes[at] = number as u8,
                1 => bytes.insert(at, number as u8),
                2 => drop(bytes.remove(at)),
                _ => {
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                }
            }
        }
        if read_all(&bytes) {
            taken.set(taken.get() + 1);
        }
    });
    // Some damage does no harm; a reader that refuses all would pass everything above.
    assert!((40..2000).contains(&taken.get()), "{}", taken.get());
}

#[test]
fn random_bytes_never_panic() {
    let bytes = prop::collection::vec(any::<u8>(), 0..400);
    check(
        2000,
        &(0..3_u64, 0..3_u64, bytes),
        |(tensors, entries, bytes)| {
            read_all(&bytes);
            read_all(&[start(tensors, entries), bytes].concat());
        },
    );
}
