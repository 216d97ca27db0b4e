//! `wan-i2v convert`: another form of a model.

use std::iter;
use std::path::PathBuf;

use crate::hub::check_hashes;
use crate::weights::Loading;
use crate::weights::convert::{self, Converted, LayerKind, LocalSource};
use crate::weights::layout::Layout;
use anyhow::{Context, Result};

use super::resolve::model::{self, Models};
use crate::cli::flags::ConvertArgs;
use crate::cli::ui::terminal::stderr_size;
use crate::cli::ui::{Transfer, columns_within, human_bytes, info, stderr};

impl ConvertArgs {
    /// Converts and prints the target's path.
    pub(crate) fn run(self) -> Result<PathBuf> {
        let source = model::local(&self.source, "SRC")?;
        let layout = Layout::of_path(&source, self.part).context("SRC")?;
        let mut loading = Loading::default();
        Models::default().load_with(&mut loading, &self.lora)?;
        let mut feed = LocalSource::new(&layout)?.with_adapters(&loading.adapters)?;
        for warning in feed.warnings() {
            stderr::warning(warning);
        }
        // Every byte is read anyway, and nothing is converted that was not published.
        check_hashes(&layout, &mut |file, bytes| {
            info!("verifying {file} ({})", human_bytes(bytes));
        })?;
        let mut transfer = Transfer::default();
        let converted = convert::convert(
            &mut feed,
            &self.target,
            &self.bits.options(self.shard_size),
            &mut |event| transfer.show(&event),
        )?;
        transfer.finish();
        report(&converted);
        Ok(self.target)
    }
}

/// The kinds of layers with what they were given.
fn layers(converted: &Converted) -> String {
    let heading = ["part", "layer", "bits", "layers x bits", "error"].map(str::to_owned);
    let row = |kind: &LayerKind| {
        let given = kind.bits.iter();
        let given: Vec<String> = given
            .map(|(bits, layers)| format!("{layers} x {bits}"))
            .collect();
        vec![
            kind.part.flag().trim_start_matches('-').to_owned(),
            kind.name.clone(),
            format!("{:.1}", kind.mean_bits()),
            given.join(", "),
            format!("{:.2}%", 100.0 * kind.relative_error),
        ]
    };
    let rows: Vec<Vec<String>> = iter::once(heading.to_vec())
        .chain(converted.layers.iter().map(row))
        .collect();
    let (width, _) = stderr_size();
    columns_within(Some(width), &rows, |column| [2, 4].contains(&column))
}

/// Reports what a conversion has made.
pub(crate) fn report(converted: &Converted) {
    for (part, error) in &converted.parts {
        info!(
            "{part}: largest relative error of a tensor {:.3}%",
            100.0 * error
        );
    }
    if !converted.layers.is_empty() {
        info!("bits by kind of layer:\n{}", layers(converted).trim_end());
    }
    info!("{} written and read back", human_bytes(converted.bytes));
}
