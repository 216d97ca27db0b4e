//! What a clip was made from and with, as its file keeps it: enough to make it again.
//!
//! A record names files, not where they are: the folders of the machine that made a clip are
//! nobody's business who gets it.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clip::identity::Difference;
use crate::clip::{Identity, Item, Model, Request, Settings, Stage};
use crate::media::tags::{self, Tags};
use crate::runtime::{self, Device, DeviceKind};
use crate::util::show::Show;
use crate::weights::adapter::{Source, Wanted};
use crate::weights::quantize::GROUP_SIZE;
use crate::weights::{Checkpoint, Expert, PartName};

/// The version of [`Metadata`]; a new one means that something was removed or changed its meaning.
const FORMAT: u64 = 2;
/// What this program calls itself in its files, before its version.
const SOFTWARE: &str = "wan-i2v ";

/// What a clip was made from and with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The version of this format.
    pub format: u64,
    /// The program and its version.
    pub software: String,
    /// MLX's version.
    pub mlx: String,
    /// What happens in the clip.
    pub prompt: String,
    /// The picture that it starts with, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<FileIdentity>,
    /// The picture that it ends with, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_image: Option<FileIdentity>,
    /// The model.
    pub model: ModelIdentity,
    /// The settings.
    #[serde(flatten)]
    pub settings: Settings,
    /// Columns and rows of its frames, where the VAE has made them larger than the settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_size: Option<(u32, u32)>,
    /// `gpu` or `cpu`.
    pub device: String,
    /// Dtype of matrix products.
    pub dtype: String,
}

/// A file, wherever it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its name without its folder.
    pub name: String,
    /// Hash of its content, in hexadecimal digits.
    pub sha256: String,
}

/// A model, wherever it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// `tiny`, the hub's `owner/name@commit`, or the name of its folder; empty when every part was
    /// named by itself.
    pub name: String,
    /// Names of the parts that came from elsewhere, by the flag that names them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, String>,
    /// Bits that parts were quantized to while they were loaded, and groups that are not the usual ones, by the flag that asks for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bits: BTreeMap<String, usize>,
    /// How packed weights of other programs are stored, by part.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stored: BTreeMap<String, String>,
    /// Adapters, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterIdentity>,
    /// Whether quantized weights took them in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lora_merge: bool,
    /// See [`Checkpoint::fingerprint`].
    pub fingerprint: String,
}

/// An adapter, wherever it is; its content is part of the model's fingerprint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterIdentity {
    /// The flag that names it: `--lora`, `--lora-high`, `--lora-low`.
    pub flag: String,
    /// The name of its file or folder; empty of what is part of the program.
    pub name: String,
    /// What its change is multiplied by.
    pub strength: f64,
}

impl Metadata {
    /// The metadata of a clip that is to be made; `picture` and `last` are the hashes of its pictures'
    /// files. Reads a little of each of the model's tensors.
    ///
    /// # Errors
    /// When a file of the model cannot be read any more.
    pub fn new(
        request: &Request,
        settings: &Settings,
        [picture, last]: [Option<&str>; 2],
        checkpoint: &Checkpoint,
        device: Device,
    ) -> Result<Self> {
        let mut settings = settings.clone();
        // The model's, which has a fingerprint.
        settings.cache.polynomial.clear();
        let asked = (settings.width, settings.height);
        Ok(Self {
            frame_size: Some(settings.frame_size(&checkpoint.vae)).filter(|size| *size != asked),
            format: FORMAT,
            software: format!("{SOFTWARE}{}", env!("CARGO_PKG_VERSION")),
            mlx: runtime::mlx_version(),
            prompt: request.prompt.clone(),
            image: request
                .image
                .as_deref()
                .map(|path| FileIdentity::new(path, picture)),
            last_image: request
                .last_image
                .as_deref()
                .map(|path| FileIdentity::new(path, last)),
            model: ModelIdentity::new(request, checkpoint)?,
            settings,
            device: match device.kind {
                DeviceKind::Gpu => "gpu",
                DeviceKind::Cpu => "cpu",
            }
            .into(),
            dtype: device.dtype.to_string(),
        })
    }

