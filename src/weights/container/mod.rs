//! Files that hold tensors: a header that says what is where, and elements in some encoding.

pub mod encoding;
pub mod gguf;
pub mod header;
pub(in crate::weights) mod mapped;
pub mod pth;
pub mod safetensors;
pub mod stand_in;
