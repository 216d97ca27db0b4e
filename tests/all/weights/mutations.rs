//! Random damage: whatever a file holds, the reader answers, and never panics.

use std::fs;

use proptest::prelude::*;

use crate::support::check;
use crate::support::scratch::Scratch;
use crate::weights::open;

/// Bytes to overwrite, insert or remove, by place.
#[derive(Clone, Debug)]
enum Damage {
    Set(u8),
    Insert(u8),
    Remove,
    Cut,
    /// A number in the text becomes this one.
    Number(i64),
}

fn damages() -> impl Strategy<Value = Vec<(prop::sample::Index, Damage)>> {
    let number = prop_oneof![
        Just(0),
        Just(-1),
        Just(1 << 20),
        Just(i64::from(i32::MAX)),
        Just(i64::MAX),
        any::<i64>(),
    ];
    let damage = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Set),
        2 => any::<u8>().prop_map(Damage::Insert),
        2 => Just(Damage::Remove),
        1 => Just(Damage::Cut),
        6 => number.prop_map(Damage::Number),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), damage), 1..4)
}

fn apply(bytes: &mut Vec<u8>, damages: Vec<(prop::sample::Index, Damage)>) {
    for (place, damage) in damages {
        if bytes.is_empty() {
            return;
        }
        let at = place.index(bytes.len());
        match damage {
            Damage::Set(byte) => bytes[at] = byte,
            Damage::Insert(byte) => bytes.insert(at, byte),
            Damage::Remove => drop(bytes.remove(at)),
            Damage::Cut => bytes.truncate(at),
            Damage::Number(number) => {
                let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit) else {
                    continue;
                };
                let start = at + start;
                let digits = bytes[start..]
                    .iter()
                    .take_while(|b| b.is_ascii_digit())
                    .count();
                bytes.splice(start..start + digits, number.to_string().into_bytes());
            }
        }
    }
}

#[test]
fn damaged_headers_never_panic() {
    use wan_i2v::weights::store::{Location, TensorStore};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let scratch = Scratch::new("a");
    let name = "text_encoder/model.safetensors";
    scratch.edit_tensors(name, |tensors| tensors.retain(|_, t| t.shape.len() == 1));
    let whole = fs::read(scratch.path(name)).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    check(500, &damages(), |damages| {
        let mut head = whole[..header].to_vec();
        apply(&mut head, damages);
        // Mostly with a length that fits, so that the damage behind it is seen.
        if head.len() > 8 && head[..8] == whole[..8] {
            let length = head.len() as u64 - 8;
            head[..8].copy_from_slice(&length.to_le_bytes());
        }
        fs::write(&path, [&head, &whole[header..]].concat()).unwrap();
        if let Ok(store) = TensorStore::open(&Location::at(folder.path()).unwrap()) {
            for entry in store.entries().values() {
                let bytes = store.bytes(entry).len();
                assert_eq!(entry.encoding.byte_len(&entry.shape), Some(bytes));
            }
        }
    });
}

#[test]
fn damaged_configurations_never_panic() {
    let scratch = Scratch::new("a");
    fs::write(
        scratch.path("wan_i2v.json"),
        r#"{"area": 4096, "frames": 5, "fps": 8, "steps": 3, "shift": 2, "guide_scale": [3, 4]}"#,
    )
    .unwrap();
    for (cases, file) in [
        (40, "model_index.json"),
        (40, "wan_i2v.json"),
        (120, "transformer/config.json"),
        (60, "text_encoder/config.json"),
        (120, "vae/config.json"),
    ] {
        let whole = fs::read(scratch.path(file)).unwrap();
        check(cases, &damages(), |damages| {
            let mut damaged = whole.clone();
            apply(&mut damaged, damages);
            fs::write(scratch.path(file), damaged).unwrap();
            if let Err(error) = open(scratch.root()) {
                assert!(!format!("{error:#}").is_empty());
            }
        });
        fs::write(scratch.path(file), whole).unwrap();
    }
}
