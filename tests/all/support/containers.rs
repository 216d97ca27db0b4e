//! Writes files of every container.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use rawzip::{CompressionMethod, ZipArchiveWriter};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::{Value, json};
use wan_i2v::weights::PartName;
use wan_i2v::weights::container::encoding::Encoding;

use super::gguf;
use super::layouts::{Content, Stored};

/// A safetensors file.
pub fn safetensors(path: &Path, content: &Content) {
    let dtype = |encoding| match encoding {
        Encoding::F32 => Dtype::F32,
        Encoding::F16 => Dtype::F16,
        Encoding::Bf16 => Dtype::BF16,
        Encoding::F8E4M3 => Dtype::F8_E4M3,
        Encoding::U32 => Dtype::U32,
        Encoding::U8 => Dtype::U8,
        Encoding::I8 => Dtype::I8,
        other => panic!("no dtype for {other:?}"),
    };
    let views = content.iter().map(|(name, tensor)| {
        let shape = tensor.shape.clone();
        let view = TensorView::new(dtype(tensor.encoding), shape, &tensor.bytes).unwrap();
        (name, view)
    });
    ::safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Two safetensors files `{stem}-0000N-of-00002` with an index.
pub fn shards(folder: &Path, stem: &str, content: &Content) {
    let mut halves = [Content::new(), Content::new()];
    let mut map = BTreeMap::new();
    for (i, (name, tensor)) in content.iter().enumerate() {
        halves[i % 2].insert(name.clone(), tensor.clone());
        map.insert(
            name,
            format!("{stem}-{:05}-of-00002.safetensors", i % 2 + 1),
        );
    }
    for (i, half) in halves.iter().enumerate() {
        safetensors(
            &folder.join(format!("{stem}-{:05}-of-00002.safetensors", i + 1)),
            half,
        );
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    write(
        &folder.join(format!("{stem}.safetensors.index.json")),
        &index,
    );
}

/// What `torch.save` makes of a dictionary of tensors: an archive of stored records.
pub fn torch(path: &Path, content: &Content) {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    let mut record = |name: &str, bytes: &[u8]| {
        let file = archive
            .new_file(name)
            .compression_method(CompressionMethod::STORE);
        let (mut entry, config) = file.start().unwrap();
        let mut data = config.wrap(&mut entry);
        data.write_all(bytes).unwrap();
        let (_, descriptor) = data.finish().unwrap();
        entry.finish(descriptor).unwrap();
    };
    record("archive/data.pkl", &pickle(content));
    record("archive/byteorder", b"little");
    for (key, tensor) in content.values().enumerate() {
        record(&format!("archive/data/{key}"), &tensor.bytes);
    }
    record("archive/version", b"3\n");
    fs::write(path, archive.finish().unwrap()).unwrap();
}

/// Protocol 2: an `OrderedDict` of tensors, each with a storage of its own.
fn pickle(content: &Content) -> Vec<u8> {
    let text = |text: &str| {
        [
            b"X",
            &(text.len() as u32).to_le_bytes()[..],
            text.as_bytes(),
        ]
        .concat()
    };
    let number = |n: usize| [b"J", &(n as i32).to_le_bytes()[..]].concat();
    let tuple = |items: Vec<u8>| [b"(", &items[..], b"t"].concat();
    let empty = b"ccollections\nOrderedDict\n)R";
    let tensor = |key: usize, tensor: &Stored| {
        let storage: &[u8] = match tensor.encoding {
            Encoding::F32 => b"ctorch\nFloatStorage\n",
            Encoding::F16 => b"ctorch\nHalfStorage\n",
            Encoding::Bf16 => b"ctorch\nBFloat16Storage\n",
            other => panic!("no storage for {other:?}"),
        };
        let elements = tensor.shape.iter().product();
        let id = [
            &text("storage")[..],
            storage,
            &text(&key.to_string()),
            &text("cpu"),
            &number(elements),
        ];
        let strides = (0..tensor.shape.len()).map(|i| tensor.shape[i + 1..].iter().product());
        let shape = tuple(tensor.shape.iter().copied().flat_map(number).collect());
        let arguments = [
            &tuple(id.concat())[..],
            b"Q",
            &number(0),
            &shape,
            &tuple(strides.flat_map(number).collect()),
            b"\x89",
            empty,
        ];
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            &tuple(arguments.concat())[..],
            b"R",
        ]
        .concat()
    };
    let mut out = [b"\x80\x02", &empty[..], b"("].concat();
    for (key, (name, stored)) in content.iter().enumerate() {
        out.extend(text(name));
        out.extend(tensor(key, stored));
    }
    out.extend(b"u.");
    out
}

/// A GGUF file; a text encoder's holds the tokenizer.
pub fn gguf(path: &Path, content: &Content, part: PartName) {
    #[derive(Deserialize)]
    struct Arrays {
        tokens: Vec<String>,
        scores: Vec<f32>,
        kinds: Vec<i32>,
    }
    use gguf::Value::{Floats, Ints, Strings, Text, U32};
    let arrays: Arrays =
        serde_json::from_str(include_str!("../../data/spiece/arrays.json")).unwrap();
    let metadata = match part {
        PartName::TextEncoder => vec![
            ("general.architecture", Text("t5encoder")),
            ("tokenizer.ggml.model", Text("t5")),
            ("tokenizer.ggml.tokens", Strings(arrays.tokens)),
            ("tokenizer.ggml.scores", Floats(arrays.scores)),
            ("tokenizer.ggml.token_type", Ints(arrays.kinds)),
            ("tokenizer.ggml.eos_token_id", U32(1)),
        ],
        _ => vec![("general.architecture", Text("wan"))],
    };
    let tensors: Vec<gguf::Tensor> = content
        .iter()
        .map(|(name, tensor)| gguf::Tensor {
            name: name.clone(),
            shape: tensor.shape.clone(),
            kind: gguf::kind(tensor.encoding),
            bytes: tensor.bytes.clone(),
        })
        .collect();
    fs::write(path, gguf::file(&metadata, &tensors)).unwrap();
}

pub fn write(path: &Path, json: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_vec_pretty(json).unwrap()).unwrap();
}
