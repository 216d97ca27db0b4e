//! Whole PyTorch checkpoints.
#![no_main]

mod common;

use common::container::pth;
use common::util;

libfuzzer_sys::fuzz_target!(|file: &[u8]| common::check(file, pth::header));
