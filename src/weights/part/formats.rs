//! Quantized weights whose form a file names beside them, or shows by what it has beside them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{Part, Values};
use crate::runtime::{Mode, Packing};
use crate::util::show::Show;
use crate::weights::container::encoding::Encoding;
use crate::weights::store::{Entry, TensorStore};

/// Inputs that are rotated together unless a file says otherwise.
const ROTATED: usize = 256;
/// The key of a safetensors header in which ComfyUI keeps what else stands in `comfy_quant` tensors.
const METADATA: &str = "_quantization_metadata";

/// What a file says of how a weight is stored (Comfy-Org/ComfyUI, `comfy/ops.py` and
/// `comfy/quant_ops.py`).
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Named {
    format: Option<String>,
    #[serde(default)]
    convrot: bool,
    convrot_groupsize: Option<usize>,
    /// Where some writers put the last two.
    #[serde(default)]
    params: BTreeMap<String, Value>,
}

impl Named {
    /// How many inputs are rotated together, where they are.
    fn rotation(&self) -> Option<usize> {
        let inner = |key: &str| self.params.get(key);
        let is_rotated = self.convrot || inner("convrot").and_then(Value::as_bool) == Some(true);
        let size = inner("convrot_groupsize").and_then(Value::as_u64);
        let size = self.convrot_groupsize.or(size.map(|size| size as usize));
        is_rotated.then(|| size.unwrap_or(ROTATED))
    }
}

/// What the files say of their weights, by the names without `.weight`.
///
/// # Errors
/// When it is no JSON of this kind.
pub(super) fn named(store: &TensorStore) -> Result<BTreeMap<String, Named>> {
    #[derive(Deserialize)]
    struct Metadata {
        layers: BTreeMap<String, Named>,
    }
    const END: &str = ".comfy_quant";
    let location = store.location();
    let mut all = BTreeMap::new();
    for (name, entry) in store.entries() {
        let Some(module) = name.strip_suffix(END) else {
            continue;
        };
        let named = serde_json::from_slice(store.bytes(entry)).with_context(|| {
            format!(
                "{location}: {} does not say how a weight is stored",
                name.shown()
            )
        })?;
        all.insert(module.to_owned(), named);
    }
    if let Some(text) = store.metadata().get(METADATA) {
        let metadata: Metadata = serde_json::from_str(text)
            .with_context(|| format!("{location}: {METADATA} of its header is damaged"))?;
        for (module, named) in metadata.layers {
            // Some writers leave the prefix away.
            let module = match store.entries().contains_key(&format!("{module}.weight")) {
                true => module,
                false => format!("model.diffusion_model.{module}"),
            };
            all.insert(module, named);
        }
    }
    Ok(all)
}

impl Part {
    fn beside_weight(&self, stored: &str, end: &str) -> Option<&Entry> {
        let module = stored.strip_suffix(".weight")?;
        self.store.entries().get(&format!("{module}.{end}"))
    }

    /// One number that stands beside a weight.
    fn number(&self, stored: &str, end: &str) -> Result<Option<f32>> {
        let Some(entry) = self.beside_weight(stored, end) else {
            return Ok(None);
        };
        let mut number = [0.0];
        let is_one = entry.shape.iter().product::<usize>() == 1 && entry.encoding.is_float();
        ensure!(
            is_one,
            "{} has {end} of shape {:?}; expected one number",
            stored.shown(),
            entry.shape
        );
        entry
            .encoding
            .decode(self.store.bytes(entry), &mut number)?;
        ensure!(
            number[0].is_finite(),
            "{} has {end}, which is {}",
            stored.shown(),
            number[0]
        );
        Ok(Some(number[0]))
    }

    /// How many inputs of a weight of signed bytes are rotated together.
    ///
    /// # Errors
    /// When it is rotated in a way that is not known.
    pub(super) fn rotation(&self, stored: &str, entry: &Entry) -> Result<Option<usize>> {
        let Some(size) = self.format(stored).and_then(Named::rotation) else {
            return Ok(None);
        };
        let inputs = entry.shape.get(1).copied().unwrap_or(0);
        let is_known = size > 1 && size.is_power_of_two() && size.trailing_zeros() % 2 == 0;
        ensure!(
            entry.encoding == Encoding::I8 && is_known && inputs > 0 && inputs.is_multiple_of(size),
            "{} is rotated by {size} inputs as {}; expected int8 and a power of 4 that divides its {inputs} inputs",
            stored.shown(),
            entry.encoding.name()
        );
        Ok(Some(size))
    }

    fn format(&self, stored: &str) -> Option<&Named> {
        self.formats.get(stored.strip_suffix(".weight")?)
    }

