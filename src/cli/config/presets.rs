//! Presets: settings that belong together, by name. Those of the program are data; users add theirs to
//! the config file as `[presets.NAME]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use clap::Command;
use serde_json::{Map, Value};

use super::file::json;
use super::layer::{Layer, flag};
use crate::cli::flags::parse_lora;
use crate::util::suggest::did_you_mean;
use crate::weights::store::titles;

/// The program's own.
const OWN: &str = include_str!("presets.toml");
/// The flag that names one, and what it says for none.
const FLAG: &str = "preset";
const NONE: &str = "none";
/// Keys that are no flags.
const ABOUT: [&str; 3] = ["about", "source", "found"];

/// A preset.
#[derive(Clone, Debug)]
pub(crate) struct Preset {
    /// What it is for.
    pub(crate) about: String,
    /// Whose it is.
    pub(crate) source: String,
    /// Texts in names and titles of adapters and models that ask for it.
    found: Vec<String>,
    /// Its settings, by flags.
    pub(crate) settings: Map<String, Value>,
}

/// A preset that nobody named, and the name of the adapter or model that asks for it.
type Found = (String, String);

/// All presets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presets {
    /// By name.
    pub(crate) all: BTreeMap<String, Preset>,
    /// Titles in headers that have been read: a batch asks for each of its clips.
    titles: Arc<Mutex<BTreeMap<PathBuf, Vec<String>>>>,
}

impl Presets {
    /// The program's and, in front of them, those of a config file.
    ///
    /// # Errors
    /// Names the preset and the key that is no setting.
    pub(crate) fn new(users: Map<String, Value>, place: &str) -> Result<Self> {
        let own: toml::Table = OWN.parse().context("the program's presets")?;
        let own = own.into_iter().map(|(name, value)| (name, json(value)));
        let mut all = BTreeMap::new();
        for (name, value) in own.chain(users) {
            let Value::Object(table) = value else {
                bail!("{place}: presets.{name} is {value}; expected a table of settings");
            };
            if name == NONE {
                bail!("{place}: presets.{NONE} cannot be: it is the name of none");
            }
            all.insert(name, Preset::of(table));
        }
        Ok(Self {
            all,
            ..Self::default()
        })
    }

    /// The layers, the strongest first, each followed by what it asks for by a preset: what is stronger
    /// overrides it. The first layer that asks has it. Also the preset that nobody named, if one was
    /// found.
    ///
    /// # Errors
    /// When there is no such preset, or it sets what `command` has not.
    pub(crate) fn beside<'a>(
        &self,
        command: &Command,
        layers: impl IntoIterator<Item = &'a Layer>,
    ) -> Result<(Vec<Layer>, Option<Found>)> {
        // A conversion with an adapter has no steps.
        let mut decided = flag(command, FLAG).is_none();
        let (mut all, mut found) = (Vec::new(), None);
        for layer in layers {
            let implied = match decided {
                true => Implied::default(),
                false => self.of(command, layer)?,
            };
            decided |= implied.decided;
            found = found.or(implied.found);
            all.extend([layer.clone(), implied.layer]);
        }
        Ok((all, found))
    }

    /// The settings that a layer asks for by a preset's name, or by what an adapter or model is called.
    ///
    /// # Errors
    /// When there is no such preset, or it sets what `command` has not.
    fn of(&self, command: &Command, layer: &Layer) -> Result<Implied> {
        let named = layer
            .value(FLAG)
            .map(|name| name.to_string_lossy().into_owned());
        let (name, by) = match named {
            Some(name) if name == NONE => return Ok(Implied::nothing()),
            Some(name) => (name, None),
            None => match self.found(layer) {
                Some((name, by)) => (name, Some(by)),
                None => return Ok(Implied::default()),
            },
        };
        let Some(preset) = self.all.get(&name) else {
            bail!(
                "--preset {name}: there is no such preset{}\nhint: wan-i2v presets lists them",
                did_you_mean(&name, self.all.keys().map(String::as_str))
            );
        };
        let place = format!("preset {name}");
        let settings = preset.settings.clone();
        Ok(Implied {
            decided: true,
            layer: Layer::of_table(command, settings, &place)?,
            found: by.map(|by| (name, by)),
        })
    }

    /// The preset that adapters or models of a layer ask for by their names, or the titles in their
    /// headers, and that name.
    fn found(&self, layer: &Layer) -> Option<Found> {
        let both = |one: &str, other: &str| {
            let all: Vec<_> = layer.values(one).chain(layer.values(other)).collect();
            (layer.has(one) && layer.has(other)).then_some(all)
        };
        let loras = layer.values("lora").collect::<Vec<_>>();
        let experts = both("lora-high", "lora-low").unwrap_or_default();
        let adapters = loras.into_iter().chain(experts).filter_map(|value| {
            let lora = parse_lora(value.to_str()?).ok()?;
            // Without strength it is as good as not there.
            (lora.strength != 0.0).then_some(lora.source)
        });
        let models = layer.values("model").collect::<Vec<_>>();
        let models = models
            .into_iter()
            .chain(both("high", "low").unwrap_or_default());
        let models = models.map(|value| Path::new(value).to_owned());
        adapters.chain(models).find_map(|path| {
            let mut names = path.components().rev();
            let names: Vec<String> = (&mut names)
                .take(2)
                .map(|name| name.as_os_str().to_string_lossy().into_owned())
                .collect();
            // Of a folder's name the file's is told.
            let by_name = self.asked_by(&names).zip(names.first());
            by_name
                .map(|(preset, name)| (preset, name.clone()))
                .or_else(|| self.found_inside(&path))
        })
    }

    /// The preset that what a file, or those of a folder, call themselves ask for, and the title.
    fn found_inside(&self, path: &Path) -> Option<Found> {
        let known = self.titles.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        let read = || titles(path);
        let titles = known.entry(path.to_owned()).or_insert_with(read);
        titles.iter().find_map(|title| {
            let preset = self.asked_by(std::slice::from_ref(title))?;
            Some((preset, title.clone()))
        })
    }

    /// The preset that a name asks for.
    pub(crate) fn of_name(&self, name: &str) -> Option<&Preset> {
        self.all.get(&self.asked_by(&[name.to_owned()])?)
    }

    /// The preset that one of some names asks for.
    fn asked_by(&self, names: &[String]) -> Option<String> {
        let names: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
        let has = |mark: &String| names.iter().any(|name| name.contains(mark.as_str()));
        let asks = |preset: &Preset| preset.found.iter().any(has);
        let (name, _) = self.all.iter().find(|(_, preset)| asks(preset))?;
        Some(name.clone())
    }
}

