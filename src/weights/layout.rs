//! Where the parts of a whole model lie in what people have on disk.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Conditioning;
use super::config::{CONFIG, PartConfig};
use super::files::Files;
use super::naming::Kind;
use super::part::{self, Foreign, OTHER_MODEL, Part};
use super::store::{Location, TensorStore};
use crate::sampling::Expert;
use crate::util::show::{Show, chain, gist};
use crate::util::suggest::did_you_mean_path;

/// One of the parts of a model that have weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartName {
    /// The expert for timesteps at or above the boundary.
    HighNoise,
    /// The expert for timesteps below it.
    LowNoise,
    /// The autoencoder.
    Vae,
    /// The text encoder.
    TextEncoder,
    /// The only transformer of a model without experts.
    Transformer,
    /// The image encoder, whose features the transformers of Wan2.1 attend to.
    ImageEncoder,
}

impl PartName {
    /// Every part.
    pub const ALL: [Self; 6] = [
        Self::HighNoise,
        Self::LowNoise,
        Self::Vae,
        Self::TextEncoder,
        Self::Transformer,
        Self::ImageEncoder,
    ];
    /// Of a model with two experts.
    pub const WITH_EXPERTS: [Self; 4] = [
        Self::HighNoise,
        Self::LowNoise,
        Self::Vae,
        Self::TextEncoder,
    ];
    /// Of a model with one transformer.
    pub const WITH_TRANSFORMER: [Self; 3] = [Self::Transformer, Self::Vae, Self::TextEncoder];
    /// Of a model with one that attends to features of pictures.
    pub const WITH_FEATURES: [Self; 4] = [
        Self::Transformer,
        Self::Vae,
        Self::TextEncoder,
        Self::ImageEncoder,
    ];

    /// What kind of network it is.
    pub fn kind(self) -> Kind {
        match self {
            Self::HighNoise | Self::LowNoise | Self::Transformer => Kind::Expert,
            Self::Vae => Kind::Vae,
            Self::TextEncoder => Kind::TextEncoder,
            Self::ImageEncoder => Kind::ImageEncoder,
        }
    }

    /// The flag that names it on the command line.
    pub fn flag(self) -> &'static str {
        match self {
            Self::HighNoise => "--high",
            Self::LowNoise => "--low",
            Self::Vae => "--vae",
            Self::TextEncoder => "--text-encoder",
            Self::Transformer => "--transformer",
            Self::ImageEncoder => "--image-encoder",
        }
    }

    /// The transformer that it is.
    pub fn expert(self) -> Option<Expert> {
        match self {
            Self::HighNoise => Some(Expert::HighNoise),
            Self::LowNoise => Some(Expert::LowNoise),
            Self::Transformer => Some(Expert::Single),
            Self::Vae | Self::TextEncoder | Self::ImageEncoder => None,
        }
    }

    /// Its folder in the diffusers layout.
    fn diffusers_folder(self) -> &'static str {
        match self {
            Self::HighNoise | Self::Transformer => "transformer",
            Self::LowNoise => "transformer_2",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::ImageEncoder => "image_encoder",
        }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HighNoise => "high-noise expert",
            Self::LowNoise => "low-noise expert",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
            Self::Transformer => "transformer",
            Self::ImageEncoder => "image encoder",
        })
    }
}

/// Where the tokenizer is.
#[derive(Clone, Debug)]
pub enum TokenizerAt {
    /// A `tokenizer.json` or a SentencePiece model.
    File(Files, String),
    /// Inside the text encoder's file.
    InTextEncoder,
}

/// Where everything of a model is; parts may be missing.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Each part's files, in the order of [`PartName::ALL`].
    parts: [Option<Location>; 6],
    /// The tokenizer.
    pub tokenizer: Option<TokenizerAt>,
    /// The folder that may hold settings, when the model has one.
    pub root: Option<Files>,
    /// Files that a search could not use, and why: one may be a part that is missed.
    pub passed_over: Vec<String>,
}

/// What is named besides a model's folder, and not searched for in it.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// Parts.
    pub parts: Vec<PartName>,
    /// The tokenizer.
    pub tokenizer: bool,
}

