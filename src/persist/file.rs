//! A run's state as a file: safetensors, with everything that is no array in its metadata.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use mlx_rs::{Array, Dtype};
use safetensors::SafeTensors;
use safetensors::tensor::{self, Metadata, View};
use serde::{Deserialize, Serialize};

use crate::clip::Identity;
use crate::runtime::{self, State};
use crate::util::files::{MAX_JSON, open_regular};
use crate::util::show::Show;

/// Changes whenever a state of one version means nothing to another.
const FORMAT: u32 = 2;
/// The metadata's key for [`Header`].
const KEY: &str = "wan_i2v_run";
const DAMAGED: &str = "the file is damaged or cut off";
/// The metadata's key for the checksum of everything else.
const CHECKSUM: &str = "blake3";

/// What a state says besides its arrays.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    made_with: MadeWith,
    identity: Identity,
    pub(crate) numbers: BTreeMap<String, u64>,
}

/// What computed: another one may round otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeWith {
    program: String,
    mlx: String,
    machine: String,
}

impl MadeWith {
    /// This program on this machine.
    pub fn here() -> Self {
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            mlx: runtime::mlx_version(),
            machine: runtime::machine(),
        }
    }
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

/// A state that was read back.
#[derive(Clone, Debug)]
pub struct SavedRun {
    /// Where it lies.
    pub path: PathBuf,
    /// The run that it is of.
    pub identity: Identity,
    /// What computed it.
    pub made_with: MadeWith,
    /// The state.
    pub state: State,
}

