//! Safetensors files.
#![no_main]

mod common;

use common::container::safetensors;
use common::util;

libfuzzer_sys::fuzz_target!(|file: &[u8]| common::check(file, safetensors::header));
