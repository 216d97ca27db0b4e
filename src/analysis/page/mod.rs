//! A report with pictures: one HTML page ([`html`]) or one sheet ([`sheet`]).

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::media::clip::temporary_file;

mod chart;
mod charts;
mod html;
mod pictures;
mod sheet;

pub(crate) use chart::{Chart, SIZE as CHART_SIZE, failed, font};
pub use html::page as html;
pub use pictures::Pictures;
pub use sheet::page as sheet;

/// Checks that an HTML page can be put at `path`, without leaving a trace.
///
/// # Errors
/// When its name does not end in `.html`, or nothing can be created there.
pub fn check(path: &Path) -> Result<()> {
    let extension = path.extension().and_then(OsStr::to_str);
    ensure!(
        extension.is_some_and(|e| e.eq_ignore_ascii_case("html")),
        "{}: a page is written there; end its name in .html",
        path.display()
    );
    ensure!(
        !path.is_dir(),
        "{}: is a folder; name a file in it",
        path.display()
    );
    temporary_file(path).map(drop)
}

/// Writes a page or another text; it appears under its name when it is complete.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = temporary_file(path)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}
