//! A part as the networks see it: tensors in the dtype that is computed in, weights quantized if
//! wanted.

use anyhow::Result;
use mlx_rs::Dtype;

use super::values::{PLAIN, array};
use super::{Part, Values, may_quantize, usizes};
use crate::model::layers::{Quantized, Weight};
use crate::model::{Role, TensorSource, TensorSpec};
use crate::runtime::Device;
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::{Arrangement, Kind};
use crate::weights::quantize::{Bits, GROUP_SIZE, Packed};
use mlx_rs::Array;

/// A part together with what decides how its tensors are held in memory.
#[derive(Debug)]
pub struct Loader<'a> {
    /// The part.
    pub part: &'a Part,
    /// Where it will be computed.
    pub device: Device,
    /// Bits that eligible weights are quantized to while they are loaded.
    pub bits: Option<Bits>,
}

impl Loader<'_> {
    /// What tensors take in memory, by header.
    ///
    /// # Errors
    /// When one is missing.
    pub fn held(&self, specs: &[TensorSpec]) -> Result<Held> {
        let kind = self.part.names.kind;
        let one = |spec: &TensorSpec| {
            let found = self.part.expect(&spec.name, &usizes(&spec.shape))?;
            Ok(Held::of(
                kind,
                spec,
                self.device,
                self.bits,
                Some(&found.values),
            ))
        };
        specs.iter().map(one).sum()
    }
}

/// What weights take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes.
    pub bytes: u64,
    /// Values of those that are kept quantized.
    pub quantized: u64,
}

impl std::iter::Sum for Held {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            bytes: sum.bytes + one.bytes,
            quantized: sum.quantized + one.quantized,
        })
    }
}

impl Held {
    /// What tensors of a part take that no file holds yet: as of the published ones, experts in float32
    /// and the text encoder in bfloat16.
    pub fn published(kind: Kind, specs: &[TensorSpec], device: Device, bits: Option<Bits>) -> Self {
        let one = |spec| Self::of(kind, spec, device, bits, None);
        specs.iter().map(one).sum()
    }

    fn of(
        kind: Kind,
        spec: &TensorSpec,
        device: Device,
        bits: Option<Bits>,
        stored: Option<&Values>,
    ) -> Self {
        let matmul = device.dtype.matmul_dtype_size() as u64;
        let shape = usizes(&spec.shape);
        let values: u64 = shape.iter().map(|&d| d as u64).product();
        let bits = bits.filter(|_| may_quantize(kind, &spec.name, &shape));
        let is_exact = |dtype: fn(&Values) -> Dtype, without: bool| {
            stored.map_or(without, |values| dtype(values) == Dtype::Float32)
        };
        let dense = match spec.role {
            Role::Matmul => matmul,
            Role::Exact => 4,
            Role::Table if is_exact(table_dtype, false) => 4,
            Role::Stored if is_exact(stored_dtype, true) => 4,
            Role::Table | Role::Stored => 2,
        };
        let packed = match (stored, bits) {
            (Some(Values::Affine { packed, scales, .. }), _) if spec.role == Role::Matmul => {
                let groups: u64 = scales.shape.iter().map(|&d| d as u64).product();
                Some(packed.byte_len() as u64 + 2 * matmul * groups)
            }
            (_, Some(bits)) if spec.role == Role::Matmul => {
                let groups = values / GROUP_SIZE as u64;
                Some(bits.packed_bytes(values as usize) as u64 + 2 * matmul * groups)
            }
            _ => None,
        };
        Self {
            bytes: packed.unwrap_or(dense * values),
            quantized: packed.map_or(0, |_| values),
        }
    }
}

impl TensorSource for Loader<'_> {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array> {
        let found = self.part.expect(name, &usizes(shape))?;
        let dtype = match role {
            Role::Matmul => self.device.dtype.matmul_dtype(),
            Role::Exact => Dtype::Float32,
            Role::Table => table_dtype(&found.values),
            Role::Stored => stored_dtype(&found.values),
        };
        let array = self.part.dense(&found, dtype, self.device)?;
        // Now, so that the stored copy goes before the next tensor comes.
        array.eval()?;
        self.part.release(&found);
        Ok(array)
    }

    fn weight(&mut self, name: &str, shape: [i32; 2], role: Role) -> Result<Weight> {
        let found = self.part.expect(name, &usizes(&shape))?;
        let dtype = self.device.dtype.matmul_dtype();
        if role != Role::Matmul {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        }
        if matches!(found.values, Values::Affine { .. }) && found.arrangement == Arrangement::AsIs {
            let quantized = self.part.affine(&found, self.device.dtype, self.device)?;
            self.part.release(&found);
            return Ok(Weight::Quantized(quantized));
        }
        let bits = self
            .bits
            .filter(|_| may_quantize(self.part.names.kind, name, &found.shape));
        let Some(bits) = bits else {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        };
        let mut all = Packed::default();
        self.part.quantize(&found, bits, &mut |packed| {
            all.extend(packed);
            Ok(())
        })?;
        self.part.release(&found);
        let (outputs, inputs) = (found.shape[0], found.shape[1]);
        let groups = [outputs, inputs / GROUP_SIZE];
        let side = |bytes: &[u8]| {
            let array = array(bytes, &groups, Dtype::Bfloat16)?.as_dtype(dtype)?;
            array.eval()?;
            anyhow::Ok(array)
        };
        let words = [outputs, bits.packed_bytes(inputs) / 4];
        Ok(Weight::Quantized(Quantized {
            packed: array(&all.words, &words, Dtype::Uint32)?,
            scales: side(&all.scales)?,
            biases: side(&all.biases)?,
            group_size: GROUP_SIZE as i32,
            bits: bits.number() as i32,
            device: self.device,
        }))
    }
}

/// The dtype that keeps the values as they are stored: 16 bits or float32.
fn stored_dtype(values: &Values) -> Dtype {
    match values {
        Values::Stored { entry, scale } if scale.is_none() => match entry.encoding {
            Encoding::F16 => Dtype::Float16,
            Encoding::Bf16 => Dtype::Bfloat16,
            _ => Dtype::Float32,
        },
        _ => Dtype::Float32,
    }
}

/// Whether values that keep their dtype are float32 then.
pub fn stored_as_float32(values: &Values) -> bool {
    stored_dtype(values) == Dtype::Float32
}

/// The dtype that a table keeps: its own, or the nearest that MLX has.
fn table_dtype(values: &Values) -> Dtype {
    let Values::Stored { entry, .. } = values else {
        return Dtype::Bfloat16;
    };
    let plain = PLAIN
        .iter()
        .find(|(encoding, _)| *encoding == entry.encoding);
    plain.map_or(Dtype::Bfloat16, |&(_, dtype)| dtype)
}
