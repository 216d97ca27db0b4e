//! Pictures in, clips out: what the pipeline reads from and writes to disk.
//!
//! * [`picture`]: the start picture, decoded and resized to what the model takes.
//! * [`frames`]: frames as the VAE decodes them, to 8-bit RGB.
//! * [`clip`]: 8-bit frames to an MP4, a GIF or a folder of PNG files.
//! * [`strip`]: a clip's frames on one page.
//! * [`metrics`]: how alike two pictures are.

pub mod clip;
pub mod frames;
pub mod metrics;
pub mod picture;
mod resize;
pub mod strip;
mod truncation;

pub use resize::Resize;
