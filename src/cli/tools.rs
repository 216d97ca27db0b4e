//! The commands around a model's files: what it is, and another form of it.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::hub::pull::{self, Heads, HubSource};
use crate::hub::{Hub, RepoId, free_disk};
use crate::tiny;
use crate::weights::convert::{self, Event, Finished, LocalSource, Options};
use crate::weights::inspect::Report;
use crate::weights::layout::Layout;
use crate::weights::{Files, LoadBits, PartName};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use super::display::{Transfer, columns, human_bytes, human_count, print};
use super::layers::ConfigArgs;
use super::source::{self, Place};
use super::stderr::say;

/// Says what a model or a part of one is: layout, dimensions, storage, what is missing.
///
/// Of a model on the hub that has not been pulled, just the heads of its files are fetched.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model's folder, a part's folder or file, a hub id (owner/name) or `tiny`
    #[arg(value_name = "PATH|ID")]
    source: PathBuf,

    /// Files or folders of a repository on the hub, instead of what a known layout needs
    #[arg(value_name = "FILE")]
    files: Vec<String>,

    /// What SOURCE is, when its path does not say which expert it is
    #[arg(long, value_enum)]
    part: Option<PartArg>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Converts a model, or one part of it, to this program's layout, quantized if wanted.
///
/// The result appears under its name when it is complete and has been read back; an interrupted
/// conversion goes on where it stopped.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A model's folder, or a part's folder or file
    #[arg(value_name = "SRC")]
    source: PathBuf,

    /// The folder to create
    #[arg(value_name = "DST")]
    target: PathBuf,

    #[command(flatten)]
    bits: BitsArgs,

    /// What SRC is, when its path does not say which expert it is
    #[arg(long, value_enum)]
    part: Option<PartArg>,

    /// The most gigabytes of one file; 0 for one file per part, which mlx-video needs
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    shard_size: f64,

    #[command(flatten)]
    config: ConfigArgs,
}

/// Bits per weight of the linear layers inside the blocks.
#[derive(Debug, Args)]
pub struct BitsArgs {
    /// Bits per weight of experts and text encoder: 4 or 8 are quantized, 16 is bfloat16
    /// [default: what the source has, 16 at most]
    #[arg(long, value_enum, value_name = "4|8|16", hide_possible_values = true)]
    bits: Option<BitsArg>,

