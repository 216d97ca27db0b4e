//! A part as the networks see it: tensors in the dtype that is computed in, weights quantized if
//! wanted.

use anyhow::Result;
use mlx_rs::ops::quantize;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};

use super::values::{PLAIN, array, quantize_parallel};
use super::{Found, Part, Values, may_quantize, usizes};
use crate::model::layers::{Quantized, Term, Weight};
use crate::model::{Role, TensorSource, TensorSpec};
use crate::runtime::{Device, Mode, Packing, to_host};
use crate::weights::adapter::Adapter;
use crate::weights::container::encoding::Encoding;
use crate::weights::naming::{Arrangement, Kind};
use crate::weights::quantize::{Packed, Scheme, Search};

/// A part together with what decides how its tensors are held in memory.
#[derive(Debug)]
pub struct Loader<'a> {
    /// The part.
    pub part: &'a Part,
    /// Where it will be computed.
    pub device: Device,
    /// How eligible weights are quantized while they are loaded.
    pub bits: Option<Scheme>,
    /// What changes its tensors, in this order.
    pub adapters: &'a [Adapter],
    /// Whether quantized weights take the changes in, and are quantized again.
    pub merges: bool,
}

/// How a weight is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Dense,
    /// Quantized while it is loaded.
    Packed(Scheme),
    /// In a packing of what is stored.
    Kept {
        packing: Packing,
        /// Whether the adapters' changes are in it, quantized again.
        merged: bool,
    },
}

