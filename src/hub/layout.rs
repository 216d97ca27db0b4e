//! Which files of a repository are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use super::RemoteFile;
use super::disk::size_text;
use super::sets::{Piece, is_index, one_set, whole};
use crate::util::files::is_litter;
use crate::weights::PartName;
use crate::weights::layout::Layout as PartFiles;
use crate::weights::store::may_hold_tensors;

/// How many files an error lists.
const MAX_LISTED: usize = 40;

/// Larger top-level JSON files are not settings.
const MAX_SETTINGS: u64 = 1 << 20;

/// What a tokenizer folder may hold of use.
const TOKENIZER: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
];

/// How a repository is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As published by Wan-AI: `high_noise_model/` and `low_noise_model/`, or one transformer in the root,
    /// and two or three `.pth`.
    Original,
    /// With a `model_index.json`.
    Diffusers,
    /// Converted for MLX: `high_noise_model*.safetensors` beside a `config.json`.
    Converted,
    /// Files that the user named.
    Named,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Original => "original",
            Layout::Diffusers => "diffusers",
            Layout::Converted => "converted for MLX",
            Layout::Named => "named files",
        })
    }
}

/// What to fetch of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// How it is laid out.
    pub layout: Layout,
    /// The files that are needed, sorted by path.
    pub files: Vec<RemoteFile>,
    /// Parts of a model that the layout has a place for and the repository does not hold.
    pub missing: Vec<String>,
    /// Bytes of the files that are not needed.
    pub skipped_bytes: u64,
}

impl Selection {
    /// Bytes of the files that are needed.
    pub fn bytes(&self) -> u64 {
        total(&self.files)
    }

    /// Which part each file with tensors is of.
    ///
    /// # Errors
    /// Names the file whose path does not tell.
    pub(super) fn parts(&self) -> Result<Vec<(PartName, &RemoteFile)>> {
        let weights = self
            .files
            .iter()
            .filter(|file| may_hold_tensors(&file.path));
        let named = |file: &'_ RemoteFile| {
            let in_root = !file.path.contains('/');
            let is_single = in_root && (is_model(&file.path) || is_transformer(&file.path));
            PartFiles::part_of(&file.path).or(is_single.then_some(PartName::Transformer))
        };
        let mut parts = weights
            .map(|file| {
                let part = named(file);
                let part =
                    part.with_context(|| format!("{}: which part of a model is this?", file.path))?;
                Ok((part, file))
            })
            .collect::<Result<Vec<_>>>()?;
        let has_low = parts.iter().any(|(part, _)| *part == PartName::LowNoise);
        if self.layout == Layout::Diffusers && !has_low {
            let high = parts
                .iter_mut()
                .filter(|(part, _)| *part == PartName::HighNoise);
            high.for_each(|(part, _)| *part = PartName::Transformer);
        }
        Ok(parts)
    }

    fn new(
        layout: Layout,
        all: &[RemoteFile],
        chosen: &BTreeSet<String>,
        missing: Vec<String>,
    ) -> Self {
        let files: Vec<RemoteFile> = all
            .iter()
            .filter(|file| chosen.contains(&file.path))
            .cloned()
            .collect();
        let skipped_bytes = total(all).saturating_sub(total(&files));
        Self {
            layout,
            files,
            missing,
            skipped_bytes,
        }
    }
}

fn total(files: &[RemoteFile]) -> u64 {
    files
        .iter()
        .fold(0, |sum: u64, file| sum.saturating_add(file.size))
}

/// The files that the repository's layout needs: of the diffusers layout one set of safetensors
/// a part, those that are no variant if there are such; of the original layout the two experts,
/// the two `.pth` and the tokenizer. No pictures, examples or duplicates in other formats.
///
/// # Errors
/// When a set of shards is not whole, when it is unclear which of several sets is meant, and when
/// the layout is none of ours: then the weights are listed for the user to choose from.
pub fn needed(files: &[RemoteFile]) -> Result<Selection> {
    let tree = Tree::new(files);
    let mut choice = Choice::default();
    let layout = if tree.has("model_index.json") {
        diffusers(&tree, &mut choice)?;
        Layout::Diffusers
    } else if ["high_noise_model/", "low_noise_model/"]
        .iter()
        .any(|folder| tree.has_weights(folder))
        || tree.has("config.json") && tree.names("").any(is_transformer)
    {
        original(&tree, &mut choice)?;
        Layout::Original
    } else if tree.has("config.json")
        && tree
            .names("")
            .any(|name| is_weights(name) && name.contains("_noise_model"))
        || tree.has("config.json")
            && tree.names("").any(is_model)
            && tree
                .names("")
                .any(|name| name.starts_with("vae") && is_weights(name))
    {
        converted(&tree, &mut choice)?;
        Layout::Converted
    } else {
        bail!(
            "the repository is laid out in no way that is known (original, diffusers, converted \
             for MLX): name the files that are wanted. {}",
            weights_list(files)
        );
    };
    Ok(Selection::new(layout, files, &choice.files, choice.missing))
}

