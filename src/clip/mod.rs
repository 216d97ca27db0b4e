//! What a clip is: its request, its settings, its identity and the metadata in its file.

mod identity;
pub mod metadata;
mod request;
mod settings;

pub use crate::media::{Fit, Resize};
pub use crate::sampling::{CacheMethod, CacheSettings, GuideInterval, GuideScale, Sigmas, Solver};
pub use identity::{Difference, Identity, Item, Stage};
pub use request::{Model, Request};
pub use settings::{Options, Settings, Size, Switch};
