//! GGUF files.
#![no_main]

mod common;

use common::container::gguf;
use common::util;

libfuzzer_sys::fuzz_target!(|file: &[u8]| common::check(file, gguf::header));
