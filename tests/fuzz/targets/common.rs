//! The readers under test, from their source: the whole crate would bring in MLX.

#[allow(dead_code)]
#[path = "../../../src/weights/container"]
pub mod container {
    pub mod encoding;
    pub mod gguf;
    pub mod header;
    pub mod pth;
    pub mod safetensors;
}

#[path = "../../../src/util"]
pub mod util {
    pub mod float;
}

use container::header::Header;

/// Reads a file; if it is accepted, what is found has to lie within it and be of the right size.
pub fn check(file: &[u8], read: impl Fn(&[u8]) -> anyhow::Result<Header>) {
    let header = match read(file) {
        Ok(header) => header,
        Err(error) => {
            let message = format!("{error:#}");
            assert!(
                message.len() < 100_000,
                "a message of {} bytes",
                message.len()
            );
            return;
        }
    };
    let mut names: Vec<&str> = Vec::new();
    for tensor in &header.tensors {
        assert!(tensor.start <= tensor.end && tensor.end <= file.len());
        let length = tensor.end - tensor.start;
        assert_eq!(tensor.encoding.byte_len(&tensor.shape), Some(length));
        names.push(&tensor.name);
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