/// The file of the diffusers layout that names the pipeline.
pub const MODEL_INDEX: &str = "model_index.json";
/// The most files that a search for parts looks into.
const MAX_CANDIDATES: usize = 200;
/// Folders below the given one that are searched.
const MAX_DEPTH: usize = 3;
/// Files that hold a tokenizer, the better ones first.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "spiece.model", "sentencepiece.bpe.model"];

impl Layout {
    /// A part's files.
    pub fn part(&self, name: PartName) -> Option<&Location> {
        self.parts[name as usize].as_ref()
    }

    /// The parts that a model of these files has to have: with one transformer, which may attend to
    /// features of pictures, or with two experts.
    pub fn part_names(&self) -> &'static [PartName] {
        match self.part(PartName::Transformer) {
            Some(transformer) if takes_features(transformer) => &PartName::WITH_FEATURES,
            Some(_) => &PartName::WITH_TRANSFORMER,
            None => &PartName::WITH_EXPERTS,
        }
    }

    /// Whether there is a transformer, and none that attends to features of pictures.
    pub fn needs_no_images(&self) -> bool {
        let experts = [
            PartName::HighNoise,
            PartName::LowNoise,
            PartName::Transformer,
        ];
        let mut there = experts
            .iter()
            .filter_map(|name| self.part(*name))
            .peekable();
        there.peek().is_some() && !there.any(takes_features)
    }

    /// Leaves one part of a whole model; false, and all of it, where the part or a second one is missing.
    pub fn keep(&mut self, name: PartName) -> bool {
        if self.part(name).is_none() || self.parts.iter().flatten().count() < 2 {
            return false;
        }
        for other in PartName::ALL.into_iter().filter(|other| *other != name) {
            self.parts[other as usize] = None;
        }
        true
    }

    /// Puts a part there, instead of what was found.
    pub fn set(&mut self, name: PartName, location: Location) {
        self.parts[name as usize] = Some(location);
    }

    /// Finds the parts of a model in a folder.
    ///
    /// # Errors
    /// When the folder cannot be read, or holds several candidates for one part.
    pub fn of_folder(files: &Files) -> Result<Self> {
        Self::of_folder_without(files, &Named::default())
    }

    /// As [`Self::of_folder`], but for what is named elsewhere: several candidates for that are
    /// no error.
    ///
    /// # Errors
    /// As there.
    pub fn of_folder_without(files: &Files, named: &Named) -> Result<Self> {
        if files.has(MODEL_INDEX) {
            return Self::diffusers(files);
        }
        Self::search(files, named)
    }

    /// Finds what a path is: a whole model's folder, of which `part` alone may be wanted, or one part's
    /// folder or file.
    ///
    /// # Errors
    /// As [`Self::of_folder`].
    pub fn of_path(path: &Path, part: Option<PartName>) -> Result<Self> {
        if let Some(name) = part {
            if path.is_dir()
                && let Ok(mut whole) = Self::of_folder(&Files::from(path))
                && whole.keep(name)
            {
                return Ok(whole);
            }
            let mut layout = Self::default();
            layout.set(name, Location::at(path)?);
            return Ok(layout);
        }
        if path.is_dir() {
            return Self::of_folder(&Files::from(path));
        }
        let location = Location::at(path)?;
        let store = TensorStore::open(&location)?;
        let found = part::parts(&store);
        let name = match found.first().map(|part| part.kind) {
            Some(Kind::Vae) => PartName::Vae,
            Some(Kind::TextEncoder) => PartName::TextEncoder,
            Some(Kind::ImageEncoder) => PartName::ImageEncoder,
            Some(Kind::Expert) => match expert_of(&path.to_string_lossy()) {
                Some(name) => name,
                None => {
                    // Another model's is neither.
                    judge(&location, PartName::Transformer)?;
                    let part = Part::open(&location, Kind::Expert)?;
                    ensure!(
                        !may_be_expert(&PartConfig::of(&part, PartName::Transformer)?)?,
                        "{}: this is an expert, but its path says neither high nor low\nhint: say \
                         which with --part high or --part low, or --part transformer when it is the \
                         model's only one",
                        path.shown()
                    );
                    PartName::Transformer
                }
            },
            None if let Some(Foreign { what, hint, .. }) = part::foreign(&store) => {
                bail!("{}: this is {what}\nhint: {hint}", path.shown())
            }
            None => bail!(
                "{}: no part of a Wan model (a transformer, a VAE, a UMT5 text encoder, CLIP ViT-H's \
                 image encoder)",
                path.shown()
            ),
        };
        let mut layout = Self::default();
        layout.set(name, location);
        if name == PartName::TextEncoder && holds_tokenizer(&store) {
            layout.tokenizer = Some(TokenizerAt::InTextEncoder);
        }
        Ok(layout)
    }

    fn diffusers(files: &Files) -> Result<Self> {
        let mut layout = Self {
            root: Some(files.clone()),
            ..Self::default()
        };
        // Its experts have transformers' name for the index, and no configuration.
        let experts = files.sub(PartName::HighNoise.diffusers_folder());
        let is_mlx_gen = experts.has("model.safetensors.index.json");
        let has_two = files.sub(PartName::LowNoise.diffusers_folder()).exists()
            || (files.json::<Value>(MODEL_INDEX))
                .is_ok_and(|index| index["boundary_ratio"].is_number());
        let names: &[PartName] = match has_two {
            true => &PartName::WITH_EXPERTS,
            false => &PartName::WITH_FEATURES,
        };
        for &name in names {
            let folder = files.sub(name.diffusers_folder());
            if folder.exists() {
                ensure!(
                    folder.has(CONFIG) || is_mlx_gen,
                    "{}: not found; in the diffusers layout every part has one\nhint: download it too",
                    folder.name(CONFIG)
                );
                layout.set(name, Location::in_folder(folder)?);
            }
        }
        if layout.needs_no_images() {
            layout.parts[PartName::ImageEncoder as usize] = None;
        }
        layout.tokenizer = tokenizer_in(&files.sub("tokenizer"));
        Ok(layout)
    }

    /// Looks into every file below a folder: what a part is, its tensors tell; which of the two
    /// experts, only its path can.
    fn search(files: &Files, named: &Named) -> Result<Self> {
        let mut layout = Self {
            root: Some(files.clone()),
            ..Self::default()
        };
        let mut candidates = Vec::new();
        let mut tokenizers = Vec::new();
        let mut folders = vec![(files.clone(), String::new(), 0)];
        while let Some((folder, path, depth)) = folders.pop() {
            for location in Location::all_in(&folder)? {
                let name = location.index.as_ref().unwrap_or(&location.names[0]);
                candidates.push((format!("{path}{name}"), location));
                ensure!(
                    candidates.len() <= MAX_CANDIDATES,
                    "{files}: more than {MAX_CANDIDATES} files with tensors\nhint: name each part with \
                     --high, --low, --vae and --text-encoder"
                );
            }
            if let Some(tokenizer) = tokenizer_in(&folder) {
                tokenizers.push((path.clone(), tokenizer));
            }
            if depth < MAX_DEPTH {
                for sub in folder.folders()? {
                    folders.push((folder.sub(&sub), format!("{path}{sub}/"), depth + 1));
                }
            }
        }
        candidates.sort_by(|a, b| a.0.cmp(&b.0));
        let mut found: [Vec<(String, Location)>; 6] = Default::default();
        let (mut unknown, mut others) = (Vec::new(), Vec::new());
        for (path, location) in candidates {
            let opened = location
                .check_whole()
                .and_then(|()| TensorStore::open(&location));
            let store = match opened {
                Ok(store) => store,
                Err(error) => {
                    layout.passed_over.push(gist(&error));
                    continue;
                }
            };
            if let Some(Foreign {
                what, is_expert, ..
            }) = part::foreign(&store)
            {
                let text = format!("{}: this is {what}", files.name(&path));
                if is_expert {
                    others.push(format!("{text}\nhint: {OTHER_MODEL}"));
                }
                layout.passed_over.push(text);
                continue;
            }
            let mut parts = part::parts(&store);
            let Some(detected) = parts.pop() else {
                unknown.push(path);
                continue;
            };
            if !parts.is_empty() {
                layout.passed_over.push(format!(
                    "{}: several parts in one file; expected each in a file of its own",
                    files.name(&path)
                ));
                continue;
            }
            let name = match detected.kind {
                Kind::Vae => PartName::Vae,
                Kind::TextEncoder => PartName::TextEncoder,
                Kind::ImageEncoder => PartName::ImageEncoder,
                Kind::Expert => match expert_of(&path).or_else(|| expert_of(&files.to_string())) {
                    Some(name) => name,
                    None => {
                        if let Err(error) = judge(&location, PartName::Transformer) {
                            others.push(chain(&error));
                            layout.passed_over.push(gist(&error));
                            continue;
                        }
                        PartName::Transformer
                    }
                },
            };
            found[name as usize].push((path, location));
        }
        let is_expert =
            |name: &PartName| !found[*name as usize].is_empty() || named.parts.contains(name);
        if [PartName::HighNoise, PartName::LowNoise]
            .iter()
            .any(is_expert)
        {
            let neither = std::mem::take(&mut found[PartName::Transformer as usize]);
            let text = |(path, _): &(String, _)| {
                format!(
                    "{}: an expert, but its path says neither high nor low",
                    files.name(path)
                )
            };
            layout.passed_over.extend(neither.iter().map(text));
        }
        let others_files = of_one_model(&mut found);
        layout.passed_over.extend(
            others_files
                .iter()
                .map(|path| format!("{}: another model's than the other parts", files.name(path))),
        );
        for name in PartName::ALL {
            let mut candidates = std::mem::take(&mut found[name as usize]);
            if named.parts.contains(&name) {
                continue;
            }
            if candidates.len() > 1 {
                // Of those that cannot work none is meant, unless none can.
                let judged = |(_, location): &(_, Location)| judge(location, name).err();
                let wrong: Vec<_> = candidates.iter().map(judged).collect();
                if wrong.iter().any(Option::is_none) {
                    let mut each = wrong.iter();
                    candidates.retain(|_| each.next().is_some_and(Option::is_none));
                    let wrong = wrong.iter().flatten();
                    layout.passed_over.extend(wrong.map(gist));
                }
            }
            // Folders of other programs' models have several, for models that need none here too.
            let is_idle = name == PartName::ImageEncoder
                && (layout.needs_no_images()
                    || candidates.len() > 1 && layout.part(PartName::Transformer).is_none());
            match candidates.len() {
                _ if is_idle => {}
                0 => {}
                1 => layout.set(name, candidates.remove(0).1),
                several => bail!(
                    "{files}: {several} files could be the {name} ({})\nhint: say which with {} PATH",
                    candidates
                        .iter()
                        .map(|(path, _)| path.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                    name.flag()
                ),
            }
        }
        let is_there = |name| layout.part(name).is_some() || named.parts.contains(&name);
        if let Some(other) = others.first()
            && !PartName::ALL
                .into_iter()
                .any(|name| name.expert().is_some() && is_there(name))
        {
            // The whole repository is another model's.
            bail!("{other}");
        }
        ensure!(
            PartName::ALL.into_iter().any(is_there),
            "{files}: there is no {MODEL_INDEX}, and no part of a Wan model in \
             this folder{}; expected the layout of Wan-AI/Wan2.2-I2V-A14B or of its -Diffusers repository, ComfyUI's single \
             files, GGUF files, or a folder that wan-i2v convert or mlx-video wrote",
            if unknown.is_empty() && layout.passed_over.is_empty() {
                String::new()
            } else {
                unknown.extend(layout.passed_over);
                format!(" (looked into {})", unknown.join("; "))
            }
        );
        if !named.tokenizer {
            layout.tokenizer = match layout.part(PartName::TextEncoder) {
                Some(location) if holds_tokenizer(&TensorStore::open(location)?) => {
                    Some(TokenizerAt::InTextEncoder)
                }
                _ => choose(files, tokenizers)?,
            };
        }
        Ok(layout)
    }

    /// What a folder has besides weights: no part, but a tokenizer and settings.
    pub fn beside(root: &Files) -> Self {
        let places = ["tokenizer", "google/umt5-xxl", "."];
        Self {
            tokenizer: places
                .iter()
                .find_map(|place| tokenizer_in(&root.sub(place))),
            root: Some(root.clone()),
            ..Self::default()
        }
    }

    /// Which part a file seems to be by its path alone.
    pub fn part_of(path: &str) -> Option<PartName> {
        let lower = path.to_lowercase();
        let says = |word: &str| lower.contains(word);
        if says("vae") {
            Some(PartName::Vae)
        } else if says("image_encoder") || says("clip") {
            Some(PartName::ImageEncoder)
        } else if says("t5") || says("text_encoder") {
            Some(PartName::TextEncoder)
        } else {
            expert_of(path)
        }
    }

    /// A tokenizer named by the user: a file, or a folder with one.
    ///
    /// # Errors
    /// When it is not there.
    pub fn tokenizer_at(path: &Path) -> Result<TokenizerAt> {
        if path.is_dir() {
            return tokenizer_in(&Files::from(path)).with_context(|| {
                format!(
                    "{}: no tokenizer in this folder; expected {}",
                    path.shown(),
                    TOKENIZER_FILES.join(" or ")
                )
            });
        }
        ensure!(
            path.is_file(),
            "{}: no such file or folder{}",
            path.shown(),
            did_you_mean_path(path)
        );
        let (files, name) = Files::holding(path);
        Ok(TokenizerAt::File(files, name))
    }
}

