//! Files of jobs. The first byte says which kind: c for CSV, t for TOML, anything else for JSON
//! lines.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/batch/table.rs"]
mod table;
#[allow(dead_code)]
#[path = "../../../src/util/mod.rs"]
mod util;

use std::path::Path;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Some((kind, text)) = file.split_first() else {
        return;
    };
    let path = match kind {
        b'c' => "jobs.csv",
        b't' => "jobs.toml",
        _ => "jobs.jsonl",
    };
    if let Ok(jobs) = table::parse(Path::new(path), text) {
        assert!(!jobs.jobs.is_empty());
    }
});
