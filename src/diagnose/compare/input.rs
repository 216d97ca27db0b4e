//! What a path to be compared is.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::npy::Npy;
use super::tensor::Tensor;
use crate::media::clip::is_frame_name;
use crate::media::shows_pictures;
use crate::tiny;
use crate::util::files::open_regular;
use crate::util::npy::MAGIC;
use crate::util::show::Show;
use crate::weights::layout::{Layout, expert_of};
use crate::weights::naming::Kind;
use crate::weights::part;
use crate::weights::store::{Location, TensorStore};
use crate::weights::{Files, PartName};

/// Bytes that tell what a file is.
const START: u64 = 12;

/// What is compared with another.
#[derive(Debug)]
pub enum Input {
    /// A folder that `--dump` wrote.
    Dump(DumpFolder),
    /// One array of NumPy's.
    Npy(Npy),
    /// A file of tensors that is no part of a model.
    Tensors(Location),
    /// One part of a model. Which expert it is, its path tells or nothing does.
    Part(Kind, Location),
    /// A model's folder.
    Model(Box<Layout>),
}

/// A folder of arrays.
#[derive(Debug)]
pub struct DumpFolder {
    folder: PathBuf,
    arrays: Vec<Npy>,
    names: Vec<String>,
}

impl DumpFolder {
    /// The arrays' names.
    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// An array; nothing when it is not there.
    pub(super) fn read(&self, name: &str) -> Result<Option<Tensor<'_>>> {
        let place = self.names.iter().position(|other| other == name);
        place.map(|place| self.arrays[place].tensor()).transpose()
    }

    pub(super) fn bytes(&self) -> Result<u64> {
        let arrays = self.arrays.iter();
        arrays.map(|array| Ok(array.tensor()?.bytes())).sum()
    }
}

impl Input {
    /// Finds out what is there, by content.
    ///
    /// # Errors
    /// When there is nothing, or nothing that holds tensors.
    pub fn open(path: &Path) -> Result<Self> {
        ensure!(path.exists(), "{}: no such file or folder", path.shown());
        if !path.is_dir() {
            let mut start = Vec::new();
            open_regular(path)
                .and_then(|file| file.take(START).read_to_end(&mut start))
                .with_context(|| format!("cannot read {}", path.shown()))?;
            if start.starts_with(MAGIC) {
                return Ok(Self::Npy(Npy::open(path)?));
            }
            return Self::of_location(Location::at(path)?).or_else(|error| {
                ensure!(!shows_pictures(&start), no_tensors(path));
                Err(error)
            });
        }
        let files = Files::from(path);
        let mut names = files.names()?;
        names.retain(|name| name.ends_with(".npy"));
        if !names.is_empty() {
            return Ok(Self::Dump(DumpFolder {
                folder: path.to_owned(),
                arrays: names
                    .iter()
                    .map(|name| Npy::open(&path.join(name)))
                    .collect::<Result<_>>()?,
                names: names
                    .iter()
                    .map(|name| name.trim_end_matches(".npy").to_owned())
                    .collect(),
            }));
        }
        // A folder with one part of a model in it has files in it; a model's, folders or several.
        if let Ok(location) = Location::in_folder(files.clone())
            && let input @ Self::Part(..) = Self::of_location(location)?
        {
            return Ok(input);
        }
        let layout = Layout::of_folder(&files).or_else(|error| {
            let mut names = files.names()?.into_iter();
            ensure!(
                !names.any(|name| is_frame_name(OsStr::new(&name))),
                no_tensors(path)
            );
            Err(error.context(format!(
                "{}: neither a folder of --dump, which holds .npy files, nor a model's",
                path.shown()
            )))
        })?;
        Ok(Self::Model(Box::new(layout)))
    }

    /// The built-in miniature.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn tiny() -> Result<Self> {
        let layout = Layout::of_folder(&Files::embedded_root(tiny::FILES))?;
        Ok(Self::Model(Box::new(layout)))
    }

    fn of_location(location: Location) -> Result<Self> {
        let store = TensorStore::open(&location)?;
        Ok(match part::parts(&store).as_slice() {
            // What is no part that is computed here has tensors all the same.
            [one] if part::foreign(&store).is_none() => Self::Part(one.kind, location),
            _ => Self::Tensors(location),
        })
    }

    /// What it is, with its article and its place.
    pub(super) fn describe(&self) -> String {
        match self {
            Input::Dump(dump) => format!("{}: a folder of --dump", dump.folder.shown()),
            Input::Npy(npy) => format!("{}: a .npy file", npy.path().shown()),
            Input::Tensors(location) => format!("{location}: a file of tensors"),
            Input::Part(kind, location) => format!("{location}: {}", kind.with_article()),
            Input::Model(layout) => match &layout.root {
                Some(root) => format!("{root}: a model"),
                None => "a model".into(),
            },
        }
    }

    /// Which part of a model a part is, as far as its path tells.
    pub(super) fn part_name(kind: Kind, location: &Location) -> Option<PartName> {
        match kind {
            Kind::Vae => Some(PartName::Vae),
            Kind::TextEncoder => Some(PartName::TextEncoder),
            Kind::ImageEncoder => Some(PartName::ImageEncoder),
            Kind::Expert => expert_of(&location.to_string()),
        }
    }
}

fn no_tensors(path: &Path) -> String {
    format!(
        "{}: a clip or a picture; expected a folder of --dump, a .npy file, a file of tensors or a \
         model\nhint: a clip is compared with another clip; `wan-i2v analyze` says what is wrong with \
         one",
        path.shown()
    )
}
