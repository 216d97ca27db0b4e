//! Files of the hub on their way into its cache.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::ui::{Fetching, Transfer, human_bytes, info};
use crate::hub::pull::{self, Progress};
use crate::hub::{Hub, Listing, RepoId, Selection};
use crate::util::quote::quoted;

/// The command line as it was given, for a shell.
pub(crate) fn this_command() -> String {
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    let words: Vec<String> = ["wan-i2v".to_owned()].into_iter().chain(words).collect();
    words.join(" ")
}

/// Fetches a repository's files and shows how far it is.
///
/// # Errors
/// As [`pull::fetch`].
pub(super) fn fetch(
    hub: &Hub,
    repo: &RepoId,
    listing: &Listing,
    selection: &Selection,
) -> Result<PathBuf> {
    for missing in &selection.missing {
        info!("note: {repo} has no {missing}");
    }
    let there = hub.fetched_bytes(repo, &listing.commit, selection);
    info!(
        "{repo}: {} in {} files ({}), {} of it there already; {} not needed",
        human_bytes(selection.bytes()),
        selection.files.len(),
        selection.layout,
        human_bytes(there),
        human_bytes(selection.skipped_bytes)
    );
    let _fetching = Fetching::start(this_command())?;
    let mut transfer = Transfer::default();
    let folder = pull::fetch(
        hub,
        repo,
        &listing.commit,
        selection,
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
