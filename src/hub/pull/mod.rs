//! Models from the hub: whole into the shared cache, or converted file by file on their way.

mod archive;
mod heads;
mod index;
mod source;
mod sparse;

pub use heads::Heads;
pub use source::HubSource;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::hub::{Hub, Listing, RepoId, Selection, free_disk, named, needed, size_text};
use crate::util::show::Show;

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
    let mut folder = None;
    for file in &selection.files {
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
