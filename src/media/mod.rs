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
mod colour;
pub mod frames;
pub(crate) mod lettering;
pub mod metrics;
pub mod picture;
pub mod preview;
pub mod read;
mod resize;
pub mod strip;
mod system;
pub mod tags;
mod truncation;

pub use resize::{Fit, Resize};
pub(crate) use resize::{bicubic, within};

/// Whether a file that begins like this is an MP4, a GIF or a picture; 12 bytes tell it.
pub fn shows_pictures(start: &[u8]) -> bool {
    use image::ImageFormat::{Gif, Jpeg, Png, WebP};
    let is_mp4 = start.get(4..8) == Some(b"ftyp");
    is_mp4 || matches!(image::guess_format(start), Ok(Gif | Jpeg | Png | WebP))
}