    /// Whether a clip with this metadata is the one with `other`, whatever the names of program,
    /// picture and the model's folder.
    pub fn is_of_same_clip(&self, other: &Self) -> bool {
        let mut renamed = self.clone();
        renamed.software.clone_from(&other.software);
        renamed.mlx.clone_from(&other.mlx);
        if let (Some(ours), Some(theirs)) = (&mut renamed.image, &other.image) {
            ours.name.clone_from(&theirs.name);
        }
        renamed.model.name.clone_from(&other.model.name);
        renamed.model.parts.clone_from(&other.model.parts);
        renamed.model.adapters.clone_from(&other.model.adapters);
        renamed == *other
    }

    /// In what a clip with this metadata was made otherwise than one with `other`, programs and all.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let [ours, theirs] = [self, other].map(Self::identity);
        ours.differences(&theirs)
    }

    fn identity(&self) -> Identity {
        use Stage::{Denoise, Image};
        let model = &self.model;
        let mut items = vec![
            Item::new(
                "the picture",
                &[Image],
                self.image.as_ref().map_or("none", |image| &image.sha256),
            ),
            Item::new("--prompt", &[Denoise], &self.prompt),
            Item::new(
                "--negative-prompt",
                &[Denoise],
                &self.settings.negative_prompt,
            ),
            Item::new("the model", &[Denoise], &model.fingerprint),
            Item::new("--device", &[Denoise], &self.device),
            Item::new("--dtype", &[Denoise], &self.dtype),
            Item::new("the program", &[Denoise], &self.software),
            Item::new("MLX", &[Denoise], &self.mlx),
        ];
        if let Some(last) = &self.last_image {
            items.push(Item::new("the last picture", &[Image], &last.sha256));
        }
        items.extend(self.settings.items());
        let bits = model.bits.iter();
        items.extend(bits.map(|(flag, bits)| Item::new(flag, &[Denoise], bits)));
        items.into()
    }

    /// The texts of a clip's file.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn tags(&self) -> Result<Tags> {
        Ok(Tags {
            software: self.software.clone(),
            description: self.prompt.clone(),
            comment: ascii(&serde_json::to_string(self)?),
        })
    }

    /// Reads the metadata of a clip: an `.mp4`, a `.gif`, a frame's `.png` or a folder of frames.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged, or holds no metadata of this program.
    pub fn read(path: &Path) -> Result<Self> {
        let Some(comment) = tags::read_comment(path)? else {
            bail!(
                "{} holds no record of how it was made: another program made it, or --no-metadata was \
                 given",
                path.shown()
            );
        };
        let mut value: Value = serde_json::from_str(&comment).unwrap_or_default();
        let software = value.get("software").and_then(Value::as_str);
        let software = software.filter(|name| name.starts_with(SOFTWARE));
        let Some(software) = software.map(|name| name.escape_debug().to_string()) else {
            bail!(
                "{}: is not of this program; its comment begins with {:?}",
                path.shown(),
                comment.chars().take(40).collect::<String>()
            );
        };
        // The first one had no number.
        let format = value.get("format").map_or(Some(1), Value::as_u64);
        if let Some(format) = format.filter(|&format| format != FORMAT) {
            bail!(
                "{}: {software} says how it was made in format {format}; this version reads format \
                 {FORMAT}\nhint: show it with the version that made it",
                path.shown()
            );
        }
        if let Some(fields) = value.as_object_mut() {
            // The only way there was at first.
            fields.entry("fit").or_insert_with(|| "stretch".into());
            fields.entry("switch").or_insert(Value::Null);
            fields.entry("sigmas").or_insert_with(|| "wan".into());
        }
        serde_json::from_value(value).with_context(|| {
            format!(
                "{}: {software} made it, and this version cannot read what it says",
                path.shown()
            )
        })
    }
}

impl FileIdentity {
    fn new(path: &Path, hash: Option<&str>) -> Self {
        Self {
            name: name_of(path),
            sha256: hash.unwrap_or_default().into(),
        }
    }
}

