//! Pictures in and clips out.

mod clip;
mod picture;
mod strip;
mod tags;
