//! A random checkpoint in a folder of its own, to be damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

use super::{checkpoint, mlx};

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of float32.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// Its values, if it is one of float32.
    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        let words = self.bytes.chunks_exact(4);
        words
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect()
    }
}

/// A file's tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A checkpoint with random weights; gone when dropped.
pub struct Scratch(TempDir);

impl Scratch {
    /// The checkpoint of a case of `tests/golden`.
    pub fn new(case: &str) -> Self {
        let _mlx = mlx();
        Self(checkpoint::of_case(case))
    }

    /// The checkpoint's folder.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.path(name);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }

    pub fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut Tensors)) {
        let path = self.path(name);
        let mut tensors = read_tensors(&path);
        edit(&mut tensors);
        write_tensors(&path, &tensors);
    }

    /// Runs `test` with a file of the checkpoint changed by `damage`, then puts it back.
    pub fn with_damaged<T>(
        &self,
        name: &str,
        damage: impl FnOnce(&Path),
        test: impl FnOnce() -> T,
    ) -> T {
        let path = self.path(name);
        let original = fs::read(&path).unwrap();
        damage(&path);
        let result = test();
        fs::write(&path, original).unwrap();
        result
    }
}

/// The tensors of a file's content.
pub fn tensors_of(file: &[u8]) -> Tensors {
    let own = |(name, view): (String, TensorView)| {
        let tensor = Tensor {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        (name, tensor)
    };
    let tensors = SafeTensors::deserialize(file).unwrap().tensors();
    tensors.into_iter().map(own).collect()
}

/// A file's content.
pub fn file_of(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (name, view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

pub fn read_tensors(path: &Path) -> Tensors {
    tensors_of(&fs::read(path).unwrap())
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    fs::write(path, file_of(tensors)).unwrap();
}
