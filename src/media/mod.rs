//! Pictures in, clips out: what the pipeline reads from and writes to disk.
//!
//! * [`picture`]: the start picture, decoded and resized to what the model takes.
//! * [`frames`]: frames as the VAE decodes them, to 8-bit RGB.
//! * [`clip`]: 8-bit frames to an MP4, a GIF or a folder of PNG files.
//! * [`read`]: the frames of such a clip.
//! * [`strip`]: a clip's frames on one page.
//! * [`tags`]: what a clip's file says of itself.
//! * [`metrics`]: how alike two pictures are.

pub mod clip;
pub mod frames;
pub mod metrics;
pub mod picture;
pub mod read;
mod resize;
pub mod strip;
pub mod tags;
mod truncation;

pub use resize::Resize;
