//! Models of the catalogue: which of their forms is taken, and their files fetched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::fetch::fetch;
use crate::cli::config::{
    Catalogue, CatalogueEntry, CatalogueFile, CataloguePlace, CatalogueSource,
};
use crate::cli::ui::{confirm, human_bytes, info};
use crate::clip::Options;
use crate::hub::{Hub, RepoId, free_disk, pull};
use crate::pipeline::plan::{Budget, PlannedModel, plan_published};
use crate::runtime::Device;
use crate::util::show::Show;
use crate::weights::Sources;
use crate::weights::adapter::{Source as AdapterSource, Wanted};

/// The clip that a form is chosen for where nobody says how many bits.
const SIZE: [u32; 2] = [832, 480];

/// Models that a machine without any is told of, the better one first.
const SUGGESTED: [&str; 2] = ["a14b-lightning", "5b"];

/// A model of the catalogue on this machine.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) sources: Sources,
    pub(crate) adapters: Vec<Wanted>,
}

/// Whether all files of a form are in the hub's cache.
pub(crate) fn is_here(hub: &Hub, source: &CatalogueSource) -> bool {
    match &source.place {
        CataloguePlace::Repository(repo, _) => {
            let repo = repo.parse::<RepoId>();
            repo.is_ok_and(|repo| hub.cached(&repo).is_some())
        }
        CataloguePlace::Files { .. } => source.files().all(|file| path_of(hub, file).is_some()),
    }
}

fn path_of(hub: &Hub, file: &CatalogueFile) -> Option<PathBuf> {
    hub.cached_file(&file.repo.parse().ok()?, &file.path)
}

/// The form of a model for so many bits; without a wish one that is here, or else the one with the most
/// bits up to 8 that fits into `budget`.
///
/// # Errors
/// When there is none of so many bits.
fn choose<'a>(
    name: &str,
    entry: &'a CatalogueEntry,
    bits: Option<u32>,
    hub: &Hub,
    device: Device,
    budget: Budget,
) -> Result<&'a CatalogueSource> {
    let sources = &entry.sources;
    if let Some(bits) = bits {
        // What has more bits can be quantized while it is loaded; the smallest such download does.
        let enough = sources.iter().rev().find(|source| source.bits >= bits);
        return enough.with_context(|| {
            format!(
                "--model {name}: it cannot be had with {bits} bits; expected at most {}",
                sources[0].bits
            )
        });
    }
    let modest = || sources.iter().filter(|source| source.bits <= 8);
    if let Some(here) = modest().find(|source| is_here(hub, source)) {
        return Ok(here);
    }
    for source in modest() {
        if fits_here(entry, source, device, budget)?.memory.fits {
            return Ok(source);
        }
    }
    Ok(sources.last().unwrap_or(&sources[0]))
}

/// As [`choose`], for this machine.
///
/// # Errors
/// As there.
pub(crate) fn choose_here<'a>(
    name: &str,
    entry: &'a CatalogueEntry,
    bits: Option<u32>,
    hub: &Hub,
) -> Result<&'a CatalogueSource> {
    let device = Device::select(None, None)?;
    choose(name, entry, bits, hub, device, Budget::of_machine(device))
}

/// A form's clip at 480p on this machine.
///
/// # Errors
/// Never of the published dimensions.
pub(crate) fn planned_here(
    entry: &CatalogueEntry,
    source: &CatalogueSource,
) -> Result<PlannedModel> {
    let device = Device::select(None, None)?;
    fits_here(entry, source, device, Budget::of_machine(device))
}

/// A form's clip at 480p on a machine.
fn fits_here(
    entry: &CatalogueEntry,
    source: &CatalogueSource,
    device: Device,
    budget: Budget,
) -> Result<PlannedModel> {
    let own = Options::default();
    plan_published(entry.family, source.bits, SIZE, &own, device, budget, None)
}

/// The model that suits a machine which has none, and what it costs, in two lines; nothing where none fits.
///
/// # Errors
/// Never of the published dimensions.
pub(crate) fn suits(
    catalogue: &Catalogue,
    device: Device,
    budget: Budget,
) -> Result<Option<String>> {
    for name in SUGGESTED {
        let Some(entry) = catalogue.get(name) else {
            continue;
        };
        for source in entry.sources.iter().filter(|source| source.bits <= 8) {
            let planned = fits_here(entry, source, device, budget)?.memory;
            if planned.fits {
                return Ok(Some(format!(
                    "{name} suits this machine: {}; {} to fetch, {} of memory at 480p\n\
                     wan-i2v pull {name} --bits {} fetches it; wan-i2v models lists others",
                    entry.about,
                    human_bytes(source.bytes()),
                    human_bytes(planned.forecast.peak_bytes),
                    source.bits
                )));
            }
        }
    }
    Ok(None)
}