/// Whether a part can be what it seems to be: its kind, its dimensions, and that every tensor is there.
fn judge(location: &Location, name: PartName) -> Result<()> {
    let part = Part::open(location, name.kind())?;
    part.check(&PartConfig::of(&part, name)?.specs()?)
}

/// Whether a transformer's files have tensors that attend to features of pictures.
fn takes_features(location: &Location) -> bool {
    TensorStore::open(location).is_ok_and(|store| {
        let marks = [".cross_attn.k_img.", ".attn2.add_k_proj."];
        let mut names = store.entries().keys();
        names.any(|name| marks.iter().any(|mark| name.contains(mark)))
    })
}

/// Whether a transformer can be one of two: those of Wan2.2 A14B differ in nothing from those that are
/// alone.
fn may_be_expert(config: &PartConfig) -> Result<bool> {
    let PartConfig::Expert(config) = config else {
        return Ok(false);
    };
    let conditioning = Conditioning::of(config)?;
    // TI2V-5B has 48 channels.
    let is_14b = config.out_channels < 48;
    Ok(is_14b && matches!(conditioning, Conditioning::Channels | Conditioning::Text))
}

/// Of a folder with several models leaves the one of which both experts are there, and the VAE that is its
/// own; returns the paths of the others' files. Where that does not tell them apart, all stay.
fn of_one_model(found: &mut [Vec<(String, Location)>; 6]) -> Vec<String> {
    let config = |location: &Location, name: PartName| {
        let part = Part::open(location, name.kind()).ok()?;
        PartConfig::of(&part, name).ok()
    };
    let kind = |location: &Location, name| match config(location, name)? {
        PartConfig::Expert(config) => Some((Conditioning::of(&config).ok()?, config.out_channels)),
        _ => None,
    };
    let mut others = Vec::new();
    let mut keep = |candidates: &mut Vec<(String, Location)>,
                    wanted: &dyn Fn(&Location) -> bool| {
        if candidates.iter().any(|(_, location)| wanted(location)) {
            let (kept, rest) = std::mem::take(candidates)
                .into_iter()
                .partition(|(_, location)| wanted(location));
            *candidates = kept;
            others.extend(Vec::into_iter(rest).map(|(path, _)| path));
        }
    };
    let experts = [PartName::HighNoise, PartName::LowNoise];
    if experts.iter().any(|name| found[*name as usize].len() > 1) {
        let of = |name: PartName| {
            let kinds = found[name as usize].iter();
            let mut kinds: Vec<_> = kinds.filter_map(|(_, at)| kind(at, name)).collect();
            kinds.dedup();
            kinds
        };
        let [high, low] = experts.map(of);
        let mut both: Vec<_> = high.into_iter().filter(|kind| low.contains(kind)).collect();
        both.dedup();
        if let [model] = *both.as_slice() {
            for name in experts {
                keep(&mut found[name as usize], &|at| {
                    kind(at, name) == Some(model)
                });
            }
        }
    }
    if found[PartName::Vae as usize].len() > 1 {
        let transformers = [
            PartName::HighNoise,
            PartName::LowNoise,
            PartName::Transformer,
        ];
        let first = transformers.into_iter().find_map(|name| {
            let (_, location) = found[name as usize].first()?;
            kind(location, name)
        });
        if let Some((_, channels)) = first {
            let fits = |location: &Location| match config(location, PartName::Vae) {
                Some(PartConfig::Vae(vae)) => vae.z_dim == channels,
                _ => false,
            };
            keep(&mut found[PartName::Vae as usize], &fits);
        }
    }
    others
}

