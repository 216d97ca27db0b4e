//! What each layout makes of a tensor.

use half::bf16;
use mlx_rs::{Array, Dtype, ops};
use ndarray::{ArrayD, IxDyn};
use wan_i2v::weights::PartName;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::naming::Kind;

use super::layouts::{Content, Form, Patch, Stored, Tensor, decode, encode, names, stored};

/// The SentencePiece model that goes with the random text encoder.
pub const SPIECE: &[u8] = include_bytes!("../../data/spiece/umt5.model");

impl Form {
    /// The index of the naming in [`names`].
    fn column(self, kind: Kind) -> usize {
        match (self, kind) {
            (Form::Diffusers(_) | Form::Sharded(_), _) => 0,
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, _) => 2,
            (Form::Comfy(..) | Form::Scaled { .. }, Kind::TextEncoder) => 0,
            (Form::Gguf(..), Kind::TextEncoder) => 3,
            _ => 1,
        }
    }

    /// What stands before every name of a part.
    pub fn prefix(self, kind: Kind) -> &'static str {
        match (self, kind) {
            (Form::Comfy(_, prefix), Kind::Expert) => prefix,
            _ => "",
        }
    }

    /// What the layout calls a canonical tensor.
    pub fn name(self, part: PartName, canonical: &str) -> String {
        let name = &names(part.kind())[canonical][self.column(part.kind())];
        format!("{}{name}", self.prefix(part.kind()))
    }

    /// How a tensor is stored; changes its values to those that this stands for.
    pub fn store(self, part: PartName, tensor: &mut Tensor) -> Vec<(String, Stored)> {
        let kind = part.kind();
        let name = self.name(part, &tensor.name);
        match self {
            Form::Scaled { newer } if is_linear(tensor) => {
                return scaled(newer, kind, &name, tensor);
            }
            Form::MlxQuantized { bits, group }
                if kind == Kind::Expert
                    && tensor.name.starts_with("blocks.")
                    && is_linear(tensor) =>
            {
                let (kept, values) = mlx_quantize(tensor, bits, group);
                tensor.values = values;
                let [scales, biases] = ["scales", "biases"].map(|end| beside(&name, end));
                return [name, scales, biases].into_iter().zip(kept).collect();
            }
            Form::Gguf(Encoding::Nvfp4, _)
                if is_linear(tensor) && self.encoding(kind, tensor) == Encoding::Nvfp4 =>
            {
                return nvfp4(name, tensor);
            }
            _ => {}
        }
        let encoding = self.encoding(kind, tensor);
        let (shape, values) = self.arranged(kind, tensor);
        let kept = stored(encoding, &shape, &values);
        if values == tensor.values {
            tensor.values = decode(encoding, &kept.bytes);
        } else {
            assert!(
                decode(encoding, &kept.bytes) == values,
                "{name} loses in {encoding:?}"
            );
        }
        // A table stays in 16 bits in memory.
        if tensor.name == "shared.weight" && encoding.block_elements() > 1 {
            let values = tensor.values.iter_mut();
            values.for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        vec![(name, kept)]
    }

    fn encoding(self, kind: Kind, tensor: &Tensor) -> Encoding {
        match self {
            Form::MlxVideo(_) | Form::MlxQuantized { .. } | Form::Gguf(..) if kind == Kind::Vae => {
                Encoding::F32
            }
            Form::Diffusers(encoding)
            | Form::Sharded(encoding)
            | Form::Original(encoding)
            | Form::Comfy(encoding, _)
            | Form::MlxVideo(encoding) => encoding,
            Form::Scaled { .. } => Encoding::F16,
            Form::MlxQuantized { .. } => Encoding::Bf16,
            Form::Gguf(encoding, _) => {
                let whole = tensor.shape.last().is_some_and(|d| d.is_multiple_of(256));
                if tensor.shape.len() == 2 && whole {
                    encoding
                } else {
                    Encoding::F32
                }
            }
        }
    }

    fn arranged(self, kind: Kind, tensor: &Tensor) -> (Vec<usize>, Vec<f32>) {
        let shape = tensor.shape.as_slice();
        let as_is = |shape: Vec<usize>| (shape, tensor.values.clone());
        let is_patch = tensor.name == "patch_embedding.weight";
        match (self, kind, shape) {
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, Kind::Expert, [o, rest @ ..])
                if is_patch =>
            {
                as_is(vec![*o, rest.iter().product()])
            }
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, Kind::Vae, [_, _, _, _, _]) => {
                permuted(&tensor.values, shape, &[0, 2, 3, 4, 1])
            }
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, Kind::Vae, [_, _, _, _])
                if tensor.name.ends_with("weight") =>
            {
                permuted(&tensor.values, shape, &[0, 2, 3, 1])
            }
            (Form::Gguf(_, Patch::Folded), Kind::Expert, &[o, i, t, h, w]) => {
                as_is(vec![o * i, t, h, w])
            }
            (Form::Gguf(_, Patch::Dropped), Kind::Expert, &[o, i, _, h, w]) => {
                as_is(vec![o, i, h, w])
            }
            _ => as_is(shape.to_vec()),
        }
    }

    /// Tensors that the layout has besides the architecture's.
    pub fn companions(self, part: PartName) -> Content {
        let mut content = Content::new();
        let comfy = matches!(self, Form::Comfy(..) | Form::Scaled { .. });
        if comfy && part == PartName::TextEncoder {
            let model = Stored {
                encoding: Encoding::U8,
                shape: vec![SPIECE.len()],
                bytes: SPIECE.to_vec(),
            };
            content.insert("spiece_model".into(), model);
        }
        if self == (Form::Scaled { newer: false }) && part != PartName::Vae {
            // The number of elements is a flag.
            let elements = if part == PartName::TextEncoder { 0 } else { 2 };
            let marker = Stored {
                encoding: Encoding::F8E4M3,
                shape: vec![elements],
                bytes: vec![0; elements],
            };
            content.insert("scaled_fp8".into(), marker);
        }
        if matches!(self, Form::MlxQuantized { .. }) && part.kind() == Kind::Expert {
            let table = stored(Encoding::F32, &[1024, 64, 2], &vec![0.5; 1024 * 64 * 2]);
            content.insert("freqs".into(), table);
        }
        content
    }
}

