//! The numbers of `wan-i2v analyze`, on clips whose answers are known.

mod drawn;
mod faults;
mod figures;
mod files;
mod latents;
mod pages;
mod sound;