/// Whether a text encoder's file holds its tokenizer too.
pub fn holds_tokenizer(store: &TensorStore) -> bool {
    spiece_entry(store).is_some() || store.metadata().contains_key("tokenizer.ggml.model")
}

/// The SentencePiece model inside a text encoder's file, as ComfyUI stores it.
pub fn spiece_entry(store: &TensorStore) -> Option<&super::store::Entry> {
    store
        .entries()
        .iter()
        .find(|(name, _)| name.rsplit('.').next() == Some("spiece_model"))
        .map(|(_, entry)| entry)
}

fn tokenizer_in(files: &Files) -> Option<TokenizerAt> {
    let name = TOKENIZER_FILES.into_iter().find(|name| files.has(name))?;
    Some(TokenizerAt::File(files.clone(), name.to_owned()))
}

/// The tokenizer of a model among those in its folders, given with their paths.
///
/// Any other model's may lie there too, and would be taken in silence: ids are only numbers.
fn choose(files: &Files, tokenizers: Vec<(String, TokenizerAt)>) -> Result<Option<TokenizerAt>> {
    let rank = |path: &str| match path {
        "" => 0,
        "tokenizer/" => 1,
        _ if path.to_lowercase().contains("umt5") => 2,
        _ => 3,
    };
    let best = tokenizers.iter().map(|(path, _)| rank(path)).min();
    let mut candidates: Vec<_> = tokenizers
        .into_iter()
        .filter(|(path, _)| Some(rank(path)) == best)
        .collect();
    ensure!(
        candidates.len() < 2,
        "{files}: {} files could be the tokenizer ({})\nhint: say which with --tokenizer PATH",
        candidates.len(),
        candidates
            .iter()
            .map(|(path, tokenizer)| match tokenizer {
                TokenizerAt::File(_, name) => format!("{path}{name}"),
                TokenizerAt::InTextEncoder => path.clone(),
            })
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(candidates.pop().map(|(_, tokenizer)| tokenizer))
}

/// Which expert a path names; the last of its words that does decides.
pub(crate) fn expert_of(path: &str) -> Option<PartName> {
    for (depth, component) in path.rsplit('/').enumerate() {
        match (says(component, "high"), says(component, "low")) {
            (true, false) => return Some(PartName::HighNoise),
            (false, true) => return Some(PartName::LowNoise),
            (true, true) => continue,
            (false, false) => {}
        }
        match (
            short(component, depth == 0, 'h'),
            short(component, depth == 0, 'l'),
        ) {
            (true, false) => return Some(PartName::HighNoise),
            (false, true) => return Some(PartName::LowNoise),
            _ if component == "transformer" => return Some(PartName::HighNoise),
            _ if component == "transformer_2" => return Some(PartName::LowNoise),
            _ => {}
        }
    }
    None
}

/// Whether one of a name's words is short for high or low: `hn`, `hne`, and in a file's own name
/// `h`, or a type that ends so: `FP8H`.
fn short(name: &str, is_file: bool, letter: char) -> bool {
    let lower = name.to_ascii_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| {
        let Some((at, _)) = word.char_indices().last().filter(|(_, c)| *c == letter) else {
            let rest = word.strip_prefix(letter);
            return rest.is_some_and(|rest| rest == "n" || rest == "ne");
        };
        let before = &word[..at];
        let of_type = ["fp8", "fp16", "bf16", "q4", "q5", "q6", "q8"];
        is_file && (before.is_empty() || of_type.iter().any(|end| before.ends_with(end)))
    })
}

