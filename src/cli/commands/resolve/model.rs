//! The model that the command line names: a path, or a repository of the hub, which is fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::clip::Model;
use crate::hub::pull::{self, Heads};
use crate::hub::{Hub, RepoId, is_address};
use crate::util::suggest::did_you_mean_path;
use crate::weights::adapter::{Source, Wanted};
use crate::weights::convert::Bits;
use crate::weights::{Family, Loading, Sources, quantize};
use anyhow::{Context, Result, bail};

use super::catalogue;
use super::fetch::fetch;
use crate::cli::config::{Catalogue, CatalogueEntry, CataloguePlace, CatalogueSource};
use crate::cli::flags::{LoraArgs, ModelArgs};
use crate::cli::ui::{confirm, human_bytes, info};
use crate::util::quote::quoted;
use crate::util::show::Show;

/// Where a model is.
pub(crate) enum Place {
    /// On this machine's disk: a path, or the folder in the hub's cache.
    Here(PathBuf),
    /// On the hub, and not or not whole in its cache.
    Hub(Box<Hub>, RepoId),
}

/// Finds a model; `what` is the flag or argument that names it.
///
/// # Errors
/// When it is neither a path nor the name of a repository.
pub(crate) fn find(source: &Path, what: &str) -> Result<Place> {
    if source.exists() {
        return Ok(Place::Here(source.to_owned()));
    }
    let address = source.to_str().filter(|text| is_address(text));
    let address = address.map(str::parse).transpose();
    let Some(repo) = address
        .with_context(|| what.to_owned())?
        .or_else(|| repository(source))
    else {
        bail!("{}{}", nowhere(source, what), did_you_mean_path(source));
    };
    let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
    Ok(match hub.cached(&repo) {
        Some(folder) => Place::Here(folder),
        None => Place::Hub(Box::new(hub), repo),
    })
}

/// The beginning of an error about a model that is not on the disk.
pub(crate) fn nowhere(source: &Path, what: &str) -> String {
    format!("{what} {}: no such file or folder", source.shown())
}

/// Finds the models that a command names. Of one that is on the hub alone nothing is fetched unasked.
#[derive(Debug, Default)]
pub(crate) struct Models {
    heads_only: bool,
    /// Of a model of the catalogue that is not here not even the heads are wanted: its dimensions are known.
    pub(crate) by_dimensions: bool,
    /// And the tokenizer, for prompts to be counted.
    pub(crate) with_tokenizer: bool,
    /// The user has agreed to whatever takes long.
    pub(crate) yes: bool,
    /// The heads of those on the hub, which go when this does.
    heads: Vec<(PathBuf, Heads)>,
    /// What can be had by a short name.
    catalogue: Catalogue,
}

impl Models {
    /// With `heads_only` nothing else is fetched: the model is described, not used.
    pub(crate) fn new(heads_only: bool, catalogue: &Catalogue) -> Self {
        Self {
            heads_only,
            catalogue: catalogue.clone(),
            ..Self::default()
        }
    }

    /// The model and the bits that it is loaded with.
    ///
    /// # Errors
    /// When it cannot be had, or is to be fetched and nobody agrees.
    pub(crate) fn resolve(&mut self, mut args: ModelArgs) -> Result<(Model, Loading)> {
        let (lora, merges) = (std::mem::take(&mut args.lora), args.lora_merge);
        let wanted = args.bits.options(0).high.map(Bits::number);
        let (mut model, mut loading) = args.named()?;
        if self.by_dimensions
            && let Some(found) = self.published(&model, wanted)?
        {
            let (family, bits) = found;
            if wanted.is_none() {
                loading = bits.map(Loading::all).unwrap_or_default();
            }
            self.load_with(&mut loading, &lora)?;
            return Ok((Model::Published(family), loading));
        }
        if let Model::Disk(sources) = &mut model
            && let Some(source) = sources.model.clone()
        {
            let name = source.to_str().filter(|_| !source.exists());
            let entry = name.and_then(|name| Some((name, self.catalogue.get(name)?.clone())));
            match entry {
                Some((name, entry)) => {
                    let found = self.of_catalogue(name, &entry, wanted)?;
                    sources.model = found.sources.model;
                    let tokenizer = sources.tokenizer.take();
                    sources.tokenizer = tokenizer.or(found.sources.tokenizer);
                    for (own, found) in sources.parts.iter_mut().zip(found.sources.parts) {
                        *own = own.take().or(found);
                    }
                    // What fits stays as it is.
                    if wanted.is_none() {
                        (loading.high, loading.low) = (found.quantized, found.quantized);
                    }
                    loading.adapters = found.adapters;
                }
                None => {
                    let found = self.local(&source);
                    // A name without a slash can only be meant as one of these.
                    let name = name.filter(|name| !name.contains(['/', '\\']));
                    let meant = name.map(|name| self.catalogue.suggest(name));
                    sources.model = Some(found.map_err(|error| match meant {
                        Some(meant) if !meant.is_empty() => {
                            anyhow::anyhow!("{}{meant}", crate::util::show::chain(&error))
                        }
                        _ => error,
                    })?);
                }
            }
        }
        self.load_with(&mut loading, &lora)?;
        loading.merges = merges;
        Ok((model, loading))
    }

