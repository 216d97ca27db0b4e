//! Which model, and the commands around a model's files.

use std::path::PathBuf;

use crate::clip::Model;
use crate::weights::convert::{Bits, Options};
use crate::weights::{Expert, Loading, PartName, Scheme, Sources};
use anyhow::{Result, ensure};
use clap::Args;

use super::ConfigArgs;
use super::values::{AllBits, AllBitsParser, Lora, parse_file_size, parse_group_size, parse_lora};

/// Which model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Folder, hub id or short name of a model [default: tiny]
    ///
    /// A folder, a hub id (owner/name[@revision]), a name that `wan-i2v models` lists, or `tiny` for the built-in miniature.
    #[arg(short, long, value_name = "DIR|ID|NAME")]
    pub(crate) model: Option<PathBuf>,

    /// High-noise expert: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) high: Option<PathBuf>,

    /// Low-noise expert: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) low: Option<PathBuf>,

    /// Transformer of a model with one: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) transformer: Option<PathBuf>,

    /// VAE: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) vae: Option<PathBuf>,

    /// Text encoder: a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) text_encoder: Option<PathBuf>,

    /// Image encoder of Wan2.1 (CLIP ViT-H): a file or folder, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) image_encoder: Option<PathBuf>,

    /// Tokenizer: tokenizer.json or spiece.model, instead of the model's
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) tokenizer: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) bits: BitsArgs,

    #[command(flatten)]
    pub(crate) lora: LoraArgs,

    /// Put adapters into quantized weights and quantize those again, instead of computing them
    /// beside: faster, and less exact
    #[arg(long, hide_short_help = true)]
    pub(crate) lora_merge: bool,
}

impl ModelArgs {
    /// The model as it is named, and the bits that it is loaded with.
    ///
    /// # Errors
    /// When parts of another model are named with the built-in one.
    pub(crate) fn named(self) -> Result<(Model, Loading)> {
        let parts = [
            self.high,
            self.low,
            self.vae,
            self.text_encoder,
            self.transformer,
            self.image_encoder,
        ];
        let has_parts = parts
            .iter()
            .flatten()
            .chain(&self.tokenizer)
            .next()
            .is_some();
        let is_tiny = |model: &PathBuf| model.as_os_str() == "tiny";
        ensure!(
            !(has_parts && self.model.as_ref().is_some_and(is_tiny)),
            "--model tiny is whole; --high, --low, --transformer, --vae, --text-encoder, --image-encoder and \
             --tokenizer go with a model on disk, or all without --model"
        );
        let model = self.model.filter(|model| !is_tiny(model));
        let bits = self.bits.quantized()?;
        if model.is_none() && !has_parts {
            return Ok((Model::Tiny, bits));
        }
        let sources = Sources {
            model,
            parts,
            tokenizer: self.tokenizer,
        };
        Ok((Model::Disk(sources), bits))
    }
}

/// Adapters.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct LoraArgs {
    /// Adapter (LoRA) of the experts; can be repeated
    ///
    /// LoRA, DoRA, LoHa, LoKr or whole changes: a file, a folder with one file for each expert, or a file of the hub (owner/name/file.safetensors
    /// or owner/name:file); :0.8 at its end is the strength. It changes the expert that its name or its
    /// tensors say, or both.
    #[arg(long, value_name = "PATH[:STRENGTH]", value_parser = parse_lora)]
    pub(crate) lora: Vec<Lora>,

    /// Adapter of the high-noise expert; can be repeated
    #[arg(long, value_name = "PATH[:STRENGTH]", value_parser = parse_lora, hide_short_help = true)]
    pub(crate) lora_high: Vec<Lora>,

    /// Adapter of the low-noise expert; can be repeated
    #[arg(long, value_name = "PATH[:STRENGTH]", value_parser = parse_lora, hide_short_help = true)]
    pub(crate) lora_low: Vec<Lora>,
}

impl LoraArgs {
    /// Every adapter, with its flag and the expert that the flag names.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, Option<Expert>, &Lora)> {
        let all = [
            ("--lora", None, &self.lora),
            ("--lora-high", Some(Expert::HighNoise), &self.lora_high),
            ("--lora-low", Some(Expert::LowNoise), &self.lora_low),
        ];
        all.into_iter()
            .flat_map(|(flag, expert, loras)| loras.iter().map(move |lora| (flag, expert, lora)))
    }
}