/// The files with these paths, and all files of the folders among them.
///
/// # Errors
/// Names what is not there, with the nearest path that is.
pub fn named(files: &[RemoteFile], paths: &[String]) -> Result<Selection> {
    let mut chosen = BTreeSet::new();
    for path in paths {
        let folder = format!("{}/", path.trim_end_matches('/'));
        let matches = |file: &&RemoteFile| file.path == *path || file.path.starts_with(&folder);
        let before = chosen.len();
        chosen.extend(files.iter().filter(matches).map(|file| file.path.clone()));
        if chosen.len() == before && !files.iter().any(|file| matches(&file)) {
            let near = files
                .iter()
                .map(|file| (strsim::jaro_winkler(path, &file.path), &file.path))
                .max_by(|a, b| a.0.total_cmp(&b.0));
            match near {
                Some((_, near)) => bail!("the repository has no file {path:?} (nearest: {near})"),
                None => bail!("the repository has no file {path:?}: it is empty"),
            }
        }
    }
    ensure!(!chosen.is_empty(), "no files are named");
    Ok(Selection::new(Layout::Named, files, &chosen, Vec::new()))
}

fn weights_list(files: &[RemoteFile]) -> String {
    let ends = [".safetensors", ".gguf", ".pth", ".pt", ".bin", ".ckpt"];
    let weights: Vec<&RemoteFile> = files
        .iter()
        .filter(|file| ends.iter().any(|end| file.path.ends_with(end)))
        .collect();
    if weights.is_empty() {
        return "It holds no weights".to_owned();
    }
    let shown = weights.iter().take(MAX_LISTED);
    let mut list: String = shown
        .map(|file| format!("\n  {} ({})", file.path, size_text(file.size)))
        .collect();
    if weights.len() > MAX_LISTED {
        list.push_str(&format!("\n  and {} more", weights.len() - MAX_LISTED));
    }
    format!("It holds:{list}")
}

/// The files of a repository by folder.
pub(super) struct Tree<'a> {
    files: BTreeMap<&'a str, &'a RemoteFile>,
}

impl<'a> Tree<'a> {
    fn new(files: &'a [RemoteFile]) -> Self {
        let by_path = |file: &'a RemoteFile| (file.path.as_str(), file);
        // People upload what their system leaves in folders.
        let litter = |path: &str| path.split('/').any(is_litter);
        let files = files.iter().filter(|file| !litter(&file.path));
        Self {
            files: files.map(by_path).collect(),
        }
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// The names of the files right in `folder`, which ends in `/` or is the root.
    pub(super) fn names(&self, folder: &str) -> impl Iterator<Item = &'a str> {
        let names = self
            .files
            .keys()
            .filter_map(move |path| path.strip_prefix(folder));
        names.filter(|name| !name.contains('/'))
    }

    fn has_weights(&self, folder: &str) -> bool {
        self.names(folder).any(is_weights)
    }
}

/// Whether a file in the root is of the only transformer of an original repository.
fn is_transformer(name: &str) -> bool {
    name.starts_with("diffusion_pytorch_model") && is_weights(name)
}