    /// What a model of the catalogue is that is named alone and not here.
    fn published(
        &self,
        model: &Model,
        wanted: Option<u32>,
    ) -> Result<Option<(&'static Family, Option<quantize::Scheme>)>> {
        let Model::Disk(sources) = model else {
            return Ok(None);
        };
        let alone = sources.parts.iter().all(Option::is_none);
        let named = sources
            .model
            .as_deref()
            .filter(|path| alone && !path.exists());
        let Some((name, entry)) = named
            .and_then(Path::to_str)
            .and_then(|name| Some((name, self.catalogue.get(name)?)))
        else {
            return Ok(None);
        };
        let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
        let source = catalogue::choose_here(name, entry, wanted, &hub)?;
        let is_away = !catalogue::is_here(&hub, source);
        match is_away {
            true => Ok(Some((
                entry.family,
                catalogue::planned_here(entry, source)?.held_as,
            ))),
            false => Ok(None),
        }
    }

    /// A model of the catalogue, in the form for `wanted` bits; of one that is not here the heads or, once
    /// somebody agrees, all of it.
    fn of_catalogue(
        &mut self,
        name: &str,
        entry: &CatalogueEntry,
        wanted: Option<u32>,
    ) -> Result<OfCatalogue> {
        let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
        let source = catalogue::choose_here(name, entry, wanted, &hub)?;
        let found = match (self.heads_only, &source.place) {
            (true, CataloguePlace::Repository(repo, _)) => catalogue::Fetched {
                sources: Sources::folder(self.local(Path::new(repo))?),
                adapters: Vec::new(),
            },
            (true, CataloguePlace::Files { .. }) if !catalogue::is_here(&hub, source) => {
                self.heads_of(name, source, &hub)?
            }
            _ => catalogue::fetched(name, "--model", entry, source, &hub, self.yes)?,
        };
        Ok(OfCatalogue {
            sources: found.sources,
            adapters: found.adapters,
            quantized: catalogue::planned_here(entry, source)?.quantized,
        })
    }

    /// The heads of a model's files.
    fn heads_of(
        &mut self,
        name: &str,
        source: &CatalogueSource,
        hub: &Hub,
    ) -> Result<catalogue::Fetched> {
        let mut folders: BTreeMap<String, PathBuf> = BTreeMap::new();
        for file in source.files() {
            if folders.contains_key(&file.repo) {
                continue;
            }
            let of_it = source.files().filter(|other| other.repo == file.repo);
            let paths: Vec<String> = of_it.map(|other| other.path.clone()).collect();
            let repo: RepoId = file.repo.parse()?;
            let heads = Heads::fetch(hub, &repo, &paths);
            let heads = heads.with_context(|| format!("--model {name}: {repo}"))?;
            folders.insert(file.repo.clone(), heads.folder().to_owned());
            self.heads.push((PathBuf::from(&file.repo), heads));
        }
        info!(
            "{name}: not on this machine; read the heads of its files ({} to fetch)",
            human_bytes(source.bytes())
        );
        catalogue::placed(source, |file| {
            let folder = folders.get(&file.repo);
            folder.map(|folder| folder.join(&file.path))
        })
    }

