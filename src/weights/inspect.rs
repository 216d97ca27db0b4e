//! What a model on disk is, from its headers alone.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::config::{CONFIG, OWN_KEY, PartConfig};
use super::layout::{Layout, TokenizerAt};
use super::naming::{Kind, Naming, Role, companion};
use super::part::{Part, usizes};
use super::store::{Container, Location};
use super::{Extras, Family, PartName, published};
use crate::model::{self, vae};
use crate::util::show::chain;

/// What is known of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its name, when its parts say which of the Wan family it is.
    pub model: Option<&'static str>,
    /// The layout, or the layouts of the parts when they differ.
    pub layout: String,
    /// Every part that was found.
    pub parts: Vec<PartReport>,
    /// Parts that a whole model has and this one lacks.
    pub absent: Vec<PartName>,
    /// Where the tokenizer is.
    pub tokenizer: Option<String>,
    /// The share of the noise schedule where the high-noise expert ends, where there are two.
    pub boundary: Option<f64>,
    /// Parameters of all parts.
    pub parameters: u64,
    /// Bytes of all parts' tensors.
    pub bytes: u64,
    /// Whether this program can make clips with it.
    pub runs: bool,
    /// Why not.
    pub problems: Vec<String>,
}

/// What is known of a part.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Which part.
    pub part: PartName,
    /// Its file, or the folder of its files.
    pub path: String,
    /// The number of its files.
    pub files: usize,
    /// Whose names its tensors have, and in which container.
    pub layout: String,
    /// Tensors of the architecture that were found.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Parameters by the way they are stored, such as `bf16` or `4-bit`.
    pub stored_as: BTreeMap<String, u64>,
    /// Parameters of weights that stay packed in memory, by the packing.
    pub kept_as: BTreeMap<String, u64>,
    /// The dimensions, with their canonical names.
    pub config: Option<Value>,
    /// Missing tensors, with their shapes.
    pub missing: Vec<String>,
    /// Tensors of another shape or type.
    pub wrong: Vec<String>,
    /// Tensors that do not belong there.
    pub extra: Vec<String>,
    /// Why the part cannot be read at all.
    pub error: Option<String>,
}

impl PartReport {
    /// How most of it is stored: `bf16`, `4-bit`, or several.
    pub fn storage(&self) -> String {
        let mut types: Vec<(&String, &u64)> = self.stored_as.iter().collect();
        types.sort_by(|a, b| b.1.cmp(a.1));
        let shares = types.iter().map(|(name, count)| {
            let share = **count as f64 / self.parameters.max(1) as f64;
            (share, name.as_str())
        });
        // What makes up less than one in a hundred is norms and the like.
        let main: Vec<&str> = shares
            .filter(|(share, _)| *share >= 0.01)
            .map(|(_, name)| name)
            .collect();
        main.join(", ")
    }

    /// The dimensions that matter, in a few words.
    pub fn dimensions(&self) -> String {
        let Some(config) = &self.config else {
            return String::new();
        };
        let number = |key: &str| config.get(key).and_then(Value::as_i64).unwrap_or(0);
        match self.part {
            PartName::HighNoise | PartName::LowNoise | PartName::Transformer => format!(
                "{} blocks of {} ({} heads), feed-forward {}, {} input channels",
                number("num_layers"),
                number("num_attention_heads") * number("attention_head_dim"),
                number("num_attention_heads"),
                number("ffn_dim"),
                number("in_channels")
            ),
            PartName::Vae if config.get("tiny") == Some(&Value::Bool(true)) => format!(
                "{}, {} latent channels",
                vae::small(number("z_dim") as i32),
                number("z_dim")
            ),
            PartName::Vae => format!(
                "{} base channels, {} latent channels",
                number("base_dim"),
                number("z_dim")
            ),
            PartName::TextEncoder => format!(
                "{} layers of {}, vocabulary of {}",
                number("num_layers"),
                number("d_model"),
                number("vocab_size")
            ),
            PartName::ImageEncoder => format!(
                "{} layers of {}, pictures of {} x {}",
                number("num_hidden_layers"),
                number("hidden_size"),
                number("image_size"),
                number("image_size")
            ),
        }
    }
}

impl Report {
    /// As [`Self::of`], and looks whether the weights have come, which headers do not tell.
    pub fn of_whole(layout: &Layout) -> Self {
        let mut report = Self::of(layout);
        for part in &mut report.parts {
            let Some(location) = layout.part(part.part).filter(|_| part.error.is_none()) else {
                continue;
            };
            let check = || {
                let opened = Part::open(location, part.part.kind())?;
                opened.check_filled(&PartConfig::of(&opened, part.part)?.specs()?)
            };
            if let Err(error) = check() {
                report.problems.push(chain(&error));
                report.runs = false;
            }
        }
        report
    }

