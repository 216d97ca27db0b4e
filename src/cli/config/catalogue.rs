//! Models by short names, and where their files are: `models.toml`, and what the user's config file adds.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::file::json;
use crate::hub::{RepoId, check_path};
use crate::util::suggest::did_you_mean;
use crate::weights::{Expert, Family, PartName};

const OWN: &str = include_str!("models.toml");

/// A file of the hub.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// Its repository.
    pub(crate) repo: String,
    /// Its path there.
    pub(crate) path: String,
    /// Its size in GB.
    pub(crate) gb: f64,
}

/// A published form of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    /// Bits per weight of the transformers.
    pub(crate) bits: u32,
    /// What it is called.
    pub(crate) form: String,
    /// Where it is.
    pub(crate) place: Place,
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// A whole repository, of so many GB.
    Repository(String, f64),
    /// A file, or a folder, for each part, and adapters.
    Files {
        parts: BTreeMap<PartName, File>,
        /// Unless the text encoder's file holds it.
        tokenizer: Option<File>,
        adapters: Vec<(Option<Expert>, File)>,
    },
}

impl Source {
    /// Bytes to fetch.
    pub(crate) fn bytes(&self) -> u64 {
        let gb = match &self.place {
            Place::Repository(_, gb) => *gb,
            Place::Files { .. } => self.files().map(|file| file.gb).sum(),
        };
        (gb * 1e9) as u64
    }

    /// The repositories that it comes from.
    pub(crate) fn repositories(&self) -> impl Iterator<Item = &str> {
        let whole = match &self.place {
            Place::Repository(repo, _) => Some(repo.as_str()),
            Place::Files { .. } => None,
        };
        let files = self.files().map(|file| file.repo.as_str());
        whole.into_iter().chain(files)
    }

    /// Its files, where they are named.
    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        let (parts, tokenizer, adapters) = match &self.place {
            Place::Repository(..) => (None, None, None),
            Place::Files {
                parts,
                tokenizer,
                adapters,
            } => (Some(parts), tokenizer.as_ref(), Some(adapters)),
        };
        let parts = parts.into_iter().flat_map(BTreeMap::values);
        let adapters = adapters.into_iter().flatten().map(|(_, file)| file);
        parts.chain(tokenizer).chain(adapters)
    }
}

/// A model of the catalogue.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What it is for.
    pub(crate) about: String,
    /// Which of the family it is.
    pub(crate) family: &'static Family,
    pub(crate) licence: String,
    /// Its forms, those of more bits first; there is one.
    pub(crate) sources: Vec<Source>,
}

/// All models, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue(pub(crate) BTreeMap<String, Entry>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawEntry {
    about: String,
    family: String,
    #[serde(default)]
    licence: String,
    sources: Vec<RawSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSource {
    bits: u32,
    #[serde(default)]
    form: String,
    repo: Option<String>,
    gb: Option<f64>,
    // Each a name under `[files]`, or a file.
    high: Option<Value>,
    low: Option<Value>,
    transformer: Option<Value>,
    vae: Option<Value>,
    text_encoder: Option<Value>,
    image_encoder: Option<Value>,
    tokenizer: Option<Value>,
    lora: Option<Value>,
    lora_high: Option<Value>,
    lora_low: Option<Value>,
}

impl Catalogue {
    /// The program's and, in front of them, those of a config file.
    ///
    /// # Errors
    /// Names the model and what is wrong with it.
    pub(crate) fn new(users: Map<String, Value>, place: &str) -> Result<Self> {
        let mut own: toml::Table = OWN.parse().context("the program's models")?;
        let mut table = |name: &str| own.remove(name).map(json);
        let files = table("files").unwrap_or_default();
        let files: BTreeMap<String, File> =
            serde_json::from_value(files).context("the program's files")?;
        let Some(Value::Object(models)) = table("models") else {
            bail!("the program's models are no table");
        };
        let mut all = BTreeMap::new();
        for (whose, models) in [("the program", models), (place, users)] {
            for (name, entry) in models {
                ensure!(
                    is_name(&name),
                    "{whose}: models.{name:?} cannot be: expected a name of letters, digits, dots and dashes, \
                     other than tiny"
                );
                let read = Entry::read(entry, &files);
                let entry = read.with_context(|| format!("{whose}: models.{name}"))?;
                all.insert(name, entry);
            }
        }
        Ok(Self(all))
    }

