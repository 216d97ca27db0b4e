//! Golden data and the random models that it was made with.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use mlx_rs::Array;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use wan_i2v::model::vae::VaeConfig;
use wan_i2v::model::{Role, TensorSource};
use wan_i2v::runtime::{Device, DeviceKind, Kernels, Precision, to_host};

use super::{checkpoint, mlx, portable};

/// This program's kernels, which a CPU computes with.
pub const F32: Device = Device::new(DeviceKind::Cpu, Some(Precision::F32));
/// MLX's, which a GPU computes with, on the CPU.
pub const MLX: Device = Device::with_kernels(DeviceKind::Cpu, Some(Precision::F32), Kernels::Mlx);
/// What golden data is compared on.
pub const BOTH: [Device; 2] = [F32, MLX];

/// A run's settings (`case.json`); of a VAE alone there are just a clip's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub frames: u32,
    pub height: u32,
    pub width: u32,
    pub steps: usize,
    pub shift: f64,
    pub seed: u64,
    pub guide_low: f32,
    pub guide_high: f32,
    pub boundary: i64,
    pub float_frames: Vec<i32>,
}

/// Golden tensors by name: shape and values.
#[derive(Debug)]
pub struct Golden(HashMap<String, (Vec<i32>, Values)>);

#[derive(Debug)]
enum Values {
    Float(Vec<f32>),
    Int(Vec<i32>),
    Byte(Vec<u8>),
}

impl Golden {
    /// Reads `tests/golden/{folder}/golden.safetensors`.
    pub fn load(folder: &str) -> Self {
        Self::read(&golden_dir(folder).join("golden.safetensors"))
    }

    /// Reads a file of golden tensors.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let convert = |(name, view): (String, safetensors::tensor::TensorView)| {
            let shape = view.shape().iter().map(|&d| d as i32).collect();
            let words = view
                .data()
                .chunks_exact(4)
                .map(|c| [c[0], c[1], c[2], c[3]]);
            let values = match view.dtype() {
                Dtype::F32 => Values::Float(words.map(f32::from_le_bytes).collect()),
                Dtype::I32 => Values::Int(words.map(i32::from_le_bytes).collect()),
                Dtype::U8 => Values::Byte(view.data().to_vec()),
                other => panic!("{name}: unexpected dtype {other:?}"),
            };
            (name, (shape, values))
        };
        Self(tensors.tensors().into_iter().map(convert).collect())
    }

    pub fn floats(&self, name: &str) -> &[f32] {
        match &self.0[name].1 {
            Values::Float(values) => values,
            other => panic!("{name} is {other:?}"),
        }
    }

    pub fn ints(&self, name: &str) -> &[i32] {
        match &self.0[name].1 {
            Values::Int(values) => values,
            other => panic!("{name} is {other:?}"),
        }
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        match &self.0[name].1 {
            Values::Byte(values) => values,
            other => panic!("{name} is {other:?}"),
        }
    }

    pub fn shape(&self, name: &str) -> &[i32] {
        &self.0[name].0
    }

    pub fn array(&self, name: &str) -> Array {
        Array::from_slice(self.floats(name), self.shape(name))
    }

    /// Fails when `ours` departs from the golden tensor by more than `tolerance`, in shape or in
    /// largest absolute difference over largest absolute value; returns that error.
    pub fn check(&self, label: &str, name: &str, ours: &Array, tolerance: f64) -> f64 {
        assert_eq!(ours.shape(), self.shape(name), "{label}: shape of {name}");
        let error = relative_error(&to_host(ours).unwrap(), self.floats(name));
        println!("measured {label} {name}: {error:.2e} (tolerance {tolerance:.0e})");
        assert!(
            error <= tolerance,
            "{label}: {name} is off by {error:.3e}, tolerance {tolerance:.0e}"
        );
        error
    }
}

/// Largest absolute difference over the reference's largest absolute value.
pub fn relative_error(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let largest = reference
        .iter()
        .fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let worst = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        // NaN must not hide behind max.
        .fold(0.0_f64, |m, d| if d.is_nan() { f64::NAN } else { m.max(d) });
    worst / largest
}

/// One case of golden data.
pub struct Case {
    pub name: &'static str,
    pub settings: Settings,
    pub golden: Golden,
    _mlx: MutexGuard<'static, ()>,
}

impl Case {
    /// The cases, differently shaped; see `scripts/golden/README.md`.
    pub const ALL: [&'static str; 4] = ["a", "b", "c", "d"];
    /// Those of a VAE alone, of another kind.
    pub const VAES: [&'static str; 5] = ["vae22", "vae22_odd", "vae_upscale", "taew", "taew22"];

    pub fn load(name: &'static str) -> Self {
        let mlx = mlx();
        Device::select(Some(DeviceKind::Cpu), None).unwrap();
        Self {
            name,
            settings: read_json(&golden_dir(name).join("case.json")),
            golden: Golden::load(name),
            _mlx: mlx,
        }
    }

    pub fn config<T: DeserializeOwned>(&self, part: &str) -> T {
        read_json(&golden_dir(self.name).join(part).join("config.json"))
    }

    /// The case's random weights for a part.
    pub fn source(&self, part: &'static str, precision: Precision) -> RandomSource {
        RandomSource {
            case: self.name,
            part,
            precision,
        }
    }

    /// A generated input.
    pub fn input(&self, name: &str, shape: &[i32], scale: f32) -> Array {
        let dims: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        Array::from_slice(&portable::input(self.name, name, &dims, scale), shape)
    }

    /// Token ids of `umt5/ids_{length}`.
    pub fn ids(&self, length: &str) -> Vec<u32> {
        let ids = self.golden.ints(&format!("umt5/ids_{length}"));
        ids.iter().map(|&id| id as u32).collect()
    }

    /// Latent frames, rows, columns.
    pub fn grid(&self) -> [i32; 3] {
        let Settings {
            frames,
            height,
            width,
            ..
        } = self.settings;
        let vae: VaeConfig = self.config("vae");
        vae.latent_grid([frames, height, width].map(|side| side as i32))
    }

    /// Writes the case's checkpoint into a new folder.
    pub fn checkpoint(&self) -> tempfile::TempDir {
        checkpoint::of_case(self.name)
    }
}

/// Random weights without a file.
pub struct RandomSource {
    case: &'static str,
    part: &'static str,
    precision: Precision,
}

impl TensorSource for RandomSource {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> anyhow::Result<Array> {
        let dims: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        let values = portable::weights(self.case, self.part, name, &dims);
        let array = Array::from_slice(&values, shape);
        Ok(match role {
            Role::Matmul => array.as_dtype(self.precision.matmul_dtype())?,
            Role::Exact | Role::Table | Role::Stored => array,
        })
    }
}

pub fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

pub fn golden_dir(case: &str) -> PathBuf {
    tests_dir().join("golden").join(case)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