/// Bits per weight of the linear layers inside the blocks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct BitsArgs {
    /// Quantize to 3, 4, 5, 6 or 8 bits per weight
    ///
    /// Of experts and text encoder; 16 is bfloat16. `convert --bits auto:20` measures each layer and gives it bits so that
    /// the whole folder takes 20 GB and the layers' errors add up to least
    /// [default: what the source has, 16 at most]
    #[arg(long, value_name = "N", value_parser = AllBitsParser, hide_possible_values = true)]
    pub(crate) bits: Option<AllBits>,

    /// Bits of the high-noise expert [default: --bits]
    #[arg(
        long,
        value_name = "N",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub(crate) high_bits: Option<Bits>,

    /// Bits of the low-noise expert [default: --bits]
    #[arg(
        long,
        value_name = "N",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub(crate) low_bits: Option<Bits>,

    /// Bits of the text encoder [default: --bits]
    #[arg(
        long,
        value_name = "N",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub(crate) text_bits: Option<Bits>,

    /// Quantized weights that share a scale: 64, or 32 for half a bit more and less error
    #[arg(
        long,
        value_name = "32|64",
        default_value = "64",
        value_parser = parse_group_size,
        hide_short_help = true
    )]
    pub(crate) group_size: usize,
}

impl BitsArgs {
    /// For a conversion into files of `file_bytes`.
    pub(crate) fn options(&self, file_bytes: u64) -> Options {
        let (all, size) = match self.bits {
            Some(AllBits::Fixed(bits)) => (Some(bits), None),
            Some(AllBits::Within(size)) => (None, Some(size)),
            None => (None, None),
        };
        let bits = |own: Option<Bits>| own.or(all);
        Options {
            high: bits(self.high_bits),
            low: bits(self.low_bits),
            text: bits(self.text_bits),
            size,
            group_size: self.group_size,
            file_bytes,
        }
    }

    /// For loading.
    ///
    /// # Errors
    /// When each layer is to be measured.
    pub(crate) fn quantized(&self) -> Result<Loading> {
        let options = self.options(0);
        ensure!(
            options.size.is_none(),
            "--bits auto:GB takes its time to measure each layer, and is for wan-i2v convert\nhint: convert the model \
             once and give the folder to --model; here --bits is 3, 4, 5, 6, 8 or 16"
        );
        let group_size = options.group_size;
        let scheme = |bits: Option<Bits>| {
            let bits = bits.and_then(Bits::quantized)?;
            Some(Scheme { bits, group_size })
        };
        Ok(Loading {
            high: scheme(options.high),
            low: scheme(options.low),
            text: scheme(options.text),
            ..Loading::default()
        })
    }
}

/// Describe a model or a part of one, and what is missing
///
/// Its layout, dimensions and storage. Fetches only the headers of files that have not been pulled from the hub.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model's folder, a part's folder or file, a hub id (owner/name) or `tiny`
    #[arg(value_name = "PATH|ID")]
    pub(crate) source: PathBuf,

    /// Files or folders of the repository on the hub
    ///
    /// Instead of what a known layout needs.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<String>,

    /// Part that PATH is; of a whole model, the only one to describe
    #[arg(long, help_heading = "Model")]
    pub(crate) part: Option<PartName>,

    /// Read every byte, and compare it with known hashes and checksums
    #[arg(long, help_heading = "Model")]
    pub(crate) verify: bool,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Convert or quantize a model, or one part of it
///
/// To this program's layout; --bits quantizes it. The result appears under its name once it is complete and has been read back. An interrupted
/// conversion resumes where it stopped.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// A model's folder, or a part's folder or file
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,

    /// The folder to create
    #[arg(value_name = "DST")]
    pub(crate) target: PathBuf,

    #[command(flatten)]
    pub(crate) bits: BitsArgs,

    #[command(flatten)]
    pub(crate) lora: LoraArgs,

    /// Part that SRC is, when its path does not say which expert
    #[arg(long, help_heading = "Model")]
    pub(crate) part: Option<PartName>,

    /// Largest file in GB; 0 writes one file per part
    ///
    /// mlx-video needs one file per part.
    #[arg(long, help_heading = "Output", value_name = "GB", default_value = "5", value_parser = parse_file_size, allow_negative_numbers = true)]
    pub(crate) shard_size: u64,

    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// Fetch a model from the Hugging Face hub
///
/// Only the files it needs. Without --output the files go to the cache shared with the hub's other programs (HF_HOME,
/// HF_HUB_CACHE), where --model ID finds them. With --output each file is converted as it arrives
/// and then deleted, so the disk never holds more than the result and one file. An interrupted pull
/// resumes where it stopped.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A name that `wan-i2v models` lists, or owner/name[@revision]
    #[arg(value_name = "NAME|ID")]
    pub(crate) id: String,

    /// Files or folders of the repository
    ///
    /// Instead of what a known layout needs.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<String>,

    /// Convert into this folder while pulling
    #[arg(short, long, help_heading = "Output", value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) bits: BitsArgs,

    /// Largest converted file in GB; 0 for no limit
    ///
    /// Source files are never merged.
    #[arg(long, help_heading = "Output", value_name = "GB", default_value = "5", value_parser = parse_file_size, allow_negative_numbers = true)]
    pub(crate) shard_size: u64,

    /// Fetch a model of the catalogue without asking
    #[arg(short, long, help_heading = "Machine")]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}