impl ModelIdentity {
    fn new(request: &Request, checkpoint: &Checkpoint) -> Result<Self> {
        let mut parts = BTreeMap::new();
        let name = match &request.model {
            Model::Tiny => "tiny".to_owned(),
            Model::Published(family) => family.name.to_owned(),
            Model::Disk(sources) => {
                let flags = PartName::ALL.map(PartName::flag).into_iter();
                let named = flags
                    .zip(&sources.parts)
                    .chain([("--tokenizer", &sources.tokenizer)]);
                for (flag, path) in named {
                    if let Some(path) = path {
                        parts.insert(flag.to_owned(), name_of(path));
                    }
                }
                let model = sources.model.as_deref();
                model
                    .map(|path| hub_name(path).unwrap_or_else(|| name_of(path)))
                    .unwrap_or_default()
            }
        };
        let bits = [
            ("--high-bits", request.loading.high),
            ("--low-bits", request.loading.low),
            ("--text-bits", request.loading.text),
        ];
        let mut stored = BTreeMap::new();
        for &name in checkpoint.part_names() {
            let format = checkpoint.format(name)?;
            if format.packing.is_some() && request.loading.of(name).is_none() {
                stored.insert(name.to_string(), format.stored.to_owned());
            }
        }
        let mut groups = bits
            .iter()
            .filter_map(|(_, scheme)| Some(scheme.as_ref()?.group_size));
        let groups = groups.find(|&group| group != GROUP_SIZE);
        Ok(Self {
            name,
            parts,
            stored,
            bits: bits
                .into_iter()
                .filter_map(|(flag, scheme)| Some((flag.to_owned(), scheme?.bits.number())))
                .chain(
                    groups
                        .into_iter()
                        .map(|group| ("--group-size".to_owned(), group)),
                )
                .collect(),
            // One without strength is as good as none, to the file's last byte.
            adapters: (request.loading.adapters.iter())
                .filter(|wanted| wanted.strength != 0.0)
                .map(AdapterIdentity::new)
                .collect(),
            lora_merge: request.loading.merges,
            fingerprint: checkpoint.fingerprint()?,
        })
    }
}

impl AdapterIdentity {
    fn new(wanted: &Wanted) -> Self {
        Self {
            flag: match wanted.expert {
                None => "--lora",
                Some(Expert::HighNoise) => "--lora-high",
                Some(Expert::LowNoise) => "--lora-low",
                Some(Expert::Single) => "--lora",
            }
            .into(),
            name: match &wanted.source {
                Source::Disk(path) => name_of(path),
                Source::Embedded(_) => String::new(),
            },
            strength: wanted.strength,
        }
    }

    /// Its value on the command line.
    pub fn value(&self) -> String {
        match self.strength == 1.0 {
            true => self.name.clone(),
            false => format!("{}:{}", self.name, self.strength),
        }
    }
}

/// A path's last name; that of the folder it leads to when it ends in dots.
fn name_of(path: &Path) -> String {
    let name = match path.file_name() {
        Some(name) => Some(name.to_owned()),
        None => path
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_owned())),
    };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// What the hub calls a folder of its cache, `models--owner--name/snapshots/commit`.
fn hub_name(path: &Path) -> Option<String> {
    let mut names = path.components().rev().map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let (commit, snapshots, folder) = (names.next()??, names.next()??, names.next()??);
    let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
    (snapshots == "snapshots").then(|| format!("{owner}/{name}@{commit}"))
}

/// JSON with every character beyond ASCII escaped.
fn ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                ascii += &format!("\\u{unit:04x}");
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_hub_s_cache_has_the_hub_s_name() {
        let name = |path: &str| hub_name(Path::new(path));
        assert_eq!(
            name("/home/me/.cache/huggingface/hub/models--Wan-AI--Wan2.2-I2V/snapshots/0a1b"),
            Some("Wan-AI/Wan2.2-I2V@0a1b".into())
        );
        for other in [
            "/",
            "wan2.2",
            "a/b/c/d",
            "models--a--b/blobs/c",
            "models--a/snapshots/c",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
        assert_eq!(name_of(Path::new("/a/b/wan2.2/")), "wan2.2");
        assert_eq!(name_of(Path::new("/")), "");
        let here = std::env::current_dir().unwrap();
        assert_eq!(name_of(Path::new(".")), name_of(&here));
    }

    #[test]
    fn escaped_json_says_the_same() {
        let text = "一只猫 \u{1f3f3}\u{fe0f} \"e\u{301}\" \\ \n \u{7f}";
        let json = serde_json::to_string(text).unwrap();
        let escaped = ascii(&json);
        assert!(escaped.is_ascii() && escaped != json);
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
    }
}
