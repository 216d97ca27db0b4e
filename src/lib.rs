//! Image-to-video with Wan2.2 I2V-A14B on MLX.
//!
//! The flow of one clip: [`request`] -> [`text`] -> [`pipeline`] (text encoding, image
//! condition, denoising with [`schedule`] and [`noise`], decoding) -> [`media`]; [`resume`] keeps
//! its state on disk. The networks are in [`model`], their weights come from [`checkpoint`], and
//! [`backend`] is the one place that knows how MLX's backends differ. A clip's file keeps a [`record`] of how it
//! was made.

pub mod analysis;
pub mod backend;
pub mod batch;
pub mod checkpoint;
pub mod compare;
pub mod doctor;
pub mod dump;
pub mod forecast;
mod hex;
mod host;
pub mod hub;
mod limits;
pub mod media;
pub mod model;
pub mod nearest;
pub mod noise;
pub mod pipeline;
pub mod preview;
pub mod pull;
pub mod record;
pub mod request;
pub mod resume;
pub mod schedule;
pub mod sweep;
pub mod text;
pub mod tiny;
