//! Pictures in and clips out.

mod clip;
mod colour;
mod picture;
mod strip;
mod tags;
