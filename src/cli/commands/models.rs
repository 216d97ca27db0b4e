//! `wan-i2v models`: what can be had by a short name, and what it costs here.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;

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
        let device = self.machine.device()?;
        let budget = self.machine.budget(device);
        let rates = Rates::of_machine(device, false)?;
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
                let rates = Some(&rates);
                let planned = plan_published(family, bits, sides, &options, device, budget, rates);
                let planned = planned.context("a published model")?;
                Ok(Cost {
                    size,
                    peak_bytes: planned.forecast.peak_bytes,
                    fits: planned.fits,
                    seconds: planned.forecast.seconds,
                })
            };
            SIZES.into_iter().map(of).collect::<Result<Vec<_>>>()
        };
        let heading = ["", "to fetch", "480p", "", "720p", ""];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let mut abouts = Vec::new();
        let mut records = Vec::new();
        for (name, entry) in wanted {
            let licence = Some(&entry.licence).filter(|licence| !licence.is_empty());
            let licence = licence.map_or(String::new(), |licence| format!(", {licence}"));
            let about = format!("{name}: {} ({}{licence})", entry.about, entry.family.name);
            abouts.push((rows.len(), about));
            let mut sources = Vec::new();
            for source in &entry.sources {
                let there = catalogue::is_here(&hub, source);
                let costs = costs(name, entry, source)?;
                let fetch = match there {
                    true => "here".to_owned(),
                    false => human_bytes(source.bytes()),
                };
                let mut row = vec![format!("  --bits {} {}", source.bits, source.form), fetch];
                row.extend(costs.iter().flat_map(Cost::cells));
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
                text.push_str(about);
                text.push('\n');
            }
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(
            "\nMemory and time of a model's own clip on this machine; in brackets what does not fit.\n\
             wan-i2v pull NAME fetches a model, --model NAME makes clips with it.\n",
        );
        print(&text)
    }
}

impl Cost {
    /// Memory and time.
    fn cells(&self) -> [String; 2] {
        let memory = human_bytes(self.peak_bytes);
        match (self.fits, self.seconds) {
            (false, _) => [format!("({memory})"), String::new()],
            (true, seconds) => [memory, seconds.map_or("?".into(), human_time)],
        }
    }
}