    /// A weight `[outputs, inputs]` in blocks that MLX has a mode for: mxfp8, mxfp4 and nvfp4 as ComfyUI,
    /// LightX2V and ModelOpt write them. Nothing where it is stored in another way.
    ///
    /// # Errors
    /// When the file names a form that is not known, or has something else than that asks for.
    pub(super) fn blocks<'a>(
        &'a self,
        stored: &str,
        entry: &'a Entry,
        shape: &[usize],
    ) -> Result<Option<Values<'a>>> {
        let named = self.format(stored);
        let format = named.and_then(|named| named.format.as_deref());
        let is_plain = |format| {
            ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise"].contains(&format)
                || format == "float8_e4m3fn_rowwise"
        };
        let scales = ["weight_scale", "scale_weight"].map(|end| self.beside_weight(stored, end));
        if let Some(format) = format {
            ensure!(
                scales.iter().flatten().count() == 1,
                "{} is stored as {}, with {} scales beside it; expected one",
                stored.shown(),
                format.shown(),
                scales.iter().flatten().count()
            );
        }
        match format {
            None => {}
            Some("mxfp8" | "nvfp4") => {}
            Some(format) if is_plain(format) => return Ok(None),
            Some(format) => anyhow::bail!(
                "{} is stored as {}, which is not read",
                stored.shown(),
                format.shown()
            ),
        }
        let (Some(scales), &[outputs, inputs]) =
            (self.beside_weight(stored, "weight_scale"), shape)
        else {
            return Ok(None);
        };
        let of = |end: &str| self.beside_weight(stored, end).is_some();
        let is_float4 = entry.encoding == Encoding::U8 && entry.shape == [outputs, inputs / 2];
        let float8 = [Encoding::F8E4M3, Encoding::U8].contains(&entry.encoding);
        let is_float8 = float8 && entry.shape == [outputs, inputs];
        let e8m0 = scales.encoding == Encoding::U8;
        let (packing, high_first, swizzled) = match format {
            Some("nvfp4") => (Packing::NVFP4, true, true),
            Some(_) => (Packing::MXFP8, false, true),
            // ModelOpt's names, and then LightX2V's.
            None if is_float4 && of("weight_scale_2") => (Packing::NVFP4, false, false),
            None if is_float4 && scales.encoding == Encoding::F8E4M3 => {
                (Packing::NVFP4, false, true)
            }
            None if is_float4 && e8m0 => (Packing::MXFP4, false, true),
            None if is_float8 && e8m0 => (Packing::MXFP8, false, true),
            None => return Ok(None),
        };
        ensure!(
            !of("pre_quant_scale"),
            "{} multiplies its input by pre_quant_scale, which is not read",
            stored.shown()
        );
        let groups = inputs / packing.group_size as usize;
        let elements: usize = scales.shape.iter().product();
        let wanted = match swizzled {
            true => outputs.next_multiple_of(128) * groups.next_multiple_of(4),
            false => outputs * groups,
        };
        let one_byte = [Encoding::U8, Encoding::F8E4M3].contains(&scales.encoding);
        ensure!(
            (if packing.bits == 4 {
                is_float4
            } else {
                is_float8
            }) && one_byte
                && elements == wanted
                && inputs.is_multiple_of(packing.group_size as usize),
            "{} is {} {:?} with scales {} {:?}; expected {packing} of {shape:?}",
            stored.shown(),
            entry.encoding.name(),
            entry.shape,
            scales.encoding.name(),
            scales.shape
        );
        let factor = match packing.mode {
            Mode::Nvfp4 => self.factor(stored)?,
            _ => 1.0,
        };
        Ok(Some(Values::Blocks {
            codes: entry,
            scales,
            packing,
            high_first,
            swizzled,
            factor,
        }))
    }

    /// What nvfp4 of a weight is multiplied by.
    fn factor(&self, stored: &str) -> Result<f32> {
        let alpha = self.number(stored, "alpha")?;
        let input = self.number(stored, "input_global_scale")?;
        let second = self.number(stored, "weight_scale_2")?;
        let global = self.number(stored, "weight_global_scale")?;
        let factor = second
            .or(global.map(f32::recip))
            .or(alpha.zip(input).map(|(alpha, input)| alpha * input));
        let factor = factor.filter(|factor| factor.is_finite());
        factor.with_context(|| {
            format!(
                "{} is nvfp4 without a second scale that is a number; expected weight_scale_2, \
                 weight_global_scale, or alpha and input_global_scale",
                stored.shown()
            )
        })
    }
}

/// Where the scale of a row's group lies in blocks of 128 rows by 4 groups, of which each 32 rows follow
/// each other (NVIDIA cuBLAS, "1D Block Scaling Factors Layout").
pub(super) fn swizzled(row: usize, group: usize, groups: usize) -> usize {
    let block = row / 128 * groups.div_ceil(4) + group / 4;
    block * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4
}
