//! Safetensors files whose tensors come piece by piece.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use crate::util::show::Show;
use anyhow::{Context, Result, ensure};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutTensor {
    /// Its name in the file.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl OutTensor {
    /// Its bytes.
    pub fn byte_len(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// A file whose header is written and whose tensors are being filled in.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: std::path::PathBuf,
    /// Where each tensor's next bytes go, and where they end, in the order given.
    places: Vec<(u64, u64)>,
    hashers: Vec<blake3::Hasher>,
}

impl Writer {
    /// Creates the file with room for `tensors`, or opens it where it was left: whole tensors
    /// before the first unfinished one are kept.
    ///
    /// # Errors
    /// When the file cannot be written, or an existing one is for other tensors.
    pub fn open(path: &Path, tensors: &[OutTensor], resume: bool) -> Result<Self> {
        let (header, places) = layout(tensors);
        let whole = header.len() as u64 + tensors.iter().map(OutTensor::byte_len).sum::<u64>();
        let context = || format!("cannot write {}", path.shown());
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(!resume)
            .open(path)
            .with_context(context)?;
        if resume {
            let found = file.metadata()?.len();
            ensure!(
                found == whole,
                "{}: has {found} bytes; expected {whole}\nhint: remove the unfinished conversion and \
                 start again",
                path.shown()
            );
        } else {
            file.write_all(&header).with_context(context)?;
            // Its final length from the start: what is missing are zeros, never a cut-off file.
            file.set_len(whole).with_context(context)?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            hashers: vec![blake3::Hasher::new(); places.len()],
            places,
        })
    }

    /// Writes the next bytes of tensor number `index`.
    ///
    /// # Errors
    /// When there are more than it has room for, or the disk refuses.
    pub fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let (at, end) = &mut self.places[index];
        ensure!(
            *at + bytes.len() as u64 <= *end,
            "{}: more bytes than the tensor has",
            self.path.shown()
        );
        let context = || format!("cannot write {}", self.path.shown());
        self.file.seek(SeekFrom::Start(*at)).with_context(context)?;
        self.file.write_all(bytes).with_context(context)?;
        *at += bytes.len() as u64;
        self.hashers[index].update(bytes);
        Ok(())
    }

    /// Whether tensor number `index` has all its bytes.
    pub fn is_full(&self, index: usize) -> bool {
        self.places[index].0 == self.places[index].1
    }

    /// BLAKE3 of what has been written of tensor number `index`, in hexadecimal.
    pub fn digest(&self, index: usize) -> String {
        self.hashers[index].finalize().to_hex().to_string()
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("cannot write {}", self.path.shown()))
    }
}

/// The file's head, and where each tensor's bytes start and end.
///
/// Wide elements come first, so that every tensor is aligned to its element.
fn layout(tensors: &[OutTensor]) -> (Vec<u8>, Vec<(u64, u64)>) {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.bitsize()));
    let mut places = vec![(0, 0); tensors.len()];
    let mut head = Map::new();
    head.insert("__metadata__".into(), json!({ "format": "mlx" }));
    let mut at = 0;
    for i in order {
        let tensor = &tensors[i];
        let end = at + tensor.byte_len();
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [at, end],
        });
        head.insert(tensor.name.clone(), entry);
        places[i] = (at, end);
        at = end;
    }
    let mut json = Value::Object(head).to_string().into_bytes();
    // Spaces up to a multiple of eight, as the format's own writer does.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    let start = bytes.len() as u64;
    for place in &mut places {
        place.0 += start;
        place.1 += start;
    }
    (bytes, places)
}