/// Whether it is the weight of a linear layer.
pub fn is_linear(tensor: &Tensor) -> bool {
    tensor.shape.len() == 2
        && tensor.name.ends_with(".weight")
        && tensor.name != "shared.weight"
        && !tensor.name.contains("relative_attention_bias")
}

/// The name with another last word.
fn beside(name: &str, end: &str) -> String {
    format!("{}.{end}", name.rsplit_once('.').unwrap().0)
}

/// A weight as float8 with one scale, which takes its largest value to the largest of float8.
fn scaled(newer: bool, kind: Kind, name: &str, tensor: &mut Tensor) -> Vec<(String, Stored)> {
    let largest = tensor.values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let scale = largest / 448.0;
    let small: Vec<f32> = tensor.values.iter().map(|value| value / scale).collect();
    let bytes = encode(Encoding::F8E4M3, &small);
    let values = decode(Encoding::F8E4M3, &bytes);
    tensor.values = values.into_iter().map(|value| value * scale).collect();
    let weight = Stored {
        encoding: Encoding::F8E4M3,
        shape: tensor.shape.clone(),
        bytes,
    };
    let number = |value: f32| stored(Encoding::F32, &[], &[value]);
    let mut kept = vec![(name.to_owned(), weight)];
    if newer {
        let format = br#"{"format": "float8_e4m3fn"}"#;
        let format = Stored {
            encoding: Encoding::U8,
            shape: vec![format.len()],
            bytes: format.to_vec(),
        };
        kept.push((beside(name, "weight_scale"), number(scale)));
        kept.push((beside(name, "comfy_quant"), format));
    } else {
        kept.push((beside(name, "scale_weight"), number(scale)));
        if kind == Kind::Expert {
            kept.push((beside(name, "scale_input"), number(1.5)));
        }
    }
    kept
}

/// A weight as GGUF's nvfp4, with the scale that takes its largest value to the largest of nvfp4 beside it.
fn nvfp4(name: String, tensor: &mut Tensor) -> Vec<(String, Stored)> {
    let largest = tensor.values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let scale = largest / (6.0 * 448.0);
    let small: Vec<f32> = tensor.values.iter().map(|value| value / scale).collect();
    let weight = stored(Encoding::Nvfp4, &tensor.shape, &small);
    let values = decode(Encoding::Nvfp4, &weight.bytes).into_iter();
    tensor.values = values.map(|value| value * scale).collect();
    let second = (
        beside(&name, "scale"),
        stored(Encoding::F32, &[1], &[scale]),
    );
    vec![(name, weight), second]
}

/// Values with the axes in another order.
fn permuted(values: &[f32], shape: &[usize], axes: &[usize]) -> (Vec<usize>, Vec<f32>) {
    let array = ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).unwrap();
    let array = array.permuted_axes(IxDyn(axes));
    (array.shape().to_vec(), array.iter().copied().collect())
}

/// MLX's own quantization: words, scales and biases, and the values that they stand for.
pub fn mlx_quantize(tensor: &Tensor, bits: i32, group: i32) -> ([Stored; 3], Vec<f32>) {
    let shape: Vec<i32> = tensor.shape.iter().map(|&d| d as i32).collect();
    let dense = Array::from_slice(&tensor.values, &shape);
    let dense = dense.as_dtype(Dtype::Bfloat16).unwrap();
    let (words, scales, biases) = ops::quantize(&dense, group, bits).unwrap();
    let float = |array: &Array| array.as_dtype(Dtype::Float32).unwrap();
    let (scales, biases) = (float(&scales), float(&biases));
    let values = ops::dequantize(&words, &scales, Some(&biases), group, bits).unwrap();
    let sizes =
        |array: &Array| -> Vec<usize> { array.shape().iter().map(|&d| d as usize).collect() };
    let side = |array: &Array| {
        array.eval().unwrap();
        stored(Encoding::Bf16, &sizes(array), array.as_slice::<f32>())
    };
    words.eval().unwrap();
    values.eval().unwrap();
    let packed = Stored {
        encoding: Encoding::U32,
        shape: sizes(&words),
        bytes: words
            .as_slice::<u32>()
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect(),
    };
    (
        [packed, side(&scales), side(&biases)],
        values.as_slice::<f32>().to_vec(),
    )
}
