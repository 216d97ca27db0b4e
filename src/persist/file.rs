//! Reading and writing of a run's state.

use std::collections::HashMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mlx_rs::{Array, Dtype};
use safetensors::tensor::{self, Metadata, TensorInfo};

use super::format::{
    self, CHECKSUM, Checksum, DAMAGED, FORMAT, HEAD, Header, KEY, MadeWith, Started,
    begins_as_state,
};
use crate::clip::Identity;
use crate::runtime::{self, State};
use crate::util::files::{MAX_JSON, open_regular, read_head};
use crate::util::show::{Show, chain};
use crate::util::temporary;

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

impl Started {
    /// This process.
    fn here() -> Self {
        let text = |text: OsString| text.to_string_lossy().into_owned();
        Self {
            folder: text(env::current_dir().unwrap_or_default().into()),
            arguments: env::args_os().skip(1).map(text).collect(),
        }
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
    /// The command that did; a state of an older version does not know.
    pub started: Option<Started>,
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
                "{} is no saved run that can be resumed: {}\n\
                 hint: --resume never starts from the beginning and replaces it",
                path.shown(),
                chain(&error)
            )
        })
    }

    /// The state that another machine has sent, as [`to_bytes`] makes it.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<State> {
        Ok(Self::parse(Path::new(""), bytes)?.state)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let (header, views) = format::parse(bytes)?;
        let arrays = views
            .into_iter()
            .map(|(name, view)| Ok((name, array(&view)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            path: path.to_owned(),
            identity: header.identity,
            made_with: header.made_with,
            started: header.started,
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

/// Writes a state so that `path` is either the old or the new one, whatever happens; returns its
/// bytes.
///
/// # Errors
/// When the disk is full or gone, or MLX fails.
pub fn write(path: &Path, identity: &Identity, state: &State) -> Result<u64> {
    check_replace(path)?;
    let mut writer = BufWriter::new(temporary::file(path)?);
    write_to(&mut writer, identity, state)?;
    let file = writer.into_inner()?;
    file.as_file().sync_data()?;
    let file = file.persist(path)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The name too; what cannot be synced is as safe as any other file.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(file.metadata()?.len())
}

/// A state for another machine.
///
/// # Errors
/// When MLX fails.
pub(crate) fn to_bytes(state: &State) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write_to(&mut bytes, &Identity::from(Vec::new()), state)?;
    Ok(bytes)
}

fn write_to(writer: &mut impl Write, identity: &Identity, state: &State) -> Result<()> {
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
        started: Some(Started::here()),
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

    let mut end = 0;
    let infos = stored.iter().map(|(name, array)| {
        let start = end;
        end += array.bytes.len();
        let info = TensorInfo {
            dtype: array.dtype,
            shape: array.shape.clone(),
            data_offsets: (start, end),
        };
        ((*name).to_owned(), info)
    });
    let header = Metadata::new(Some(metadata), infos.collect())?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for (_, array) in &stored {
        writer.write_all(array.bytes)?;
    }
    Ok(())
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

/// Whether a file begins as a state does; a link does not.
pub fn is_state(path: &Path) -> bool {
    read_head(path, HEAD as u64).is_ok_and(|head| begins_as_state(&head))
}

/// Checks that a state may be put at `path`: nothing is there, another state or an empty file.
///
/// # Errors
/// When something else is.
pub fn check_replace(path: &Path) -> Result<()> {
    ensure!(
        path.extension() != Some(OsStr::new("wan-lock")),
        "{}: names that end in .wan-lock are those of locks\nhint: choose another name",
        path.shown()
    );
    let nothing = match fs::symlink_metadata(path) {
        Ok(meta) => meta.is_file() && meta.len() == 0,
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    ensure!(
        nothing || is_state(path),
        "{}: this is no saved run and would be replaced\nhint: move it away, or choose another name",
        path.shown()
    );
    Ok(())
}

/// Removes a state, and what a run that was killed left of one. Anything else stays.
pub fn remove(path: &Path) {
    if is_state(path) {
        let _ = fs::remove_file(path);
    }
    remove_stale(path);
}

/// Removes what runs that were killed have left of a state at `path`, which none may be writing now.
pub fn remove_stale(path: &Path) {
    temporary::leftovers(path)
        .iter()
        .for_each(|path| remove_temporary(path));
}

/// Removes a state that may be cut off.
pub(super) fn remove_temporary(path: &Path) {
    if is_state(path) || read_head(path, 1).is_ok_and(|head| head.is_empty()) {
        let _ = fs::remove_file(path);
    }
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
            Dtype::Float16 => {
                let values = array.try_as_slice::<f16>();
                let values = values.map_err(|error| anyhow::anyhow!("{error}"))?;
                let bits = values.reinterpret_cast();
                (tensor::Dtype::F16, bytemuck::cast_slice(bits))
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
        tensor::Dtype::F16 => {
            let values: Vec<f16> = bytes
                .as_chunks()
                .0
                .iter()
                .map(|&word| f16::from_le_bytes(word))
                .collect();
            Array::from_slice(&values, &shape)
        }
        other => bail!("an array is of {other:?}"),
    })
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
    fn only_states_are_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (identity, link) = (Identity::from(Vec::new()), path("link.wan-state"));
        write(&path("a.wan-state"), &identity, &state()).unwrap();
        let metadata = |key: &str| HashMap::from([(key.to_owned(), "\"wan_i2v_run\":\"".into())]);
        let tensors = || [] as [(&str, tensor::TensorView<'_>); 0];
        let model = safetensors::serialize(tensors(), Some(metadata("format"))).unwrap();
        fs::write(path("model.safetensors"), model).unwrap();
        fs::write(path("notes.wan-state"), "mine").unwrap();
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("folder/notes"), "mine").unwrap();
        std::os::unix::fs::symlink("a.wan-state", &link).unwrap();
        let there = fs::read_dir(folder.path()).unwrap().count();
        for name in [
            "model.safetensors",
            "notes.wan-state",
            "folder",
            "link.wan-state",
        ] {
            let error = write(&path(name), &identity, &state()).unwrap_err();
            assert!(error.to_string().contains("no saved run"), "{error}");
            remove(&path(name));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), there);
        // What a killed run left goes, and what only looks so stays.
        let (_, mine) = temporary::file(&path("a.wan-state"))
            .unwrap()
            .keep()
            .unwrap();
        fs::write(&mine, "mine").unwrap();
        let (_, left) = temporary::file(&path("a.wan-state"))
            .unwrap()
            .keep()
            .unwrap();
        fs::copy(path("a.wan-state"), &left).unwrap();
        remove(&path("a.wan-state"));
        assert!(!left.exists() && !path("a.wan-state").exists() && mine.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), there);
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
