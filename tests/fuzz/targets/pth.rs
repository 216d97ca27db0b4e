//! Whole PyTorch checkpoints.
#![no_main]

mod common;

use common::checkpoint::pth;

libfuzzer_sys::fuzz_target!(|file: &[u8]| common::check(file, pth::header));
