//! The commands around a model's files: what it is, and another form of it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use wan_i2v::checkpoint::convert::{self, Event, LocalFeed, Options};
use wan_i2v::checkpoint::inspect::Report;
use wan_i2v::checkpoint::layout::Layout;
use wan_i2v::checkpoint::{Files, LoadBits, PartName};
use wan_i2v::hub::{Hub, RepoId, free_disk};
use wan_i2v::pull::{self, HubFeed};
use wan_i2v::tiny;

use super::display::{Transfer, human_bytes, human_count, print, say};
use super::source;

/// Says what a model or a part of one is: layout, dimensions, storage, what is missing.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model's folder, a part's folder or file, a hub id (owner/name) or `tiny`
    #[arg(value_name = "PATH|ID")]
    source: PathBuf,

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
}

/// Bits per weight of the linear layers inside the blocks.
#[derive(Debug, Args)]
pub struct BitsArgs {
    /// Bits per weight of experts and text encoder: 4 or 8 are quantized, 16 is bfloat16
    /// [default: what the source has, 16 at most]
    #[arg(long, value_enum, value_name = "4|8|16", hide_possible_values = true)]
    bits: Option<BitsArg>,

    /// Bits of the high-noise expert [default: --bits]
    #[arg(long, value_enum, value_name = "4|8|16", hide_possible_values = true)]
    high_bits: Option<BitsArg>,

    /// Bits of the low-noise expert [default: --bits]
    #[arg(long, value_enum, value_name = "4|8|16", hide_possible_values = true)]
    low_bits: Option<BitsArg>,

    /// Bits of the text encoder [default: --bits]
    #[arg(long, value_enum, value_name = "4|8|16", hide_possible_values = true)]
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
        let layout = if self.source.as_os_str() == "tiny" {
            Layout::of_folder(&Files::embedded_root(tiny::FILES))?
        } else {
            let source = source::local(&self.source, "PATH")?;
            Layout::of_path(&source, self.part.map(Into::into))?
        };
        let report = Report::of(&layout);
        let text = if self.json {
            serde_json::to_string_pretty(&report)? + "\n"
        } else {
            table(&report)
        };
        print(&text)?;
        Ok(report.runs)
    }
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut rows = vec![[
        "part".to_owned(),
        "layout".into(),
        "stored as".into(),
        "parameters".into(),
        "size".into(),
        "files".into(),
        "dimensions".into(),
    ]];
    for part in &report.parts {
        rows.push([
            part.part.to_string(),
            part.layout.clone(),
            part.storage(),
            human_count(part.parameters),
            human_bytes(part.bytes),
            part.files.to_string(),
            part.dimensions(),
        ]);
    }
    let mut text = String::new();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    for row in &rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
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
        let mut feed = LocalFeed::new(&layout)?;
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
    /// Shows what a conversion tells.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Resumed => say!("going on where the last run stopped"),
            Event::Total(bytes) => self.start("converting", *bytes),
            Event::Fetching(path, bytes) => {
                self.interrupt("fetching", *bytes);
                self.detail(path);
            }
            Event::File(part, path) => {
                self.go_on();
                self.detail(&format!("{part}: {path}"));
            }
            Event::Read(bytes) | Event::Fetched(bytes) => self.advance(*bytes),
            Event::Verifying(bytes) => self.start("verifying", *bytes),
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
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    #[command(flatten)]
    bits: BitsArgs,

    /// The most gigabytes of one converted file; 0 for one file per part
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    shard_size: f64,
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
        ensure!(
            !target.exists(),
            "--output {}: is there already; remove it or choose another name",
            target.display()
        );
        let (listing, selection) = pull::select(&hub, &repo, &self.files)?;
        for missing in &selection.missing {
            say!("note: {repo} has no {missing}");
        }
        let folder = convert::source_folder(&target);
        let mut feed = HubFeed::new(&hub, &repo, &listing.commit, &selection, &folder)?;
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
            needs <= free + there,
            "--output {}: about {} are needed there and {} are free; make room or choose another \
             disk",
            target.display(),
            human_bytes(needs),
            human_bytes(free)
        );
        let mut transfer = Transfer::default();
        let converted = convert::convert(&mut feed, &target, &options, &mut |event| {
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