/// Whether one of a name's words starts with `word`, which is in lower case. Words start after
/// what is no letter and at a capital (`I2VHighNoise`); so `flow` and `yellow` are not low.
fn says(name: &str, word: &str) -> bool {
    /// What begins like it and says something else.
    const OTHERS: [&str; 4] = ["res", "vram", "mem", "quality"];
    let bytes = name.as_bytes();
    let is = |at: usize, what: fn(&u8) -> bool| bytes.get(at).is_some_and(what);
    let lower = name.to_ascii_lowercase();
    lower.match_indices(word).any(|(at, _)| {
        let after = lower[at + word.len()..].trim_start_matches(['-', '_']);
        if OTHERS.iter().any(|other| after.starts_with(other)) {
            return false;
        }
        let before = |what| at.checked_sub(1).is_some_and(|before| is(before, what));
        let next_is_small = is(at + 1, u8::is_ascii_lowercase);
        let capital =
            is(at, u8::is_ascii_uppercase) && (next_is_small || before(u8::is_ascii_lowercase));
        let after_model = lower[..at].ends_with("i2v");
        capital || after_model || !before(u8::is_ascii_alphabetic)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published names: of Comfy-Org, Kijai, QuantStack, lightx2v, Draw Things, Civitai.
    #[test]
    fn experts_are_told_by_their_names() {
        use PartName::{HighNoise, LowNoise};
        for (name, expected) in [
            (
                "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
                Some(HighNoise),
            ),
            (
                "Wan2_2-I2V-A14B-LOW_fp8_e5m2_scaled_KJ.safetensors",
                Some(LowNoise),
            ),
            ("Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf", Some(HighNoise)),
            ("wan22I2VLowNoise_fp8.safetensors", Some(LowNoise)),
            ("smoothMixWan22I2VT2V_i2vHigh.safetensors", Some(HighNoise)),
            (
                "DasiwaWAN22I2V14BTastysinV8_q8Low.safetensors",
                Some(LowNoise),
            ),
            (
                "wan22EnhancedCamera_FASTMOVEV2FP8H.safetensors",
                Some(HighNoise),
            ),
            (
                "wan22EnhancedCamera_FASTMOVEV2FP8L.safetensors",
                Some(LowNoise),
            ),
            ("wan_v2.2_a14b_hne_i2v_bf16.safetensors", Some(HighNoise)),
            ("wan_v2.2_a14b_lne_i2v_bf16.safetensors", Some(LowNoise)),
            ("WAN22_I2VHIGH.safetensors", Some(HighNoise)),
            ("WAN22_I2VLOW.safetensors", Some(LowNoise)),
            ("wan2.2-i2v-a14b-h.safetensors", Some(HighNoise)),
            ("wan2.2-i2v-a14b-l.safetensors", Some(LowNoise)),
            ("Wan2.2_I2V_hn_bf16.safetensors", Some(HighNoise)),
            ("Wan2.2_I2V_ln_bf16.safetensors", Some(LowNoise)),
            ("Remix-i2v-lownoise_v20.safetensors", Some(LowNoise)),
            ("wan2.2_i2v_highres_low.safetensors", Some(LowNoise)),
            ("wan2.2_i2v_lowvram_high.safetensors", Some(HighNoise)),
            ("wan2.2_i2v_high_low_merge.safetensors", None),
            ("yellow/follow-slow.safetensors", None),
            ("WORKFLOW.safetensors", None),
            ("h/model.safetensors", None),
            ("transformer/model.safetensors", Some(HighNoise)),
            ("transformer_2/model.safetensors", Some(LowNoise)),
        ] {
            assert_eq!(expert_of(name), expected, "{name}");
        }
    }
}
