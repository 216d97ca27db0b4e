//! What the time to load a part and to compute with it depends on besides its dimensions, and how
//! long loading takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use mlx_rs::memory::clear_cache;

use super::Checkpoint;
use super::layout::PartName;
use super::part::{Part, Values, may_quantize, stored_as_float32};
use crate::model::layers::Weight;
use crate::model::{Recorder, Role, TensorSource, TensorSpec};
use crate::runtime::{Device, Packing};

/// How a part's matrices are stored, and held for products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// In the file.
    pub stored: &'static str,
    /// How weights that stay quantized are packed.
    pub packing: Option<Packing>,
    /// Whether what keeps the file's dtype is float32.
    pub wide: bool,
}

impl Format {
    /// What is stored where there are no files.
    pub const NONE: &str = "none";
    /// Dense, from no file.
    pub const NO_FILE: Self = Self {
        stored: Self::NONE,
        packing: None,
        wide: true,
    };
}

/// What is stored in a packing of MLX's.
pub(super) const PACKED: &str = "packed";

/// Larger tensors are no sample.
const SAMPLE_BYTES: i64 = 256 << 20;

fn values(spec: &TensorSpec) -> i64 {
    spec.shape.iter().map(|&side| i64::from(side)).product()
}

impl Checkpoint {
    /// How a part's weights are stored and held.
    ///
    /// # Errors
    /// When its files cannot be read any more.
    pub fn format(&self, name: PartName) -> Result<Format> {
        self.formats.get(name, || {
            let specs = self.config(name)?.specs()?;
            let part = self.layout.part(name).map(|_| self.part(name));
            self.format_of(part.transpose()?.as_ref(), name, &specs)
        })
    }

    fn format_of(
        &self,
        part: Option<&Part>,
        name: PartName,
        specs: &[TensorSpec],
    ) -> Result<Format> {
        let shape = |spec: &TensorSpec| spec.shape.iter().map(|&d| d as usize).collect::<Vec<_>>();
        // The first of most of a network's values.
        let may = |spec: &&TensorSpec| may_quantize(name.kind(), &spec.name, &shape(spec));
        let largest = || specs.iter().max_by_key(|spec| values(spec));
        let matrix = specs.iter().find(may).or_else(largest);
        let kept = specs.iter().find(|spec| spec.role == Role::Stored);
        let find = |spec: Option<&TensorSpec>| match (part, spec) {
            (Some(part), Some(spec)) => Ok(Some(part.expect(&spec.name, &shape(spec))?)),
            _ => anyhow::Ok(None),
        };
        let (found, kept) = (find(matrix)?, find(kept)?);
        let wanted = self
            .loading
            .of(name)
            .filter(|_| matrix.is_some_and(|m| may(&m)));
        let own = wanted.map(|scheme| scheme.packing());
        let (stored, packing) = match (part, matrix, &found) {
            (Some(part), Some(matrix), Some(found)) => {
                let stored = match found.values {
                    Values::Packed { .. } | Values::Blocks { .. } => PACKED,
                    Values::Stored { entry, .. } => entry.encoding.name(),
                };
                let is_weight = matrix.role == Role::Matmul && matrix.shape.len() == 2;
                let loader = self.loader(part, name, Recorder::DEVICE);
                let packing = is_weight.then(|| loader.packing(&matrix.name, found));
                (stored, packing.flatten())
            }
            _ => (Format::NONE, own),
        };
        Ok(Format {
            stored,
            packing,
            wide: kept.is_none_or(|found| stored_as_float32(&found.values)),
        })
    }

    /// Bytes of a part's files that are to be read from a disk before they are loaded, as the machine
    /// said when it was first asked.
    ///
    /// # Errors
    /// When the files cannot be opened any more.
    pub fn absent(&self, name: PartName) -> Result<u64> {
        self.absent.get(name, || match self.layout.part(name) {
            Some(_) => Ok(self.part(name)?.store().absent_bytes()),
            None => Ok(0),
        })
    }

    /// Bytes of these and the seconds in which a sample of them was read; nothing where there are few.
    ///
    /// # Errors
    /// As [`Self::absent`].
    pub fn time_reading(&self, name: PartName) -> Result<Option<(u64, f64)>> {
        match self.layout.part(name) {
            Some(_) => Ok(self.part(name)?.store().time_reading()),
            None => Ok(None),
        }
    }

    /// Bytes held and seconds of loading a sample of a part's tensors into memory that is new each
    /// time, as a run's is, from files that have been read before; nothing where there are no files. It
    /// takes twice `most`, or one tensor's time.
    ///
    /// # Errors
    /// As loading the part.
    pub fn time_loading(
        &self,
        name: PartName,
        device: Device,
        most: Duration,
    ) -> Result<Option<(u64, f64)>> {
        if self.layout.part(name).is_none() {
            return Ok(None);
        }
        let part = self.part(name)?;
        let mut loader = self.loader(&part, name, device);
        let mut specs = self.config(name)?.specs()?;
        specs.retain(|spec| 4 * values(spec) <= SAMPLE_BYTES);
        // From all over the part.
        let step = (specs.len() / 40).max(1) | 1;
        let spread = (0..step).flat_map(|first| specs.iter().skip(first).step_by(step));
        let (start, mut sample) = (Instant::now(), Vec::new());
        let mut load = |spec: &TensorSpec| match *spec.shape {
            [outputs, inputs] => loader.weight(&spec.name, [outputs, inputs], spec.role),
            _ => Ok(Weight::Dense(loader.tensor(
                &spec.name,
                &spec.shape,
                spec.role,
            )?)),
        };
        for spec in spread {
            load(spec)?;
            sample.push(spec.clone());
            if start.elapsed() > most {
                break;
            }
        }
        let mut seconds = f64::INFINITY;
        while start.elapsed() < 2 * most || seconds.is_infinite() {
            let again = Instant::now();
            // What has been dropped could be given again.
            let all = sample.iter().map(&mut load).collect::<Result<Vec<_>>>()?;
            seconds = seconds.min(again.elapsed().as_secs_f64());
            drop(all);
            clear_cache()?;
        }
        let bytes = self.loader(&part, name, device).held(&sample)?.bytes;
        Ok(Some((bytes, seconds)))
    }
}