impl Preset {
    fn of(mut table: Map<String, Value>) -> Self {
        let [about, source, found] = ABOUT.map(|key| table.remove(key));
        let text = |value: Option<Value>| {
            value
                .as_ref()
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let found = found
            .as_ref()
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        Self {
            about: text(about),
            source: text(source),
            found: found
                .filter_map(Value::as_str)
                .map(str::to_lowercase)
                .collect(),
            settings: table,
        }
    }
}

/// What a layer asks for by a preset.
#[derive(Clone, Debug, Default)]
struct Implied {
    /// Whether the layer decides which preset there is, be it none: weaker ones do not any more.
    decided: bool,
    /// Its settings.
    layer: Layer,
    /// The preset that was found.
    found: Option<Found>,
}

impl Implied {
    fn nothing() -> Self {
        Self {
            decided: true,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags;
    use serde_json::json;

    fn implied(presets: &Presets, table: Value) -> Result<Vec<String>> {
        let Value::Object(table) = table else {
            panic!("no table");
        };
        let command = flags::command();
        let layer = Layer::of_table(&command, table, "test")?;
        let found = presets.of(&command, &layer)?.layer;
        Ok(found
            .arguments()
            .map(|word| word.to_string_lossy().into_owned())
            .collect())
    }

    #[test]
    fn presets_are_found_by_their_names_and_those_of_adapters() {
        let presets = Presets::new(Map::new(), "test").unwrap();
        let four = [
            "--guide-scale=1",
            "--shift=5",
            "--sigmas=flow",
            "--solver=euler",
            "--steps=4",
        ];
        for asking in [
            json!({ "preset": "lightning" }),
            json!({ "lora": "a/Wan2.2-Lightning/x" }),
            json!({ "lora": "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors:0.8" }),
            json!({ "lora-high": "h_4steps.safetensors", "lora-low": "l_4steps.safetensors" }),
            json!({ "model": "models/a14b-lightning" }),
            json!({ "high": "distill/h.safetensors", "low": "distill/l.safetensors" }),
        ] {
            let mut found = implied(&presets, asking.clone()).unwrap();
            found.sort();
            assert_eq!(found, four, "{asking}");
        }
        for silent in [
            json!({}),
            json!({ "preset": "none", "lora": "lightning.safetensors" }),
            json!({ "lora": "lightning.safetensors:0" }),
            json!({ "lora-low": "lightning.safetensors" }),
            json!({ "lora": "lightning/of/zeus/style.safetensors" }),
        ] {
            assert_eq!(
                implied(&presets, silent.clone()).unwrap().len(),
                0,
                "{silent}"
            );
        }
        let error = implied(&presets, json!({ "preset": "lightening" })).unwrap_err();
        assert!(
            error.to_string().contains("did you mean lightning?"),
            "{error}"
        );
    }

    /// A folder of an adapter whose header says `metadata`.
    fn with_header(name: &str, metadata: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        let metadata = Some(metadata.collect());
        let tensors: [(&str, safetensors::tensor::TensorView); 0] = [];
        let path = folder.path().join(name);
        safetensors::serialize_to_file(tensors, metadata, &path).unwrap();
        folder
    }

    #[test]
    fn presets_are_found_by_titles_in_headers() {
        let presets = Presets::new(Map::new(), "test").unwrap();
        let found = |asking: &Value| implied(&presets, asking.clone()).unwrap().len();
        for metadata in [
            ("ss_output_name", "wan22_LightX2V_rank64"),
            ("modelspec.title", "Wan 2.2 Lightning, high noise"),
            ("name", "a 4-step adapter: 4-steps"),
        ] {
            let folder = with_header("x.safetensors", &[metadata]);
            let root = folder.path().to_str().unwrap();
            let file = folder.path().join("x.safetensors");
            let file = file.to_str().unwrap();
            for asking in [
                json!({ "lora": file }),
                json!({ "lora": format!("{file}:0.8") }),
                json!({ "lora": root }),
                json!({ "model": root }),
                json!({ "high": file, "low": file }),
            ] {
                assert_eq!(found(&asking), 5, "{asking} {metadata:?}");
            }
            for silent in [
                json!({ "lora": format!("{file}:0") }),
                json!({ "lora-high": file }),
                json!({ "lora": file, "preset": "none" }),
            ] {
                assert_eq!(found(&silent), 0, "{silent} {metadata:?}");
            }
        }
        // What is told of other adapters is no name.
        let metadata = [
            ("modelspec.description", "for use with Lightning"),
            ("ss_training_comment", "not distilled"),
            ("ss_output_name", "a style"),
        ];
        let folder = with_header("x.safetensors", &metadata);
        let file = folder.path().join("x.safetensors");
        assert_eq!(found(&json!({ "lora": file.to_str().unwrap() })), 0);
        // What cannot be read is refused later, by its reader.
        std::fs::write(&file, "broken").unwrap();
        assert_eq!(found(&json!({ "lora": file.to_str().unwrap() })), 0);
        assert_eq!(found(&json!({ "lora": "nowhere.safetensors" })), 0);
    }

    #[test]
    fn users_add_presets_and_replace_them() {
        let users = json!({
            "mine": { "about": "what I like", "steps": 12, "found": ["Nice"] },
            "lightning": { "steps": 6 },
        });
        let Value::Object(users) = users else {
            panic!()
        };
        let presets = Presets::new(users, "config.toml").unwrap();
        assert_eq!(
            implied(&presets, json!({ "preset": "mine" })).unwrap(),
            ["--steps=12"]
        );
        assert_eq!(
            implied(&presets, json!({ "lora": "nice.safetensors" })).unwrap(),
            ["--steps=12"]
        );
        assert_eq!(
            implied(&presets, json!({ "preset": "lightning" })).unwrap(),
            ["--steps=6"]
        );
        let Value::Object(wrong) = json!({ "a": { "stepz": 1 } }) else {
            panic!()
        };
        let wrong = Presets::new(wrong, "config.toml").unwrap();
        let error = implied(&wrong, json!({ "preset": "a" }))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("preset a: \"stepz\" is no setting"),
            "{error}"
        );
        assert!(Presets::new([("none".to_owned(), json!({}))].into_iter().collect(), "x").is_err());
        assert!(Presets::new([("a".to_owned(), json!(1))].into_iter().collect(), "x").is_err());
    }

    /// An adapter's name asks a conversion for nothing, which has no steps.
    #[test]
    fn only_commands_with_a_preset_have_one() {
        let root = flags::command();
        let presets = Presets::new(Map::new(), "test").unwrap();
        let table = || [("lora".to_owned(), json!("lightx2v_4steps.safetensors"))];
        for (command, settings) in [(&root, 5), (root.find_subcommand("convert").unwrap(), 0)] {
            let layer = Layer::of_table(command, table(), "test").unwrap();
            let (layers, found) = presets.beside(command, [&layer]).unwrap();
            let implied = layers[1].arguments().count();
            assert_eq!((implied, found.is_some()), (settings, settings > 0));
        }
    }

    /// Every preset of the program can be read by the flags.
    #[test]
    fn the_program_s_presets_are_settings() {
        let presets = Presets::new(Map::new(), "test").unwrap();
        for (name, preset) in &presets.all {
            let words = implied(&presets, json!({ "preset": name })).unwrap();
            let base = ["wan-i2v", "--image=a", "--prompt=b"].map(str::to_owned);
            let all = base.into_iter().chain(words);
            flags::command().try_get_matches_from(all).unwrap();
            assert!(
                !preset.about.is_empty() && !preset.source.is_empty(),
                "{name}"
            );
            assert!(preset.about.len() < 80, "{name}");
        }
    }
}