impl SavedRun {
    /// Reads a state and checks every byte of it.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is of a program that writes another format.
    pub fn read(path: &Path) -> Result<Self> {
        let file = open_regular(path).with_context(|| format!("cannot read {}", path.shown()))?;
        let parsed = content(file).and_then(|bytes| Self::parse(path, &bytes));
        parsed.map_err(|error| {
            anyhow::anyhow!(
                "{} is no saved run that can be resumed: {error:#}\n\
                 hint: --resume never starts from the beginning and replaces it",
                path.shown()
            )
        })
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
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
        let header: Header = serde_json::from_str(json).context(DAMAGED)?;
        let arrays = views
            .into_iter()
            .map(|(name, view)| Ok((name, array(&view)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            path: path.to_owned(),
            identity: header.identity,
            made_with: header.made_with,
            state: State {
                arrays,
                numbers: header.numbers,
            },
        })
    }

    /// A warning if another program, MLX or machine computed it.
    pub fn foreign(&self) -> Option<String> {
        let here = MadeWith::here();
        (self.made_with != here).then(|| {
            format!(
                "{} was made by {}, this is {here}: the clip may differ in its last bits from one \
                 made in one go",
                self.path.shown(),
                self.made_with
            )
        })
    }

    /// Steps that were taken.
    pub fn steps_taken(&self) -> usize {
        self.state.count("step").unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// Writes a state so that `path` is either the old or the new one, whatever happens; returns its
/// bytes.
///
/// # Errors
/// When the disk is full or gone, or MLX fails.
pub fn write(path: &Path, identity: &Identity, state: &State) -> Result<u64> {
    let arrays = state
        .arrays
        .iter()
        .map(|(name, array)| {
            let array = array.contiguous()?;
            array.eval()?;
            Ok((name.as_str(), array))
        })
        .collect::<Result<Vec<_>>>()?;
    let stored = arrays
        .iter()
        .map(|(name, array)| Ok((*name, Stored::of(array)?)))
        .collect::<Result<Vec<_>>>()?;
    let json = serde_json::to_string(&Header {
        format: FORMAT,
        made_with: MadeWith::here(),
        identity: identity.clone(),
        numbers: state.numbers.clone(),
    })?;
    let mut checksum = Checksum::new(&json);
    for (name, array) in &stored {
        checksum.add(name, &array.shape, array.bytes);
    }
    let metadata = HashMap::from([
        (KEY.to_owned(), json),
        (CHECKSUM.to_owned(), checksum.hex()),
    ]);

    let temporary = temporary(path);
    let put = || -> Result<u64> {
        // The folder that it is in is not made again: who has removed it wants nothing there.
        match fs::create_dir(&temporary) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let whole = temporary.join(KEY);
        safetensors::serialize_to_file(stored, Some(metadata), &whole)?;
        let file = File::open(&whole)?;
        file.sync_data()?;
        fs::rename(&whole, path)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // The name too; what cannot be synced is as safe as any other file.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(file.metadata()?.len())
    };
    let put = put();
    // Half a state is of no use, and takes room.
    let _ = fs::remove_dir_all(&temporary);
    put
}

/// What lies in a state's file, as far as its size is what its header says: no more is read.
fn content(mut file: File) -> Result<Vec<u8>> {
    let size = file.metadata()?.len();
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).context(DAMAGED)?;
    let header = u64::from_le_bytes(bytes[..].try_into()?);
    ensure!(header <= MAX_JSON.min(size), DAMAGED);
    (&mut file).take(header).read_to_end(&mut bytes)?;
    let metadata: Metadata = serde_json::from_slice(&bytes[8..]).context(DAMAGED)?;
    let data = metadata.data_len() as u64;
    ensure!(data.checked_add(8 + header) == Some(size), DAMAGED);
    file.take(data).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether `path` may be replaced by a state: nothing exists there, or the beginning of one.
pub fn may_replace(path: &Path) -> bool {
    // The metadata stands at the header's beginning.
    const HEAD: u64 = 64;
    let Ok(file) = open_regular(path) else {
        return !path.exists();
    };
    let mut head = Vec::new();
    let read = file.take(HEAD).read_to_end(&mut head);
    let metadata = b"{\"__metadata__\":{";
    read.is_ok() && (head.is_empty() || head.get(8..).is_some_and(|h| h.starts_with(metadata)))
}

/// Removes a state, and what a run that was killed left of one.
pub fn remove(path: &Path) {
    // What does not exist need not be removed.
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(temporary(path));
}

/// The folder of a state while it is written: safetensors writes to a file of another name first, which
/// is to be found again. The lock on the state makes it this run's own; one that was killed leaves it,
/// and the next run replaces it.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// An array's bytes as safetensors stores them.
struct Stored<'a> {
    dtype: tensor::Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    fn of(array: &'a Array) -> Result<Self> {
        let (dtype, bytes) = match array.dtype() {
            Dtype::Float32 => {
                let values = array.try_as_slice::<f32>();
                let values = values.map_err(|error| anyhow::anyhow!("{error}"))?;
                (tensor::Dtype::F32, bytemuck::cast_slice(values))
            }
            Dtype::Bfloat16 => {
                let values = array.try_as_slice::<bf16>();
                let values = values.map_err(|error| anyhow::anyhow!("{error}"))?;
                let bits = values.reinterpret_cast();
                (tensor::Dtype::BF16, bytemuck::cast_slice(bits))
            }
            other => bail!("arrays of {other:?} cannot be saved"),
        };
        Ok(Self {
            dtype,
            shape: array.shape().iter().map(|&d| d as usize).collect(),
            bytes,
        })
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> tensor::Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn array(view: &tensor::TensorView<'_>) -> Result<Array> {
    let shape = view
        .shape()
        .iter()
        .map(|&d| i32::try_from(d).context("an array is too large"))
        .collect::<Result<Vec<_>>>()?;
    let bytes = view.data();
    Ok(match view.dtype() {
        tensor::Dtype::F32 => {
            let values: Vec<f32> = bytes
                .as_chunks()
                .0
                .iter()
                .map(|&word| f32::from_le_bytes(word))
                .collect();
            Array::from_slice(&values, &shape)
        }
        tensor::Dtype::BF16 => {
            let values: Vec<bf16> = bytes
                .as_chunks()
                .0
                .iter()
                .map(|&word| bf16::from_le_bytes(word))
                .collect();
            Array::from_slice(&values, &shape)
        }
        other => bail!("an array is of {other:?}"),
    })
}

/// Over the header's text and every array in the order of their names.
struct Checksum(blake3::Hasher);

impl Checksum {
    fn new(json: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(json.as_bytes());
        Self(hasher)
    }

    fn add(&mut self, name: &str, shape: &[usize], bytes: &[u8]) {
        self.0.update(format!("{name}{shape:?}").as_bytes());
        self.0.update(bytes);
    }

    fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{Item, Stage};
    use crate::runtime::to_host;

    fn state() -> State {
        let mut state = State::default();
        let values = Array::from_slice(
            &[1.0_f32, -0.0, f32::MIN_POSITIVE, 1e-42, 5.0, 6.0],
            &[2, 3],
        );
        state.set("plain", &values);
        // Not in row-major order.
        state.set("transposed", &values.transpose().unwrap());
        state.set("half", &values.as_dtype(Dtype::Bfloat16).unwrap());
        state.set_float("rate", f64::INFINITY);
        state.set_count("step", 7);
        state
    }

    fn bits(array: &Array) -> Vec<u32> {
        let values = to_host(array).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn what_is_read_is_what_was_written_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wan-state");
        let identity = Identity::from(vec![Item::new("--seed", &[Stage::Denoise], 7)]);
        let before = state();
        let bytes = write(&path, &identity, &before).unwrap();
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        let saved = SavedRun::read(&path).unwrap();
        assert_eq!(saved.identity, identity);
        assert_eq!(saved.steps_taken(), 7);
        assert_eq!(saved.state.float("rate"), Some(f64::INFINITY));
        for (name, array) in &before.arrays {
            let read = saved.state.array(name).unwrap();
            assert_eq!(read.shape(), array.shape(), "{name}");
            assert_eq!(read.dtype(), array.dtype(), "{name}");
            assert_eq!(bits(&read), bits(array), "{name}");
        }
        let error = saved.state.array("latents").unwrap_err().to_string();
        assert!(error.contains("no latents"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_damage_goes_unseen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wan-state");
        write(&path, &Identity::from(Vec::new()), &state()).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(SavedRun::parse(&path, &bytes).is_err(), "byte {at}");
            assert!(SavedRun::parse(&path, &whole[..at]).is_err(), "cut at {at}");
        }
        assert!(SavedRun::parse(&path, &whole).is_ok());
    }
}
