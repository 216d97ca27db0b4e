//! `wan-i2v convert`: another form of a model.

use std::path::PathBuf;

use crate::hub::check_hashes;
use crate::weights::Loading;
use crate::weights::convert::{self, Converted, LocalSource};
use crate::weights::layout::Layout;
use anyhow::{Context, Result};

use super::resolve::model::{self, Models};
use crate::cli::flags::ConvertArgs;
use crate::cli::ui::{Transfer, human_bytes, info, stderr};

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

/// Reports what a conversion has made.
pub(crate) fn report(converted: &Converted) {
    for (part, error) in &converted.parts {
        info!(
            "{part}: largest relative error of a tensor {:.3}%",
            100.0 * error
        );
    }
    info!("{} written and read back", human_bytes(converted.bytes));
}