    /// Bits of the high-noise expert [default: --bits]
    #[arg(
        long,
        value_enum,
        value_name = "4|8|16",
        hide_possible_values = true,
        hide_short_help = true
    )]
    high_bits: Option<BitsArg>,

    /// Bits of the low-noise expert [default: --bits]
    #[arg(
        long,
        value_enum,
        value_name = "4|8|16",
        hide_possible_values = true,
        hide_short_help = true
    )]
    low_bits: Option<BitsArg>,

    /// Bits of the text encoder [default: --bits]
    #[arg(
        long,
        value_enum,
        value_name = "4|8|16",
        hide_possible_values = true,
        hide_short_help = true
    )]
    text_bits: Option<BitsArg>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BitsArg {
    #[value(name = "4")]
    Four,
    #[value(name = "8")]
    Eight,
    #[value(name = "16")]
    Sixteen,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PartArg {
    High,
    Low,
    Vae,
    TextEncoder,
}

impl From<PartArg> for PartName {
    fn from(part: PartArg) -> Self {
        match part {
            PartArg::High => PartName::HighNoise,
            PartArg::Low => PartName::LowNoise,
            PartArg::Vae => PartName::Vae,
            PartArg::TextEncoder => PartName::TextEncoder,
        }
    }
}

impl From<BitsArg> for convert::Bits {
    fn from(bits: BitsArg) -> Self {
        match bits {
            BitsArg::Four => Self::Four,
            BitsArg::Eight => Self::Eight,
            BitsArg::Sixteen => Self::Sixteen,
        }
    }
}

impl BitsArgs {
    /// For a conversion into files of `file_bytes`.
    pub fn options(&self, file_bytes: u64) -> Options {
        let bits = |own: Option<BitsArg>| own.or(self.bits).map(Into::into);
        Options {
            high: bits(self.high_bits),
            low: bits(self.low_bits),
            text: bits(self.text_bits),
            file_bytes,
        }
    }

    /// For loading.
    pub fn quantized(&self) -> LoadBits {
        let options = self.options(0);
        let bits = |bits: Option<convert::Bits>| bits.and_then(convert::Bits::quantized);
        LoadBits {
            high: bits(options.high),
            low: bits(options.low),
            text: bits(options.text),
        }
    }
}

impl InspectArgs {
    /// Prints what the source is. True when this program can run it.
    pub fn run(self) -> Result<bool> {
        let report = self.report()?;
        let text = if self.json {
            serde_json::to_string_pretty(&report)? + "\n"
        } else {
            table(&report)
        };
        print(&text)?;
        Ok(report.runs)
    }
}

impl InspectArgs {
    fn report(&self) -> Result<Report> {
        let part = self.part.map(Into::into);
        if self.source.as_os_str() == "tiny" {
            let layout = Layout::of_folder(&Files::embedded_root(tiny::FILES))?;
            return Ok(Report::of(&layout));
        }
        let (hub, repo) = match source::find(&self.source, "PATH")? {
            Place::Here(path) if self.files.is_empty() => {
                return Ok(Report::of(&Layout::of_path(&path, part)?));
            }
            Place::Here(_) => (Box::new(Hub::from_env()?), self.repository()?),
            Place::Hub(hub, repo) => (hub, repo),
        };
        let heads = Heads::fetch(&hub, &repo, &self.files)
            .with_context(|| format!("{}, and the hub", source::nowhere(&self.source, "PATH")))?;
        say!(
            "{repo}: read the heads of {} files of {} ({})",
            heads.selection.files.len(),
            human_bytes(heads.selection.bytes()),
            human_bytes(heads.fetched)
        );
        heads.report(part)
    }

    /// The repository whose files are named.
    fn repository(&self) -> Result<RepoId> {
        let text = self.source.to_string_lossy();
        ensure!(
            !self.source.exists(),
            "{text} is on the disk: name the file itself, {text}/{}",
            self.files.join(" ")
        );
        text.parse()
    }
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut rows = vec![vec![
        "part".to_owned(),
        "layout".into(),
        "stored as".into(),
        "parameters".into(),
        "size".into(),
        "files".into(),
        "dimensions".into(),
    ]];
    for part in &report.parts {
        rows.push(vec![
            part.part.to_string(),
            part.layout.clone(),
            part.storage(),
            human_count(part.parameters),
            human_bytes(part.bytes),
            part.files.to_string(),
            part.dimensions(),
        ]);
    }
    let mut text = columns(&rows, |_| false);
    let _ = writeln!(
        text,
        "tokenizer: {}; boundary {}; {} parameters, {}",
        report.tokenizer.as_deref().unwrap_or("none"),
        report.boundary,
        human_count(report.parameters),
        human_bytes(report.bytes)
    );
    for problem in &report.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    let _ = writeln!(
        text,
        "{}",
        if report.runs {
            "wan-i2v can run this model"
        } else {
            "wan-i2v cannot make clips with this alone"
        }
    );
    text
}

impl ConvertArgs {
    /// Converts and prints the target's path.
    pub fn run(self) -> Result<PathBuf> {
        let source = source::local(&self.source, "SRC")?;
        let layout = Layout::of_path(&source, self.part.map(Into::into)).context("SRC")?;
        let mut feed = LocalSource::new(&layout)?;
        let mut transfer = Transfer::default();
        let converted = convert::convert(
            &mut feed,
            &self.target,
            &self.bits.options(file_bytes(self.shard_size)?),
            &mut |event| transfer.show(&event),
        )?;
        transfer.finish();
        summary(&converted);
        Ok(self.target)
    }
}

/// Says what a conversion has made.
pub fn summary(converted: &convert::Converted) {
    for (part, error) in &converted.parts {
        say!(
            "{part}: largest relative error of a tensor {:.3}%",
            100.0 * error
        );
    }
    say!("{} written and read back", human_bytes(converted.bytes));
}

impl Transfer {
    /// Shows what a conversion tells. Where the files are fetched, their arrival is what counts.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Resumed => say!("going on where the last run stopped"),
            Event::Total(bytes) => {
                let what = if self.fetches {
                    "pulling"
                } else {
                    "converting"
                };
                self.start(what, *bytes);
            }
            Event::Fetching(path, bytes) => {
                self.detail(&format!("fetching {path} ({})", human_bytes(*bytes)));
            }
            Event::Fetched(bytes) => self.advance(*bytes),
            Event::File(part, _) if self.fetches => self.detail(&format!("converting the {part}")),
            Event::File(part, path) => self.detail(&format!("{part}: {path}")),
            Event::Skipped(bytes) => self.skip(*bytes),
            Event::Read(_) | Event::Known(_) if self.fetches => {}
            Event::Read(bytes) => self.advance(*bytes),
            Event::Known(bytes) => self.skip(*bytes),
            Event::Verifying(bytes) => {
                self.fetches = false;
                self.start("verifying", *bytes);
            }
        }
    }
}

