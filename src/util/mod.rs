//! Small things that everybody may stand on.

pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod float;
pub(crate) mod hex;
pub(crate) mod html;
pub(crate) mod limits;
pub(crate) mod npy;
pub(crate) mod quote;
pub(crate) mod show;
pub mod suggest;
pub(crate) mod temporary;