    /// Reads the headers of everything in `layout`.
    pub fn of(layout: &Layout) -> Self {
        let mut problems = Vec::new();
        let mut parts = Vec::new();
        let mut absent = Vec::new();
        for &name in layout.part_names() {
            let Some(location) = layout.part(name) else {
                absent.push(name);
                continue;
            };
            let part = part_report(name, location);
            if let Some(error) = &part.error {
                problems.push(format!("{name}: {error}"));
            }
            for (list, what) in [
                (&part.missing, "missing"),
                (&part.wrong, "wrong"),
                (&part.extra, "unexpected"),
            ] {
                if let [first, rest @ ..] = list.as_slice() {
                    problems.push(match rest.len() {
                        0 => format!("{name}: {what}: {first}"),
                        more => format!("{name}: {what}: {first} and {more} more"),
                    });
                }
            }
            parts.push(part);
        }
        for name in &absent {
            problems.push(format!("no {name}"));
        }
        if !absent.is_empty() {
            let passed_over = layout.passed_over.iter();
            problems.extend(passed_over.map(|file| format!("passed over {file}")));
        }
        let tokenizer = layout.tokenizer.as_ref().map(|at| match at {
            TokenizerAt::File(files, file) => files.name(file),
            TokenizerAt::InTextEncoder => "in the text encoder's file".to_owned(),
        });
        if tokenizer.is_none() && !absent.contains(&PartName::TextEncoder) {
            problems.push("no tokenizer".into());
        }
        let boundary = match Extras::boundary_of(layout) {
            Ok(boundary) => boundary,
            Err(error) => {
                problems.push(chain(&error));
                None
            }
        };
        let mut layouts: Vec<&str> = parts.iter().map(|part| part.layout.as_str()).collect();
        layouts.dedup();
        Self {
            model: model_of(layout).map(|family| family.name),
            layout: layouts.join(", "),
            parameters: parts.iter().map(|part| part.parameters).sum(),
            bytes: parts.iter().map(|part| part.bytes).sum(),
            absent,
            tokenizer,
            boundary,
            runs: problems.is_empty(),
            problems,
            parts,
        }
    }
}

/// The model of a layout's transformers and VAE; that of Wan2.1 where there is no VAE.
fn model_of(layout: &Layout) -> Option<&'static Family> {
    let of = |name: PartName| {
        let location = layout.part(name)?;
        let part = Part::open(location, name.kind()).ok()?;
        PartConfig::of(&part, name).ok()
    };
    let (name, config) = PartName::ALL.into_iter().find_map(|name| match of(name)? {
        PartConfig::Expert(config) => Some((name, config)),
        _ => None,
    })?;
    let vae = match of(PartName::Vae) {
        Some(PartConfig::Vae(vae)) => vae,
        // TI2V-5B is told by its 48 channels.
        _ if config.out_channels == 48 => published::wan22_vae(),
        _ => published::vae(),
    };
    let place = layout.part(name)?.to_string();
    Family::of(&config, &vae, name != PartName::Transformer, &place).ok()
}

fn part_report(name: PartName, location: &Location) -> PartReport {
    let mut report = PartReport {
        part: name,
        path: location.to_string(),
        files: location.names.len(),
        layout: String::new(),
        tensors: 0,
        parameters: 0,
        bytes: 0,
        stored_as: BTreeMap::new(),
        kept_as: BTreeMap::new(),
        config: None,
        missing: Vec::new(),
        wrong: Vec::new(),
        extra: Vec::new(),
        error: None,
    };
    let read = |report: &mut PartReport| -> anyhow::Result<()> {
        let part = Part::open(location, name.kind())?;
        report.layout = layout_name(&part).to_owned();
        let config = PartConfig::of(&part, name)?;
        report.config = Some(serde_json::to_value(&config)?);
        let specs = config.specs()?;
        for spec in &specs {
            let Ok(found) = part.find(&spec.name, &usizes(&spec.shape)) else {
                continue;
            };
            let parameters = found.shape.iter().map(|&d| d as u64).product::<u64>();
            report.tensors += 1;
            report.parameters += parameters;
            report.bytes += found.values.byte_len() as u64;
            *report.stored_as.entry(found.values.label()).or_default() += parameters;
            let kept = match (spec.role, &*found.shape) {
                (model::Role::Matmul, [_, inputs]) => found.values.kept(*inputs),
                _ => None,
            };
            if let Some(kept) = kept {
                *report.kept_as.entry(kept.packing.to_string()).or_default() += parameters;
            }
        }
        let problems = part.problems(&specs);
        report.missing = problems.missing;
        report.wrong = problems.wrong;
        report.extra = problems.extra;
        Ok(())
    };
    if let Err(error) = read(&mut report) {
        report.error = Some(chain(&error));
    }
    report
}

/// Who wrote a part, by its tensors' names and what lies beside them.
fn layout_name(part: &Part) -> &'static str {
    let (names, store) = (part.names(), part.store());
    let files = &store.location().files;
    let beside: Option<Value> = files.has(CONFIG).then(|| files.json(CONFIG).ok()).flatten();
    let own = beside
        .as_ref()
        .is_some_and(|json| json.get(OWN_KEY).is_some());
    let comfy = store.entries().keys().any(|name| {
        let role = companion(names, name).map(|companion| companion.role);
        matches!(
            role,
            Some(Role::Fp8Marker | Role::WeightScale | Role::QuantFormat | Role::Tokenizer)
        )
    });
    match (names.naming, store.container()) {
        (_, Container::Gguf) => "GGUF",
        (Naming::MlxVideo | Naming::Taehv, _) if own => "wan-i2v",
        (Naming::Taehv, _) => "taehv",
        (Naming::Diffusers, _) if own && names.kind == Kind::ImageEncoder => "wan-i2v",
        (Naming::Diffusers, _) if names.kind == Kind::ImageEncoder => "transformers",
        (Naming::Original, _) if names.kind == Kind::ImageEncoder => "original",
        (Naming::MlxVideo, _) => "mlx-video",
        (Naming::MlxGen, _) => "mlx-gen",
        _ if comfy || !names.prefix.is_empty() => "ComfyUI",
        (Naming::Diffusers, _) if names.kind == Kind::TextEncoder => "transformers",
        (Naming::Diffusers, _) => "diffusers",
        _ => "original",
    }
}