    /// The model of that name, if a text can only be meant as one.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    /// What may be meant by a name.
    pub(crate) fn suggest(&self, name: &str) -> String {
        did_you_mean(name, self.0.keys().map(String::as_str))
    }
}

impl Entry {
    fn read(entry: Value, files: &BTreeMap<String, File>) -> Result<Self> {
        let entry: RawEntry = serde_json::from_value(entry)?;
        let family = Family::named(&entry.family);
        let family = family.with_context(|| {
            format!(
                "family is {:?}; expected one of {}",
                entry.family,
                Family::names().collect::<Vec<_>>().join(", ")
            )
        })?;
        let sources = entry.sources.into_iter();
        let sources = sources.map(|source| Source::read(source, family, files));
        let mut sources = sources.collect::<Result<Vec<_>>>()?;
        ensure!(!sources.is_empty(), "it has no sources");
        sources.sort_by_key(|source| std::cmp::Reverse(source.bits));
        Ok(Self {
            about: entry.about,
            family,
            licence: entry.licence,
            sources,
        })
    }
}

impl Source {
    fn read(raw: RawSource, family: &Family, files: &BTreeMap<String, File>) -> Result<Self> {
        ensure!(
            [4, 8, 16].contains(&raw.bits),
            "bits is {}; expected 4, 8 or 16",
            raw.bits
        );
        let find = |named: Value| -> Result<File> {
            let file = match named {
                Value::String(name) => files.get(&name).cloned().with_context(|| {
                    let known: Vec<&str> = files.keys().map(String::as_str).collect();
                    format!(
                        "there is no file {name:?}; expected {{ repo, path, gb }} or one of {}",
                        known.join(", ")
                    )
                })?,
                named => serde_json::from_value(named)
                    .context("a file is { repo = \"owner/name\", path = \"...\", gb = 1.0 }")?,
            };
            let _: RepoId = file.repo.parse()?;
            check_path(&file.path).with_context(|| file.repo.clone())?;
            ensure!(
                file.gb > 0.0 && file.gb < 1e4,
                "{}: gb is {}; expected its size in GB",
                file.path,
                file.gb
            );
            Ok(file)
        };
        let place = match raw.repo {
            Some(repo) => {
                let _: RepoId = repo.parse()?;
                let gb = raw.gb.context("gb is missing beside repo")?;
                ensure!(
                    gb > 0.0 && gb < 1e4,
                    "{repo}: gb is {gb}; expected its size in GB"
                );
                let beside = [
                    &raw.high,
                    &raw.low,
                    &raw.transformer,
                    &raw.vae,
                    &raw.text_encoder,
                ];
                ensure!(
                    beside.iter().all(|part| part.is_none()),
                    "it has a whole repo and parts; expected one of the two"
                );
                Place::Repository(repo, gb)
            }
            None => {
                let parts = [
                    (PartName::HighNoise, raw.high),
                    (PartName::LowNoise, raw.low),
                    (PartName::Transformer, raw.transformer),
                    (PartName::Vae, raw.vae),
                    (PartName::TextEncoder, raw.text_encoder),
                    (PartName::ImageEncoder, raw.image_encoder),
                ];
                let parts = parts
                    .into_iter()
                    .filter_map(|(name, file)| Some((name, file?)));
                let parts = parts.map(|(name, file)| Ok((name, find(file)?)));
                let parts = parts.collect::<Result<BTreeMap<_, _>>>()?;
                let needed: &[PartName] = match family.boundary {
                    Some(_) => &PartName::WITH_EXPERTS,
                    None if family.conditioning.features() > 0 => &PartName::WITH_FEATURES,
                    None => &PartName::WITH_TRANSFORMER,
                };
                if let Some(other) = parts.keys().find(|name| !needed.contains(name)) {
                    bail!(
                        "{} is no part of {}",
                        other.flag().trim_start_matches('-'),
                        family.name
                    );
                }
                for name in needed {
                    ensure!(
                        parts.contains_key(name),
                        "{} is missing",
                        name.flag().trim_start_matches('-')
                    );
                }
                let adapters = [
                    (None, raw.lora),
                    (Some(Expert::HighNoise), raw.lora_high),
                    (Some(Expert::LowNoise), raw.lora_low),
                ];
                let adapters = adapters.into_iter();
                let adapters = adapters.filter_map(|(expert, file)| Some((expert, file?)));
                let adapters = adapters.map(|(expert, file)| Ok((expert, find(file)?)));
                Place::Files {
                    parts,
                    tokenizer: raw.tokenizer.map(find).transpose()?,
                    adapters: adapters.collect::<Result<_>>()?,
                }
            }
        };
        Ok(Self {
            bits: raw.bits,
            form: raw.form,
            place,
        })
    }
}

