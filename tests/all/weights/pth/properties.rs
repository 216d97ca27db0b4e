//! Damaged files: never a panic, and never a position outside the file.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use wan_i2v::weights::container::pth::header;

use super::zips::{archive, pair, records};
use super::{golden, names};

/// Runs `test` on the same values each time.
fn check<S: Strategy>(
    cases: u32,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(strategy, test)
        .unwrap();
}

/// Reads a damaged file; whatever comes of it has to make sense.
fn sensible(file: &[u8]) -> Result<(), TestCaseError> {
    let Ok(header) = header(file) else {
        return Ok(());
    };
    prop_assert!(!header.tensors.is_empty());
    for tensor in &header.tensors {
        prop_assert!(tensor.start <= tensor.end && tensor.end <= file.len());
        prop_assert_eq!(
            tensor.encoding.byte_len(&tensor.shape),
            Some(tensor.end - tensor.start)
        );
    }
    Ok(())
}

/// Bytes to be written over others, at parts of a file's length.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>)>> {
    let bytes = prop_oneof![
        vec(any::<u8>(), 1..4),
        Just(vec![0xff; 4]),
        Just(vec![0xff; 8]),
        Just(vec![0; 4]),
    ];
    vec((any::<prop::sample::Index>(), bytes), 1..4)
}

fn apply(file: &mut [u8], changes: &[(prop::sample::Index, Vec<u8>)]) {
    for (index, bytes) in changes {
        let at = index.index(file.len());
        for (old, new) in file[at..].iter_mut().zip(bytes) {
            *old = *new;
        }
    }
}

#[test]
fn overwritten_files_are_read_or_refused() {
    let files: Vec<Vec<u8>> = names(".pth")
        .iter()
        .map(|name| golden(&format!("{name}.pth")))
        .collect();
    check(4000, &(0..files.len(), changes()), |(which, changes)| {
        let mut file = files[which].clone();
        apply(&mut file, &changes);
        sensible(&file)
    });
}

#[test]
fn overwritten_pickles_are_read_or_refused() {
    // In an archive that is sound, so that every change reaches the machine.
    let good = pair();
    check(4000, &changes(), |changes| {
        let mut pickle = good.clone();
        apply(&mut pickle, &changes);
        sensible(&archive(&records(&pickle)))
    });
}

#[test]
fn random_instructions_are_read_or_refused() {
    let opcodes = b"\x80\x95.(NJKM\x8aGX\x8c\x8d)\x85\x86\x87t]ae}suqr\x94hjc\x93QRb\0\x01\x02";
    let opcode = prop::sample::select(opcodes.to_vec());
    check(4000, &vec(opcode, 0..64), |tail| {
        // With a tensor and its parts in the memo's reach, on the stack.
        let mut pickle = pair();
        pickle.truncate(pickle.len() - 2);
        pickle.extend(tail);
        pickle.extend(b"u.");
        sensible(&archive(&records(&pickle)))
    });
}

#[test]
fn every_byte_overwritten_is_read_or_refused() {
    let good = golden("views.pth");
    for at in 0..good.len() {
        for byte in [0, 0x7f, 0xff, good[at] ^ 1, good[at].wrapping_add(1)] {
            let mut file = good.clone();
            file[at] = byte;
            sensible(&file).unwrap();
        }
    }
}

#[test]
fn random_bytes_are_refused() {
    check(500, &vec(any::<u8>(), 0..200), |bytes| {
        prop_assert!(header(&bytes).is_err());
        let zip = [b"PK\x03\x04".as_slice(), &bytes].concat();
        prop_assert!(header(&zip).is_err());
        Ok(())
    });
}
