//! Files that are cut off, empty, garbage, lying, missing or listed wrongly.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use wan_i2v::runtime::{Device, DeviceKind};
use wan_i2v::weights::PartName;

use crate::support::assert_holds;
use crate::support::scratch::{Scratch, read_tensors, write_tensors};
use crate::weights::{HIGH, LOW, TEXT, VAE, error, open};

const INDEX: &str = "transformer/diffusion_pytorch_model.safetensors.index.json";

/// A file of a header's length, the header and data.
fn raw(length: u64, header: &str, data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

fn whole(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    raw(header.len() as u64, &header, data)
}

#[test]
fn broken_files_are_named() {
    let scratch = Scratch::new("a");
    let file = fs::read(scratch.path(VAE)).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let tensor = |dtype: &str, shape: Value, offsets: Value| json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
    let cut = "download it again";
    for (what, content, expected) in [
        ("empty", vec![], cut),
        ("seven bytes", vec![1; 7], cut),
        ("length alone", file[..8].to_vec(), cut),
        ("half a header", file[..header / 2].to_vec(), cut),
        ("header alone", file[..8 + header].to_vec(), cut),
        ("last byte gone", file[..file.len() - 1].to_vec(), cut),
        ("a byte too many", [&file[..], &[0]].concat(), cut),
        ("garbage", (0..=255).cycle().take(5000).collect(), cut),
        (
            "text",
            b"<!DOCTYPE html><html>Not found</html>".to_vec(),
            "a web page",
        ),
        (
            "a Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(),
            "git lfs pull",
        ),
        ("header beyond the end", raw(1 << 20, "{}", &[]), cut),
        ("absurd header", raw(u64::MAX, "{}", &[]), cut),
        ("header that is no JSON", raw(9, "{\"a\": nope", &[]), cut),
        ("header that is no object", raw(2, "[]", &[]), cut),
        (
            "overlap",
            whole(
                &json!({"a": tensor("F32", json!([2]), json!([0, 8])), "b": tensor("F32", json!([2]), json!([4, 12]))}),
                &[0; 12],
            ),
            cut,
        ),
        (
            "gap",
            whole(
                &json!({"a": tensor("F32", json!([1]), json!([0, 4])), "b": tensor("F32", json!([1]), json!([8, 12]))}),
                &[0; 12],
            ),
            cut,
        ),
        (
            "backward",
            whole(
                &json!({"a": tensor("F32", json!([1]), json!([4, 0]))}),
                &[0; 4],
            ),
            cut,
        ),
        (
            "offsets of another size",
            whole(
                &json!({"a": tensor("F32", json!([4]), json!([0, 12]))}),
                &[0; 12],
            ),
            cut,
        ),
        (
            "beyond the end",
            whole(
                &json!({"a": tensor("F32", json!([4]), json!([0, 16]))}),
                &[0; 12],
            ),
            cut,
        ),
        (
            "overflowing shape",
            whole(
                &json!({"a": tensor("F32", json!([u64::MAX, 2, u64::MAX]), json!([0, 4]))}),
                &[0; 4],
            ),
            cut,
        ),
        (
            "negative shape",
            whole(
                &json!({"a": tensor("F32", json!([-1]), json!([0, 4]))}),
                &[0; 4],
            ),
            cut,
        ),
        (
            "unknown dtype",
            whole(
                &json!({"a": tensor("F31", json!([1]), json!([0, 4]))}),
                &[0; 4],
            ),
            cut,
        ),
        ("no tensors", whole(&json!({}), &[]), "0 found"),
        (
            "metadata alone",
            whole(&json!({"__metadata__": {"format": "pt"}}), &[]),
            "0 found",
        ),
    ] {
        let message = scratch.with_damaged(
            VAE,
            |path| fs::write(path, content).unwrap(),
            || error(scratch.root()),
        );
        assert!(message.contains(expected), "{what}: {message}");
        assert!(message.contains("vae"), "{what}: {message}");
    }
    open(scratch.root()).unwrap();
}

#[test]
fn a_part_needs_exactly_one_set_of_files() {
    let scratch = Scratch::new("a");
    let folder = scratch.path("vae");
    let variant = folder.join("other.safetensors");
    fs::copy(scratch.path(VAE), &variant).unwrap();
    // The usual name wins over a variant beside it.
    open(scratch.root()).unwrap();
    fs::rename(scratch.path(VAE), folder.join("another.safetensors")).unwrap();
    let message = error(scratch.root());
    assert_holds(
        &message,
        &["vae", "another.safetensors", "other.safetensors"],
    );
    // One file of whatever name will do.
    fs::remove_file(folder.join("another.safetensors")).unwrap();
    open(scratch.root()).unwrap();
    fs::remove_file(&variant).unwrap();
    let message = error(scratch.root());
    assert_holds(&message, &["vae", "no file with tensors", ".safetensors"]);
    fs::write(folder.join("diffusion_pytorch_model.onnx"), "x").unwrap();
    assert_holds(&error(scratch.root()), &["no file with tensors"]);
}

/// A checkpoint whose high-noise expert lies in two shards, and the index's map.
fn in_two_shards() -> (Scratch, Value) {
    let scratch = Scratch::new("a");
    let mut first = read_tensors(&scratch.path(HIGH));
    let middle = first.keys().nth(first.len() / 2).unwrap().clone();
    let second = first.split_off(&middle);
    let folder = scratch.path("transformer");
    write_tensors(&folder.join("1.safetensors"), &first);
    write_tensors(&folder.join("2.safetensors"), &second);
    fs::remove_file(scratch.path(HIGH)).unwrap();
    let shards = [(&first, "1.safetensors"), (&second, "2.safetensors")];
    let map: Map<String, Value> = shards
        .into_iter()
        .flat_map(|(tensors, file)| tensors.keys().map(move |name| (name.clone(), file.into())))
        .collect();
    (scratch, map.into())
}

/// The message of opening with this index.
fn index_error(root: &Path, index: &Value) -> String {
    fs::write(root.join(INDEX), index.to_string()).unwrap();
    error(root)
}

#[test]
fn an_index_must_tell_the_truth() {
    let (scratch, map) = in_two_shards();
    let root = scratch.root();
    let good = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(root.join(INDEX), good.to_string()).unwrap();
    open(root).unwrap();

    let with = |tensor: &str, shard: &str| {
        let mut index = good.clone();
        index["weight_map"][tensor] = shard.into();
        index_error(root, &index)
    };
    let last = "scale_shift_table";
    for shard in [
        "3.safetensors",
        "../x",
        "../vae/diffusion_pytorch_model.safetensors",
        "/etc/hostname",
        "",
        ".",
        "./1.safetensors",
    ] {
        let message = with(last, shard);
        let expected = format!("lists the shard {shard:?}, which is not in the folder");
        assert_holds(&message, &["index.json", &expected]);
    }
    let message = with(last, "1.safetensors");
    assert_holds(
        &message,
        &[
            "index.json",
            "lists the tensor scale_shift_table in 1.safetensors, which does not hold it",
        ],
    );
    let message = with("imaginary.weight", "2.safetensors");
    assert_holds(&message, &["imaginary.weight", "does not hold it"]);

    for broken in [json!({}), json!({"weight_map": 3}), json!([])] {
        let message = index_error(root, &broken);
        assert_holds(&message, &["index.json", "does not hold what is expected"]);
    }
    let message = index_error(root, &json!({"weight_map": {}}));
    assert_holds(&message, &["transformer", "lists no tensor"]);
    fs::write(root.join(INDEX), "{").unwrap();
    assert_holds(&error(root), &["index.json"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (scratch, map) = in_two_shards();
    let second = scratch.path("transformer/2.safetensors");
    let mut tensors = read_tensors(&second);
    let twin = map.as_object().unwrap().keys().next().unwrap();
    let first = read_tensors(&scratch.path("transformer/1.safetensors"));
    tensors.insert(twin.clone(), first[twin].clone());
    write_tensors(&second, &tensors);
    let message = index_error(scratch.root(), &json!({"weight_map": map}));
    assert_holds(
        &message,
        &["2.safetensors", twin, "stands in another shard too"],
    );
}

#[test]
fn parts_may_not_be_exchanged() {
    let scratch = Scratch::new("a");
    fs::copy(scratch.path(LOW), scratch.path(VAE)).unwrap();
    assert_holds(
        &error(scratch.root()),
        &["vae", "this is an expert; expected a VAE"],
    );
    let scratch = Scratch::new("a");
    fs::remove_file(scratch.path(TEXT)).unwrap();
    assert_holds(
        &error(scratch.root()),
        &["text_encoder", "no file with tensors"],
    );
    fs::remove_dir_all(scratch.path("text_encoder")).unwrap();
    assert_holds(
        &error(scratch.root()),
        &["no text encoder", "--text-encoder PATH"],
    );
}

/// A search for settings that fit asks for them a thousand times.
#[test]
fn sizes_of_weights_are_computed_once() {
    let scratch = Scratch::new("a");
    let checkpoint = open(scratch.root()).unwrap();
    let device = Device::new(DeviceKind::Cpu, None);
    let sizes = || {
        let held =
            PartName::WITH_EXPERTS.map(|part| checkpoint.weights_held(part, device).unwrap());
        (held, checkpoint.vae_bytes(device).unwrap())
    };
    let before = sizes();
    drop(scratch);
    assert_eq!(sizes(), before);
}
