//! What is left on disk of how a batch went.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::util::files::{MAX_REPORT, is_json, read_small};
use crate::util::show::Show;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::util::temporary;

/// The version of what a report says; a new one means that something was removed or changed its
/// meaning.
const SCHEMA: u32 = 1;
/// Its name in the batch's folder.
const NAME: &str = "wan-batch.json";

/// A batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of what this says.
    pub schema: u32,
    /// The program's.
    pub version: String,
    /// The file of the jobs.
    pub jobs: PathBuf,
    /// Whether the batch has come to its end.
    pub complete: bool,
    /// Seconds that it took so far.
    pub seconds: f64,
    /// Its clips, in the order of the jobs.
    pub clips: Vec<ClipReport>,
}

/// How a clip stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was there before.
    There,
    /// It was made.
    Made,
    /// It cannot be made.
    Failed,
    /// It is not made yet.
    Pending,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Status::There => "there",
            Status::Made => "made",
            Status::Failed => "failed",
            Status::Pending => "pending",
        })
    }
}

/// A clip; of a job that cannot be read, what is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipReport {
    /// Where the job is written.
    pub place: String,
    /// The job's name.
    pub name: Option<String>,
    /// The seed.
    pub seed: Option<u64>,
    /// The clip, in the report's folder.
    pub output: Option<PathBuf>,
    /// How it stands.
    pub status: Status,
    /// Why it cannot be made.
    pub error: Option<String>,
    /// Seconds that it took by itself.
    pub seconds: Option<f64>,
    /// Tells what it was made from.
    pub digest: Option<String>,
    /// The size of its file.
    pub bytes: Option<u64>,
}

impl Report {
    /// One of a batch that begins.
    pub fn new(jobs: &Path, clips: Vec<ClipReport>) -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            jobs: jobs.to_owned(),
            complete: false,
            seconds: 0.0,
            clips,
        }
    }

    /// Where it is.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(NAME)
    }

    /// That of an earlier batch in the folder, if there is one that can be read.
    pub fn read(folder: &Path) -> Option<Self> {
        let report: Self =
            serde_json::from_slice(&read_small(&Self::path(folder), MAX_REPORT).ok()?).ok()?;
        (report.schema == SCHEMA).then_some(report)
    }

    /// Makes sure that no other file is in the report's place, and removes what a killed batch has left
    /// of one.
    ///
    /// # Errors
    /// When something else has its name.
    pub fn claim(folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let is_report = |report: &Value| report["clips"].is_array();
        ensure!(
            !path.exists() || is_json(&path, MAX_REPORT, is_report),
            "{}: no batch has made this, and it would be replaced\nhint: move it away, or choose another \
             --output-dir",
            path.shown()
        );
        temporary::remove_stale(&path);
        Ok(())
    }

    /// Clips that stand so.
    pub fn count(&self, status: Status) -> usize {
        let clips = self.clips.iter();
        clips.filter(|clip| clip.status == status).count()
    }

    /// Puts it into the folder, where there is always a whole one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let put = || -> Result<()> {
            let mut file = temporary::file(&path)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.write_all(b"\n")?;
            file.persist(&path)?;
            Ok(())
        };
        put().with_context(|| format!("cannot write {}", path.shown()))
    }
}