/// Whether a file in the root is of the only transformer of a converted one.
fn is_model(name: &str) -> bool {
    name == "model.safetensors" || name.starts_with("model-") && is_weights(name)
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// What has been chosen so far.
#[derive(Default)]
struct Choice {
    files: BTreeSet<String>,
    missing: Vec<String>,
}

impl Choice {
    fn add(&mut self, folder: &str, name: &str) {
        self.files.insert(format!("{folder}{name}"));
    }

    /// Adds the first of `names` that is there; whether there is one.
    fn first(&mut self, tree: &Tree, names: &[&str]) -> bool {
        let found = names.iter().find(|name| tree.has(name));
        if let Some(name) = found {
            self.add("", name);
        }
        found.is_some()
    }

    fn tokenizer(&mut self, tree: &Tree, folder: &str) -> bool {
        let there = |name: &&&str| tree.has(&format!("{folder}{name}"));
        let found: Vec<_> = TOKENIZER.iter().filter(there).collect();
        for name in &found {
            self.add(folder, name);
        }
        found
            .iter()
            .any(|name| ["tokenizer.json", "spiece.model"].contains(*name))
    }

    /// The settings and one set of the weights of a part's folder.
    fn part(&mut self, tree: &Tree, folder: &str, stems: &[&str]) -> Result<()> {
        if !tree.has_weights(folder) {
            self.missing.push(folder.trim_end_matches('/').to_owned());
            return Ok(());
        }
        if tree.has(&format!("{folder}config.json")) {
            self.add(folder, "config.json");
        }
        for name in one_set(tree, folder, stems)? {
            self.add(folder, name);
        }
        Ok(())
    }
}

fn diffusers(tree: &Tree, choice: &mut Choice) -> Result<()> {
    settings(tree, choice);
    if tree.has("scheduler/scheduler_config.json") {
        choice.add("", "scheduler/scheduler_config.json");
    }
    let always = ["transformer/", "vae/", "text_encoder/"];
    // Not every model has a second transformer; and one with two needs no image encoder.
    let sometimes = ["transformer_2/", "image_encoder/"];
    let there = |folder: &&str| tree.names(folder).next().is_some();
    for folder in always.into_iter().chain(sometimes.into_iter().find(there)) {
        choice.part(tree, folder, &["diffusion_pytorch_model", "model"])?;
    }
    if !choice.tokenizer(tree, "tokenizer/") {
        choice.missing.push("tokenizer".to_owned());
    }
    Ok(())
}

fn original(tree: &Tree, choice: &mut Choice) -> Result<()> {
    let folders: &[&str] = match tree.names("").any(is_transformer) {
        true => &[""],
        false => &["high_noise_model/", "low_noise_model/"],
    };
    for folder in folders {
        choice.part(tree, folder, &["diffusion_pytorch_model", "model"])?;
    }
    const VAE: [&str; 4] = [
        "Wan2.1_VAE.pth",
        "Wan2.1_VAE.safetensors",
        "Wan2.2_VAE.pth",
        "Wan2.2_VAE.safetensors",
    ];
    const TEXT: [&str; 2] = [
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_t5_umt5-xxl-enc-bf16.safetensors",
    ];
    for names in [VAE.as_slice(), &TEXT] {
        if !choice.first(tree, names) {
            choice.missing.push(names[0].to_owned());
        }
    }
    // Of Wan2.1's models from pictures alone.
    choice.first(
        tree,
        &[
            "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
            "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors",
        ],
    );
    if !choice.tokenizer(tree, "google/umt5-xxl/") {
        choice.missing.push("google/umt5-xxl".to_owned());
    }
    Ok(())
}

/// All top-level weights: what they are called beside the experts differs between converters.
/// The tokenizer is often left to another repository, so its lack is no fault.
fn converted(tree: &Tree, choice: &mut Choice) -> Result<()> {
    settings(tree, choice);
    let names: Vec<&str> = tree.names("").filter(|name| is_weights(name)).collect();
    let pieces: Vec<Piece> = names.iter().filter_map(|name| Piece::parse(name)).collect();
    for (base, total) in pieces
        .iter()
        .filter_map(Piece::set)
        .collect::<BTreeSet<_>>()
    {
        whole("", &pieces, &base, total)?;
    }
    for name in names
        .iter()
        .copied()
        .chain(tree.names("").filter(|name| is_index(name)))
    {
        choice.add("", name);
    }
    let experts: &[&str] = match names.iter().any(|name| is_model(name)) {
        true => &["model"],
        false => &["high_noise_model", "low_noise_model"],
    };
    for part in experts.iter().copied().chain(["vae", "t5_encoder"]) {
        if !names.iter().any(|name| name.starts_with(part)) {
            choice.missing.push(part.to_owned());
        }
    }
    for folder in ["", "tokenizer/", "google/umt5-xxl/"] {
        choice.tokenizer(tree, folder);
    }
    Ok(())
}

/// The small JSON files beside the parts.
fn settings(tree: &Tree, choice: &mut Choice) {
    for name in tree.names("").filter(|name| name.ends_with(".json")) {
        if tree
            .files
            .get(name)
            .is_some_and(|file| file.size <= MAX_SETTINGS)
        {
            choice.add("", name);
        }
    }
}
