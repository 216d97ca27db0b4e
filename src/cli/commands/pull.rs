//! `wan-i2v pull`: a model from the hub.

use std::path::PathBuf;

use crate::hub::pull::{self, HubSource};
use crate::hub::{Hub, RepoId, free_disk};
use crate::weights::convert::{self as weights, Bits, Finished};
use anyhow::{Context, Result, ensure};

use super::convert;
use super::resolve::{catalogue, fetch, model};
use crate::cli::config::{Catalogue, CatalogueEntry};
use crate::cli::flags::PullArgs;
use crate::cli::ui::{Fetching, Transfer, human_bytes, info};
use crate::util::show::Show;

impl PullArgs {
    /// Fetches and prints the folder's path.
    pub(crate) fn run(self, catalogue: &Catalogue) -> Result<PathBuf> {
        let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
        let options = self.bits.options(self.shard_size);
        ensure!(
            options.size.is_none(),
            "--bits auto:GB measures each layer of a model that is here as a whole\nhint: pull it without --output, and \
             convert it then"
        );
        if let Some(entry) = catalogue.get(&self.id) {
            return self.of_catalogue(entry, &hub);
        }
        let repo = self.id.parse::<RepoId>();
        let repo = repo.with_context(|| {
            let meant = catalogue.suggest(&self.id);
            format!(
                "there is no model {}, and it is no hub id{meant}",
                self.id.as_str().shown()
            )
        })?;
        let Some(target) = self.output else {
            ensure!(
                options.high.or(options.low).or(options.text).is_none(),
                "--bits converts while pulling\nhint: say where to with --output DIR"
            );
            return model::pull(&hub, &repo, &self.files);
        };
        let finished = Finished::at(&target, &options).context("--output")?;
        let (listing, selection) = pull::select(&hub, &repo, &self.files)?;
        if let Some(finished) = finished {
            let source = HubSource::source(&repo, &listing.commit, &selection);
            finished.check(&source).context("--output")?;
            info!("{} is complete already", target.shown());
            return Ok(target);
        }
        for missing in &selection.missing {
            info!("note: {repo} has no {missing}");
        }
        let reserved = weights::Reserved::new(&target).context("--output")?;
        let folder = weights::source_folder(&target);
        let mut feed = HubSource::new(&hub, &repo, &listing.commit, &selection, &folder)?;
        let (needs, free) = (feed.disk_bytes(&options)?, free_disk(&target)?);
        let there = weights::unfinished_bytes(&target);
        info!(
            "{repo}: {} to fetch, {} not needed; takes about {} of disk, {} are free",
            human_bytes(selection.bytes()),
            human_bytes(selection.skipped_bytes),
            human_bytes(needs),
            human_bytes(free)
        );
        ensure!(
            needs <= free.saturating_add(there),
            "--output {}: about {} are needed there and {} are free\nhint: make room or choose another \
             disk",
            target.shown(),
            human_bytes(needs),
            human_bytes(free)
        );
        let _fetching = Fetching::start(fetch::this_command())?;
        let mut transfer = Transfer::of_pull();
        let converted = weights::convert_into(reserved, &mut feed, &options, &mut |event| {
            transfer.show(&event);
        })?;
        transfer.finish();
        convert::report(&converted);
        Ok(target)
    }

    /// Fetches a model of the catalogue and returns the folder of the cache.
    fn of_catalogue(&self, entry: &CatalogueEntry, hub: &Hub) -> Result<PathBuf> {
        let name = &self.id;
        ensure!(
            self.output.is_none() && self.files.is_empty(),
            "pull {name}: a model of the catalogue goes to the hub's cache as it is\nhint: convert its \
             parts with wan-i2v convert afterwards"
        );
        let bits = self.bits.options(0).high.map(Bits::number);
        let source = catalogue::choose_here(name, entry, bits, hub)?;
        catalogue::fetched(name, "pull", entry, source, hub, self.yes)?;
        info!("{name} is here: wan-i2v --model {name} makes clips with it");
        Ok(hub.config().cache.clone())
    }
}
