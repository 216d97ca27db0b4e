//! A report with pictures: one HTML page ([`html`]) or one sheet ([`sheet`]).

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::media::clip::check_file;
use crate::util::show::Show;
use crate::util::temporary;

mod chart;
mod charts;
mod html;
mod pictures;
mod player;
mod sheet;

pub(crate) use chart::{Chart, SIZE as CHART_SIZE};
pub use html::page as html;
pub use pictures::Pictures;
pub use player::Player;
pub use sheet::page as sheet;

/// Checks that an HTML page can be put at `path`, without leaving a trace.
///
/// # Errors
/// When its name does not end in `.html`, or nothing can be created there.
pub fn check(path: &Path) -> Result<()> {
    check_file(path, "a page", "html")
}

/// Writes a page or another text; it appears under its name when it is complete.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", path.shown());
    let mut file = temporary::file(path)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}