impl Loader<'_> {
    /// What tensors take in memory, by header.
    ///
    /// # Errors
    /// When one is missing.
    pub fn held(&self, specs: &[TensorSpec]) -> Result<Held> {
        let one = |spec: &TensorSpec| {
            let shape = usizes(&spec.shape);
            let found = self.part.expect(&spec.name, &shape)?;
            let changed = self.changes(&spec.name);
            let form = match spec.role {
                Role::Matmul if shape.len() == 2 => self.form(&spec.name, &found),
                _ => Form::Dense,
            };
            let held = Held::of(spec, self.device, form, Some(&found.values), changed);
            let beside = match self.is_beside(&spec.name, form) {
                true => self
                    .adapters
                    .iter()
                    .map(|adapter| adapter.values_beside(&spec.name, &shape))
                    .sum(),
                false => 0,
            };
            Ok(held.with_beside(&spec.name, beside, self.device))
        };
        specs.iter().map(one).sum()
    }

    fn changes(&self, name: &str) -> bool {
        self.adapters.iter().any(|adapter| adapter.changes(name))
    }

    /// How a weight of a linear layer is held, by header.
    fn form(&self, name: &str, found: &Found) -> Form {
        let kept = match found.arrangement {
            Arrangement::AsIs => found.values.kept(found.shape[1]),
            _ => None,
        };
        let narrow = self.adapters.iter().all(|adapter| adapter.is_beside(name));
        let changed = self.changes(name);
        let fewer = self.bits.filter(|scheme| {
            let is_fewer = kept.is_none_or(|kept| scheme.bits.number() < kept.bits);
            // What MLX packed stays as it is: other bits are refused when the model is opened.
            let may = !matches!(found.values, Values::Packed { .. });
            is_fewer && may && may_quantize(self.part.names.kind, name, &found.shape)
        });
        match (fewer, kept) {
            (Some(bits), _) => Form::Packed(bits),
            // What can be neither added beside it nor taken in without rounding makes it dense.
            (None, Some(_)) if changed && !narrow && !self.merges => Form::Dense,
            (None, Some(kept)) if changed && self.merges => Form::Kept {
                packing: merged_packing(kept.packing),
                merged: true,
            },
            (None, Some(kept)) => Form::Kept {
                packing: kept.packing,
                merged: false,
            },
            (None, None) => Form::Dense,
        }
    }

    /// How the weight of a linear layer is packed in memory, by header; nothing where it is dense.
    pub fn packing(&self, name: &str, found: &Found) -> Option<Packing> {
        match self.form(name, found) {
            Form::Dense => None,
            Form::Packed(scheme) => Some(scheme.packing()),
            Form::Kept { packing, .. } => Some(packing),
        }
    }

    /// Whether the changes of a weight that is held like this are computed beside it.
    fn is_beside(&self, name: &str, form: Form) -> bool {
        let narrow = self.adapters.iter().all(|adapter| adapter.is_beside(name));
        self.changes(name)
            && narrow
            && !self.merges
            && matches!(form, Form::Packed(_) | Form::Kept { merged: false, .. })
    }

    fn changed(&self, name: &str, found: &Found) -> Result<Array> {
        (self.part).with_changes(name, found, self.adapters, self.device)
    }

    /// What the adapters add to the products with a weight.
    fn terms(&self, name: &str) -> Result<Vec<Term>> {
        let dtype = self.device.dtype.matmul_dtype();
        let mut all = Vec::new();
        for adapter in self.adapters {
            all.extend(adapter.terms(name, dtype)?);
        }
        Ok(all)
    }

    /// A weight that is quantized while it is loaded.
    fn packed(&self, found: &Found, scheme: Scheme, merged: Option<Array>) -> Result<Quantized> {
        let mut all = Packed::default();
        match merged {
            Some(array) => all = quantize_parallel(&to_host(&array)?, scheme, Search::MinMax)?,
            None => self
                .part
                .quantize(found, scheme, Search::MinMax, &mut |packed| {
                    all.extend(packed);
                    Ok(())
                })?,
        }
        let (outputs, inputs) = (found.shape[0], found.shape[1]);
        let Scheme { bits, group_size } = scheme;
        let groups = [outputs, inputs / group_size];
        let dtype = self.device.dtype.matmul_dtype();
        let side = |bytes: &[u8]| {
            let array = array(bytes, &groups, Dtype::Bfloat16)?.as_dtype(dtype)?;
            array.eval()?;
            anyhow::Ok(array)
        };
        let words = [outputs, bits.packed_bytes(inputs) / 4];
        Ok(Quantized {
            packed: array(&all.words, &words, Dtype::Uint32)?,
            scales: side(&all.scales)?,
            biases: Some(side(&all.biases)?),
            packing: scheme.packing(),
            factor: None,
            rotation: None,
            device: self.device,
        })
    }

    /// A weight that is stored quantized, with its changes and quantized again.
    fn requantized(&self, name: &str, found: &Found, packing: Packing) -> Result<Quantized> {
        let changed = self.changed(name, found)?;
        let (packed, scales, biases) = quantize(&changed, packing.group_size, packing.bits)?;
        let dtype = self.device.dtype.matmul_dtype();
        let (scales, biases) = (scales.as_dtype(dtype)?, biases.as_dtype(dtype)?);
        eval([&packed, &scales, &biases])?;
        Ok(Quantized {
            packed,
            scales,
            biases: Some(biases),
            packing,
            factor: None,
            rotation: None,
            device: self.device,
        })
    }
}

/// What a packed weight becomes with changes in it: small floats lose more than even steps.
fn merged_packing(packing: Packing) -> Packing {
    match packing.mode {
        Mode::Affine => packing,
        Mode::Mxfp8 | Mode::Mxfp4 | Mode::Nvfp4 => Packing::affine(packing.bits, 32),
    }
}

/// What weights take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes.
    pub bytes: u64,
    /// Values of those that are kept quantized.
    pub quantized: u64,
    /// Values of what adapters add beside quantized weights: to products of the tokens, of the text, and of
    /// pictures' features.
    pub beside: [u64; 3],
}

impl std::iter::Sum for Held {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            bytes: sum.bytes + one.bytes,
            quantized: sum.quantized + one.quantized,
            beside: [0, 1, 2].map(|i| sum.beside[i] + one.beside[i]),
        })
    }
}

