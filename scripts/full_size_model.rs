//! Writes a whole model of A14B's dimensions with random weights in the converted layout, experts
//! and text encoder of 4 bits: cargo run --release --example full-size-model -- FOLDER
//!
//! Random numbers are drawn once and repeated, with the spread that keeps activations bounded. With
//! `heads` after the folder the weights are bfloat16 and holes, for what reads no more than headers;
//! with `1536` experts and text encoder are narrow, of four layers, and float32, as in
//! `scripts/compare_peers`.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use half::bf16;
use serde_json::{Map, Value, json};
use wan_i2v::model::dit::DitConfig;
use wan_i2v::model::umt5::Umt5Config;
use wan_i2v::sampling::noise;
use wan_i2v::weights::PartName;
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::naming::{Arrangement, Naming, affine_names, stored};
use wan_i2v::weights::part::may_quantize;
use wan_i2v::weights::published;

fn file_stem(name: PartName) -> &'static str {
    match name {
        PartName::HighNoise => "high_noise_model",
        PartName::LowNoise => "low_noise_model",
        PartName::Vae => "vae",
        PartName::TextEncoder => "t5_encoder",
        PartName::Transformer => "model",
        PartName::ImageEncoder => "image_encoder",
    }
}

/// What a tensor is filled with.
enum Fill {
    /// Random 32-bit words.
    Words,
    /// One bfloat16.
    Constant(f32),
    /// Normal float32 values of this spread.
    Normal(f32),
    /// Normal bfloat16 values.
    Table,
    /// Ones, for norms.
    Ones,
}

struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    fill: Fill,
}

impl Tensor {
    fn bytes(&self) -> usize {
        let size = if self.dtype == "BF16" { 2 } else { 4 };
        self.shape.iter().product::<usize>() * size
    }
}

/// What is written.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Full,
    Heads,
    Narrow,
}

fn config_of(name: PartName, kind: Kind) -> PartConfig {
    match (published::part(name), kind) {
        (PartConfig::Expert(config), Kind::Narrow) => PartConfig::Expert(DitConfig {
            num_attention_heads: 12,
            text_dim: 1024,
            ffn_dim: 8960,
            num_layers: 4,
            ..config
        }),
        (PartConfig::TextEncoder(config), Kind::Narrow) => PartConfig::TextEncoder(Umt5Config {
            d_model: 1024,
            d_ff: 2560,
            num_layers: 4,
            num_heads: 16,
            ..config
        }),
        (config, _) => config,
    }
}

fn tensors(name: PartName, kind: Kind) -> Result<(Value, Vec<Tensor>)> {
    let config = config_of(name, kind);
    let mut all = Vec::new();
    for spec in config.specs()? {
        let shape: Vec<usize> = spec.shape.iter().map(|&d| d as usize).collect();
        let out = stored(name.kind(), Naming::MlxVideo, &spec.name, &shape)?;
        // The spread of a sum over the inputs stays that of one input.
        let inputs: usize = shape.iter().skip(1).product::<usize>().max(1);
        let spread = (inputs as f32).sqrt().recip();
        if kind == Kind::Full && may_quantize(name.kind(), &spec.name, &shape) {
            let (scales, biases) = affine_names(&out.name).context("no weight")?;
            let (rows, groups) = (shape[0], shape[1] / 64);
            // Uniform numbers from 0 to 15 spread by 4.61.
            let scale = spread / 4.61;
            let side = |name, value| Tensor {
                name,
                dtype: "BF16",
                shape: vec![rows, groups],
                fill: Fill::Constant(value),
            };
            all.push(Tensor {
                name: out.name,
                dtype: "U32",
                shape: vec![rows, shape[1] / 8],
                fill: Fill::Words,
            });
            all.push(side(scales, scale));
            all.push(side(biases, -7.5 * scale));
            continue;
        }
        let is_norm = spec.name.ends_with("gamma") || spec.name.contains("norm");
        let fill = match () {
            () if spec.name == "shared.weight" => Fill::Table,
            () if is_norm && spec.name.ends_with("weight") || spec.name.ends_with("gamma") => {
                Fill::Ones
            }
            () => Fill::Normal(spread),
        };
        debug_assert!(!matches!(out.arrangement, Arrangement::Permuted(_)) || shape.len() > 3);
        all.push(Tensor {
            name: out.name,
            dtype: if kind == Kind::Heads || matches!(fill, Fill::Table) {
                "BF16"
            } else {
                "F32"
            },
            shape: out.shape,
            fill,
        });
    }
    Ok((serde_json::to_value(config)?, all))
}

/// Repeats `pattern` up to `length` bytes.
fn repeat(out: &mut impl Write, pattern: &[u8], mut length: usize) -> Result<()> {
    while length > 0 {
        let piece = pattern.len().min(length);
        out.write_all(&pattern[..piece])?;
        length -= piece;
    }
    Ok(())
}

fn write(path: &Path, tensors: &[Tensor], normal: Option<&[f32]>) -> Result<()> {
    let mut header = Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    let Some(normal) = normal else {
        out.flush()?;
        let file = out.get_ref();
        file.set_len(file.metadata()?.len() + at as u64)?;
        return Ok(());
    };
    let words: Vec<u8> = normal
        .iter()
        .flat_map(|v| v.to_bits().wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    for tensor in tensors {
        let bf16s = |value: f32| bf16::from_f32(value).to_le_bytes();
        let pattern: Vec<u8> = match tensor.fill {
            Fill::Words => words.clone(),
            Fill::Constant(value) => bf16s(value).repeat(1 << 16),
            Fill::Normal(spread) => normal
                .iter()
                .flat_map(|v| (v * spread).to_le_bytes())
                .collect(),
            Fill::Table => normal.iter().flat_map(|&v| bf16s(v)).collect(),
            Fill::Ones => 1_f32.to_le_bytes().repeat(1 << 16),
        };
        repeat(&mut out, &pattern, tensor.bytes())?;
    }
    out.flush()?;
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .context("usage: full-size-model FOLDER [heads | 1536]")?;
    let kind = match arguments.next().as_deref() {
        None => Kind::Full,
        Some("heads") => Kind::Heads,
        Some("1536") => Kind::Narrow,
        Some(word) => bail!("{word}: expected heads or 1536"),
    };
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    // A length that no dimension divides, so that rows differ.
    let normal = noise::randn(7, 1_000_003);
    let mut own = Map::new();
    for name in PartName::WITH_EXPERTS {
        let (config, tensors) = tensors(name, kind)?;
        own.insert(name.key().to_owned(), config);
        let file = format!("{}.safetensors", file_stem(name));
        if name == PartName::LowNoise {
            // The same numbers do for both experts; what is loaded, swapped and timed is the same.
            fs::hard_link(
                folder.join("high_noise_model.safetensors"),
                folder.join(&file),
            )?;
        } else {
            let normal = (kind != Kind::Heads).then_some(normal.as_slice());
            write(&folder.join(&file), &tensors, normal)?;
        }
        let bytes: usize = tensors.iter().map(Tensor::bytes).sum();
        println!(
            "{file}: {} tensors, {:.2} GB",
            tensors.len(),
            bytes as f64 / 1e9
        );
    }
    let config = json!({ "boundary": 0.9, "wan_i2v": own });
    fs::write(folder.join("config.json"), config.to_string())?;
    let tokenizer =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer/tokenizer.json");
    fs::copy(tokenizer, folder.join("tokenizer.json"))?;
    Ok(())
}