    /// Adds adapters to what a model is loaded with.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub(crate) fn load_with(&mut self, loading: &mut Loading, lora: &LoraArgs) -> Result<()> {
        for (flag, expert, named) in lora.named() {
            loading.adapters.push(Wanted {
                source: Source::Disk(self.adapter(flag, &named.source)?),
                strength: named.strength,
                expert,
            });
        }
        Ok(())
    }

    /// An adapter's path on this machine.
    fn adapter(&mut self, flag: &str, source: &Path) -> Result<PathBuf> {
        if source.exists() {
            return Ok(source.to_owned());
        }
        let Some((repo, file)) = hub_file(source) else {
            bail!("{}{}", nowhere(source, flag), did_you_mean_path(source));
        };
        let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
        if let Some(path) = hub.cached_file(&repo, &file) {
            return Ok(path);
        }
        let files = [file.clone()];
        let and_the_hub = || format!("{}, and the hub", nowhere(source, flag));
        let folder = self.fetched(&hub, &repo, flag, source, &files, &and_the_hub)?;
        Ok(folder.join(file))
    }

    /// What can be had by a short name.
    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Whether all that is here of a model is its heads.
    pub(crate) fn has_heads(&self) -> bool {
        !self.heads.is_empty()
    }

    fn local(&mut self, source: &Path) -> Result<PathBuf> {
        if let Some((_, heads)) = self.heads.iter().find(|(known, _)| known == source) {
            return Ok(heads.folder().to_owned());
        }
        let (hub, repo) = match find(source, "--model")? {
            Place::Here(path) => return Ok(path),
            Place::Hub(hub, repo) => (hub, repo),
        };
        let and_the_hub = || format!("{}, and the hub", nowhere(source, "--model"));
        self.fetched(&hub, &repo, "--model", source, &[], &and_the_hub)
    }

    /// Fetches what a flag names of a repository: these files, or what a model needs.
    fn fetched(
        &mut self,
        hub: &Hub,
        repo: &RepoId,
        flag: &str,
        source: &Path,
        files: &[String],
        and_the_hub: &dyn Fn() -> String,
    ) -> Result<PathBuf> {
        if self.heads_only {
            let heads = Heads::fetch(hub, repo, files).with_context(and_the_hub)?;
            info!(
                "{repo}: not on this machine; read the heads of {} files of {} ({})",
                heads.selection.files.len(),
                human_bytes(heads.selection.bytes()),
                human_bytes(heads.fetched)
            );
            let folder = heads.folder().to_owned();
            if self.with_tokenizer && files.is_empty() {
                let (listing, selection) = pull::select(hub, repo, files)?;
                let is_tokenizer = |path: &str| {
                    ["tokenizer.json", "spiece.model"]
                        .iter()
                        .any(|name| path.ends_with(name))
                };
                for file in selection
                    .files
                    .iter()
                    .filter(|file| is_tokenizer(&file.path))
                {
                    hub.fetch_to(repo, &listing.commit, file, &folder, &mut |_| ())?;
                }
            }
            self.heads.push((source.to_owned(), heads));
            return Ok(folder);
        }
        let (listing, selection) = pull::select(hub, repo, files).with_context(and_the_hub)?;
        let there = hub.fetched_bytes(repo, &listing.commit, &selection);
        let missing = human_bytes(selection.bytes().saturating_sub(there));
        if !self.yes {
            confirm(
                &format!(
                    "{flag} {}: not on this machine; {missing} are to be fetched from the hub",
                    source.shown()
                ),
                &format!(
                    "{} fetches it, or --yes has a run fetch it",
                    command_line(repo, files)
                ),
            )?;
        }
        fetch(hub, repo, &listing, &selection).with_context(and_the_hub)
    }
}

/// A model of the catalogue.
struct OfCatalogue {
    sources: Sources,
    adapters: Vec<Wanted>,
    /// What the transformers are quantized to where they do not fit as they are.
    quantized: Option<quantize::Scheme>,
}

/// What fetches files of a repository.
fn command_line(repo: &RepoId, files: &[String]) -> String {
    let files: String = files
        .iter()
        .map(|file| format!(" {}", quoted(file)))
        .collect();
    format!("wan-i2v pull {repo}{files}")
}

/// A file of the hub: `owner/name/file`, or `owner/name:file`.
fn hub_file(source: &Path) -> Option<(RepoId, String)> {
    let text = source.to_str()?;
    if text.starts_with(['.', '/', '~']) || text.ends_with('/') {
        return None;
    }
    let (repo, file) = match text.split_once(':') {
        Some(parts) => parts,
        None => {
            let slash = text.match_indices('/').nth(1)?.0;
            (&text[..slash], &text[slash + 1..])
        }
    };
    let is_plain = |part: &str| !part.is_empty() && part != ".." && part != ".";
    let is_inside = file.split('/').all(is_plain);
    (is_inside && repo.matches('/').count() == 1).then_some(())?;
    Some((repo.parse().ok()?, file.to_owned()))
}

/// The path of a model on this machine: itself, or the folder in the hub's cache.
///
/// # Errors
/// When it is not here.
pub(crate) fn local(source: &Path, what: &str) -> Result<PathBuf> {
    match find(source, what)? {
        Place::Here(path) => Ok(path),
        Place::Hub(_, repo) => bail!(
            "{}, and not in the hub's cache\nhint: if it is on the hub, wan-i2v pull {repo} fetches it",
            nowhere(source, what)
        ),
    }
}

/// A text that can only be a repository: `owner/name`, not the path of something in a folder.
fn repository(source: &Path) -> Option<RepoId> {
    let text = source.to_str()?;
    let is_path = text.starts_with(['.', '/', '~']) || text.ends_with('/');
    // A revision may have more of them: refs/pr/1.
    let id = text.split('@').next().unwrap_or_default();
    if is_path || id.matches('/').count() != 1 {
        return None;
    }
    text.parse().ok()
}

/// Fetches a repository into the shared cache and returns its folder there.
///
/// # Errors
/// As [`pull::select`] and [`pull::fetch`].
pub(crate) fn pull(hub: &Hub, repo: &RepoId, files: &[String]) -> Result<PathBuf> {
    let (listing, selection) = pull::select(hub, repo, files)?;
    fetch(hub, repo, &listing, &selection)
}
