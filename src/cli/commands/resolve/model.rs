//! The model that the command line names: a path, or a repository of the hub, which is fetched.

use std::path::{Path, PathBuf};

use crate::clip::Model;
use crate::hub::pull::{self, Progress};
use crate::hub::{Hub, RepoId, is_address};
use crate::util::suggest::did_you_mean_path;
use crate::weights::{LoadBits, Sources};
use anyhow::{Context, Result, bail};

use crate::cli::flags::ModelArgs;
use crate::cli::ui::{Transfer, human_bytes, info};
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

/// The model and the bits that it is loaded with, fetched if it is the hub's.
///
/// # Errors
/// When it cannot be had.
pub(crate) fn resolve(args: ModelArgs) -> Result<(Model, LoadBits)> {
    let (mut model, bits) = args.named()?;
    if let Model::Disk(Sources {
        model: Some(source),
        ..
    }) = &mut model
    {
        *source = local(source, "--model")?;
    }
    Ok((model, bits))
}

/// The path of a model: itself when it is there, or the folder in the hub's cache, fetched first
/// when that is not whole.
///
/// # Errors
/// When there is no such thing, or it cannot be fetched.
pub(crate) fn local(source: &Path, what: &str) -> Result<PathBuf> {
    match find(source, what)? {
        Place::Here(path) => Ok(path),
        Place::Hub(hub, repo) => pull(&hub, &repo, &[])
            .with_context(|| format!("{}, and the hub", nowhere(source, what))),
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
    for missing in &selection.missing {
        info!("note: {repo} has no {missing}");
    }
    let there = hub.fetched_bytes(repo, &listing.commit, &selection);
    info!(
        "{repo}: {} in {} files ({}), {} of it there already; {} not needed",
        human_bytes(selection.bytes()),
        selection.files.len(),
        selection.layout,
        human_bytes(there),
        human_bytes(selection.skipped_bytes)
    );
    let mut transfer = Transfer::default();
    let folder = pull::fetch(
        hub,
        repo,
        &listing.commit,
        &selection,
        &mut |progress| match progress {
            Progress::Total(bytes) => transfer.start("fetching", bytes),
            Progress::There(bytes) => transfer.skip(bytes),
            Progress::File(path) => transfer.detail(path),
            Progress::Done(bytes) => transfer.advance(bytes),
        },
    )?;
    transfer.finish();
    Ok(folder)
}