/// Fetches a model from the Hugging Face hub: what it needs and no more.
///
/// Without --output the files land in the cache that all of the hub's programs share (HF_HOME,
/// HF_HUB_CACHE), and --model ID finds them there. With --output each file is converted as it
/// arrives and let go, so that the disk never holds more than the result and one file. An
/// interrupted pull goes on where it stopped.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// owner/name or owner/name@revision
    #[arg(value_name = "ID")]
    id: String,

    /// Files or folders of the repository, instead of what a known layout needs
    #[arg(value_name = "FILE")]
    files: Vec<String>,

    /// Convert into this folder while pulling
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    #[command(flatten)]
    bits: BitsArgs,

    /// The most gigabytes of one converted file; 0 for no limit. Files of the source are never
    /// joined
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    shard_size: f64,

    #[command(flatten)]
    config: ConfigArgs,
}

impl PullArgs {
    /// Fetches and prints the folder's path.
    pub fn run(self) -> Result<PathBuf> {
        let repo: RepoId = self.id.parse()?;
        let hub = Hub::from_env()?;
        let options = self.bits.options(file_bytes(self.shard_size)?);
        let Some(target) = self.output else {
            ensure!(
                options.high.or(options.low).or(options.text).is_none(),
                "--bits converts while pulling; say where to with --output DIR"
            );
            return source::pull(&hub, &repo, &self.files);
        };
        let finished = Finished::at(&target, &options).context("--output")?;
        let (listing, selection) = pull::select(&hub, &repo, &self.files)?;
        if let Some(finished) = finished {
            let source = HubSource::source(&repo, &listing.commit, &selection);
            finished.check(&source).context("--output")?;
            say!("{}: is there already, and complete", target.display());
            return Ok(target);
        }
        for missing in &selection.missing {
            say!("note: {repo} has no {missing}");
        }
        let reserved = convert::Reserved::new(&target).context("--output")?;
        let folder = convert::source_folder(&target);
        let mut feed = HubSource::new(&hub, &repo, &listing.commit, &selection, &folder)?;
        let (needs, free) = (feed.disk_bytes(&options)?, free_disk(&target)?);
        let there = convert::unfinished_bytes(&target);
        say!(
            "{repo}: {} to fetch, {} not needed; takes about {} of disk, {} are free",
            human_bytes(selection.bytes()),
            human_bytes(selection.skipped_bytes),
            human_bytes(needs),
            human_bytes(free)
        );
        ensure!(
            needs <= free.saturating_add(there),
            "--output {}: about {} are needed there and {} are free; make room or choose another \
             disk",
            target.display(),
            human_bytes(needs),
            human_bytes(free)
        );
        let mut transfer = Transfer::of_pull();
        let converted = convert::convert_into(reserved, &mut feed, &options, &mut |event| {
            transfer.show(&event);
        })?;
        transfer.finish();
        summary(&converted);
        Ok(target)
    }
}

/// The bytes of `--shard-size`.
fn file_bytes(gigabytes: f64) -> Result<u64> {
    ensure!(
        gigabytes >= 0.0 && gigabytes.is_finite(),
        "--shard-size is {gigabytes}; expected a number of gigabytes, or 0"
    );
    Ok(match gigabytes {
        0.0 => u64::MAX,
        size => (size * 1e9) as u64,
    })
}
