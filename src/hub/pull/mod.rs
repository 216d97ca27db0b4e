//! Models from the hub: whole into the shared cache, or converted file by file on their way.

mod archive;
mod heads;
mod index;
mod source;
mod sparse;

pub use heads::Heads;
pub use source::HubSource;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::hub::{
    Hub, Layout, Listing, RemoteFile, RepoId, Selection, free_disk, named, needed, size_text,
};
use crate::util::show::Show;
use crate::weights::config::PartConfig;
use crate::weights::{self, Extras, Files, PartName};

/// What a download tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many bytes will be fetched or are there already; not told when all are there.
    Total(u64),
    /// So many bytes of the next file are there already.
    There(u64),
    /// A file is on its way.
    File(&'a str),
    /// So many further bytes are there.
    Done(u64),
}

/// The files of a repository that a model needs, or those that were named.
///
/// # Errors
/// When the hub cannot be asked, or it is unclear what is needed.
pub fn select(hub: &Hub, repo: &RepoId, paths: &[String]) -> Result<(Listing, Selection)> {
    let listing = hub.list(repo)?;
    let selection = match paths {
        [] => needed(&listing.files),
        paths => named(&listing.files, paths),
    }
    .with_context(|| repo.to_string())?;
    Ok((listing, selection))
}

/// Refuses a model whose settings in `folder` say that this program cannot run it.
fn judge(folder: &Path) -> Result<()> {
    let root = Files::from(folder);
    let all = weights::layout::Layout::beside(&root);
    Extras::boundary_of(&all)?;
    for (name, places) in [
        (PartName::HighNoise, ["transformer", "high_noise_model"]),
        (PartName::LowNoise, ["transformer_2", "low_noise_model"]),
    ] {
        for place in places {
            PartConfig::given(&root.sub(place), name)?;
        }
    }
    Ok(())
}

/// Fetches the selected files into the shared cache and returns the folder of the snapshot.
///
/// # Errors
/// When the disk has no room for them, or one cannot be fetched; what came is kept.
pub fn fetch(
    hub: &Hub,
    repo: &RepoId,
    commit: &str,
    selection: &Selection,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf> {
    let cache = &hub.config().cache;
    let have = hub.fetched_bytes(repo, commit, selection);
    let (missing, free) = (selection.bytes().saturating_sub(have), free_disk(cache)?);
    ensure!(
        missing <= free,
        "{repo}: {} are to be fetched, but {} has room for {} only\nhint: make room, or name another \
         place with HF_HUB_CACHE",
        size_text(missing),
        cache.shown(),
        size_text(free)
    );
    if have < selection.bytes() {
        on_progress(Progress::Total(selection.bytes()));
    }
    let mut folder: Option<PathBuf> = None;
    let mut judged = selection.layout == Layout::Named;
    // First what says which model it is: of another one nothing more is fetched.
    let is_weights = |file: &&RemoteFile| !file.path.ends_with(".json");
    let (weights, settings): (Vec<_>, Vec<_>) = selection.files.iter().partition(is_weights);
    for file in settings.into_iter().chain(weights) {
        if is_weights(&file) && !judged {
            let here = folder.as_deref().map(judge).transpose();
            here.with_context(|| repo.to_string())?;
            judged = true;
        }
        let mut before = hub.fetched(repo, commit, file);
        on_progress(Progress::There(before));
        if before < file.size {
            on_progress(Progress::File(&file.path));
        }
        let path = hub.fetch(repo, commit, file, &mut |there| {
            on_progress(Progress::Done(there.saturating_sub(before)));
            before = before.max(there);
        })?;
        // Up from the file to the snapshot: one step for each part of its path.
        let steps = file.path.split('/').count();
        folder = path.ancestors().nth(steps).map(PathBuf::from);
    }
    folder.with_context(|| format!("{repo}: no file was selected"))
}
