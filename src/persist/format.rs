//! A run's state as bytes: safetensors, with everything that is no array in its metadata.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::clip::Identity;

/// Changes whenever a state of one version means nothing to another.
pub(crate) const FORMAT: u32 = 2;
/// The metadata's key for [`Header`].
pub(crate) const KEY: &str = "wan_i2v_run";
pub(crate) const DAMAGED: &str = "the file is damaged or cut off";
/// The metadata's key for the checksum of everything else.
pub(crate) const CHECKSUM: &str = "blake3";
/// Bytes from which a state can be told: its metadata come first.
pub(crate) const HEAD: usize = 256;

/// What a state says besides its arrays.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: u32,
    pub(crate) made_with: MadeWith,
    pub(crate) identity: Identity,
    #[serde(default)]
    pub(crate) started: Option<Started>,
    pub(crate) numbers: BTreeMap<String, u64>,
}

/// What computed: another one may round otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeWith {
    pub(crate) program: String,
    pub(crate) mlx: String,
    pub(crate) machine: String,
}

/// The command that started a run: the same one resumes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The folder in which it ran.
    pub folder: String,
    /// Its words, after the program's name.
    pub arguments: Vec<String>,
}

impl std::fmt::Display for MadeWith {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            program,
            mlx,
            machine,
        } = self;
        write!(f, "wan-i2v {program} with MLX {mlx} on {machine}")
    }
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// What a state says, and its arrays by name, whose every byte was checked.
///
/// # Errors
/// When it is damaged, or is of a program that writes another format.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Header, Vec<(String, TensorView<'_>)>)> {
    ensure!(begins_as_state(bytes), DAMAGED);
    let tensors = SafeTensors::deserialize(bytes).context(DAMAGED)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).context(DAMAGED)?;
    let metadata = metadata.metadata().as_ref();
    let text = |key: &str| metadata.and_then(|m| m.get(key)).context(DAMAGED);
    let json = text(KEY)?;
    let mut views = tensors.tensors();
    views.sort_by(|a, b| a.0.cmp(&b.0));
    let mut checksum = Checksum::new(json);
    for (name, view) in &views {
        checksum.add(name, view.shape(), view.data());
    }
    ensure!(*text(CHECKSUM)? == checksum.hex(), DAMAGED);
    let version: Version = serde_json::from_str(json).context(DAMAGED)?;
    ensure!(
        version.format == FORMAT,
        "its format is {}, and this program's is {FORMAT}\n\
         hint: resume it with the program that wrote it",
        version.format
    );
    Ok((serde_json::from_str(json).context(DAMAGED)?, views))
}

/// Whether a file begins as a state does.
pub(crate) fn begins_as_state(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(HEAD)];
    let key = format!("\"{KEY}\":\"");
    // In a text the quotes would be escaped.
    head.get(8..)
        .is_some_and(|head| head.starts_with(b"{\"__metadata__\":{"))
        && head.windows(key.len()).any(|part| part == key.as_bytes())
}

/// Over the header's text and every array in the order of their names.
pub(crate) struct Checksum(blake3::Hasher);

impl Checksum {
    pub(crate) fn new(json: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(json.as_bytes());
        Self(hasher)
    }

    pub(crate) fn add(&mut self, name: &str, shape: &[usize], bytes: &[u8]) {
        self.0.update(format!("{name}{shape:?}").as_bytes());
        self.0.update(bytes);
    }

    pub(crate) fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}