/// Whether a model may be called so: neither as a path nor as a repository is.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let starts = name.starts_with(char::is_alphanumeric);
    starts && name.chars().all(plain) && name != "tiny"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_own_models_are_whole() {
        let catalogue = Catalogue::new(Map::new(), "").unwrap();
        assert!(catalogue.0.len() >= 8);
        for (name, entry) in &catalogue.0 {
            assert!(
                !entry.about.is_empty() && !entry.licence.is_empty(),
                "{name}"
            );
            let bits: Vec<u32> = entry.sources.iter().map(|source| source.bits).collect();
            assert!(bits.is_sorted_by(|a, b| a > b), "{name}: {bits:?}");
            let sizes: Vec<u64> = entry.sources.iter().map(Source::bytes).collect();
            assert!(sizes.is_sorted_by(|a, b| a > b), "{name}: {sizes:?}");
        }
        // The two experts, the text encoder and the VAE in fp8.
        let of = |name: &str, bits: u32| {
            let entry = catalogue.get(name).unwrap();
            let source = entry.sources.iter().find(|source| source.bits == bits);
            source.unwrap().bytes() as f64 / 1e9
        };
        assert!((of("a14b", 8) - 35.6).abs() < 0.1);
        assert!((of("a14b-lightning", 8) - 38.1).abs() < 0.1);
        assert!((of("5b", 4) - 8.5).abs() < 0.1);
        // A preset is found by these names.
        assert!(catalogue.suggest("a14").contains("a14b"));
    }

    #[test]
    fn users_add_models_and_mistakes_are_named() {
        let read = |toml: &str| {
            let Value::Object(table) = json(toml::Value::Table(toml.parse().unwrap())) else {
                panic!("a table");
            };
            Catalogue::new(table, "config.toml").map_err(|error| format!("{error:#}"))
        };
        let file = r#"{ repo = "me/mine", path = "x.safetensors", gb = 1 }"#;
        let mine = format!(
            "[mine]\nabout = 'mine'\nfamily = 'Wan2.2 TI2V-5B'\n[[mine.sources]]\nbits = 8\n\
             transformer = {file}\nvae = 'vae22'\ntext-encoder = 'umt5-q4'\n"
        );
        let catalogue = read(&mine).unwrap();
        assert_eq!(
            catalogue.get("mine").unwrap().sources[0].bytes(),
            6_070_000_000
        );
        for (from, to, expected) in [
            ("vae22", "vae23", "no file \"vae23\""),
            (", gb = 1", "", "missing field `gb`"),
            ("TI2V-5B", "5B", "family is \"Wan2.2 5B\""),
            ("bits = 8", "bits = 7", "bits is 7"),
            ("gb = 1", "gb = -1", "gb is -1"),
            ("me/mine", "mine", "mine"),
            ("x.safetensors", "../x.safetensors", "unusable name"),
            (
                "vae = 'vae22'",
                "vae = 'vae22'\nhigh = 'vae22'",
                "high is no part of",
            ),
            ("vae = 'vae22'\n", "", "vae is missing"),
            ("bits = 8", "bits = 8\nbit = 8", "unknown field `bit`"),
        ] {
            let error = read(&mine.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains("config.toml: models.mine"), "{error}");
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