impl Held {
    /// What tensors of a part take that no file holds yet: as of the published ones, experts in float32
    /// and the text encoder in bfloat16.
    pub fn published(
        kind: Kind,
        specs: &[TensorSpec],
        device: Device,
        bits: Option<Scheme>,
    ) -> Self {
        let one = |spec: &TensorSpec| {
            let shape = usizes(&spec.shape);
            let bits = bits.filter(|_| may_quantize(kind, &spec.name, &shape));
            let form = bits.map_or(Form::Dense, Form::Packed);
            Self::of(spec, device, form, None, false)
        };
        specs.iter().map(one).sum()
    }

    fn of(
        spec: &TensorSpec,
        device: Device,
        form: Form,
        stored: Option<&Values>,
        changed: bool,
    ) -> Self {
        let matmul = device.dtype.matmul_dtype_size() as u64;
        let values: u64 = spec.shape.iter().map(|&d| d as u64).product();
        let is_exact = |dtype: fn(&Values) -> Dtype, without: bool| {
            stored.map_or(without, |values| dtype(values) == Dtype::Float32)
        };
        let dense = match spec.role {
            Role::Matmul => matmul,
            Role::Exact => 4,
            Role::Table if is_exact(table_dtype, false) => 4,
            Role::Stored if changed || is_exact(stored_dtype, true) => 4,
            Role::Table | Role::Stored => 2,
        };
        let packing = match form {
            Form::Dense => None,
            Form::Packed(scheme) => Some(scheme.packing()),
            Form::Kept { packing, .. } => Some(packing),
        };
        let packed = packing
            .filter(|_| spec.role == Role::Matmul)
            .map(|packing| packing.bytes(values, matmul));
        Self {
            bytes: packed.unwrap_or(dense * values),
            quantized: packed.map_or(0, |_| values),
            beside: [0; 3],
        }
    }

    /// The same with so many `values` of what adapters add beside the weight `name`.
    fn with_beside(mut self, name: &str, values: u64, device: Device) -> Self {
        self.bytes += values * device.dtype.matmul_dtype_size() as u64;
        let has = |module: &str| name.contains(&format!(".attn2.{module}."));
        let of = match () {
            () if has("to_k") || has("to_v") => 1,
            () if has("add_k_proj") || has("add_v_proj") => 2,
            () => 0,
        };
        self.beside[of] += values;
        self
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
        let array = match self.changes(name) {
            true => self.changed(name, &found)?.as_dtype(match role {
                Role::Stored => Dtype::Float32,
                _ => dtype,
            })?,
            false => self.part.dense(&found, dtype, self.device)?,
        };
        // Now, so that the stored copy goes before the next tensor comes.
        array.eval()?;
        self.part.release(&found);
        Ok(array)
    }

    fn weight(&mut self, name: &str, shape: [i32; 2], role: Role) -> Result<Weight> {
        if role != Role::Matmul {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        }
        let found = self.part.expect(name, &usizes(&shape))?;
        let form = self.form(name, &found);
        let terms = match self.is_beside(name, form) {
            true => self.terms(name)?,
            false => Vec::new(),
        };
        let quantized = match form {
            Form::Dense => return self.tensor(name, &shape, role).map(Weight::Dense),
            Form::Kept {
                packing,
                merged: true,
            } => self.requantized(name, &found, packing)?,
            Form::Kept { merged: false, .. } => self.part.kept(&found, self.device)?,
            Form::Packed(bits) => {
                let merged = (self.changes(name) && terms.is_empty())
                    .then(|| self.changed(name, &found))
                    .transpose()?;
                self.packed(&found, bits, merged)?
            }
        };
        self.part.release(&found);
        Ok(Weight::Quantized(quantized, terms))
    }
}

/// The dtype that keeps the values as they are stored: 16 bits or float32.
fn stored_dtype(values: &Values) -> Dtype {
    match values {
        Values::Stored { entry, scale, .. } if scale.is_none() => match entry.encoding {
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
