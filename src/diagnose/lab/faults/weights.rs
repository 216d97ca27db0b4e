//! The miniature's weights, with some of them changed on their way into a network.

use anyhow::Result;
use mlx_rs::Array;

use crate::model::{Role, TensorSource};
use crate::runtime::Device;
use crate::tiny;
use crate::weights::naming::Kind;
use crate::weights::part::{Loader, Part};
use crate::weights::store::Location;
use crate::weights::{Expert, Files};

/// What stands in for the tensor of a name and shape; `None` for the tensor itself.
pub type Change<'a> = &'a dyn Fn(&str, &[i32]) -> Option<Array>;

/// Hands out a part's tensors, but for those that `change` has others for, whether the part has
/// them or not: what a loader does that takes a missing tensor for no matter.
struct Changed<'a> {
    loader: Loader<'a>,
    change: Change<'a>,
}

impl TensorSource for Changed<'_> {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array> {
        match (self.change)(name, shape) {
            Some(array) => Ok(array),
            None => self.loader.tensor(name, shape, role),
        }
    }
}

/// Loads a network of the miniature with changed weights.
pub fn load<T>(
    folder: &str,
    kind: Kind,
    device: Device,
    change: Change<'_>,
    load: impl FnOnce(&mut dyn TensorSource) -> Result<T>,
) -> Result<T> {
    let files = Files::embedded_root(tiny::FILES).sub(folder);
    let part = Part::open(&Location::in_folder(files)?, kind)?;
    let loader = Loader {
        part: &part,
        device,
        bits: None,
        adapters: &[],
        merges: false,
    };
    load(&mut Changed { loader, change })
}

/// An expert's folder.
pub fn folder(expert: Expert) -> &'static str {
    match expert {
        Expert::HighNoise => "transformer",
        Expert::LowNoise => "transformer_2",
        Expert::Single => "transformer",
    }
}