/// Fetches what is not here yet, after asking.
///
/// # Errors
/// When nobody agrees, the disk has no room, or the hub has not what the catalogue names.
pub(crate) fn fetched(
    name: &str,
    flag: &str,
    entry: &CatalogueEntry,
    source: &CatalogueSource,
    hub: &Hub,
    yes: bool,
) -> Result<Fetched> {
    if let CataloguePlace::Repository(repo, _) = &source.place {
        let repo: RepoId = repo.parse()?;
        let folder = match hub.cached(&repo) {
            Some(folder) => folder,
            None => {
                agree(name, flag, entry, source, source.bytes(), hub, yes)?;
                let (listing, selection) = pull::select(hub, &repo, &[])?;
                fetch(hub, &repo, &listing, &selection)?
            }
        };
        return Ok(Fetched {
            sources: Sources::folder(folder),
            adapters: Vec::new(),
        });
    }
    let missing = || source.files().filter(|file| path_of(hub, file).is_none());
    let bytes: f64 = missing().map(|file| file.gb * 1e9).sum();
    if missing().next().is_some() {
        agree(name, flag, entry, source, bytes as u64, hub, yes)?;
        let mut by_repo: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for file in missing() {
            let files = by_repo.entry(&file.repo).or_default();
            if !files.contains(&file.path) {
                files.push(file.path.clone());
            }
        }
        for (repo, files) in by_repo {
            let repo: RepoId = repo.parse()?;
            let (listing, selection) = pull::select(hub, &repo, &files)?;
            fetch(hub, &repo, &listing, &selection)?;
        }
    }
    placed(source, |file| path_of(hub, file))
}

/// A form whose files are where `path` says.
///
/// # Errors
/// When one is nowhere.
pub(super) fn placed(
    source: &CatalogueSource,
    path: impl Fn(&CatalogueFile) -> Option<PathBuf>,
) -> Result<Fetched> {
    let path = |file: &CatalogueFile| {
        let found = path(file);
        found.with_context(|| format!("{} of {} is not there", file.path.shown(), file.repo))
    };
    let mut sources = Sources::default();
    let mut wanted = Vec::new();
    if let CataloguePlace::Files {
        parts,
        tokenizer,
        adapters,
    } = &source.place
    {
        sources.tokenizer = tokenizer.as_ref().map(path).transpose()?;
        for (part, file) in parts {
            sources.parts[*part as usize] = Some(path(file)?);
        }
        for (expert, file) in adapters {
            wanted.push(Wanted {
                source: AdapterSource::Disk(path(file)?),
                strength: 1.0,
                expert: *expert,
            });
        }
    }
    Ok(Fetched {
        sources,
        adapters: wanted,
    })
}

/// Says what is to be fetched, and asks.
fn agree(
    name: &str,
    flag: &str,
    entry: &CatalogueEntry,
    source: &CatalogueSource,
    bytes: u64,
    hub: &Hub,
    yes: bool,
) -> Result<()> {
    let cache = &hub.config().cache;
    let free = free_disk(cache)?;
    ensure!(
        bytes <= free,
        "{flag} {name}: {} are to be fetched, but {} has room for {} only\nhint: make room, name another \
         place with HF_HUB_CACHE, or take fewer bits with --bits",
        human_bytes(bytes),
        cache.shown(),
        human_bytes(free)
    );
    let form = Some(&source.form).filter(|form| !form.is_empty());
    let what = format!(
        "{flag} {name}: {}{} is not on this machine; {} are to be fetched into {}, which has {} free",
        entry.family.name,
        form.map_or(String::new(), |form| format!(" ({form})")),
        human_bytes(bytes),
        cache.shown(),
        human_bytes(free)
    );
    match yes {
        true => info!("{what}"),
        false => confirm(
            &what,
            &format!("wan-i2v pull {name} --yes fetches it, or add --yes to this command"),
        )?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DeviceKind, mac_budget};

    #[test]
    fn the_model_that_suits_a_mac_follows_its_memory() {
        let catalogue = Catalogue::new(serde_json::Map::new(), "").unwrap();
        let gpu = Device::new(DeviceKind::Gpu, None);
        let of = |memory| {
            let budget = Budget {
                bytes: mac_budget(memory),
                explicit: false,
            };
            suits(&catalogue, gpu, budget).unwrap()
        };
        let least = of(8);
        assert!(least.is_none_or(|text| text.starts_with("5b ")));
        for (memory, bits) in [(16, 4), (32, 8), (128, 8)] {
            let text = of(memory).unwrap();
            assert!(text.starts_with("a14b-lightning "), "{memory}: {text}");
            assert!(text.contains(&format!("--bits {bits}")), "{memory}: {text}");
            assert!(text.lines().all(|line| line.len() <= 120), "{text}");
            assert_eq!(text.lines().count(), 2);
        }
    }

    #[test]
    fn the_smallest_form_with_enough_bits_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::hub::Config {
            offline: true,
            ..crate::hub::Config::new(folder.path().to_owned())
        };
        let hub = Hub::new(config).unwrap();
        let catalogue = Catalogue::new(serde_json::Map::new(), "").unwrap();
        let entry = catalogue.get("a14b").unwrap();
        let gpu = Device::new(DeviceKind::Gpu, None);
        let of = |bits, memory| {
            let budget = Budget {
                bytes: mac_budget(memory),
                explicit: false,
            };
            choose("a14b", entry, bits, &hub, gpu, budget).unwrap().bits
        };
        assert_eq!([16, 8, 4].map(|bits| of(Some(bits), 16)), [16, 8, 4]);
        // Without a wish what fits, and never more than 8.
        assert_eq!([16, 32, 128].map(|memory| of(None, memory)), [4, 8, 8]);
        let lightning = catalogue.get("a14b-lightning").unwrap();
        let budget = Budget {
            bytes: mac_budget(128),
            explicit: false,
        };
        let error = choose("x", lightning, Some(16), &hub, gpu, budget).unwrap_err();
        assert!(error.to_string().contains("16 bits"), "{error}");
    }
}
