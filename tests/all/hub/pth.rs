//! A PyTorch checkpoint as `torch.save` lays it out: a zip archive of uncompressed records, the
//! pickle first, each tensor's storage in a record of its own.

use safetensors::tensor::Dtype;

use crate::support::scratch::Tensors;

/// The archive with a dictionary of tensors.
pub fn write(tensors: &Tensors) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    let mut records = Vec::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let class = match tensor.dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            other => panic!("{other:?}"),
        };
        let elements: usize = tensor.shape.iter().product();
        let mut strides = vec![1; tensor.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * tensor.shape[axis];
        }
        let key = i.to_string();
        pickle.extend(string(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(string("storage"));
        pickle.extend(format!("ctorch\n{class}\n").into_bytes());
        pickle.extend([string(&key), string("cpu"), number(elements)].concat());
        pickle.extend(b"tQ");
        pickle.extend([number(0), tuple(&tensor.shape), tuple(&strides)].concat());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        records.push((format!("a/data/{key}"), tensor.bytes.as_slice()));
    }
    pickle.extend(b"u.");
    records.insert(0, ("a/data.pkl".into(), &pickle));
    records.push(("a/version".into(), b"3\n"));
    archive(&records)
}

fn archive(records: &[(String, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in records {
        let (offset, size) = (file.len() as u32, data.len() as u32);
        let fields = [rawzip::crc32(data), size, size, name.len() as u32].map(u32::to_le_bytes);
        // Version, flags, method (none), time and date; then checksum, sizes and lengths.
        let head = [b"\x14\0\0\0\0\0\0\0\0\0", fields.concat().as_slice()].concat();
        file.extend([b"PK\x03\x04", head.as_slice(), name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\x14\0", head.as_slice(), &[0; 10]].concat());
        directory.extend([&offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let count = (records.len() as u16).to_le_bytes();
    let place = [directory.len() as u32, file.len() as u32].map(u32::to_le_bytes);
    file.extend(directory);
    file.extend([b"PK\x05\x06\0\0\0\0", count.as_slice(), &count].concat());
    file.extend([place.concat().as_slice(), &[0; 2]].concat());
    file
}

fn string(text: &str) -> Vec<u8> {
    [
        b"X".as_slice(),
        &(text.len() as u32).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat()
}

fn number(number: usize) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &(number as u64).to_le_bytes()].concat()
}

fn tuple(numbers: &[usize]) -> Vec<u8> {
    let inner: Vec<u8> = numbers.iter().flat_map(|&n| number(n)).collect();
    [b"(".as_slice(), &inner, b"t"].concat()
}
