//! All integration tests.
//!
//! | module | what it tests |
//! | --- | --- |
//! | [`analysis`] | `analyze`: its figures on clips whose answers are known, and what it finds in faulty ones |
//! | [`caches`] | step caches and guidance intervals against a denoising loop without them |
//! | [`cli`] | the program, run as a user runs it: flags, settings, messages, signals, saved runs, batches, sweeps |
//! | [`compare`] | `compare`: differences between tensors of checkpoints and of dumps |
//! | [`cost`] | the forecast of operations and memory against what a run takes |
//! | [`doctor`] | `doctor`: sound models pass, damaged ones are found |
//! | [`faults_visible`] | planted faults, and whether they show in the miniature's clips |
//! | [`hub`] | downloads, resumed and hostile ones, and conversion while downloading, from a server in this process |
//! | [`layouts`] | one random model in every layout of files: it loads and gives the same latents |
//! | [`media`] | pictures in; clips, strips and tags out |
//! | [`noise`] | the initial noise against PyTorch's |
//! | [`reference`] | every part of the networks, schedules and whole runs against PyTorch and diffusers, by number |
//! | [`spiece`] | SentencePiece models as tokenizers |
//! | [`text`] | cleaning and tokenizing against transformers |
//! | [`tiny`] | what the miniature's clips show |
//! | [`weights`] | the readers of checkpoints against damaged, mismatched and unusual files |
//!
//! [`support`] is what they share. Golden data is in `tests/golden` and `tests/data`; the scripts
//! that made it are `scripts/golden` and `scripts/golden_*.py`.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

mod support;

mod analysis;
mod caches;
mod cli;
mod compare;
mod cost;
mod doctor;
mod faults_visible;
mod hub;
mod layouts;
mod media;
mod noise;
mod reference;
mod spiece;
mod text;
mod tiny;
mod weights;
