//! `wan-i2v models`: what can be had by a short name, and what it costs here.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;

use super::place::Place;
use super::presets::sampling;
use super::resolve::catalogue;
use crate::cli::config::{Catalogue, CatalogueEntry, CatalogueSource, Presets};
use crate::cli::flags::ModelsArgs;
use crate::cli::ui::{columns, human_bytes, human_time, print, print_json};
use crate::hub::Hub;
use crate::pipeline::plan::{Rates, plan_published};

/// Sizes that memory and time are told for.
const SIZES: [(&str, [u32; 2]); 2] = [("480p", [832, 480]), ("720p", [1280, 704])];

/// What a model's own clip costs here.
#[derive(Debug, Serialize)]
struct Cost {
    size: &'static str,
    /// Bytes at the peak, within the budget where that is possible.
    peak_bytes: u64,
    fits: bool,
    seconds: Option<f64>,
}

impl ModelsArgs {
    /// Prints them.
    pub(crate) fn run(self, all: &Catalogue, presets: &Presets) -> Result<()> {
        let place = Place::of(&self.machine, self.mac)?;
        let Place { device, budget, .. } = place;
        // Of a machine that is not here nothing can be measured.
        let rates = match place.mac {
            Some(_) => None,
            None => Some(Rates::of_machine(device, false)?),
        };
        let hub = Hub::from_env(crate::cli::ui::stderr::warning)?;
        let wanted: Vec<_> = match &self.name {
            Some(name) => {
                let Some(entry) = all.get(name) else {
                    bail!("{name}: there is no such model{}", all.suggest(name));
                };
                vec![(name, entry)]
            }
            None => all.0.iter().collect(),
        };
        let costs = |name: &str, entry: &CatalogueEntry, source: &CatalogueSource| {
            let options = presets.of_name(name).map(sampling).unwrap_or_default();
            let of = |(size, sides)| {
                let (family, bits) = (entry.family, source.bits);
                let rates = rates.as_ref();
                let planned = plan_published(family, bits, sides, &options, device, budget, rates);
                let planned = planned.context("a published model")?.memory;
                Ok(Cost {
                    size,
                    peak_bytes: planned.forecast.peak_bytes,
                    fits: planned.fits,
                    seconds: planned.forecast.seconds,
                })
            };
            SIZES.into_iter().map(of).collect::<Result<Vec<_>>>()
        };
        let timed = rates.is_some();
        let mut rows = vec![vec![String::new(), "to fetch".to_owned()]];
        for (size, _) in SIZES {
            rows[0].push(size.to_owned());
            rows[0].extend(timed.then(String::new));
        }
        let mut abouts = Vec::new();
        let mut records = Vec::new();
        for (name, entry) in wanted {
            let licence = Some(&entry.licence).filter(|licence| !licence.is_empty());
            let licence = licence.map_or(String::new(), |licence| format!(", {licence}"));
            let from = owners(entry).join(", ");
            let model = entry.family.name;
            let about = format!("{name}: {}\n  {model}{licence}; from {from}", entry.about);
            abouts.push((rows.len(), about));
            let mut sources = Vec::new();
            for source in &entry.sources {
                let there = catalogue::is_here(&hub, source);
                let costs = costs(name, entry, source)?;
                let fetch = match there {
                    true => "here".to_owned(),
                    false => human_bytes(source.bytes()),
                };
                let form = Some(&source.form).filter(|form| !form.is_empty());
                let form = form.map_or(String::new(), |form| format!(", {form}"));
                let mut row = vec![format!("  {:>2} bits{form}", source.bits), fetch];
                row.extend(costs.iter().flat_map(|cost| cost.cells(timed)));
                rows.push(row);
                sources.push(json!({
                    "bits": source.bits,
                    "form": source.form,
                    "bytes": source.bytes(),
                    "here": there,
                    "costs": costs,
                }));
            }
            records.push(json!({
                "name": name,
                "about": entry.about,
                "model": entry.family.name,
                "licence": entry.licence,
                "from": owners(entry),
                "sources": sources,
            }));
        }
        if self.json {
            return print_json(&records);
        }
        let table = columns(&rows, |column| column > 0);
        let mut text = String::new();
        for (number, line) in table.lines().enumerate() {
            for (_, about) in abouts.iter().filter(|(row, _)| *row == number) {
                text += &format!("\n{about}\n");
            }
            text += line.trim_end();
            text.push('\n');
        }
        let (what, place) = match place.mac {
            Some(memory) => ("Memory", format!("a Mac with {memory} GB")),
            None => ("Memory and time", "this machine".to_owned()),
        };
        text += &format!(
            "\n{what} of a model's own clip on {place}; in brackets what does not\nfit. wan-i2v pull NAME \
             fetches a model, --model NAME makes clips with it, and\n--bits N chooses the form of both.\n"
        );
        print(&text)
    }
}

impl Cost {
    /// Memory, and time where it is told.
    fn cells(&self, timed: bool) -> Vec<String> {
        let memory = human_bytes(self.peak_bytes);
        let (memory, time) = match (self.fits, self.seconds) {
            (false, _) => (format!("({memory})"), String::new()),
            (true, seconds) => (memory, seconds.map_or("?".into(), human_time)),
        };
        [memory].into_iter().chain(timed.then_some(time)).collect()
    }
}

/// Whose repositories a model's files are in.
fn owners(entry: &CatalogueEntry) -> Vec<&str> {
    let mut owners = Vec::new();
    for repo in entry.sources.iter().flat_map(CatalogueSource::repositories) {
        let owner = repo.split('/').next().unwrap_or(repo);
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    owners
}
